"""Entries that losses read, or errors that name them."""

from __future__ import annotations

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor


def scalar_entry(tensordict: TensorDictBase, key: NestedKey, loss: object) -> Tensor:
    """The entry ``[*batch, 1]`` called ``key``.

    Raises:
        KeyError: where it is missing.
        ValueError: where it has another shape.
    """
    value, name = tensordict.get(key, None), type(loss).__name__
    if value is None:
        found = sorted(map(str, tensordict.keys(True, True)))
        raise KeyError(f"{name} needs the entry {key!r}; found {found}.")
    if value.shape != (*tensordict.batch_size, 1):
        raise ValueError(
            f"{name} reads the entry {key!r} as [..., 1], but in a batch {list(tensordict.batch_size)} its "
            f"shape is {list(value.shape)}."
        )
    return value
