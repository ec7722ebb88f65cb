"""Conversions between images as environments give them and as networks read them."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_image(image: Tensor) -> Tensor:
    """An image as float32 in [0, 1]: bytes are divided by 255, floats and booleans only cast.

    Examples:
        >>> scale_image(torch.tensor([0, 255], dtype=torch.uint8)), scale_image(torch.tensor([True]))
        (tensor([0., 1.]), tensor([1.]))
    """
    return image.float().div_(255) if image.dtype == torch.uint8 else image.float()


def centre_image(image: Tensor) -> Tensor:
    """An image, bytes or floats in [0, 1], as float32 in [-0.5, 0.5].

    Examples:
        >>> centre_image(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([-0.5000,  0.5000])
    """
    return scale_image(image) - 0.5


def quantize_image(image: Tensor, bits: int = 5, *, noise: Tensor | None = None) -> Tensor:
    """Reduces bytes to ``bits`` bits and dequantises with noise (PlaNet, arXiv:1811.04551).

    Args:
        image (Tensor): uint8, any shape.
        bits (int, optional): how many of the eight bits are kept. Defaults to ``5``.
        noise (Tensor, optional): uniform in [0, 1), shaped as ``image``; drawn here by default.

    Returns:
        float32 in [0, 1), shaped as ``image``; :func:`centre_image` turns it into PlaNet's input.

    Raises:
        TypeError: where ``image`` is not uint8.
        ValueError: where ``bits`` is not within 1 to 8.

    Examples:
        >>> quantize_image(torch.tensor([7, 8], dtype=torch.uint8), noise=torch.zeros(2))
        tensor([0.0000, 0.0312])
    """
    if image.dtype != torch.uint8:
        raise TypeError(f"quantize_image reads uint8 pictures, not {image.dtype}.")
    if not 1 <= bits <= 8:
        raise ValueError(f"bits={bits} must be within 1 and 8.")
    levels = (image >> (8 - bits)).float()
    noise = torch.rand_like(levels) if noise is None else noise
    return (levels + noise) / 2**bits


def image_to_uint8(image: Tensor, bits: int = 8) -> Tensor:
    """An image in [0, 1] as bytes, rounded down to ``bits`` bits.

    Examples:
        >>> image_to_uint8(torch.tensor([-0.1, 0.5, 1.0]), bits=5)
        tensor([  0, 128, 255], dtype=torch.uint8)
    """
    levels = (image * 2**bits).floor()
    return (levels * (256 / 2**bits)).clamp(0, 255).to(torch.uint8)
