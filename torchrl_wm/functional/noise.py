"""Coloured noise, normal and correlated in time, and Gumbel noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrl_wm.programs.draws import unit_normal


def coloured_noise(
    shape: Sequence[int],
    exponent: float,
    *,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Normal noise whose power spectrum along the last dimension is :math:`1 / f^\beta`.

    Every sample has mean 0 and variance 1, whatever the colour, and so has a sequence on average over
    its length. iCEM (https://arxiv.org/abs/2008.06389) draws actions with it: low frequencies reach
    further than white noise of the same variance. Frequency 0 gets the power of the lowest one above it.

    Args:
        shape (sequence of int): ``[..., T]``, time last.
        exponent (float): :math:`\beta`; 0 is white, 1 pink, 2 red noise.

    Keyword Args:
        device (torch.device, optional): of the result.
        generator (torch.Generator, optional): source of the draws.

    Returns:
        float32 ``[..., T]``.

    Raises:
        ValueError: for a negative exponent.

    Examples:
        >>> noise = coloured_noise([1000, 30], 2.0, generator=torch.Generator().manual_seed(0))
        >>> bool((noise[:, 1:] - noise[:, :-1]).std() < 0.7 * noise.std())
        True
    """
    if exponent < 0:
        raise ValueError(f"The exponent of coloured noise must not be negative; got {exponent}.")
    steps = shape[-1]
    white = unit_normal(shape, device=device, generator=generator)
    if not exponent or steps < 2 or not white.numel():
        return white
    # White noise has independent Fourier coefficients; scaling them gives the spectrum. The scales
    # are chosen so that the variance, the mean of their squares over all frequencies, stays 1.
    frequency = torch.fft.rfftfreq(steps, device=device)
    frequency[0] = frequency[1]
    scale = frequency ** (-exponent / 2)
    both_sides = torch.full_like(scale, 2.0)
    both_sides[0] = 1.0
    if steps % 2 == 0:
        both_sides[-1] = 1.0
    scale = scale / ((both_sides * scale.square()).sum() / steps).sqrt()
    return torch.fft.irfft(torch.fft.rfft(white) * scale, n=steps)


def gumbel_noise(shape: Sequence[int], *, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise: the largest of logits plus noise is a draw of their categorical.

    Args:
        shape (sequence of int): ``[...]``.

    Keyword Args:
        generator (torch.Generator, optional): source of the draws, on the CPU.

    Returns:
        float64 ``[...]`` on the CPU, always finite.

    Examples:
        >>> noise = gumbel_noise([10_000], generator=torch.Generator().manual_seed(0))
        >>> noise.mean().round(decimals=1)  # the Euler-Mascheroni constant
        tensor(0.6000, dtype=torch.float64)
    """
    uniform = torch.rand(shape, dtype=torch.float64, device="cpu", generator=generator)
    return -(-uniform.clamp(1e-300, 1 - 1e-16).log()).log()
