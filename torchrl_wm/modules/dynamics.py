"""Feed-forward dynamics: the next latent from a latent and an action, without memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from torchrl_wm.modules.latents import Statistics
from torchrl_wm.modules.networks import (
    Activation,
    Init,
    Norm,
    dense,
    get_activation,
    make_norm,
)
from torchrl_wm.ranges import COUNT, NUMBER


class EnsembleDynamics(nn.Module):
    """MLPs that predict a Gaussian over the next latent (PETS, https://arxiv.org/abs/1805.12114).

    The mean is a residual of the latent, so an untrained network predicts no change. The standard
    deviation lies between two bounds, evenly on a logarithmic scale.

    Args:
        state_size (int): size of the latent.
        action_size (int): size of the encoded action.

    Keyword Args:
        members (int, optional): networks, each with its own weights. Defaults to ``1``.
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
        COUNT.check(members=members, units=units)
        NUMBER.check(layers=layers)
        if not 0 < min_std < max_std:
            raise ValueError(f"Need 0 < min_std < max_std={max_std}, not min_std={min_std}.")
        self.members, self.low = members, math.log(min_std)
        self.range = math.log(max_std) - self.low
        sizes = [state_size + action_size, *[units] * layers, 2 * state_size]
        scales = [1.0] * layers + [0.01]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, o, scale in zip(sizes[:-1], sizes[1:], scales, strict=True):
            layer = [dense(i, o, init=init, scale=scale).weight.detach().T for _ in range(members)]
            self.weights.append(torch.stack(layer))
            self.biases.append(torch.zeros(members, 1, o))
        self.norms = nn.ModuleList(
            nn.ModuleList(make_norm(norm, units) for _ in range(members)) for _ in range(layers)
        )
        self.activation = get_activation(activation)

    def forward(self, state: Tensor, action: Tensor, member: Tensor | None = None) -> Statistics:
        """Mean and standard deviation ``[..., S]`` of the next latent.

        Args:
            state (Tensor): ``[..., S]``.
            action (Tensor): ``[..., A]``.
            member (Tensor, optional): ``[..., 1]`` int64, the member that predicts each row. Needed
                where there is more than one.
        """
        batch, rows = state.shape[:-1], state.shape[:-1].numel()
        if self.members == 1:
            mean, std = self.side_by_side(state.reshape(1, rows, -1), action.reshape(1, rows, -1))
            return mean.view_as(state), std.view_as(state)
        # All members see all rows and one of them is selected: static shapes, on any device.
        inputs = [x.reshape(1, rows, -1).expand(self.members, -1, -1) for x in (state, action)]
        index = member.reshape(1, rows, 1).expand(1, rows, state.shape[-1])
        return tuple(x.gather(0, index).view(*batch, -1) for x in self.side_by_side(*inputs))

    def side_by_side(self, state: Tensor, action: Tensor) -> Statistics:
        """Mean and standard deviation ``[members, R, S]`` where each member has its own rows.

        Args:
            state (Tensor): ``[members, R, S]``.
            action (Tensor): ``[members, R, A]``.
        """
        hidden = torch.cat([state, action], -1)
        for i, norms in enumerate(self.norms):
            hidden = torch.baddbmm(self.biases[i], hidden, self.weights[i])
            if not isinstance(norms[0], nn.Identity):
                parts = zip(norms, hidden.unbind(0), strict=True)
                hidden = torch.stack([norm(part) for norm, part in parts])
            hidden = self.activation(hidden)
        raw = torch.baddbmm(self.biases[-1], hidden, self.weights[-1])
        change, spread = raw.float().chunk(2, -1)
        return state + change, torch.exp(self.low + self.range * torch.sigmoid(spread))
