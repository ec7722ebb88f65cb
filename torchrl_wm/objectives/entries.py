"""Entries that losses read and write, or errors that name them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor


def check_distinct(names: Iterable[NestedKey]) -> None:
    """Checks the entries that a loss writes, some of which are named after observations.

    Raises:
        ValueError: where two have the same name.
    """
    repeated = [key for key, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"Two terms would be called {repeated[0]!r}: an observation has the name of another, or of "
            "a term that every model has. Rename it with torchrl.envs.RenameTransform."
        )


def entry(tensordict: TensorDictBase, key: NestedKey, loss: object) -> Tensor:
    """The entry called ``key``.

    Raises:
        KeyError: where it is missing.
    """
    value = tensordict.get(key, None)
    if value is None:
        found = sorted(map(str, tensordict.keys(True, True)))
        raise KeyError(f"{type(loss).__name__} needs the entry {key!r}; found {found}.")
    return value


def scalar_entry(tensordict: TensorDictBase, key: NestedKey, loss: object) -> Tensor:
    """The entry ``[*batch, 1]`` called ``key``.

    Raises:
        KeyError: where it is missing.
        ValueError: where it has another shape.
    """
    value, name = entry(tensordict, key, loss), type(loss).__name__
    if value.shape != (*tensordict.batch_size, 1):
        raise ValueError(
            f"{name} reads the entry {key!r} as [..., 1], but in a batch {list(tensordict.batch_size)} its "
            f"shape is {list(value.shape)}."
        )
    return value


def flag_entry(tensordict: TensorDictBase, key: NestedKey, loss: object) -> Tensor:
    """The entry ``[*batch, 1]`` of truth values called ``key``.

    Raises:
        KeyError: where it is missing.
        ValueError: where it has another shape.
        TypeError: where it holds numbers, whose negation would be another number.
    """
    value = scalar_entry(tensordict, key, loss)
    if value.dtype != torch.bool:
        raise TypeError(
            f"{type(loss).__name__} reads the entry {key!r} as truth values (torch.bool), but it holds "
            f"{value.dtype}; convert it with .bool()."
        )
    return value
