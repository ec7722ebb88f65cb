"""Prioritised replay (https://arxiv.org/abs/1511.05952): priorities to probabilities and weights."""

from __future__ import annotations

from torch import Tensor


def priority_probabilities(priority: Tensor, *, alpha: float, eps: float = 1e-6) -> Tensor:
    """The probability of each row to be drawn, ``priority ** alpha`` normalised.

    Args:
        priority (Tensor): ``[N]``, not negative.

    Keyword Args:
        alpha (float): 0 draws evenly, 1 in proportion to the priorities.
        eps (float, optional): added, so that no row is lost. Defaults to ``1e-6``.

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
    """What corrects the loss of drawn rows for how they were drawn, at most 1.

    Args:
        probability (Tensor): ``[B]``, of the drawn rows.
        count (int): rows that could have been drawn.

    Keyword Args:
        beta (float): 0 corrects nothing, 1 everything.

    Returns:
        Tensor: ``[B]``, divided by their maximum.

    Examples:
        >>> import torch
        >>> importance_weights(torch.tensor([0.25, 0.75]), 2, beta=1.0)
        tensor([1.0000, 0.3333])
    """
    weight = (count * probability) ** -beta
    return weight / weight.max()
