from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import RewardScaling

from torchrl_wm.data import step_records
from torchrl_wm.envs import gymnasium

OBSERVATIONS = ["observation", ("camera", "pixels")]


def convert(batch, **options):
    options = {"observation_keys": OBSERVATIONS, "policy_keys": ["belief"]} | options
    return step_records(batch, **options)


def test_six_steps_by_hand(streams):
    batch = streams(1).batch([[0, 0, 1, 0, 1, 0]], [[0, 0, 1, 0, 0, 0]])
    records = convert(batch)
    assert records["observation"][:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert records["is_init"][:, 0].int().tolist() == [1, 0, 0, 0, 1, 0, 0, 1]
    assert records["is_last"][:, 0].int().tolist() == [0, 0, 0, 1, 0, 0, 1, 0]
    assert records["terminated"][:, 0].int().tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert records["previous_action"][:, 0].tolist() == [0, 0.5, 1.5, 2.5, 0, 4.5, 5.5, 0]
    assert records["reward"][:, 0].tolist() == [0, 1.25, 2.25, 3.25, 0, 5.25, 6.25, 0]
    assert records["action"][:, 0].tolist() == [0.5, 1.5, 2.5, 0, 4.5, 5.5, 0, 7.5]
    assert records["belief"][:, 0].tolist() == [0, -1, -2, 0, -4, -5, 0, -7]
    assert records["environment"].tolist() == [0] * 8
    assert records["camera", "pixels"].dtype == torch.uint8
    assert records["camera", "pixels"][:, 0, 0, 0].tolist() == list(range(8))


ENDS = {
    "no end": [[0, 0, 0], [0, 0, 0]],
    "one-step episodes": [[1, 1, 1], [0, 1, 0]],
    "everything done": [[1, 1, 1], [1, 1, 1]],
    "last step": [[0, 0, 1], [0, 0, 0]],
    "one step": [[1], [0]],
}


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_equals_the_log(streams, assert_same, ends):
    source = streams(2)
    for _ in range(2):
        before = [len(log) for log in source.log]
        records = convert(source.batch(ends))
        for e in range(2):
            mine = records[records["environment"] == e]
            assert len(mine) == len(source.log[e]) - before[e]
            assert_same(mine, source.records(e)[before[e] :])


def test_random_ends_over_many_batches_equal_the_log(streams, assert_same, random_ends):
    source = streams(3)
    parts = [convert(source.batch(random_ends(3, 7, 0.3, seed))) for seed in range(8)]
    records = torch.cat(parts)
    for e in range(3):
        assert_same(records[records["environment"] == e], source.records(e))


def test_padding_gives_no_record(streams, assert_same):
    source = streams(2)
    batch = source.batch([[0, 0, 1], [0, 1, 0]])
    padded = torch.cat([batch, torch.full_like(batch[:, :1], 1)], 1)
    padded["collector", "mask"] = torch.tensor([[True, True, True, False]] * 2)
    records = convert(padded)
    assert_same(records, convert(batch))
    padded["collector", "mask"][1, 2] = False
    assert (convert(padded)["environment"] == 1).sum() == 3


def test_nested_actions_and_trailing_entries(streams):
    batch = streams(1).batch([[0, 1]])
    batch["agent", "arm"] = torch.ones(1, 2, 2, 3)
    batch["search", "visits"] = torch.ones(1, 2, dtype=torch.int64)
    records = convert(batch, action_keys=[("agent", "arm")], policy_keys=[("search", "visits")])
    assert records["agent", "arm"].shape == (3, 2, 3)
    assert records["agent", "arm"][:, 0, 0].tolist() == [1, 1, 0]
    assert records["search", "visits"].tolist() == [1, 1, 0]
    assert "belief" not in records.keys()


def test_the_batch_is_left_as_it_was(streams):
    batch = streams(1).batch([[0, 1]])
    before = batch.clone()
    convert(batch)["observation"].fill_(-1)
    assert (batch == before).all()


@pytest.mark.parametrize(
    "key", ["previous_action", "previous_reward", "is_init", "belief", "action"]
)
def test_missing_entry_is_named(streams, key):
    batch = streams(1).batch([[0, 1]])
    with pytest.raises(KeyError, match=f"{key}.*found.*observation"):
        convert(batch.exclude(key))


def test_missing_next_entry_is_named(streams):
    batch = streams(1).batch([[0, 1]])
    with pytest.raises(KeyError, match="'next', 'observation'"):
        convert(batch.exclude(("next", "observation")))


def test_done_without_restart_is_refused(streams):
    batch = streams(2).batch([[0, 0, 0], [0, 1, 0]])
    batch["is_init"][1, 2] = False
    with pytest.raises(ValueError, match="'is_init' is False at step 2 of environment 1"):
        convert(batch)


def test_flat_batch_is_refused():
    with pytest.raises(ValueError, match=r"\[environments, steps\].*\[3\]"):
        convert(TensorDict({}, batch_size=[3]))


def test_rewards_that_a_later_transform_changes_are_refused(streams):
    batch = streams(2).batch([[0, 0, 0], [0, 1, 0]])
    batch["next", "reward"][1, 1] *= 0.1
    with pytest.raises(ValueError, match="step 1 of environment 1 .*insert_transform"):
        step_records(batch, observation_keys=["observation"])


@pytest.mark.filterwarnings("ignore")
def test_rewards_that_a_transform_in_front_changes_are_stored_changed():
    env = gymnasium("CartPole-v1", num_envs=2)
    env.insert_transform(0, RewardScaling(loc=0.0, scale=0.5))
    records = step_records(env.rollout(5), observation_keys=["observation"])
    first = records["is_init"]
    assert (records["reward"][first] == 0).all() and (records["reward"][~first] == 0.5).all()
