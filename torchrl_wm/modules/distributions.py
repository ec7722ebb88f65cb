"""Likelihoods: what a network predicts about rewards, ends of episodes, vectors and images.

All share the protocol of :mod:`torch.distributions`: ``log_prob`` sums over the event dimensions,
``mean`` and ``mode`` are in the space of the observed quantity (raw rewards, images in [0, 1]).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F
from torchrl.modules.functional import signed_hyperbolic, signed_parabolic

from torchrl_wm.functional.images import centre_image, scale_image
from torchrl_wm.functional.transforms import (
    symexp,
    symlog,
    two_hot,
    two_hot_log_prob,
    two_hot_mean,
)


def sum_event(x: Tensor, event_dims: int) -> Tensor:
    """Sums over the last ``event_dims`` dimensions."""
    return x.flatten(-event_dims).sum(-1) if event_dims else x


def _number(value: Tensor) -> Tensor:
    """Truth values and integers as floats: bool has no difference, and int8 no ``-(-128)``."""
    return value if value.is_floating_point() else value.float()


class Prediction(Distribution):
    """Base of the distributions here: batch and event shape from a tensor, no argument checks."""

    arg_constraints = {}

    def __init__(self, like: Tensor, event_dims: int):
        cut = like.ndim - event_dims
        self.event_dims = event_dims
        super().__init__(like.shape[:cut], like.shape[cut:], validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The prediction to act on or to show; the mean unless a distribution overrides it."""
        return self.mean

    def position(self, value: Tensor) -> Tensor:
        """What :meth:`log_prob_at` reads of a value ``[..., *event]``: here the value."""
        return value

    def log_prob_at(self, position: Tensor) -> Tensor:
        """:meth:`log_prob` of a value by its :meth:`position`, in operations that treat all rows alike."""
        return self.log_prob(position)

    def sample(self, sample_shape=(), *, noise: Tensor | None = None) -> Tensor:
        """A sample without gradient, from the given standard noise or a fresh draw."""
        with torch.no_grad():
            return self.rsample(sample_shape, noise=noise)


class UnitNormal(Prediction):
    """A normal distribution of unit variance, the likelihood of PlaNet and Dreamer v1 and v2.

    Args:
        mean (Tensor): ``[..., *event]``.
        event_dims (int, optional): number of event dimensions. Defaults to ``1``.

    Examples:
        >>> UnitNormal(torch.zeros(2, 1)).log_prob(torch.zeros(2, 1))
        tensor([-0.9189, -0.9189])
    """

    def __init__(self, mean: Tensor, event_dims: int = 1):
        super().__init__(mean, event_dims)
        self.loc = mean

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.loc

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of ``[..., *event]``, summed over the event to ``[...]``."""
        error = sum_event((self.loc - _number(value)).square(), self.event_dims)
        return -0.5 * (error + self._event_shape.numel() * math.log(2 * math.pi))

    def entropy(self) -> Tensor:
        """Entropy in nats ``[...]``; it does not depend on the prediction."""
        value = 0.5 * self._event_shape.numel() * (1 + math.log(2 * math.pi))
        return self.loc.new_full(self._batch_shape, value)

    def rsample(self, sample_shape=(), *, noise: Tensor | None = None) -> Tensor:
        """The mean plus unit normal noise."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.loc + (self.loc.new_empty(shape).normal_() if noise is None else noise)


class ImageNormal(UnitNormal):
    """A unit normal over an image centred on zero (PlaNet, Dreamer v1 and v2).

    Args:
        loc (Tensor): the prediction, ``[..., C, H, W]``, zero for mid-grey.

    ``log_prob`` reads bytes or floats in [0, 1]; ``mean`` is the image in [0, 1].
    """

    def __init__(self, loc: Tensor):
        super().__init__(loc, 3)

    @property
    def mean(self) -> Tensor:
        """The image in [0, 1]."""
        return self.loc + 0.5

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the centred image, ``[..., C, H, W]`` to ``[...]``."""
        return super().log_prob(centre_image(value))

    def rsample(self, sample_shape=(), *, noise: Tensor | None = None) -> Tensor:
        """The image plus unit normal noise."""
        return super().rsample(sample_shape, noise=noise) + 0.5


class ImageSquaredError(Prediction):
    """The image loss of DreamerV3: the squared error in [0, 1], neither halved nor averaged.

    Args:
        pixels (Tensor): ``[..., C, H, W]`` in [0, 1].

    Examples:
        >>> black = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
        >>> ImageSquaredError(torch.full((1, 3, 2, 2), 0.5)).log_prob(black)
        tensor([-3.])
    """

    def __init__(self, pixels: Tensor):
        super().__init__(pixels, 3)
        self.pixels = pixels

    @property
    def mean(self) -> Tensor:
        """The image in [0, 1]."""
        return self.pixels

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the summed squared error to an image of bytes or floats in [0, 1]."""
        return -sum_event((self.pixels - scale_image(value)).square(), 3)


class SymlogSquaredError(Prediction):
    """The vector loss of DreamerV3: the squared error to the symlog of the target, not halved.

    Args:
        squashed (Tensor): prediction of the symlog, ``[..., *event]``.
        event_dims (int, optional): number of event dimensions. Defaults to ``1``.

    Examples:
        >>> SymlogSquaredError(torch.zeros(1, 1)).log_prob(torch.tensor([[math.e - 1]]))
        tensor([-1.])
    """

    def __init__(self, squashed: Tensor, event_dims: int = 1):
        super().__init__(squashed, event_dims)
        self.squashed = squashed

    @property
    def mean(self) -> Tensor:
        """The raw vector ``[..., *event]``."""
        return symexp(self.squashed)

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the summed squared error of the symlogs, ``[..., *event]`` to ``[...]``."""
        return -sum_event((self.squashed - symlog(_number(value))).square(), self.event_dims)


class TwoHot(Prediction):
    """A categorical over bins that stands for one scalar (https://arxiv.org/abs/2301.04104).

    Args:
        logits (Tensor): ``[..., n]``.
        bins (Tensor): antisymmetric support ``[n]`` of raw values.

    Targets, ``mean`` and ``mode`` have a trailing dimension of 1, as rewards and values have.

    Examples:
        >>> from torchrl_wm.functional.transforms import symexp_bins
        >>> TwoHot(torch.zeros(2, 255), symexp_bins()).mean
        tensor([[0.],
                [0.]])
    """

    def __init__(self, logits: Tensor, bins: Tensor):
        super().__init__(logits[..., :1], 1)
        self.logits, self.bins = logits, bins
        self._log_probs: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """The expected raw value ``[..., 1]``."""
        return two_hot_mean(self.logits, self.bins).unsqueeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the cross-entropy to the two-hot code of ``value [*samples, ..., 1]``."""
        return two_hot_log_prob(self.logits, value.squeeze(-1), self.bins)

    def position(self, value: Tensor) -> Tensor:
        """Index of the bin below ``value [..., 1]``, and the share of the one above: ``[..., 2]``."""
        lower, _, share = two_hot(value.squeeze(-1), self.bins)
        return torch.stack([lower.to(share.dtype), share], -1)

    def log_prob_at(self, position: Tensor) -> Tensor:
        """:meth:`log_prob` of one value by its :meth:`position`, from the dense code."""
        if self._log_probs is None:
            self._log_probs = F.log_softmax(self.logits.float(), -1)
        lower, share = position.split(1, -1)
        away = torch.arange(float(self.bins.numel()), device=lower.device) - lower - share
        return (self._log_probs * F.relu(1 - away.abs())).sum(-1)


class HyperbolicTwoHot(Prediction):
    """MuZero's categorical over a transformed scalar (https://arxiv.org/abs/1911.08265, appendix F).

    The scalar is squashed by ``h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x`` and split between the two
    atoms around it. Values beyond the support are clamped to its ends.

    Args:
        logits (Tensor): ``[..., n]``.
        atoms (Tensor): antisymmetric ascending support ``[n]`` of squashed values.

    Targets, ``mean`` and ``mode`` are raw and have a trailing dimension of 1.

    Examples:
        >>> HyperbolicTwoHot(torch.zeros(2, 21), torch.arange(-10.0, 11)).mean
        tensor([[0.],
                [0.]])
    """

    def __init__(self, logits: Tensor, atoms: Tensor):
        super().__init__(logits[..., :1], 1)
        self.logits, self.atoms = logits, atoms

    @property
    def mean(self) -> Tensor:
        """The raw value ``[..., 1]`` that corresponds to the expected squashed one."""
        return signed_parabolic(two_hot_mean(self.logits, self.atoms)).unsqueeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the cross-entropy to the two-hot code of ``value [..., 1]``: ``[...]``."""
        return two_hot_log_prob(self.logits, signed_hyperbolic(value.squeeze(-1)), self.atoms)

    def beyond(self, value: Tensor) -> Tensor:
        """Where ``value [..., 1]`` lies beyond the support, ``[...]`` bool."""
        return signed_hyperbolic(value.squeeze(-1)).abs() > self.atoms[-1]


class Bernoulli(Prediction):
    """Independent binary events; ``log_prob`` takes probabilities as targets too.

    Args:
        logits (Tensor): ``[..., *event]``.
        event_dims (int, optional): number of event dimensions. Defaults to ``1``.

    Examples:
        >>> Bernoulli(torch.zeros(1, 1)).log_prob(torch.tensor([[0.997]]))
        tensor([-0.6931])
    """

    def __init__(self, logits: Tensor, event_dims: int = 1):
        super().__init__(logits, event_dims)
        self.logits = logits

    @property
    def mean(self) -> Tensor:
        """The probabilities ``[..., *event]``."""
        return torch.sigmoid(self.logits)

    @property
    def mode(self) -> Tensor:
        """1 where the event is more likely than not, else 0."""
        return (self.logits > 0).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the cross-entropy to ``value``, of any dtype, summed over the event."""
        logits, value = torch.broadcast_tensors(self.logits, value.to(self.logits.dtype))
        losses = F.binary_cross_entropy_with_logits(logits, value, reduction="none")
        return -sum_event(losses, self.event_dims)

    def entropy(self) -> Tensor:
        """Entropy in nats ``[...]``."""
        return -self.log_prob(self.mean)

    def noise(self, sample_shape=(), *, generator: torch.Generator | None = None) -> Tensor:
        """Uniform noise for :meth:`rsample`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.logits.new_empty(shape).uniform_(generator=generator)

    def rsample(self, sample_shape=(), *, noise: Tensor | None = None) -> Tensor:
        """Zeros and ones whose gradient is that of the probabilities (straight-through)."""
        probs = self.mean
        noise = self.noise(sample_shape) if noise is None else noise
        return (noise < probs).to(probs.dtype) + (probs - probs.detach())
