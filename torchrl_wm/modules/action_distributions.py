"""Distributions over actions in their flat form: discrete, continuous and several together.

Every ``rsample`` accepts standard noise, as ``noise`` makes it, so that the draws of a reference code
or of a recorded run can be reproduced.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from torchrl_wm.functional.one_hot import one_hot_of_largest
from torchrl_wm.modules.distributions import Prediction
from torchrl_wm.programs.draws import unit_exponential, unit_normal


class OneHotCategorical(Prediction):
    """One choice among ``n`` as a one-hot vector, with straight-through gradients.

    Args:
        logits (Tensor): ``[..., n]``.
        unimix (float, optional): share of the uniform distribution in the probabilities, in all that
            is computed from them. Defaults to ``0.0``.

    The noise is Gumbel noise: a sample is the class where log-probability plus noise is largest.

    Examples:
        >>> policy = OneHotCategorical(torch.zeros(1, 4), unimix=0.01)
        >>> policy.log_prob(torch.tensor([[True, False, False, False]]))
        tensor([-1.3863])
    """

    def __init__(self, logits: Tensor, *, unimix: float = 0.0):
        super().__init__(logits, 1)
        self.log_probs = F.log_softmax(logits, -1)
        if unimix:
            probs = (1 - unimix) * self.log_probs.exp() + unimix / logits.shape[-1]
            self.log_probs = probs.log()

    @property
    def probs(self) -> Tensor:
        """Probabilities ``[..., n]``."""
        return self.log_probs.exp()

    @property
    def mean(self) -> Tensor:
        """The probabilities."""
        return self.probs

    @property
    def mode(self) -> Tensor:
        """The most probable class, one-hot."""
        return one_hot_of_largest(self.log_probs)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of one-hot vectors ``[..., n]`` of any dtype: ``[...]``."""
        return (self.log_probs * value).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy in nats ``[...]``."""
        return -(self.probs * self.log_probs).sum(-1)

    def noise(self, sample_shape=(), *, generator: torch.Generator | None = None) -> Tensor:
        """Gumbel noise for :meth:`rsample`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        like = {"dtype": self.log_probs.dtype, "device": self.log_probs.device}
        return unit_exponential(shape, generator=generator, **like).log_().neg_()

    def rsample(self, sample_shape=(), *, noise: Tensor | None = None) -> Tensor:
        """A one-hot sample ``[..., n]`` whose gradient is that of the probabilities."""
        noise = self.noise(sample_shape) if noise is None else noise
        sample = one_hot_of_largest(self.log_probs + noise)
        if torch.is_grad_enabled() and self.log_probs.requires_grad:
            probs = self.probs
            sample = sample + (probs - probs.detach())
        return sample


class DiagonalNormal(Prediction):
    """A normal distribution with one standard deviation per dimension.

    Args:
        loc (Tensor): mean ``[..., A]``.
        scale (Tensor): standard deviation ``[..., A]``.

    Examples:
        >>> policy = DiagonalNormal(torch.zeros(1, 2), torch.ones(1, 2))
        >>> policy.rsample(noise=torch.tensor([[0.5, -3.0]]))
        tensor([[ 0.5000, -3.0000]])
    """

    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor):
        super().__init__(loc, 1)
        self.loc, self.scale = loc, scale

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.loc

    @property
    def stddev(self) -> Tensor:
        """The standard deviation."""
        return self.scale

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of ``[..., A]``: ``[...]``."""
        error = ((value - self.loc) / self.scale).square()
        return -(0.5 * error + self.scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy in nats ``[...]``."""
        return (self.scale.log() + 0.5 * (1 + math.log(2 * math.pi))).sum(-1)

    def noise(self, sample_shape=(), *, generator: torch.Generator | None = None) -> Tensor:
        """Unit normal noise for :meth:`rsample`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        like = {"dtype": self.loc.dtype, "device": self.loc.device}
        return unit_normal(shape, generator=generator, **like)

    def rsample(self, sample_shape=(), *, noise: Tensor | None = None) -> Tensor:
        """A reparametrised sample ``[..., A]``."""
        noise = self.noise(sample_shape) if noise is None else noise
        return self.loc + self.scale * noise


class TanhNormal(DiagonalNormal):
    """The tanh of a normal variable, Dreamer v1's policy (https://arxiv.org/abs/1912.01603).

    Args:
        loc (Tensor): mean before the tanh, ``[..., A]``.
        scale (Tensor): standard deviation before the tanh, ``[..., A]``.

    ``log_prob`` first moves actions on the bounds inwards by 3e-8, so it stays finite there. The entropy
    has no closed form and is estimated from 100 samples. ``mode`` and ``mean`` are the tanh of the inner
    mean, which is the median.

    Examples:
        >>> policy = TanhNormal(torch.zeros(1, 1), torch.ones(1, 1))
        >>> policy.log_prob(torch.ones(1, 1)).isfinite()
        tensor([True])
    """

    _BORDER = 0.99999997

    @property
    def mean(self) -> Tensor:
        """The tanh of the inner mean: the median."""
        return torch.tanh(self.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of actions ``[..., A]`` in [-1, 1]: ``[...]``."""
        raw = torch.atanh(value.clamp(-self._BORDER, self._BORDER))
        return super().log_prob(raw) - _log_tanh_slope(raw).sum(-1)

    def entropy(self) -> Tensor:
        """Estimate of the entropy in nats ``[...]``, with gradients."""
        raw = super().rsample((100,))
        return super().entropy() + _log_tanh_slope(raw).sum(-1).mean(0)

    def rsample(self, sample_shape=(), *, noise: Tensor | None = None) -> Tensor:
        """A reparametrised sample ``[..., A]`` in [-1, 1]."""
        return torch.tanh(super().rsample(sample_shape, noise=noise))


def _log_tanh_slope(raw: Tensor) -> Tensor:
    return 2 * (math.log(2) - raw - F.softplus(-2 * raw))


class TruncatedNormal(Prediction):
    """A normal distribution truncated to [-1, 1], the policy of Dreamer v2 (arXiv:2010.02193).

    Args:
        loc (Tensor): mean before the truncation, ``[..., A]``.
        scale (Tensor): standard deviation before the truncation, ``[..., A]``.

    Uniform noise goes through the inverse of the distribution function; samples stay 1e-6 away from the
    bounds, with straight-through gradients there.

    Examples:
        >>> policy = TruncatedNormal(torch.zeros(1, 2), torch.ones(1, 2))
        >>> policy.rsample(noise=torch.tensor([[0.0, 1.0]]))
        tensor([[-1.0000,  1.0000]])
    """

    has_rsample = True
    _CLIP = 1e-6

    def __init__(self, loc: Tensor, scale: Tensor):
        super().__init__(loc, 1)
        self.loc, self.scale = loc, scale
        self.alpha, self.beta = (-1 - loc) / scale, (1 - loc) / scale
        self.mass = _normal_cdf(self.beta) - _normal_cdf(self.alpha)

    @property
    def mode(self) -> Tensor:
        """The most likely action."""
        return self.loc.clamp(-1, 1)

    @property
    def mean(self) -> Tensor:
        """The mean of the truncated distribution."""
        slope = _normal_pdf(self.alpha) - _normal_pdf(self.beta)
        return self.loc + self.scale * slope / self.mass

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of actions ``[..., A]`` in [-1, 1]: ``[...]``."""
        error = ((value - self.loc) / self.scale).square()
        constant = self.scale.log() + self.mass.log() + 0.5 * math.log(2 * math.pi)
        return -(0.5 * error + constant).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy in nats ``[...]``."""
        ends = self.alpha * _normal_pdf(self.alpha) - self.beta * _normal_pdf(self.beta)
        constant = self.scale.log() + self.mass.log() + 0.5 * (1 + math.log(2 * math.pi))
        return (constant + 0.5 * ends / self.mass).sum(-1)

    def noise(self, sample_shape=(), *, generator: torch.Generator | None = None) -> Tensor:
        """Uniform noise for :meth:`rsample`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.loc.new_empty(shape).uniform_(generator=generator)

    def rsample(self, sample_shape=(), *, noise: Tensor | None = None) -> Tensor:
        """A reparametrised sample ``[..., A]`` within (-1, 1)."""
        noise = self.noise(sample_shape) if noise is None else noise
        quantile = _normal_cdf(self.alpha) + noise * self.mass
        # Float32 has no quantile above 5.4 standard deviations; unclamped it would be inf.
        tiny = torch.finfo(quantile.dtype).eps
        raw = torch.special.ndtri(quantile.clamp(tiny, 1 - tiny))
        sample = self.loc + self.scale * raw
        return sample + (sample.clamp(self._CLIP - 1, 1 - self._CLIP) - sample).detach()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x * math.sqrt(0.5))


def _normal_pdf(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)


class Joint(Prediction):
    """Independent distributions over consecutive parts of one flat vector.

    Args:
        parts (list of Distribution): each with an event of one dimension.

    Examples:
        >>> gear, arm = OneHotCategorical(torch.zeros(1, 3)), DiagonalNormal(*torch.ones(2, 1, 2))
        >>> Joint([gear, arm]).sample().shape
        torch.Size([1, 5])
    """

    def __init__(self, parts: list[Distribution]):
        self.parts = parts
        self.sizes = [part.event_shape[0] for part in parts]
        batch = parts[0].batch_shape
        Distribution.__init__(self, batch, torch.Size([sum(self.sizes)]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The parts' means, joined."""
        return torch.cat([part.mean for part in self.parts], -1)

    @property
    def mode(self) -> Tensor:
        """The parts' modes, joined."""
        return torch.cat([part.mode for part in self.parts], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum of the parts' log-probabilities: ``[..., size]`` to ``[...]``."""
        values = value.split(self.sizes, -1)
        return sum(part.log_prob(v) for part, v in zip(self.parts, values, strict=True))

    def entropy(self) -> Tensor:
        """Sum of the parts' entropies ``[...]``."""
        return sum(part.entropy() for part in self.parts)

    def noise(self, sample_shape=(), *, generator: torch.Generator | None = None) -> Tensor:
        """The parts' standard noise, joined."""
        return torch.cat([p.noise(sample_shape, generator=generator) for p in self.parts], -1)

    def rsample(self, sample_shape=(), *, noise: Tensor | None = None) -> Tensor:
        """The parts' samples, joined: ``[..., size]``."""
        noise = self.noise(sample_shape) if noise is None else noise
        noises = noise.split(self.sizes, -1)
        pairs = zip(self.parts, noises, strict=True)
        return torch.cat([part.rsample(sample_shape, noise=n) for part, n in pairs], -1)
