"""Recurrent cells: how belief, state and action become the next belief.

Every cell splits its work for speed: ``project_action`` does not depend on the carry and is called once
for a whole sequence, ``weights`` gathers the parameters once, and only ``forward`` runs inside the loop.
All take any number of leading batch dimensions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_wm.modules.networks import (
    Activation,
    BlockLinear,
    Init,
    Norm,
    dense,
    get_activation,
    init_trunc_normal_,
    make_norm,
)


class GRU(nn.Module):
    """The GRU of torch and Keras (reset gate after the recurrent product), for any batch shape.

    Args:
        in_features (int): size of the input.
        size (int): size of the hidden vector.

    Examples:
        >>> GRU(3, 5)(torch.zeros(2, 4, 3), torch.zeros(2, 4, 5)).shape
        torch.Size([2, 4, 5])
    """

    def __init__(self, in_features: int, size: int):
        super().__init__()
        self.cell = nn.GRUCell(in_features, size)
        nn.init.xavier_uniform_(self.cell.weight_ih)
        nn.init.orthogonal_(self.cell.weight_hh)
        nn.init.zeros_(self.cell.bias_ih)
        nn.init.zeros_(self.cell.bias_hh)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Maps ``x [..., in_features]`` and ``hidden [..., size]`` to the next hidden vector."""
        flat = self.cell(x.reshape(-1, x.shape[-1]), hidden.reshape(-1, hidden.shape[-1]))
        return flat.view_as(hidden)


class ResetBeforeGRU(nn.Module):
    """PlaNet's GRU: the reset gate multiplies the hidden vector before the product, gate bias 1.

    Args:
        in_features (int): size of the input.
        size (int): size of the hidden vector.
    """

    def __init__(self, in_features: int, size: int):
        super().__init__()
        self.gates = dense(in_features + size, 2 * size, init="glorot")
        self.candidate = dense(in_features + size, size, init="glorot")
        nn.init.ones_(self.gates.bias)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Maps ``x [..., in_features]`` and ``hidden [..., size]`` to the next hidden vector."""
        reset, update = self.gates(torch.cat([x, hidden], -1)).sigmoid().chunk(2, -1)
        candidate = torch.tanh(self.candidate(torch.cat([x, reset * hidden], -1)))
        return torch.lerp(candidate.to(hidden.dtype), hidden, update.to(hidden.dtype))


class LayerNormGRU(nn.Module):
    """Dreamer v2's GRU: one product, one layer norm over all gates, update bias -1.

    https://arxiv.org/abs/2010.02193. The candidate is ``tanh(reset * candidate)`` and the update gate
    multiplies the candidate, not the old hidden vector.

    Args:
        in_features (int): size of the input.
        size (int): size of the hidden vector.
    """

    def __init__(self, in_features: int, size: int):
        super().__init__()
        self.linear = dense(in_features + size, 3 * size, init="glorot")
        self.norm = nn.LayerNorm(3 * size, eps=1e-3)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Maps ``x [..., in_features]`` and ``hidden [..., size]`` to the next hidden vector."""
        gates = self.norm(self.linear(torch.cat([x, hidden], -1)))
        reset, candidate, update = gates.chunk(3, -1)
        return _gated(reset, candidate, update, hidden)


def _gated(reset: Tensor, candidate: Tensor, update: Tensor, hidden: Tensor) -> Tensor:
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    update = torch.sigmoid(update - 1)
    return update * candidate + (1 - update) * hidden


GRUS = {"gru": GRU, "reset_before": ResetBeforeGRU, "layer_norm": LayerNormGRU}


class DenseCell(nn.Module):
    """Dense layers on state and action, then a GRU: the cell of PlaNet, Dreamer v1 and v2.

    Args:
        state_size (int): size of the stochastic state.
        action_size (int): size of the encoded action.
        belief_size (int): size of the belief.
        hidden_size (int): units of the dense layers.

    Keyword Args:
        gru (str, optional): ``"gru"`` (v1), ``"reset_before"`` (PlaNet) or ``"layer_norm"`` (v2).
            Defaults to ``"gru"``.
        layers (int, optional): dense layers before the GRU. Defaults to ``1``.
        activation, norm, init: see :class:`~torchrl_wm.modules.networks.MLP`.

    Raises:
        ValueError: for an unknown gru, activation or norm; the message lists the valid ones.

    Examples:
        >>> cell = DenseCell(state_size=3, action_size=2, belief_size=8, hidden_size=4)
        >>> projected = cell.project_action(torch.zeros(5, 2))
        >>> cell(torch.zeros(5, 8), torch.zeros(5, 3), projected, cell.weights()).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        state_size: int,
        action_size: int,
        belief_size: int,
        hidden_size: int,
        *,
        gru: Literal["gru", "reset_before", "layer_norm"] = "gru",
        layers: int = 1,
        activation: Activation = "elu",
        norm: Norm | None = None,
        init: Init = "glorot",
    ):
        super().__init__()
        if gru not in GRUS:
            raise ValueError(f"Unknown gru {gru!r}; expected one of {sorted(GRUS)}.")
        sizes = [state_size + action_size, *[hidden_size] * layers]
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.linears = nn.ModuleList(dense(i, o, init=init) for i, o in pairs)
        self.norms = nn.ModuleList(make_norm(norm, hidden_size) for _ in range(layers))
        self.activation = get_activation(activation)
        self.gru = GRUS[gru](hidden_size, belief_size)
        self.state_size, self.belief_size = state_size, belief_size

    def weights(self) -> tuple[Tensor, ...]:
        """The part of the first layer that multiplies the state."""
        return (self.linears[0].weight[:, : self.state_size],)

    def project_action(self, action: Tensor) -> Tensor:
        """The action's share ``[..., hidden_size]`` of the first layer."""
        first = self.linears[0]
        return F.linear(action, first.weight[:, self.state_size :], first.bias)

    def forward(
        self, belief: Tensor, state: Tensor, projected_action: Tensor, weights: tuple[Tensor, ...]
    ) -> Tensor:
        """The next belief ``[..., belief_size]``."""
        hidden = F.linear(state, weights[0]) + projected_action
        hidden = self.activation(self.norms[0](hidden))
        for linear, norm in zip(self.linears[1:], self.norms[1:], strict=True):
            hidden = self.activation(norm(linear(hidden)))
        return self.gru(hidden, belief)


class BlockCell(nn.Module):
    """DreamerV3's block-diagonal GRU with three input projections (https://arxiv.org/abs/2301.04104).

    Every block reads its slice of the belief and the projections of the whole belief, of the state and
    of the action; actions with a magnitude above one are scaled down to one.

    Args:
        state_size (int): size of the stochastic state.
        action_size (int): size of the encoded action.
        belief_size (int): size of the belief, a multiple of ``blocks``.
        hidden_size (int): units of each projection.

    Keyword Args:
        blocks (int, optional): number of blocks. Defaults to ``8``.
        layers (int, optional): hidden layers before the gates. Defaults to ``1``.
        activation, norm: see :class:`~torchrl_wm.modules.networks.MLP`.

    Raises:
        ValueError: where ``blocks`` does not divide ``belief_size``, or for an unknown activation or norm.

    Examples:
        >>> cell = BlockCell(state_size=6, action_size=2, belief_size=16, hidden_size=4, blocks=4)
        >>> projected = cell.project_action(torch.zeros(5, 2))
        >>> cell(torch.zeros(5, 16), torch.zeros(5, 6), projected, cell.weights()).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        state_size: int,
        action_size: int,
        belief_size: int,
        hidden_size: int,
        *,
        blocks: int = 8,
        layers: int = 1,
        activation: Activation = "silu",
        norm: Norm | None = "rms",
    ):
        super().__init__()
        if belief_size % blocks:
            raise ValueError(f"blocks={blocks} must divide belief_size={belief_size}.")
        self.blocks, self.belief_size, self.hidden_size = blocks, belief_size, hidden_size
        width = belief_size // blocks
        sizes = (belief_size, state_size, action_size)
        self.inputs = nn.ModuleList(dense(size, hidden_size) for size in sizes)
        self.input_norms = nn.ModuleList(make_norm(norm, hidden_size) for _ in sizes)
        self.hidden = nn.Parameter(torch.empty(blocks, width + 3 * hidden_size, width))
        self.hidden_bias = nn.Parameter(torch.zeros(belief_size))
        self.hidden_norm = make_norm(norm, belief_size)
        extra = range(layers - 1)
        self.extra = nn.ModuleList(BlockLinear(belief_size, belief_size, blocks) for _ in extra)
        self.extra_norms = nn.ModuleList(make_norm(norm, belief_size) for _ in extra)
        self.gates = nn.Parameter(torch.empty(blocks, width, 3 * width))
        self.gates_bias = nn.Parameter(torch.zeros(3 * belief_size))
        self.activation = get_activation(activation)
        for weight in (self.hidden, self.gates):  # the fan-in is that of all blocks together
            init_trunc_normal_(weight, weight.shape[0] * weight.shape[1])

    def weights(self) -> tuple[Tensor, ...]:
        """Block weights, one dense matrix for the inputs that all blocks share, and the three gates.

        ``project_action`` applies the action's part, so only belief and state remain. The gates are
        separate, ``[blocks, width, width]`` each, so that their results are contiguous in memory; the
        candidate is doubled and the update's bias lowered by 1, as ``forward`` needs them.
        """
        width = self.belief_size // self.blocks
        shared = self.hidden[:, width : width + 2 * self.hidden_size]
        shared = shared.permute(1, 0, 2).flatten(1)
        reset, candidate, update = self.gates.split(width, -1)
        biases = self.gates_bias.view(self.blocks, 1, 3 * width).split(width, -1)
        gates = (reset, 2 * candidate, update, biases[0], 2 * biases[1], biases[2] - 1)
        return self.hidden[:, :width], shared, *gates

    def project_action(self, action: Tensor) -> Tensor:
        """The action's share ``[..., belief_size]`` of the hidden layer, its bias included."""
        action = action / action.detach().abs().clamp_min(1)
        projected = self._project(2, action)
        weight = self.hidden[:, -self.hidden_size :].permute(1, 0, 2).flatten(1)
        return F.linear(projected, weight.t(), self.hidden_bias)

    def forward(
        self, belief: Tensor, state: Tensor, projected_action: Tensor, weights: tuple[Tensor, ...]
    ) -> Tensor:
        """The next belief ``[..., belief_size]``."""
        own, shared, *gates = weights
        blocks = self._blocks(belief)
        inputs = torch.cat([self._project(0, belief), self._project(1, state)], -1)
        hidden = torch.bmm(blocks, own).transpose(0, 1).reshape(belief.shape)
        hidden = hidden + inputs @ shared + projected_action
        hidden = self.activation(self.hidden_norm(hidden))
        for linear, norm in zip(self.extra, self.extra_norms, strict=True):
            hidden = self.activation(norm(linear(hidden)))
        hidden = self._blocks(hidden)
        reset, candidate, update = (
            torch.baddbmm(bias, hidden, weight)
            for weight, bias in zip(gates[:3], gates[3:], strict=True)
        )
        # tanh(x) = 2 sigmoid(2x) - 1: a CPU computes sigmoids three times as fast.
        candidate = 2 * torch.sigmoid(torch.sigmoid(reset) * candidate) - 1
        new = torch.lerp(blocks, candidate.to(blocks.dtype), torch.sigmoid(update).to(blocks.dtype))
        return new.transpose(0, 1).reshape(belief.shape)

    def _blocks(self, x: Tensor) -> Tensor:
        """``[..., belief_size]`` seen as ``[blocks, rows, width]``."""
        return x.reshape(-1, self.blocks, self.belief_size // self.blocks).transpose(0, 1)

    def _project(self, index: int, x: Tensor) -> Tensor:
        return self.activation(self.input_norms[index](self.inputs[index](x)))


Cell = DenseCell | BlockCell
