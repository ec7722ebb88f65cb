"""Stochastic latents: what the raw outputs of a network mean, and how to sample from them.

Randomness comes from outside: every ``rsample`` takes standard noise, so that training, acting and a
reference code can be given the very same draws.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_wm.functional.divergences import categorical_kl, gaussian_kl
from torchrl_wm.functional.one_hot import one_hot_of_largest
from torchrl_wm.programs.draws import unit_exponential, unit_normal
from torchrl_wm.ranges import SHARE

Statistics = tuple[Tensor, ...]
StandardDeviation = Literal["softplus", "sigmoid", "sigmoid2"]

_LITTLE = 2**12  # numbers; where both ways to draw from few classes take equally long

_POSITIVE = {
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "sigmoid2": lambda x: 2 * torch.sigmoid(x / 2),
}


class GaussianLatent(nn.Module):
    """A diagonal Gaussian (PlaNet, https://arxiv.org/abs/1811.04551; Dreamer v1).

    Args:
        size (int): number of variables.
        min_std (float, optional): added to every standard deviation. Defaults to ``0.1``.
        std (str, optional): how a deviation is made positive: ``"softplus"`` (PlaNet, v1), ``"sigmoid"``
            or ``"sigmoid2"`` (v2: ``2 * sigmoid(x / 2)``). Defaults to ``"softplus"``.

    Raises:
        ValueError: for an unknown ``std``.

    Examples:
        >>> latent = GaussianLatent(3)
        >>> mean, std = latent.statistics(torch.zeros(2, latent.raw_size))
        >>> latent.rsample((mean, std), latent.noise((2,))).shape
        torch.Size([2, 3])
    """

    names = ("mean", "std")
    mode_noise = 0.0
    """Noise with which :meth:`rsample` gives the most probable sample."""

    def __init__(self, size: int, *, min_std: float = 0.1, std: StandardDeviation = "softplus"):
        super().__init__()
        if std not in _POSITIVE:
            raise ValueError(f"Unknown std {std!r}; expected one of {sorted(_POSITIVE)}.")
        self.size = self.flat_size = self.noise_size = size
        self.raw_size = 2 * size
        self.min_std, self.std = min_std, std

    def statistics(self, raw: Tensor) -> Statistics:
        """``[..., 2 S]`` to the mean and the standard deviation, ``[..., S]`` each."""
        mean, std = raw.float().chunk(2, -1)
        std = std.contiguous()  # on a CPU softplus takes three times as long on a view
        return mean, _POSITIVE[self.std](std) + self.min_std

    def noise(self, shape, *, device=None, generator: torch.Generator | None = None) -> Tensor:
        """Unit normal noise ``[*shape, S]``."""
        return unit_normal((*shape, self.noise_size), device=device, generator=generator)

    def rsample(self, statistics: Statistics, noise: Tensor) -> Tensor:
        """A reparametrised sample ``[..., S]``."""
        mean, std = statistics
        return mean + std * noise

    def kl(self, statistics: Statistics, other: Statistics) -> Tensor:
        """KL of the first from the second, ``[...]`` nats."""
        return gaussian_kl(*statistics, *other)

    def entropy(self, statistics: Statistics) -> Tensor:
        """Entropy ``[...]`` in nats."""
        return torch.distributions.Normal(*statistics).entropy().sum(-1)


class CategoricalLatent(nn.Module):
    """Independent categoricals with straight-through gradients (Dreamer v2 and v3).

    Args:
        categoricals (int): number of variables ``S``.
        classes (int): number of classes ``K`` of each; a sample is flat, ``[..., S * K]``.
        unimix (float, optional): share of the uniform distribution mixed into the probabilities, in
            samples, gradients and divergences alike. ``0`` in v2, ``0.01`` in v3
            (https://arxiv.org/abs/2301.04104). Defaults to ``0.0``.

    The noise is the reciprocal of Exponential(1) draws: a sample is the class whose probability times
    noise is largest. One-hot noise forces its class.

    Examples:
        >>> latent = CategoricalLatent(2, 3, unimix=0.01)
        >>> force = torch.tensor([[0.0, 1, 0, 0, 0, 1]])
        >>> latent.rsample(latent.statistics(torch.zeros(1, 6)), force)
        tensor([[0., 1., 0., 0., 0., 1.]])
    """

    names = ("logits",)
    mode_noise = 1.0
    """Noise with which :meth:`rsample` gives the most probable sample."""

    def __init__(self, categoricals: int, classes: int, *, unimix: float = 0.0):
        super().__init__()
        SHARE.check(unimix=unimix)
        self.size, self.classes, self.unimix = categoricals, classes, unimix
        self.flat_size = self.raw_size = self.noise_size = categoricals * classes

    def statistics(self, raw: Tensor) -> Statistics:
        """``[..., S K]`` to logits ``[..., S, K]``, not yet mixed with the uniform distribution."""
        return (raw.float().unflatten(-1, (self.size, self.classes)),)

    def noise(self, shape, *, device=None, generator: torch.Generator | None = None) -> Tensor:
        """Reciprocals of Exponential(1) draws, ``[*shape, S K]``."""
        size = (*shape, self.noise_size)
        return unit_exponential(size, device=device, generator=generator).reciprocal_()

    def probs(self, statistics: Statistics) -> Tensor:
        """Probabilities ``[..., S, K]`` after mixing in the uniform distribution."""
        probs = _softmax(statistics[0])
        return (1 - self.unimix) * probs + self.unimix / self.classes if self.unimix else probs

    def log_probs(self, statistics: Statistics) -> Tensor:
        """Their logarithms ``[..., S, K]``."""
        return self.probs(statistics).log() if self.unimix else F.log_softmax(statistics[0], -1)

    def rsample(self, statistics: Statistics, noise: Tensor) -> Tensor:
        """A flat one-hot sample ``[..., S K]`` whose gradient is that of the probabilities."""
        probs = self.probs(statistics)
        sample = _one_hot_of_largest(probs.detach() * noise.view_as(probs))
        if torch.is_grad_enabled() and probs.requires_grad:
            sample = sample + (probs - probs.detach())
        return sample.flatten(-2)

    def kl(self, statistics: Statistics, other: Statistics) -> Tensor:
        """KL of the first from the second, ``[...]`` nats."""
        return categorical_kl(self.log_probs(statistics), self.log_probs(other))

    def entropy(self, statistics: Statistics) -> Tensor:
        """Entropy ``[...]`` in nats."""
        log_probs = self.log_probs(statistics)
        return -(log_probs.exp() * log_probs).sum((-2, -1))


def _across(x: Tensor) -> bool:
    """Whether loops should run across the variables ``[..., S, K]``, and not within each.

    A few classes do not fill the vector registers of a CPU. With 4 of them a loop across takes a fifth of
    the time for a softmax, a third for an ``argmax``; with 16 twice the time; of little it takes longer,
    as it has more operations.
    """
    return x.shape[-1] < 8 and x.numel() > _LITTLE


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities ``[..., S, K]``."""
    if _across(logits):
        return F.softmax(logits.mT.contiguous(), -2).mT
    return F.softmax(logits, -1)


def _one_hot_of_largest(scores: Tensor) -> Tensor:
    """The first class with the largest score ``[..., S, K]``, one-hot."""
    if not _across(scores):
        return one_hot_of_largest(scores)
    largest, *others = scores.unbind(-1)
    best = torch.zeros_like(largest)
    for index, score in enumerate(others, 1):
        best = torch.where(score > largest, float(index), best)
        largest = torch.maximum(score, largest)
    classes = range(scores.shape[-1])
    return torch.stack([best == index for index in classes], -1).to(scores.dtype)


Latent = GaussianLatent | CategoricalLatent
