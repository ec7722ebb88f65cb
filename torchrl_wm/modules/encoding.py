"""One entry of a TorchRL spec as a flat vector of floats, and back."""

from __future__ import annotations

import torch
from tensordict.utils import NestedKey
from torch import Tensor
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


def sorted_leaves(spec: TensorSpec, name: NestedKey) -> dict[NestedKey, TensorSpec]:
    """The leaves of a Composite in sorted order of their keys; a single leaf is called ``name``."""
    if not isinstance(spec, Composite):
        return {name: spec}
    leaves = dict(spec.items(True, True))
    return dict(sorted(leaves.items(), key=lambda item: key_name(item[0])))


def key_name(key: NestedKey) -> str:
    """A key as one string, the parts of a nested one joined with dots."""
    return key if isinstance(key, str) else ".".join(key)


def groups(spec: TensorSpec) -> list[int] | None:
    """Class counts of the one-hot groups of the flat form; ``None`` where it holds plain numbers.

    Examples:
        >>> groups(OneHot(3)), groups(MultiCategorical([2, 4])), groups(Bounded(-1, 1, (2,)))
        ([3], [2, 4], None)
    """
    if isinstance(spec, Binary):
        return None
    if isinstance(spec, MultiCategorical | MultiOneHot):
        return [int(n) for n in spec.nvec]
    if isinstance(spec, Categorical):
        return [int(spec.n)] * spec.shape.numel()
    if isinstance(spec, OneHot):
        return [int(spec.space.n)] * spec.shape[:-1].numel()
    return None


def encoded_size(key: NestedKey, spec: TensorSpec) -> int:
    """Length of the flat form of an entry.

    Raises:
        TypeError: for a spec without a flat form; the message names the entry.
    """
    if isinstance(spec, MultiCategorical) and len(spec.shape) > 1:
        raise TypeError(
            f"The entry {key!r} has the unsupported shape {list(spec.shape)} of a MultiCategorical; "
            "supported is one dimension. Flatten it with torchrl.envs.FlattenObservation."
        )
    counts = groups(spec)
    if counts is not None:
        return sum(counts)
    if isinstance(spec, Binary | Bounded | Unbounded):
        return spec.shape.numel()
    raise TypeError(
        f"The entry {key!r} has the unsupported spec {type(spec).__name__}; supported are OneHot, "
        "MultiOneHot, Categorical, MultiCategorical, Binary, Bounded and Unbounded, alone or in a "
        "Composite."
    )


def encode_leaf(spec: TensorSpec, value: Tensor) -> Tensor:
    """An entry ``[..., *spec.shape]`` as float32 ``[..., size]``; indices become one-hot vectors.

    Examples:
        >>> encode_leaf(Categorical(3), torch.tensor([2]))
        tensor([[0., 0., 1.]])
    """
    if isinstance(spec, MultiCategorical):
        parts = zip(value.long().unbind(-1), groups(spec), strict=True)
        return torch.cat([F.one_hot(index, count) for index, count in parts], -1).float()
    if isinstance(spec, Categorical) and not isinstance(spec, Binary):
        value = F.one_hot(value.long(), int(spec.n))
        return value.float().flatten(value.ndim - 1 - len(spec.shape))
    if not len(spec.shape):
        return value.float().unsqueeze(-1)
    return value.float().flatten(value.ndim - len(spec.shape))


def decode_leaf(spec: TensorSpec, flat: Tensor) -> Tensor:
    """The inverse of :func:`encode_leaf`: ``[..., size]`` to an entry ``[..., *spec.shape]``.

    Each one-hot group takes its largest class; numbers stay as they are (a Binary is split at 0.5).

    Examples:
        >>> decode_leaf(Categorical(3), torch.tensor([[0.0, 0.0, 1.0]]))
        tensor([2])
    """
    counts = groups(spec)
    if counts is None:
        value = flat > 0.5 if isinstance(spec, Binary) else flat
        if not spec.dtype.is_floating_point and value.is_floating_point():
            value = value.round()
        return value.reshape((*flat.shape[:-1], *spec.shape)).to(spec.dtype)
    indices = [part.argmax(-1) for part in flat.split(counts, -1)]
    if isinstance(spec, OneHot | MultiOneHot):
        pairs = zip(indices, counts, strict=True)
        value = torch.cat([F.one_hot(index, count) for index, count in pairs], -1)
    else:
        value = torch.stack(indices, -1)
    return value.reshape((*flat.shape[:-1], *spec.shape)).to(spec.dtype)
