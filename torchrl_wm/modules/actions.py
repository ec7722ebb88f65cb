"""Actions of any TorchRL spec as one flat float vector, the form that a world model reads."""

from __future__ import annotations

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, cat, nn
from torchrl.data import Binary, Bounded, Categorical, TensorSpec

from torchrl_wm import keys
from torchrl_wm.modules.encoding import (
    decode_leaf,
    encode_leaf,
    encoded_size,
    groups,
    sorted_leaves,
)


class ActionEncoding(nn.Module):
    """Encodes the action entries of a TensorDict as one float32 vector ``[..., size]``.

    One-hot, multi-one-hot and binary actions are cast, indices become one-hot vectors, continuous
    actions are flattened; several action entries are joined in the sorted order of their keys.

    Args:
        action_spec (TensorSpec): spec of one unbatched action, or a (nested) Composite of several.
        action_key (NestedKey, optional): name of the action where ``action_spec`` is a single leaf.
            Defaults to ``"action"``.

    Raises:
        TypeError: for a spec without an encoding; the message names the entry.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Composite
        >>> spec = Composite(arm=Bounded(-1, 1, (2,)), gear=Categorical(3))
        >>> encode = ActionEncoding(spec)
        >>> arm, gear = torch.tensor([[0.5, -1.0]]), torch.tensor([2])
        >>> action = TensorDict(arm=arm, gear=gear, batch_size=1)
        >>> encode(action)
        tensor([[ 0.5000, -1.0000,  0.0000,  0.0000,  1.0000]])
        >>> encode.decode(encode(action), TensorDict(batch_size=1))["gear"]
        tensor([2])
    """

    def __init__(self, action_spec: TensorSpec, action_key: NestedKey = keys.ACTION):
        super().__init__()
        self.leaves = sorted_leaves(action_spec, action_key)
        if not self.leaves:
            raise TypeError(
                "The action spec has no entry; a world model needs at least one action."
            )
        self.sizes = {key: encoded_size(key, spec) for key, spec in self.leaves.items()}
        self.size = sum(self.sizes.values())
        for i, spec in enumerate(self.leaves.values()):
            if isinstance(spec, Bounded) and not isinstance(spec, Binary | Categorical):
                self.register_buffer(f"low_{i}", spec.space.low.clone(), persistent=False)
                self.register_buffer(f"high_{i}", spec.space.high.clone(), persistent=False)

    @property
    def in_keys(self) -> list[NestedKey]:
        """The action entries that are read, in the order of their encoding."""
        return list(self.leaves)

    @property
    def choices(self) -> int | None:
        """The number of actions where an action is a single choice (OneHot, Categorical), else ``None``."""
        counts = [groups(spec) for spec in self.leaves.values()]
        single = len(counts) == 1 and counts[0] is not None and len(counts[0]) == 1
        return counts[0][0] if single else None

    def forward(self, tensordict: TensorDictBase) -> Tensor:
        """Encodes the actions of ``tensordict`` (batch size ``[...]``) to ``[..., size]``.

        Raises:
            KeyError: for a missing action.
            ValueError: for one of another shape than in the spec.
        """
        parts, batch = [], tensordict.batch_size
        for key, spec in self.leaves.items():
            action = tensordict.get(key, None)
            if action is None:
                found = sorted(map(str, tensordict.keys(True, True)))
                raise KeyError(f"The action {key!r} is missing; found {found}.")
            if action.shape != (*batch, *spec.shape):
                raise ValueError(
                    f"The action {key!r} has the shape {list(action.shape)}; expected {list(spec.shape)} "
                    f"after the batch dimensions {list(batch)}."
                )
            parts.append(self.encode(key, action))
        return parts[0] if len(parts) == 1 else cat(parts, -1)

    def encode(self, key: NestedKey, action: Tensor) -> Tensor:
        """Encodes one action entry: ``[..., *shape]`` to ``[..., size of that entry]``."""
        return encode_leaf(self.leaves[key], action)

    def clip(self, flat: Tensor) -> Tensor:
        """Flat actions ``[..., size]`` with the values of Bounded entries clipped to their bounds."""
        parts = list(flat.split(list(self.sizes.values()), -1))
        for i, part in enumerate(parts):
            if f"low_{i}" in self._buffers:
                low, high = self.get_buffer(f"low_{i}"), self.get_buffer(f"high_{i}")
                parts[i] = part.clamp(low.flatten(), high.flatten())
        return parts[0] if len(parts) == 1 else cat(parts, -1)

    def decode(self, flat: Tensor, tensordict: TensorDictBase) -> TensorDictBase:
        """Sets the environment's action entries from their flat form, the inverse of ``forward``.

        Each one-hot group becomes its largest class; values of a Bounded entry are clipped to its
        bounds.

        Args:
            flat (Tensor): ``[..., size]``.
            tensordict (TensorDictBase): receives the entries; batch size ``[...]``.

        Returns:
            ``tensordict``.
        """
        if flat.shape[-1] != self.size:
            raise ValueError(
                f"A flat action of {flat.shape[-1]} numbers; {self.size} are expected."
            )
        parts = flat.split(list(self.sizes.values()), -1)
        for i, ((key, spec), part) in enumerate(zip(self.leaves.items(), parts, strict=True)):
            action = decode_leaf(spec, part)
            if f"low_{i}" in self._buffers:
                action = action.clamp(self.get_buffer(f"low_{i}"), self.get_buffer(f"high_{i}"))
            tensordict.set(key, action)
        return tensordict
