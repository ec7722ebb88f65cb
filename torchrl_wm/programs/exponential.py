"""An exponential that is bitwise the same in torch and in a compiled loop over few actions.

The library's exponential costs more than everything else at a node, and its last digit depends on the
caller, so that two executors diverge where two actions are nearly equal. This is the polynomial of the
Cephes library, in the order of Estrin, which leaves more operations independent of each other: accurate to
1e-7, and every operation in it rounds the same everywhere.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LOWEST = -87.0
"""Smaller arguments are clamped to it."""

LOG2_E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
SHIFTER = np.float32(1.5 * 2**23)  # the last bit of a number so large counts ones
COEFFICIENTS = tuple(
    map(
        np.float32,
        (1.98756915e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 0.16666665459, 0.5),
    )
)


def exp(x: Tensor) -> Tensor:
    """``e ** x`` for ``x <= 0`` and down to -87; double precision uses the library.

    Examples:
        >>> exp(torch.tensor([0.0, -1.0]))
        tensor([1.0000, 0.3679])
    """
    if x.dtype != torch.float32:
        return x.exp()
    x = x.clamp_min(LOWEST)
    n = (x * float(LOG2_E) + float(SHIFTER)) - float(SHIFTER)  # rounded
    r = x - n * float(LN2_HIGH)
    r = r - n * float(LN2_LOW)
    square, (c0, c1, c2, c3, c4, c5) = r * r, map(float, COEFFICIENTS)
    series = (c0 * r + c1) * square + (c2 * r + c3)
    series = series * square + (c4 * r + c5)
    return torch.ldexp(series * square + (r + 1.0), n)


def softmax(logits: Tensor) -> Tensor:
    """Probabilities ``[..., A]``, exactly 0 where a logit is minus infinity.

    The sum is taken in double precision, so that its order does not matter.

    Examples:
        >>> softmax(torch.tensor([0.0, 0.0, -torch.inf]))
        tensor([0.5000, 0.5000, 0.0000])
    """
    forbidden = logits == -torch.inf
    largest = logits.amax(-1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min)
    weights = exp(logits - largest).masked_fill(forbidden, 0.0)
    total = weights.double().sum(-1, keepdim=True).to(logits.dtype)
    return weights / total.clamp_min(torch.finfo(logits.dtype).tiny)
