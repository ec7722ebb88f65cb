"""Deterministic dynamics: from a hidden state and an action to the next hidden state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_wm.modules.networks import MLP, Activation, Init, Norm, dense
from torchrl_wm.modules.residual import ResidualBlock


class DenseDynamics(nn.Module):
    """An MLP with a residual connection: ``h + f(h, a)``.

    Args:
        size (int): of the hidden state.
        action_size (int): of the encoded action.

    Keyword Args:
        layers (int, optional): hidden layers. Defaults to ``2``.
        units (int, optional): their size. Defaults to ``64``.
        activation, norm, init: see :class:`~torchrl_wm.modules.networks.MLP`.

    Examples:
        >>> DenseDynamics(8, 2)(torch.zeros(5, 8), torch.zeros(5, 2)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        size: int,
        action_size: int,
        *,
        layers: int = 2,
        units: int = 64,
        activation: Activation = "relu",
        norm: Norm | None = None,
        init: Init = "glorot",
    ):
        super().__init__()
        network = {"activation": activation, "norm": norm, "init": init}
        self.mlp = MLP(size + action_size, units, layers, **network)
        self.out = dense(self.mlp.out_features, size, init=init)

    def forward(self, hidden: Tensor, action: Tensor) -> Tensor:
        """Hidden states ``[..., size]`` and actions ``[..., action_size]`` to ``[..., size]``."""
        return hidden + self.out(self.mlp(torch.cat([hidden, action], -1)))


class ResidualDynamics(nn.Module):
    """Residual blocks on feature maps and action planes (MuZero on images and boards).

    Hidden states are flat; a map ``[C, H, W]`` is flattened as height, width, channel.

    Args:
        shape (tuple of int): ``(C, H, W)`` of the maps.
        action_size (int): of the encoded action; each number fills a plane.

    Keyword Args:
        blocks (int, optional): residual blocks. Defaults to ``1``.

    Examples:
        >>> ResidualDynamics((4, 6, 6), 3)(torch.zeros(2, 144), torch.zeros(2, 3)).shape
        torch.Size([2, 144])
    """

    def __init__(self, shape: tuple[int, int, int], action_size: int, *, blocks: int = 1):
        super().__init__()
        self.shape = tuple(shape)
        channels = self.shape[0]
        self.mix = nn.Conv2d(channels + action_size, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(1, channels)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))

    def forward(self, hidden: Tensor, action: Tensor) -> Tensor:
        """Hidden states ``[..., C * H * W]`` and actions ``[..., action_size]`` to the next ones."""
        channels, height, width = self.shape
        x = hidden.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
        planes = action.reshape(-1, action.shape[-1], 1, 1).expand(-1, -1, height, width)
        x = F.relu(x + self.norm(self.mix(torch.cat([x, planes], 1))))
        return self.blocks(x).permute(0, 2, 3, 1).reshape(hidden.shape)
