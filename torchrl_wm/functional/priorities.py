"""Prioritised replay (https://arxiv.org/abs/1511.05952): priorities to probabilities and weights."""

from __future__ import annotations

from torch import Tensor


def priority_probabilities(priority: Tensor, *, alpha: float, eps: float = 1e-6) -> Tensor:
    """The probability of drawing each row, ``priority ** alpha`` normalised.

    Args:
        priority (Tensor): ``[N]``, non-negative.

    Keyword Args:
        alpha (float): 0 draws uniformly, 1 in proportion to the priorities.
        eps (float, optional): added to the priorities, so that every row can be drawn. Defaults to
            ``1e-6``.

    Returns:
        Tensor: ``[N]``, which sums to 1.

    Examples:
        >>> import torch
        >>> priority_probabilities(torch.tensor([1.0, 3.0]), alpha=1.0)
        tensor([0.2500, 0.7500])
    """
    weight = priority**alpha + eps
    return weight / weight.sum()


def importance_weights(probability: Tensor, count: int, *, beta: float) -> Tensor:
    """Weights, at most 1, that correct the loss for the non-uniform sampling of the rows.

    Args:
        probability (Tensor): ``[B]``, of the drawn rows.
        count (int): rows that could have been drawn.

    Keyword Args:
        beta (float): 0 corrects nothing, 1 corrects fully.

    Returns:
        Tensor: ``[B]``, divided by their maximum.

    Examples:
        >>> import torch
        >>> importance_weights(torch.tensor([0.25, 0.75]), 2, beta=1.0)
        tensor([1.0000, 0.3333])
    """
    weight = (count * probability) ** -beta
    return weight / weight.max()
