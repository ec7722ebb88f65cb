"""The value prefix: one cell for steps and sequences, resets by depth, rewards as differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchrl_wm.modules import HyperbolicTwoHotHead, PrefixReward, ValuePrefix


def prefix(horizon=3, units=5):
    torch.manual_seed(0)
    made = ValuePrefix(
        4, HyperbolicTwoHotHead(units, support=10, layers=1, units=6), horizon=horizon
    )
    made.head.out.weight.data.normal_()  # a head of zeros would hide mistakes
    made.head.out.bias.data.normal_()
    return made


def by_hand(made, hidden):
    """Sums along ``hidden [B, K, S]`` by a recurrent layer that runs over each stretch between resets."""
    layer = nn.LSTM(made.cell.input_size, made.cell.hidden_size, batch_first=True)
    layer.load_state_dict({f"{k}_l0": v for k, v in made.cell.state_dict().items()})
    parts = [layer(part)[0] for part in hidden.split(made.horizon, 1)]
    return made.head(torch.cat(parts, 1)).mean[..., 0]


@pytest.mark.parametrize("horizon", [1, 3, 5, 50])
def test_steps_and_sequences_are_the_same(horizon):
    made, hidden = prefix(horizon), torch.randn(2, 12, 4)
    with torch.no_grad():
        expected = by_hand(made, hidden[:, 1:])
        sums = made.unroll(hidden).mean[..., 0]
        torch.testing.assert_close(sums[:, 1:], expected, rtol=1e-4, atol=1e-4)
        memory, rewards = torch.zeros(2, made.size), []
        for reached in hidden[:, 1:].unbind(1):
            memory = made(reached, memory)
            rewards.append(PrefixReward()(memory).mean[:, 0])
    before = torch.cat([torch.zeros(2, 1), expected[:, :-1]], 1)
    before[:, ::horizon] = 0
    torch.testing.assert_close(torch.stack(rewards, 1), expected - before, rtol=1e-4, atol=1e-3)


def test_any_leading_dimensions():
    made = prefix()
    hidden, memory = torch.randn(2, 3, 4), torch.zeros(2, 3, made.size)
    wide = made(hidden, memory)
    flat = made(hidden.reshape(6, 4), memory.reshape(6, -1))
    torch.testing.assert_close(wide.reshape(6, -1), flat)


def test_a_horizon_has_a_step():
    with pytest.raises(
        ValueError, match="value_prefix_horizon=0 must be a whole number of at least 1"
    ):
        prefix(horizon=0)
