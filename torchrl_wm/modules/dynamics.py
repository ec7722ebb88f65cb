"""Feed-forward dynamics: the next latent from a latent and an action, without memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from torchrl_wm.modules.latents import Statistics
from torchrl_wm.modules.networks import MLP, Activation, Init, Norm, dense


class EnsembleDynamics(nn.Module):
    """Perceptrons that predict a Gaussian over the next latent (PETS, https://arxiv.org/abs/1805.12114).

    The mean is a residual of the latent, so an untrained network predicts no change. The standard
    deviation lies between two bounds, evenly on a logarithmic scale.

    Args:
        state_size (int): size of the latent.
        action_size (int): size of the encoded action.

    Keyword Args:
        members (int, optional): networks, each with weights of its own. Defaults to ``1``.
        layers (int, optional): hidden layers. Defaults to ``2``.
        units (int, optional): size of the hidden layers. Defaults to ``64``.
        min_std (float, optional): lower bound of the standard deviation. Defaults to ``0.01``.
        max_std (float, optional): upper bound. Defaults to ``1.0``.
        activation, norm, init: see :class:`~torchrl_wm.modules.networks.MLP`.

    Raises:
        ValueError: for less than one member, or bounds that are not ``0 < min_std < max_std``.

    Examples:
        >>> dynamics = EnsembleDynamics(3, 2, members=5)
        >>> first = torch.zeros(7, 1, dtype=torch.long)
        >>> mean, std = dynamics(torch.ones(7, 3), torch.zeros(7, 2), member=first)
        >>> mean.shape, std.shape
        (torch.Size([7, 3]), torch.Size([7, 3]))
    """

    def __init__(
        self,
        state_size: int,
        action_size: int,
        *,
        members: int = 1,
        layers: int = 2,
        units: int = 64,
        min_std: float = 0.01,
        max_std: float = 1.0,
        activation: Activation = "silu",
        norm: Norm | None = "rms",
        init: Init = "trunc_normal",
    ):
        super().__init__()
        if members < 1:
            raise ValueError(f"members={members} must be at least 1.")
        if not 0 < min_std < max_std:
            raise ValueError(f"Need 0 < min_std < max_std={max_std}, not min_std={min_std}.")
        self.members, self.low = members, math.log(min_std)
        self.range = math.log(max_std) - self.low
        size = state_size + action_size
        self.mlps = nn.ModuleList(
            MLP(size, units, layers, activation=activation, norm=norm, init=init)
            for _ in range(members)
        )
        self.outputs = nn.ModuleList(
            dense(mlp.out_features, 2 * state_size, init=init, scale=0.01) for mlp in self.mlps
        )

    def forward(self, state: Tensor, action: Tensor, member: Tensor | None = None) -> Statistics:
        """Mean and standard deviation ``[..., S]`` of the next latent.

        Args:
            state (Tensor): ``[..., S]``.
            action (Tensor): ``[..., A]``.
            member (Tensor, optional): ``[..., 1]`` int64, who predicts which row. Needed where
                there is more than one member.
        """
        inputs = torch.cat([state, action], -1)
        raws = [out(mlp(inputs)) for mlp, out in zip(self.mlps, self.outputs, strict=True)]
        raw = raws[0]
        if self.members > 1:
            # All members see all rows and one of them is picked: static shapes, on any device.
            index = member.unsqueeze(-2).expand(*member.shape[:-1], 1, raw.shape[-1])
            raw = torch.stack(raws, -2).gather(-2, index).squeeze(-2)
        change, spread = raw.float().chunk(2, -1)
        return state + change, torch.exp(self.low + self.range * torch.sigmoid(spread))
