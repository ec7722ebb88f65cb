"""Scaling of hidden states to a fixed range, for models without reconstruction."""

from __future__ import annotations

import torch
from torch import Tensor


def min_max_scale(x: Tensor, dims: int | tuple[int, ...] = -1, eps: float = 1e-5) -> Tensor:
    """Scales to [0, 1] over ``dims`` (MuZero, arXiv:1911.08265, appendix G).

    Args:
        x (Tensor): a vector ``[..., S]``, or maps ``[..., C, H, W]`` with ``dims=(-2, -1)``.
        dims (int or tuple of int, optional): dimensions that share a range. Defaults to ``-1``.
        eps (float, optional): a range below it is widened by it, so equal numbers give 0 instead of NaN.

    Examples:
        >>> min_max_scale(torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]]))
        tensor([[0.0000, 0.5000, 1.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    width = high - low
    return (x - low) / torch.where(width < eps, width + eps, width)


def simnorm(x: Tensor, group: int = 8) -> Tensor:
    """Softmax over groups of neighbours (TD-MPC2, arXiv:2310.16828): ``[..., S]``.

    Raises:
        ValueError: where ``group`` does not divide the last dimension.

    Examples:
        >>> simnorm(torch.zeros(4), group=2)
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    if x.shape[-1] % group:
        raise ValueError(f"group={group} must divide the size {x.shape[-1]} of the hidden state.")
    return torch.softmax(x.unflatten(-1, (-1, group)), -1).flatten(-2)
