"""Kullback-Leibler divergences of latent distributions, in nats, summed over the latent variables."""

from __future__ import annotations

from torch import Tensor


def gaussian_kl(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """KL of the diagonal Gaussian ``(mean, std)`` from ``(other_mean, other_std)``.

    Args:
        mean, std, other_mean, other_std (Tensor): ``[..., S]``.

    Returns:
        Tensor: ``[...]``, the sum over the ``S`` variables.

    Examples:
        >>> import torch
        >>> one = torch.ones(1)
        >>> gaussian_kl(one, one, 0 * one, one)
        tensor(0.5000)
    """
    ratio = (std / other_std).square()
    distance = ((mean - other_mean) / other_std).square()
    return 0.5 * (ratio + distance - 1 - ratio.log()).sum(-1)


def categorical_kl(log_probs: Tensor, other_log_probs: Tensor) -> Tensor:
    """KL of independent categoricals from others, both given by normalised log-probabilities.

    Args:
        log_probs, other_log_probs (Tensor): ``[..., S, K]``.

    Returns:
        Tensor: ``[...]``, the sum over the ``S`` categoricals.

    Examples:
        >>> import torch
        >>> p = torch.tensor([[0.5, 0.5]]).log()
        >>> categorical_kl(p, torch.tensor([[0.25, 0.75]]).log())
        tensor(0.1438)
    """
    return (log_probs.exp() * (log_probs - other_log_probs)).sum((-2, -1))
