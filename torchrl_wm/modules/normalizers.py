"""Running normalisation of returns."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchrl.modules import ValueNorm


class ReturnNormalizer(ValueNorm):
    """Exponential averages of two percentiles, or of mean and square (arXiv:2301.04104).

    TorchRL's own ``PercentileValueNorm`` matches the percentiles without ``debias``; DreamerV3's code
    has all four variants. The averages start at 0.

    Args:
        statistic (str, optional): ``"percentile"`` (scale: the distance of the two percentiles,
            offset: the lower one) or ``"mean_std"``. Defaults to ``"percentile"``.
        rate (float, optional): weight of a new batch. Defaults to ``0.01``.
        limit (float, optional): smallest scale. Defaults to ``1.0``.
        percentiles (tuple, optional): lower and upper, in percent. Defaults to ``(5.0, 95.0)``.
        debias (bool, optional): divide by the total weight so far, which removes the bias of the start
            at 0. Defaults to ``False``.

    Raises:
        ValueError: for an unknown ``statistic``.

    Examples:
        >>> normalizer = ReturnNormalizer(rate=1.0)
        >>> normalizer.update(torch.linspace(0, 100, 101))
        >>> normalizer.scale(), normalizer.offset()
        (tensor(90.), tensor(5.))
    """

    def __init__(
        self,
        statistic: Literal["percentile", "mean_std"] = "percentile",
        *,
        rate: float = 0.01,
        limit: float = 1.0,
        percentiles: tuple[float, float] = (5.0, 95.0),
        debias: bool = False,
    ):
        super().__init__(shape=())
        if statistic not in ("percentile", "mean_std"):
            raise ValueError(
                f"Unknown statistic {statistic!r}; expected 'percentile' or 'mean_std'."
            )
        self.statistic, self.rate, self.limit, self.debias = statistic, rate, limit, debias
        quantiles = torch.tensor([p / 100 for p in percentiles])  # once: a GPU waits for copies
        self.register_buffer("quantiles", quantiles, persistent=False)
        self.register_buffer("averages", torch.zeros(2))
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def update(self, value_target: Tensor) -> None:
        """Updates the averages with a batch of returns of any shape."""
        value = value_target.detach().float()
        if self.statistic == "percentile":
            batch = torch.quantile(value.flatten(), self.quantiles.to(value))
        else:
            batch = torch.stack([value.mean(), value.square().mean()])
        self.averages.lerp_(batch, self.rate)
        self.weight.lerp_(torch.ones_like(self.weight), self.rate)

    def offset(self) -> Tensor:
        """The lower percentile or the mean."""
        return self._statistics()[0].clone()

    def scale(self) -> Tensor:
        """The distance of the percentiles or the standard deviation, at least ``limit``."""
        first, second = self._statistics()
        if self.statistic == "percentile":
            return (second - first).clamp_min(self.limit)
        return (second - first.square()).clamp_min(0).sqrt().clamp_min(self.limit)

    def normalize(self, value_target: Tensor) -> Tensor:
        """The values minus the offset, divided by the scale."""
        return (value_target - self.offset()) / self.scale()

    def denormalize(self, normalised_value: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`."""
        return normalised_value * self.scale() + self.offset()

    def _statistics(self) -> Tensor:
        return self.averages / self.weight.clamp_min(self.rate) if self.debias else self.averages
