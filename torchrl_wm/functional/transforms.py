"""Squashing of scalars with DreamerV3's symlog and two-hot codes (https://arxiv.org/abs/2301.04104)."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_wm.ranges import Range


def symlog(x: Tensor) -> Tensor:
    """``sign(x) log(1 + |x|)``, elementwise on ``[...]``.

    Examples:
        >>> symlog(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.6931,  0.0000,  0.6931])
    """
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    """``sign(x) (exp(|x|) - 1)``, the inverse of :func:`symlog`, elementwise on ``[...]``.

    Examples:
        >>> symexp(symlog(torch.tensor([-3.0, 100.0])))
        tensor([ -3.0000, 100.0000])
    """
    return torch.sign(x) * torch.expm1(x.abs())


def symexp_bins(count: int = 255, *, limit: float = 20.0) -> Tensor:
    """The support of DreamerV3's two-hot code: raw values that are evenly spaced after a symlog.

    One half is computed and mirrored, so the support is antisymmetric to the last bit. With an even
    ``count`` it contains 0 twice, as in the reference code.

    Args:
        count (int, optional): number of bins, at least 2. Defaults to ``255``.
        limit (float, optional): symlog of the largest bin. Defaults to ``20.0``.

    Returns:
        The ascending bins ``[count]``.

    Raises:
        ValueError: for fewer than two bins.

    Examples:
        >>> symexp_bins(5, limit=2.0)
        tensor([-6.3891, -1.7183,  0.0000,  1.7183,  6.3891])
    """
    Range(2, whole=True).check(bins=count)
    half = symexp(torch.linspace(-limit, 0, (count + 1) // 2))
    return torch.cat([half, -half.flip(0)[count % 2 :]])


def two_hot(target: Tensor, bins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Encodes raw scalars by the two bins around them, linearly in raw space, clamped at the ends.

    Args:
        target (Tensor): raw scalars ``[...]``.
        bins (Tensor): ascending support ``[n]``.

    Returns:
        Index of the lower bin, index of the upper bin and weight of the upper bin, each ``[...]``.

    Examples:
        >>> two_hot(torch.tensor([0.25, 9.0]), torch.tensor([-1.0, 0.0, 1.0]))
        (tensor([1, 1]), tensor([2, 2]), tensor([0.2500, 1.0000]))
    """
    target = target.to(bins.dtype).clamp(bins[0], bins[-1]).contiguous()
    upper = torch.searchsorted(bins, target, right=True).clamp(1, bins.numel() - 1)
    lower = upper - 1
    below = bins[lower]
    return lower, upper, (target - below) / (bins[upper] - below)


def two_hot_log_prob(logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """Negative cross-entropy of a categorical to the two-hot code of a raw scalar.

    Only the two logits next to the target are read; the dense code is never built.

    Args:
        logits (Tensor): ``[..., n]``.
        target (Tensor): raw scalars ``[*samples, ...]``; no gradient flows into them. Several targets
            of the same logits, along leading dimensions, share the softmax and its gradient.
        bins (Tensor): ascending support ``[n]``.

    Returns:
        ``[*samples, ...]`` float32.

    Examples:
        >>> two_hot_log_prob(torch.zeros(3), torch.tensor(0.5), torch.tensor([-1.0, 0.0, 1.0]))
        tensor(-1.0986)
    """
    lower, upper, weight = two_hot(target.detach(), bins)
    neighbours = torch.stack([lower, upper])
    samples = neighbours.ndim - logits.ndim + 1
    index = neighbours.flatten(0, samples - 1).movedim(0, -1)
    log_probs = torch.log_softmax(logits.float(), -1).gather(-1, index)
    below, above = log_probs.movedim(-1, 0).reshape(neighbours.shape).unbind()
    return torch.lerp(below, above, weight)


def two_hot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """Expected raw value of a categorical over an antisymmetric support.

    Mirrored probabilities are subtracted before they are multiplied by their bin, so equal logits give
    exactly 0 although the outer bins reach 5e8. Computed in float32, under autocast too.

    Args:
        logits (Tensor): ``[..., n]``.
        bins (Tensor): antisymmetric ascending support ``[n]``, as :func:`symexp_bins` makes it.

    Returns:
        ``[...]`` float32.

    Examples:
        >>> two_hot_mean(torch.ones(2, 255), symexp_bins(255))
        tensor([0., 0.])
    """
    half = bins.numel() // 2
    probs = torch.softmax(logits.float(), -1)
    difference = probs[..., -half:] - probs[..., :half].flip(-1)
    return (difference * bins[-half:]).sum(-1)
