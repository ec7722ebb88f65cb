"""The value prefix of EfficientZero (https://arxiv.org/abs/2111.00210): rewards as differences of sums."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from torchrl_wm.modules.heads import Head
from torchrl_wm.ranges import COUNT


class ValuePrefix(nn.Module):
    """Predicts the sum of the rewards since the last reset, from the hidden states on the way.

    Unlike single rewards, their sum can be predicted without knowing the exact step in which each
    arrives. A recurrent cell reads the hidden state after each step and is reset every ``horizon``
    steps, in a search as in training. What it carries, the *memory* ``[..., size]``, is part of the
    latent: the cell's two states, the sum so far, the reward of the last step, and the steps since the
    reset. It starts as zeros.

    Args:
        in_features (int): size of the hidden state.
        head (Head): the cell's state ``[..., units]`` to a distribution over a scalar ``[..., 1]``.

    Keyword Args:
        horizon (int, optional): steps between two resets. Defaults to ``5``.

    Raises:
        ValueError: for a horizon below 1.

    Examples:
        >>> from torchrl_wm.modules import HyperbolicTwoHotHead
        >>> prefix = ValuePrefix(8, HyperbolicTwoHotHead(4, support=10, layers=1, units=4), horizon=2)
        >>> memory = torch.zeros(3, prefix.size)
        >>> for hidden in torch.randn(3, 3, 8):
        ...     memory = prefix(hidden, memory)
        >>> PrefixReward()(memory).mean.shape, memory[:, -1].tolist()
        (torch.Size([3, 1]), [1.0, 1.0, 1.0])
    """

    def __init__(self, in_features: int, head: Head, *, horizon: int = 5):
        super().__init__()
        COUNT.check(value_prefix_horizon=horizon)
        self.cell, self.head, self.horizon = (
            nn.LSTMCell(in_features, head.in_features),
            head,
            horizon,
        )
        self.sizes = [head.in_features, head.in_features, 1, 1, 1]

    @property
    def size(self) -> int:
        """Size of the memory."""
        return sum(self.sizes)

    def forward(self, hidden: Tensor, memory: Tensor) -> Tensor:
        """The memory after a step to the hidden states ``[..., in_features]``."""
        state, cell, before, _, steps = memory.split(self.sizes, -1)
        kept = (steps < self.horizon).to(memory.dtype)
        state, cell = self._read(hidden, kept * state, kept * cell)
        prefix = self.head(state).mean
        reward = prefix - kept * before
        return torch.cat([state, cell, prefix, reward, kept * steps + 1], -1)

    def unroll(self, hidden: Tensor) -> Distribution:
        """Distributions ``[B, K + 1]`` over the sums along hidden states ``[B, K + 1, in_features]``.

        The first state is the root's: no reward arrived there, and its entry is meaningless.
        """
        state = cell = hidden.new_zeros(len(hidden), self.sizes[0])
        states = [state]
        for step, reached in enumerate(hidden[:, 1:].unbind(1)):
            if step % self.horizon == 0:
                state, cell = torch.zeros_like(state), torch.zeros_like(cell)
            state, cell = self._read(reached, state, cell)
            states.append(state)
        return self.head(torch.stack(states, 1))

    def _read(self, hidden: Tensor, state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        hidden, *carried = (x.reshape(-1, x.shape[-1]) for x in (hidden, state, cell))
        return tuple(x.reshape_as(state) for x in self.cell(hidden, carried))


class RewardOf(NamedTuple):
    """A known reward: of a distribution it has only the ``mean [..., 1]``."""

    mean: Tensor


class PrefixReward(nn.Module):
    """Reads the reward off features that end with the memory of a :class:`ValuePrefix`.

    Replaces a reward head where rewards are predicted but not trained.

    Examples:
        >>> features = torch.tensor([[0.1, 0.2, 3.0, 7.0, 1.0]])
        >>> PrefixReward()(features).mean
        tensor([[7.]])
    """

    def forward(self, features: Tensor) -> RewardOf:
        """Features ``[..., F]`` to the reward."""
        return RewardOf(features[..., -2:-1])
