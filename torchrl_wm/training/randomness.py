"""The random state of a process as plain data."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from torchrl_wm.ranges import NUMBER


def seed_everything(seed: int) -> None:
    """Seeds the generators of torch (all devices), numpy and python.

    Raises:
        ValueError: for a seed that environments do not take.
    """
    NUMBER.check(seed=seed)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_state() -> dict[str, Any]:
    """The state of the global generators of torch, numpy and python, without pickled objects.

    Examples:
        >>> import torch
        >>> state = random_state()
        >>> first = torch.rand(3)
        >>> set_random_state(state)
        >>> torch.equal(first, torch.rand(3))
        True
    """
    _, numbers, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [torch.from_numpy(numbers.astype(np.int64)), int(position), has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restores what :func:`random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    numbers, position, has_gauss, gauss = state["numpy"]
    keys = numbers.numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


@contextmanager
def separate_randomness(*seeds: int) -> Iterator[None]:
    """Inside, random numbers follow from ``seeds``; afterwards the global state is as it was."""
    before = random_state()
    seed_everything(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
    try:
        yield
    finally:
        set_random_state(before)
