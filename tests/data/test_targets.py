"""Targets of unrolled models: against recorded windows, across ends and turns."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, OneHot

from torchrl_wm.data import BootstrapValues, UnrolledTargets
from torchrl_wm.modules import ActionEncoding


def episode(golden, j, terminated, behind=60):
    """The step records of a recorded episode, with numbers of another one behind it."""
    rewards, policies = golden[f"ep{j}_rewards"], golden[f"ep{j}_policies"]
    length, marker = len(rewards), 1e6
    last = torch.zeros(length + 1, 1, dtype=torch.bool)
    last[-1] = True
    ends = last.clone() if terminated else torch.zeros_like(last)
    end = golden[f"ep{j}_bootstrap_value_at_end"].reshape(1)
    value = torch.cat([golden[f"ep{j}_root_values"], end])
    encoded = torch.nn.functional.one_hot(golden[f"ep{j}_actions"].long(), policies.shape[1])
    own = TensorDict(
        reward=torch.cat([rewards.new_zeros(1), rewards])[:, None],
        bootstrap_value=value[:, None],
        to_play=golden[f"ep{j}_to_play"][:, None],
        search_policy=torch.cat([policies, 0 * policies[:1]]),
        previous_action=torch.cat([0 * encoded[:1], encoded]).float(),
        is_last=last,
        terminated=ends,
        batch_size=[length + 1],
    )
    other = own[:1].clone().expand(behind).clone()
    for key in ("reward", "bootstrap_value"):
        other[key] = torch.full((behind, 1), marker, dtype=torch.float64)
    other["is_last"] = other["terminated"] = torch.zeros(behind, 1, dtype=torch.bool)
    other["to_play"] = torch.zeros(behind, 1, dtype=torch.int64)
    return torch.cat([own, other])


def recorded_targets(golden, j, unroll, td_steps, mode, **options):
    return UnrolledTargets(
        ActionEncoding(OneHot(golden[f"ep{j}_policies"].shape[1])),
        root=0,
        unroll_steps=unroll,
        td_steps=td_steps,
        discount=float(golden[f"ep{j}_discount"]),
        two_players=bool(mode),
        **options,
    )


@pytest.mark.golden("nstep_targets*")
@pytest.mark.parametrize("ending", ["terminal", "truncated"])
def test_values_of_whole_episodes_equal_the_recorded_ones(golden, ending):
    for j, (length, td_steps, unroll, mode) in enumerate(golden["episodes"].tolist()):
        targets = recorded_targets(golden, j, length + unroll, td_steps, mode)
        records = episode(golden, j, ending == "terminal", behind=targets.length)
        value = targets(records[: targets.length])["target", "value"][:, 0]
        expected = golden[f"ep{j}_value_target_{ending}"]
        torch.testing.assert_close(value[: len(expected)], expected, rtol=0, atol=1e-9)
        if ending == "terminal":
            error = (golden[f"ep{j}_root_values"] - value[:length]).abs()
            golden.close(error, f"ep{j}_priority_terminal", 1e-9)


@pytest.mark.golden("nstep_targets*")
@pytest.mark.parametrize("ending", ["terminal", "truncated"])
def test_windows_equal_the_recorded_ones(golden, ending):
    for j, (length, td_steps, unroll, mode) in enumerate(golden["episodes"].tolist()):
        targets = recorded_targets(golden, j, unroll, td_steps, mode)
        records = episode(golden, j, ending == "terminal", behind=targets.length)
        windows = torch.stack([records[t : t + targets.length] for t in range(length)])
        out = targets(windows)["target"][:, : unroll + 1]
        expected = golden[f"ep{j}_unroll_value_{ending}"]
        value = out["value"][..., 0]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-9)
        policy_mask = golden[f"ep{j}_unroll_policy_mask"]
        assert torch.equal(out["policy_mask"][..., 0], policy_mask)
        policy = windows["search_policy"][:, : unroll + 1] * policy_mask[..., None]
        assert torch.equal(policy, golden[f"ep{j}_unroll_policy"])
        reward = out["reward"][:, 1:, 0]
        assert torch.equal(reward, golden[f"ep{j}_unroll_reward"][:, 1:])
        inside = torch.arange(length)[:, None] + torch.arange(unroll + 1) <= length
        scored = torch.ones_like(inside) if ending == "terminal" else inside
        assert torch.equal(out["value_mask"][..., 0], scored)
        assert torch.equal(out["reward_mask"][:, 1:, 0], scored[:, 1:])
        trained = golden[f"ep{j}_unroll_reward_mask"] & scored
        assert torch.equal(out["reward_mask"][..., 0], trained)
        assert torch.equal(out["observed_mask"][..., 0], inside)
        valid = golden[f"ep{j}_unroll_action_valid"]
        same = (out["action"] == windows["previous_action"][:, : unroll + 1]).all(-1)[:, 1:]
        assert same[valid].all() and (out["action"].sum(-1)[:, 1:] == 1).all()


@pytest.mark.golden("nstep_targets*")
@pytest.mark.parametrize("ending", ["terminal", "truncated"])
def test_sums_of_rewards_equal_the_recorded_ones(golden, ending):
    for j, (length, td_steps, unroll, mode) in enumerate(golden["episodes"].tolist()):
        names = [name for name in golden.entries if name.startswith(f"ep{j}_value_prefix_h")]
        assert names
        for name in names:
            horizon = int(name.rpartition("_h")[2])
            options = {"value_prefix_horizon": horizon}
            targets = recorded_targets(golden, j, unroll, td_steps, mode, **options)
            records = episode(golden, j, ending == "terminal", behind=targets.length)
            rows = torch.stack([records[t : t + targets.length] for t in range(length)])
            out = targets(rows)["target"][:, 1 : unroll + 1]
            golden.close(out["reward"][..., 0], name, 1e-9)
            inside = torch.arange(length)[:, None] + torch.arange(1, unroll + 1) <= length
            trained = inside | (ending == "terminal")
            assert torch.equal(out["reward_mask"][..., 0], trained)


def windows(ends, terminated=True):
    """One window of ones with ends at the given positions."""
    last = torch.zeros(1, 8, 1, dtype=torch.bool)
    last[0, list(ends)] = True
    return TensorDict(
        reward=torch.ones(1, 8, 1),
        bootstrap_value=torch.full((1, 8, 1), 100.0),
        previous_action=torch.full((1, 8, 2), 5.0),
        is_last=last,
        terminated=last & terminated,
        batch_size=[1, 8],
    )


TARGETS = {"unroll_steps": 3, "td_steps": 3, "discount": 1.0}


def test_flat_rows_are_sequences_and_the_root_may_be_inside():
    targets = UnrolledTargets(ActionEncoding(Bounded(-1, 1, (2,))), root=1, **TARGETS)
    assert targets.length == 8
    rows = windows([3])
    square, flat = targets(rows.clone()), targets(rows.clone().reshape(8))
    assert torch.equal(square["target", "value"].reshape(8, 1), flat["target", "value"])
    assert flat["target", "value_mask"].flatten().tolist() == [False] + [True] * 4 + [False] * 3
    assert flat["target", "policy_mask"].flatten().tolist() == [False, True, True] + [False] * 5
    drawn = flat["target", "action"]
    assert (drawn[:4] == 5).all() and (drawn[4:].abs() <= 1).all()


def test_an_end_before_the_root_is_none_of_its_business():
    targets = UnrolledTargets(ActionEncoding(OneHot(2)), root=1, **TARGETS)
    out = targets(windows([0]))["target"]
    assert out["value"][0, 1:5].flatten().tolist() == [103.0] * 4
    assert out["policy_mask"][0, 1:5].all()


def test_only_the_first_end_tells_what_lies_behind_it():
    targets = UnrolledTargets(
        ActionEncoding(OneHot(2)), root=0, unroll_steps=4, td_steps=3, discount=1
    )
    rows = windows([1, 3])
    rows["terminated"][0, 1] = False  # truncated, then an episode of two steps that terminates
    out = targets(rows)["target"]
    assert out["value_mask"][0, :5].flatten().tolist() == [True, True, False, False, False]


def test_values_of_truncated_ends_come_from_the_network():
    asked = []
    evaluate = lambda records: asked.append(len(records)) or torch.full((len(records), 1), 7.0)
    fill = BootstrapValues(evaluate)
    searched = lambda rows: rows.rename_key_("bootstrap_value", "root_value")
    out = fill(searched(windows([3], terminated=False)))
    assert asked == [1]
    assert out["bootstrap_value"][0, :, 0].tolist() == [100.0] * 3 + [7.0] + [100.0] * 4
    assert (out["root_value"] == 100).all()
    out = BootstrapValues(evaluate, length=8, evaluated=slice(5, 7))(out)
    assert asked == [1, 3]
    assert out["bootstrap_value"][0, :, 0].tolist() == [100.0] * 3 + [7.0, 100.0, 7.0, 7.0, 100.0]
    fill(searched(windows([3])))
    assert asked == [1, 3]


@pytest.mark.parametrize("last", [[], [3], [5, 6]])
def test_returns_read_no_value_but_those_of_so_many_steps_later_and_of_truncated_ends(last):
    targets = UnrolledTargets(ActionEncoding(OneHot(2)), root=1, **TARGETS)
    rows = windows(last, terminated=False)
    length, later = targets.length, slice(1 + TARGETS["td_steps"], None)
    rows = rows[:, :length].rename_key_("bootstrap_value", "root_value")
    network = lambda records: 9.0 + torch.arange(len(records)).unsqueeze(1)
    expected = targets(BootstrapValues(network, length=length, evaluated=later)(rows.clone()))
    rows["root_value"][:] = float("nan")
    found = targets(BootstrapValues(network, length=length, evaluated=later)(rows))
    mask = expected["target", "value_mask"]
    assert torch.equal(found["target", "value"][mask], expected["target", "value"][mask])


def test_returns_of_older_records_are_shorter():
    options = {"root": 1, **TARGETS}
    rows = windows([])
    rows["policy_version"] = torch.arange(8).expand(rows.shape)
    updates = [30]
    aged = UnrolledTargets(
        ActionEncoding(OneHot(2)), auto_td_steps=10, version=lambda: updates[0], **options
    )
    found = aged(rows.clone())["target", "value"]
    assert aged.td_steps == 3 and aged.length == 8
    single = rows["reward"][:, 1:] + TARGETS["discount"] * rows["bootstrap_value"][:, 1:]
    torch.testing.assert_close(found[:, :7], single)
    updates[0] = 9
    plain = UnrolledTargets(ActionEncoding(OneHot(2)), **options)(rows.clone())
    assert torch.equal(aged(rows)["target", "value"], plain["target", "value"])


@pytest.mark.parametrize(
    "options", [{"td_steps": 0}, {"unroll_steps": -1}, {"root": -1}, {"auto_td_steps": -1}]
)
def test_bad_steps_are_named(options):
    given = {"root": 0, **TARGETS, **options}
    with pytest.raises(ValueError, match=next(iter(options))):
        UnrolledTargets(ActionEncoding(OneHot(2)), **given)


def test_sequences_of_another_length_and_missing_entries_are_named():
    targets = UnrolledTargets(ActionEncoding(OneHot(2)), root=1, **TARGETS)
    for rows in (
        windows([])[:, :7],
        windows([]).repeat(4, 1).reshape(-1, 16),
        windows([]).flatten()[:-1],
    ):
        with pytest.raises(ValueError, match=r"Sequences of 8 records.*\[B, 8\].*shape"):
            targets(rows)
    with pytest.raises(KeyError, match="bootstrap_value"):
        targets(windows([]).exclude("bootstrap_value"))
    aged = UnrolledTargets(ActionEncoding(OneHot(2)), root=1, auto_td_steps=5, **TARGETS)
    with pytest.raises(KeyError, match="policy_version"):
        aged(windows([]))
    two = UnrolledTargets(ActionEncoding(OneHot(2)), root=1, two_players=True, **TARGETS)
    with pytest.raises(KeyError, match="to_play"):
        two(windows([]))
