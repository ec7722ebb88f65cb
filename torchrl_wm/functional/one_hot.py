"""One-hot choices."""

from __future__ import annotations

import torch
from torch import Tensor


def one_hot_of_largest(scores: Tensor) -> Tensor:
    """The first of the largest ``scores [..., n]``, as a one-hot vector of their dtype.

    Examples:
        >>> one_hot_of_largest(torch.tensor([[0.5, 2.0, 2.0]]))
        tensor([[0., 1., 0.]])
    """
    best = scores.argmax(-1, keepdim=True)
    return (best == torch.arange(scores.shape[-1], device=best.device)).to(scores.dtype)
