"""Pieces of the convolutional networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_wm.modules.networks import init_trunc_normal_


def same_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size, initialised as in DreamerV3.

    Raises:
        ValueError: for an even ``kernel``.
    """
    return _initialise(nn.Conv2d(in_channels, out_channels, _odd(kernel), padding=kernel // 2))


def upsampling_conv(in_channels: int, out_channels: int, kernel: int) -> UpsamplingConv2d:
    """Nearest upsampling by 2, then a convolution, initialised as in DreamerV3.

    Raises:
        ValueError: for an even ``kernel``.
    """
    return _initialise(UpsamplingConv2d(in_channels, out_channels, _odd(kernel)))


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError(f"kernel={kernel} must be odd to keep the size of a picture.")
    return kernel


def _initialise(conv: nn.Conv2d) -> nn.Conv2d:
    init_trunc_normal_(conv.weight, conv.weight[0].numel())
    nn.init.zeros_(conv.bias)
    return conv


class UpsamplingConv2d(nn.Conv2d):
    """Nearest upsampling by 2 and a size-preserving convolution, fused into one at the lower resolution.

    Each of the four pixels made from one sees a few neighbours several times. Summing the filter's
    values for each neighbour gives four small filters (3 wide instead of 5): a third of the arithmetic,
    and the upsampled image is never written. The parameters are those of the convolution.

    Args:
        in_channels (int): channels of the image.
        out_channels (int): channels of the image of twice the size.
        kernel (int): odd size of the filters.

    Examples:
        >>> conv = UpsamplingConv2d(2, 3, 5)
        >>> image = torch.rand(1, 2, 4, 6)
        >>> plain = nn.functional.conv2d(
        ...     nn.functional.interpolate(image, scale_factor=2), conv.weight, conv.bias, padding=2
        ... )
        >>> torch.testing.assert_close(conv(image), plain)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        self.register_buffer("taps", _taps(kernel), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to ``[N, out_channels, 2 H, 2 W]``."""
        # Row and column in the block before the channels: pixels are moved in whole rows.
        filters = torch.einsum("apk,bql,oikl->aboipq", self.taps, self.taps, self.weight)
        x = F.conv2d(x, filters.flatten(0, 2), self.bias.repeat(4), padding=filters.shape[-1] // 2)
        blocks = x.permute(0, 2, 3, 1).unflatten(-1, (2, 2, self.out_channels))
        return blocks.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _taps(kernel: int) -> Tensor:
    """Which neighbour of a pixel each tap of a filter sees, ``[2, neighbours, kernel]``.

    The first dimension is the pixel's place in the pair that is made from one.
    """
    reach = (kernel // 2 + 1) // 2
    taps = torch.zeros(2, 2 * reach + 1, kernel)
    for place in range(2):
        for tap in range(kernel):
            taps[place, (place + tap - kernel // 2) // 2 + reach, tap] = 1
    return taps


def over_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """Applies a normalisation of the last dimension to the channels of ``[N, C, H, W]``."""
    if isinstance(norm, nn.Identity):
        return x
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
