"""Actions of any TorchRL spec as one flat float vector, the form in which a world model reads them."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    TensorSpec,
    Unbounded,
)

from torchrl_wm import keys


class ActionEncoding(nn.Module):
    """Encodes the action entries of a TensorDict as one vector ``[..., size]`` of float32.

    One-hot, multi-one-hot and binary actions are cast, indices become one-hot vectors, continuous
    actions are flattened; several action entries are joined in the sorted order of their keys.

    Args:
        action_spec (TensorSpec): spec of one unbatched action, or a (nested) Composite of several.
        action_key (NestedKey, optional): name of the action where ``action_spec`` is a single leaf.
            Defaults to ``"action"``.

    Raises:
        TypeError: for a spec without an encoding; the message names the entry and the supported ones.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded, Categorical, Composite
        >>> spec = Composite(arm=Bounded(-1, 1, (2,)), gear=Categorical(3))
        >>> encode = ActionEncoding(spec)
        >>> encode(TensorDict(arm=torch.tensor([[0.5, -1.0]]), gear=torch.tensor([2]), batch_size=[1]))
        tensor([[ 0.5000, -1.0000,  0.0000,  0.0000,  1.0000]])
    """

    def __init__(self, action_spec: TensorSpec, action_key: NestedKey = keys.ACTION):
        super().__init__()
        if isinstance(action_spec, Composite):
            leaves = {key: spec for key, spec in action_spec.items(True, True)}
        else:
            leaves = {action_key: action_spec}
        if not leaves:
            raise TypeError("The action spec has no entry; a world model needs at least one action.")
        self.leaves = dict(sorted(leaves.items(), key=lambda item: _sort_name(item[0])))
        self.sizes = {key: _encoded_size(key, spec) for key, spec in self.leaves.items()}
        self.size = sum(self.sizes.values())

    @property
    def in_keys(self) -> list[NestedKey]:
        """The action entries read, in the order of their encoding."""
        return list(self.leaves)

    def forward(self, tensordict: TensorDictBase) -> Tensor:
        """Encodes the action entries of ``tensordict`` (batch size ``[...]``) to ``[..., size]``."""
        parts = []
        for key, spec in self.leaves.items():
            action = tensordict.get(key, None)
            if action is None:
                raise KeyError(f"The action {key!r} is missing; found {sorted(map(str, tensordict.keys(True, True)))}.")
            parts.append(self.encode(key, action))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def encode(self, key: NestedKey, action: Tensor) -> Tensor:
        """Encodes one action entry: ``[..., *shape]`` to ``[..., size of that entry]``."""
        spec = self.leaves[key]
        if isinstance(spec, MultiCategorical):
            parts = action.long().unbind(-1)
            return torch.cat([F.one_hot(a, int(n)) for a, n in zip(parts, spec.nvec, strict=True)], -1).float()
        if isinstance(spec, Categorical) and not isinstance(spec, Binary):
            return F.one_hot(action.long(), spec.n).float().flatten(action.ndim - len(spec.shape))
        if not len(spec.shape):
            return action.float().unsqueeze(-1)
        return action.float().flatten(action.ndim - len(spec.shape))


def _sort_name(key: NestedKey) -> str:
    return key if isinstance(key, str) else ".".join(key)


def _encoded_size(key: NestedKey, spec: TensorSpec) -> int:
    if isinstance(spec, MultiCategorical):
        return int(sum(spec.nvec))
    if isinstance(spec, Categorical) and not isinstance(spec, Binary):
        return int(spec.n) * spec.shape.numel()
    if isinstance(spec, OneHot | MultiOneHot | Binary | Bounded | Unbounded):
        return spec.shape.numel()
    raise TypeError(
        f"The action {key!r} has the unsupported spec {type(spec).__name__}; supported are OneHot, MultiOneHot, "
        "Categorical, MultiCategorical, Binary, Bounded and Unbounded, alone or in a Composite."
    )
