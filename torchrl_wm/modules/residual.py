"""Residual networks for images and boards (MuZero, https://arxiv.org/abs/1911.08265, appendix F)."""

from __future__ import annotations

from collections.abc import Mapping

from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import TensorSpec

from torchrl_wm.modules.encoders import ImageEncoder
from torchrl_wm.ranges import NUMBER


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection, on maps ``[N, C, H, W]``.

    Normalised over the channels and positions of each sample (a group norm of one group), which unlike
    batch normalisation is the same function in training and in the search.

    Args:
        channels (int): channels of input and output.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to maps of the same shape."""
        out = F.relu(self.norms[0](self.convs[0](x)))
        return F.relu(x + self.norms[1](self.convs[1](out)))


class ResidualImageEncoder(ImageEncoder):
    """Residual blocks; images are downsampled to a sixteenth of their height and width.

    Boards, which have at most 19 rows and columns, keep their size.

    Args:
        specs (dict): image specs ``[C, H, W]`` of equal height and width, by key.

    Keyword Args:
        channels (int, optional): of the maps. Defaults to ``64``.
        blocks (int, optional): residual blocks at each size. Defaults to ``1``.

    Raises:
        ValueError: for images whose height or width is not a multiple of 16.

    Examples:
        >>> import torch
        >>> from torchrl.data import Unbounded
        >>> pixels = Unbounded((4, 96, 96), dtype=torch.uint8)
        >>> ResidualImageEncoder(dict(pixels=pixels), channels=8).map_shape
        (8, 6, 6)
    """

    LARGEST_BOARD = 19

    def __init__(
        self, specs: Mapping[NestedKey, TensorSpec], *, channels: int = 64, blocks: int = 1
    ):
        super().__init__(specs)
        NUMBER.check(blocks=blocks)
        inputs, height, width = self.image_shape
        if max(height, width) <= self.LARGEST_BOARD:
            stem = [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
            layers = [*stem, *self._blocks(channels, blocks)]
        elif height % 16 or width % 16:
            raise ValueError(
                f"Pictures of {height} x {width}: height and width must be multiples of 16; "
                "make the environment with such an image_size (env.image_size=96) or add "
                "torchrl.envs.Resize (needs torchvision)."
            )
        else:
            height, width, half = height // 16, width // 16, channels // 2
            layers = [
                nn.Conv2d(inputs, half, 3, stride=2, padding=1),
                *self._blocks(half, blocks),
                nn.Conv2d(half, channels, 3, stride=2, padding=1),
                *self._blocks(channels, blocks),
                nn.AvgPool2d(3, stride=2, padding=1),
                *self._blocks(channels, blocks),
                nn.AvgPool2d(3, stride=2, padding=1),
            ]
        self.layers = nn.Sequential(*layers)
        self.map_shape = (channels, height, width)
        self.out_features = channels * height * width

    @staticmethod
    def _blocks(channels: int, count: int) -> list[nn.Module]:
        return [ResidualBlock(channels) for _ in range(count)]

    def convolve(self, x: Tensor) -> Tensor:
        """Centred images ``[N, C, H, W]`` to maps ``[N, *map_shape]``."""
        return self.layers(x)
