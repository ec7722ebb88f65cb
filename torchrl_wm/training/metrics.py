"""Averages of the metrics between two lines of the log."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor


class MetricWindow:
    """Sums metrics where they are (no synchronisation with a GPU) and averages them when asked.

    Examples:
        >>> from tensordict import TensorDict
        >>> window = MetricWindow()
        >>> window.add(TensorDict(loss=torch.tensor(1.0)))
        >>> window.add(TensorDict(loss=torch.tensor(3.0)))
        >>> window.close()
        {'loss': 2.0}
        >>> window.close()
        {}
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: TensorDictBase) -> None:
        """Adds one TensorDict of detached scalars; nested names are joined by a slash."""
        for key, value in metrics.items(True, True):
            name = key if isinstance(key, str) else "/".join(key)
            value = value.detach().double() if not value.is_cuda else value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """The averages so far."""
        if not self.sums:
            return {}
        sums = torch.stack([value.to("cpu", torch.float64) for value in self.sums.values()])
        names = zip(self.sums, sums.tolist(), strict=True)
        return {name: total / self.counts[name] for name, total in names}

    def close(self) -> dict[str, float]:
        """The averages since the last call; a new window begins."""
        means = self.means()
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts."""
        return {"sums": {k: v.cpu() for k, v in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


def not_finite(values: dict[str, float]) -> list[str]:
    """The names whose value is NaN or infinite, sorted.

    Examples:
        >>> not_finite({"loss": float("nan"), "norm": 1.0})
        ['loss']
    """
    return sorted(name for name, value in values.items() if not math.isfinite(value))
