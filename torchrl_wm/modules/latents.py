"""Stochastic latents: what the raw outputs of a network mean, and how to draw from them.

The draws come from outside: every ``rsample`` takes standard noise, so that training, acting and a
reference code can be given the very same draws.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_wm.functional.divergences import categorical_kl, gaussian_kl

Statistics = tuple[Tensor, ...]


class GaussianLatent(nn.Module):
    """A diagonal Gaussian (PlaNet, https://arxiv.org/abs/1811.04551; Dreamer v1).

    Args:
        size (int): number of variables.
        min_std (float, optional): added to every standard deviation. Defaults to ``0.1``.
        std (str, optional): ``"softplus"`` (PlaNet, v1) or ``"sigmoid2"`` (v2: twice the sigmoid of
            half). Defaults to ``"softplus"``.

    Examples:
        >>> latent = GaussianLatent(3)
        >>> mean, std = latent.statistics(torch.zeros(2, latent.raw_size))
        >>> latent.rsample((mean, std), latent.noise((2,))).shape
        torch.Size([2, 3])
    """

    names = ("mean", "std")

    def __init__(
        self, size: int, *, min_std: float = 0.1, std: Literal["softplus", "sigmoid2"] = "softplus"
    ):
        super().__init__()
        if std not in ("softplus", "sigmoid2"):
            raise ValueError(f"Unknown std {std!r}; expected 'softplus' or 'sigmoid2'.")
        self.size = self.flat_size = self.noise_size = size
        self.raw_size = 2 * size
        self.min_std, self.std = min_std, std

    def statistics(self, raw: Tensor) -> Statistics:
        """``[..., 2 S]`` to the mean and the standard deviation, ``[..., S]`` each."""
        mean, std = raw.float().chunk(2, -1)
        std = std.contiguous()  # on a CPU softplus takes three times as long on a view
        std = F.softplus(std) if self.std == "softplus" else 2 * torch.sigmoid(std / 2)
        return mean, std + self.min_std

    def noise(self, shape, *, device=None, generator: torch.Generator | None = None) -> Tensor:
        """Unit normal noise ``[*shape, S]``."""
        return torch.randn(*shape, self.noise_size, device=device, generator=generator)

    def rsample(self, statistics: Statistics, noise: Tensor) -> Tensor:
        """A reparametrised sample ``[..., S]``."""
        mean, std = statistics
        return mean + std * noise

    def mode(self, statistics: Statistics) -> Tensor:
        """The mean."""
        return statistics[0]

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

    The noise is Gumbel noise: a sample is the class of the largest sum of log-probability and noise.
    Noise that is very large in one class forces that class.

    Examples:
        >>> latent = CategoricalLatent(2, 3, unimix=0.01)
        >>> force = 1e9 * torch.tensor([[0.0, 1, 0, 0, 0, 1]])
        >>> latent.rsample(latent.statistics(torch.zeros(1, 6)), force)
        tensor([[0., 1., 0., 0., 0., 1.]])
    """

    names = ("logits",)

    def __init__(self, categoricals: int, classes: int, *, unimix: float = 0.0):
        super().__init__()
        self.size, self.classes, self.unimix = categoricals, classes, unimix
        self.flat_size = self.raw_size = self.noise_size = categoricals * classes

    def statistics(self, raw: Tensor) -> Statistics:
        """``[..., S K]`` to logits ``[..., S, K]``, not yet mixed with the uniform distribution."""
        return (raw.float().unflatten(-1, (self.size, self.classes)),)

    def noise(self, shape, *, device=None, generator: torch.Generator | None = None) -> Tensor:
        """Gumbel noise ``[*shape, S K]``."""
        # From uniform numbers: four times as fast on a CPU as torch's exponential ones.
        uniform = torch.rand(*shape, self.noise_size, device=device, generator=generator)
        return uniform.log_().neg_().log_().neg_()

    def log_probs(self, statistics: Statistics) -> Tensor:
        """Normalised log-probabilities ``[..., S, K]`` after mixing in the uniform distribution."""
        (logits,) = statistics
        if not self.unimix:
            return F.log_softmax(logits, -1)
        return ((1 - self.unimix) * _softmax(logits) + self.unimix / self.classes).log()

    def rsample(self, statistics: Statistics, noise: Tensor) -> Tensor:
        """A flat one-hot sample ``[..., S K]`` whose gradient is that of the probabilities."""
        log_probs = self.log_probs(statistics)
        best = (log_probs + noise.view_as(log_probs)).argmax(-1, keepdim=True)
        sample = (best == torch.arange(self.classes, device=best.device)).to(log_probs.dtype)
        if torch.is_grad_enabled() and log_probs.requires_grad:
            probs = log_probs.exp()
            sample = sample + (probs - probs.detach())
        return sample.flatten(-2)

    def mode(self, statistics: Statistics) -> Tensor:
        """The most probable classes, one-hot and flat."""
        logits = statistics[0]
        return F.one_hot(logits.argmax(-1), self.classes).to(logits.dtype).flatten(-2)

    def kl(self, statistics: Statistics, other: Statistics) -> Tensor:
        """KL of the first from the second, ``[...]`` nats."""
        return categorical_kl(self.log_probs(statistics), self.log_probs(other))

    def entropy(self, statistics: Statistics) -> Tensor:
        """Entropy ``[...]`` in nats."""
        log_probs = self.log_probs(statistics)
        return -(log_probs.exp() * log_probs).sum((-2, -1))


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities ``[..., S, K]``.

    Few classes do not fill the vector registers of a CPU: they are laid across the variables instead,
    which takes a fifth of the time for 4 classes and twice the time for 16.
    """
    if logits.shape[-1] < 8:
        return F.softmax(logits.mT.contiguous(), -2).mT
    return F.softmax(logits, -1)


Latent = GaussianLatent | CategoricalLatent
