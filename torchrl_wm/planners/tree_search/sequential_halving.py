"""Sequential halving: how often each considered action is visited, and in which order."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


def considered_visits(num_considered: int, num_simulations: int) -> list[int]:
    """The visit count that an action must have to be tried in each simulation.

    The budget is divided evenly among ``ceil(log2(m))`` phases; each phase visits its actions in
    rounds, then keeps the better half (two at least), as in Gumbel MuZero
    (https://openreview.net/forum?id=bERaNdoegnO). A budget too small for all phases cuts off the last
    ones.

    Args:
        num_considered (int): ``m``, the actions of the first phase.
        num_simulations (int): length of the result.

    Examples:
        >>> considered_visits(4, 8)
        [0, 0, 0, 0, 1, 1, 2, 2]
        >>> considered_visits(1, 3)
        [0, 1, 2]
    """
    if num_considered <= 1:
        return list(range(num_simulations))
    phases = math.ceil(math.log2(num_considered))
    schedule: list[int] = []
    remaining, visits = num_considered, 0
    while len(schedule) < num_simulations:
        rounds = max(1, num_simulations // (phases * remaining))
        for _ in range(rounds):
            schedule += [visits] * remaining
            visits += 1
        remaining = max(2, remaining // 2)
    return schedule[:num_simulations]


@lru_cache(maxsize=64)
def considered_visits_table(max_considered: int, num_simulations: int) -> np.ndarray:
    """Row ``m`` of ``[max_considered + 1, num_simulations]`` int32 is the schedule of ``m`` actions.

    Examples:
        >>> considered_visits_table(2, 3)
        array([[0, 1, 2],
               [0, 1, 2],
               [0, 0, 1]], dtype=int32)
    """
    counts = range(max_considered + 1)
    return np.array([considered_visits(m, num_simulations) for m in counts], dtype=np.int32)
