"""Pieces of the convolutional networks."""

from __future__ import annotations

from torch import Tensor, nn

from torchrl_wm.modules.networks import init_trunc_normal_


def same_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size, initialised as in DreamerV3.

    Raises:
        ValueError: for an even ``kernel``.
    """
    if kernel % 2 == 0:
        raise ValueError(f"kernel={kernel} must be odd to keep the size of a picture.")
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    init_trunc_normal_(conv.weight, kernel * kernel * in_channels)
    nn.init.zeros_(conv.bias)
    return conv


def over_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """Applies a normalisation of the last dimension to the channels of ``[N, C, H, W]``."""
    if isinstance(norm, nn.Identity):
        return x
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
