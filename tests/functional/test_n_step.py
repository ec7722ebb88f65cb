"""Returns of n steps, against recorded ones and in cases that can be counted by hand."""

from __future__ import annotations

import pytest
import torch

from torchrl_wm.functional import n_step_returns, steps_of_age, value_prefixes


def records(rewards, values):
    """Rewards in the order of records: 0 in the first, each beside what it led to."""
    reward = torch.tensor([0.0, *rewards])
    last = torch.zeros(len(reward), dtype=torch.bool)
    last[-1] = True
    return reward, torch.tensor(values), last


@pytest.mark.golden("nstep_targets*")
@pytest.mark.parametrize("ending", ["terminal", "truncated"])
def test_returns_equal_the_recorded_ones(golden, ending):
    episodes = golden["episodes"]
    assert len(episodes)
    for j, (length, td_steps, _, mode) in enumerate(episodes.tolist()):
        rewards = golden[f"ep{j}_rewards"]
        reward = torch.cat([rewards.new_zeros(1), rewards])
        end = golden[f"ep{j}_bootstrap_value_at_end"].reshape(1)
        value = torch.cat([golden[f"ep{j}_root_values"], end])
        last = torch.arange(length + 1) == length
        target, known = n_step_returns(
            reward,
            value,
            last,
            last if ending == "terminal" else torch.zeros_like(last),
            td_steps=td_steps,
            discount=float(golden[f"ep{j}_discount"]),
            to_play=golden[f"ep{j}_to_play"] if mode else None,
        )
        assert known.all()
        expected = golden[f"ep{j}_value_target_{ending}"][: length + 1]
        torch.testing.assert_close(target, expected, rtol=0, atol=1e-9)


@pytest.mark.golden("nstep_targets*")
def test_value_prefixes_equal_the_recorded_ones(golden):
    for j in range(len(golden["episodes"])):
        rewards = golden[f"ep{j}_unroll_reward"][:, 1:]
        names = [n for n in golden.entries if n.startswith(f"ep{j}_value_prefix_h")]
        assert names
        for name in names:
            golden.close(value_prefixes(rewards, int(name.rpartition("_h")[2])), name, 1e-9)


def test_a_value_prefix_needs_a_step():
    with pytest.raises(
        ValueError, match="value_prefix_horizon=0 must be a whole number of at least 1"
    ):
        value_prefixes(torch.ones(3), 0)


def test_the_window_says_what_it_cannot_know():
    reward, value = torch.ones(4), torch.ones(4)
    never = torch.zeros(4, dtype=torch.bool)
    _, known = n_step_returns(reward, value, never, never, td_steps=2, discount=1.0)
    assert known.tolist() == [True, True, False, False]


def test_each_record_may_have_steps_of_its_own():
    reward, value, last = records([1.0, 2.0, 4.0, 8.0], [0.5, 1.5, 2.5, 3.5, 4.5])
    never, options = torch.zeros_like(last), {"discount": 0.9}
    steps = torch.tensor([3, 1, 2, 1, 5])
    mixed, known = n_step_returns(reward, value, never, never, td_steps=steps, **options)
    for position, count in enumerate(steps.tolist()):
        one, sure = n_step_returns(reward, value, never, never, td_steps=count, **options)
        assert mixed[position] == one[position] and known[position] == sure[position]
    assert known.tolist() == [True, True, True, True, False]


def test_older_records_have_shorter_returns():
    age = torch.tensor([0, 29, 30, 31, 149, 150, 10**9])
    assert steps_of_age(5, age, 30).tolist() == [5, 5, 4, 4, 1, 1, 1]


def test_whole_episodes_and_batches():
    reward, value, last = records([1.0, 2.0, 4.0], [9.0, 9.0, 9.0, 9.0])
    batch = [x.expand(2, 3, -1) for x in (reward, value, last, last)]
    target, _ = n_step_returns(*batch, td_steps=50, discount=1.0)
    assert target.shape == (2, 3, 4) and target[1, 2].tolist() == [7.0, 6.0, 4.0, 0.0]


def test_a_bootstrap_needs_a_step():
    reward, value, last = records([1.0], [0.0, 0.0])
    for steps in (0, torch.tensor([1, 0])):
        with pytest.raises(ValueError, match="td_steps=0 must be a whole number of at least 1"):
            n_step_returns(reward, value, last, last, td_steps=steps, discount=1.0)
