from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch.nn import functional as F
from torchrl.collectors import Collector
from torchrl.data import Categorical, Composite, OneHot, TensorDictReplayBuffer, Unbounded
from torchrl.envs import GymEnv, InitTracker, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.transforms import Compose

from torchrl_wm.data import StepReplay, step_records
from torchrl_wm.envs import PreviousStep

OBSERVATIONS = ["observation", ("camera", "pixels")]


def make(num_envs=2, capacity=60, batch=4, length=5, **options):
    options = {
        "action_spec": Unbounded(1),
        "observation_keys": OBSERVATIONS,
        "latents": {"belief": torch.float32},
        "seed": 0,
    } | options
    return StepReplay(capacity, num_envs, batch, length, **options)


def check_samples(replay, source, assert_same, rounds=20):
    """Every sampled sequence is a piece of its environment's log, from the newest records of it."""
    logs = [source.records(e) for e in range(source.num_envs)]
    first_seen = [len(log) for log in logs]
    for _ in range(rounds):
        sample = replay.sample()
        assert sample.shape == (replay.batch_size, replay.slice_length + 1)
        for row in sample:
            e = int(row["index"][0] % source.num_envs)
            first = int(row["observation"][0] - 1000 * e)
            assert_same(row, logs[e][first : first + len(row)])
            assert first >= len(logs[e]) - replay.writer.window
            first_seen[e] = min(first_seen[e], first)
    return first_seen


@pytest.mark.parametrize("mapped", [True, False])
def test_samples_equal_the_log_before_and_after_wrapping(
    streams, assert_same, random_ends, tmp_path, mapped
):
    replay = make(num_envs=3, scratch_dir=tmp_path if mapped else None)
    source = streams(3)
    for seed in range(12):
        replay.extend(source.batch(random_ends(3, 4, 0.25, seed)))
        if seed in (2, 5, 11):
            check_samples(replay, source, assert_same)
    assert min(replay.writer.counts.tolist()) > 2 * replay.writer.window
    assert len(replay) == 60


def test_a_slice_starts_in_mid_episode(streams):
    replay = make(num_envs=1, capacity=10, length=2)
    replay.extend(streams(1).batch([[0] * 10]))
    firsts = {float(replay.sample()["observation"][0, 0, 0]) for _ in range(100)}
    assert firsts == {float(n) for n in range(8)}


def real_env(limit):
    return TransformedEnv(
        GymEnv("CartPole-v1"), Compose(InitTracker(), StepCounter(limit), PreviousStep())
    )


def test_three_real_environments_with_asynchronous_resets(assert_same):
    """CartPole capped at 1, 5 and 30 steps, one stock collector: a slice is a piece of the log."""
    torch.manual_seed(0)
    env = SerialEnv(3, [lambda n=n: real_env(n) for n in (1, 5, 30)])
    env.set_seed(0)

    def act(observation):
        return F.one_hot(torch.randint(2, observation.shape[:-1]), 2)

    policy = TensorDictModule(act, in_keys=["observation"], out_keys=["action"])
    replay = StepReplay(
        120, 3, 8, 6, action_spec=OneHot(2), observation_keys=["observation"], seed=0
    )
    logs = [[], [], []]
    for batch in Collector(env, policy, frames_per_batch=30, total_frames=360):
        replay.extend(batch)
        records = step_records(batch, observation_keys=["observation"])
        for e in range(3):
            logs[e].append(records[records["environment"] == e].exclude("environment"))
        full = [torch.cat(log) for log in logs]
        for row in replay.sample() if replay.ready else ():
            e = int(row["index"][0] % 3)
            starts = (full[e]["observation"] == row["observation"][0]).all(-1).nonzero()[:, 0]
            assert len(starts) == 1
            assert_same(row, full[e][int(starts) : int(starts) + 7])
    lengths = [int((log["is_last"]).sum()) for log in full]
    assert lengths[0] == 120 and lengths[1] >= 24 and len(full[0]) == 240
    for log in full:
        assert torch.equal(log["is_init"][1:], log["is_last"][:-1])
        inside = ~log["is_init"][1:, 0]
        assert torch.equal(log["previous_action"][1:][inside], log["action"][:-1][inside].float())
        assert (log["reward"][log["is_init"]] == 0).all() and (log["reward"][1:][inside] == 1).all()
    assert not (full[0]["terminated"]).any() and full[2]["terminated"].any()


def test_write_back_replaces_latents(streams):
    replay = make()
    replay.extend(streams(2).batch([[0] * 20] * 2))
    sample = replay.sample()
    fresh = sample["observation"][:, 1:].expand(4, 5, 2) * 10
    latents = TensorDict(belief=fresh.clone(), batch_size=[4, 5])
    rows = sample["index"][:, 1:].unique()
    assert replay.write_back(sample, latents) == len(rows)
    stored = replay.buffer.storage._storage
    number = stored["observation"][rows]
    assert torch.equal(stored["belief"][rows], (number * 10).expand(-1, 2))
    others = torch.ones(40, dtype=torch.bool)
    others[rows] = False
    assert torch.equal(
        stored["belief"][:40][others], -stored["observation"][:40][others].expand(-1, 2)
    )


def test_write_back_of_overlapping_rows_keeps_the_last(streams):
    replay = make(num_envs=1, capacity=21, batch=16, length=5)
    replay.extend(streams(1).batch([[0] * 21]))
    sample = replay.sample()
    order = torch.arange(80.0).reshape(16, 5)
    latents = TensorDict(belief=order.unsqueeze(-1).expand(16, 5, 2), batch_size=[16, 5])
    replay.write_back(sample, latents)
    expected = {int(row): n for n, row in enumerate(sample["index"][:, 1:].flatten())}
    for row, n in expected.items():
        assert replay.buffer.storage._storage["belief"][row].tolist() == [n, n]


def test_write_back_skips_rows_that_were_reused(streams):
    replay = make(num_envs=1, capacity=20, batch=8)
    source = streams(1)
    replay.extend(source.batch([[0] * 20]))
    sample = replay.sample()
    replay.extend(source.batch([[0] * 10]))
    before = replay.buffer.storage._storage["belief"].clone()
    latents = TensorDict(belief=torch.full((8, 5, 2), 7.0), batch_size=[8, 5])
    replay.write_back(sample, latents)
    rows = sample["index"][:, 1:].unique()
    reused, live = rows[rows < 10], rows[rows >= 10]
    assert len(reused) and len(live)
    stored = replay.buffer.storage._storage["belief"]
    assert torch.equal(stored[reused], before[reused])
    assert (stored[live] == 7).all()


def test_latents_are_compressed_in_the_storage(streams):
    replay = make(num_envs=1, latents={"belief": torch.float16, "state": 4})
    batch = streams(1).batch([[0, 0, 1, 0, 0, 0, 0]])
    batch["state"] = torch.eye(4)[[0, 1, 2, 3, 0, 1, 2]].unsqueeze(0)
    replay.extend(batch)
    assert replay.buffer.storage._storage["state"].shape == (60, 1)
    sample = replay.sample()
    assert sample["state"].shape == (4, 6, 4) and sample["belief"].dtype == torch.float32
    assert torch.equal(sample["state"].sum(-1, keepdim=True), (~sample["is_last"]).float())
    latents = TensorDict(state=torch.eye(4)[torch.full((4, 5), 3)], batch_size=[4, 5])
    replay.write_back(sample, latents)
    assert (replay.buffer.storage._storage["state"][sample["index"][:, 1:]] == 4).all()


def test_extra_entries_and_composite_actions(streams):
    batch = streams(2).batch([[0] * 8, [0] * 8])
    batch["agent"] = TensorDict(gear=torch.ones(2, 8, dtype=torch.int64), batch_size=[2, 8])
    batch["search", "value"] = torch.ones(2, 8, 1)
    spec = Composite(action=Unbounded(1), agent=Composite(gear=Categorical(3)))
    replay = make(action_spec=spec, extra_keys=[("search", "value")])
    replay.extend(batch)
    sample = replay.sample()
    assert (sample["agent", "gear"] == 1).all() and (sample["search", "value"] == 1).all()
    latents = TensorDict({("search", "value"): torch.full((4, 5, 1), 3.0)}, batch_size=[4, 5])
    replay.write_back(sample, latents)
    assert (replay.buffer.storage._storage["search", "value"][sample["index"][:, 1:]] == 3).all()


def test_ready_length_and_stock_buffer(streams):
    replay, source = make(batch=3), streams(2)
    replay.extend(source.batch([[0] * 6, [0] * 6]))
    assert len(replay) == 12 and not replay.ready  # two starts, three sequences
    replay.extend(source.batch([[0], [0]]))
    assert replay.ready
    assert type(replay.buffer) is TensorDictReplayBuffer


def test_seed_makes_samples_equal(streams):
    batch = streams(2).batch([[0] * 20] * 2)
    samples = []
    for seed in (3, 3, 4):
        replay = make(seed=seed)
        replay.extend(batch)
        samples.append(replay.sample()["index"])
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])


def test_a_million_images_fit_into_13_gigabytes(streams):
    replay = make(num_envs=1)
    batch = streams(1).batch([[0, 1]])
    for root in (batch, batch["next"]):
        root["camera", "pixels"] = torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8)
    replay.extend(batch)
    sizes = replay.sizes()
    assert sizes["latents"] == 2 * 4
    assert sizes["observations"] == 3 * 64 * 64 + 4
    assert 1_000_000 * (sizes["observations"] + sizes["rest"]) < 13e9


@pytest.mark.parametrize("where", ["root", "final"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["observation", "previous_reward"])
def test_not_finite_is_refused_and_nothing_stored(streams, key, value, where):
    replay, source = make(), streams(2)
    replay.extend(source.batch([[0, 0, 0], [0, 0, 0]]))
    before = replay.buffer.storage._storage[:6].clone()
    batch = source.batch([[0, 0, 0], [0, 1, 0]])
    (batch if where == "root" else batch["next"])[key][1, 1] = value
    name = "step 1" if where == "root" else "next of step 1"
    with pytest.raises(ValueError, match=f"'{key}' is not finite in environment 1, {name} of"):
        replay.extend(batch)
    assert (replay.buffer.storage._storage[:6] == before).all()
    assert len(replay) == len(replay.buffer) == 6


def test_missing_entry_is_named(streams):
    batch = streams(2).batch([[0, 0], [0, 0]])
    with pytest.raises(KeyError, match="'belief'.*found.*observation"):
        make().extend(batch.exclude("belief"))


@pytest.mark.parametrize("num_envs", [1, 3])
def test_wrong_number_of_environments(streams, num_envs):
    with pytest.raises(ValueError, match=rf"\[2, steps\].*\[{num_envs}, 2\]"):
        make().extend(streams(num_envs).batch([[0, 0]] * num_envs))


def test_an_episode_that_goes_on_after_its_end_is_refused(streams):
    replay, source = make(), streams(2)
    replay.extend(source.batch([[0, 0], [0, 1]]))
    source.batch([[0], [0]])  # lost
    with pytest.raises(ValueError, match="Environment 1 goes on at step 0"):
        replay.extend(source.batch([[0], [0]]))


def test_a_batch_that_does_not_go_on_from_the_one_before_is_refused(streams):
    replay, source = make(), streams(2)
    replay.extend(source.batch([[0, 0], [0, 1]]))
    source.batch([[0], [1]])  # lost, and environment 1 begins anew
    before = len(replay)
    with pytest.raises(ValueError, match="Environment 0 goes on.*MultiAsyncCollector"):
        replay.extend(source.batch([[0], [0]]))
    assert len(replay) == before


def test_an_episode_that_a_reset_interrupts_ends_there(streams):
    replay, source = make(num_envs=1), streams(1)
    replay.extend(source.batch([[0, 0, 0]]))
    source.carried[0] = None  # as a new collector begins
    replay.extend(source.batch([[0, 0, 1]]))
    for _ in range(5):
        sample = replay.sample()
        number = sample["observation"]
        assert torch.equal(sample["is_last"], (number == 2) | (number == 6))
        assert torch.equal(sample["terminated"], number == 6)


@pytest.mark.parametrize(
    ("key", "shape"), [("action", (3,)), ("observation", (2,)), ("belief", (1,))]
)
def test_entries_of_another_shape_are_refused_and_nothing_is_lost(streams, key, shape):
    replay, source = make(capacity=24), streams(2)
    for _ in range(4):
        replay.extend(source.batch([[0] * 5] * 2))
    before = replay.buffer.storage._storage.clone()
    batch = source.batch([[0] * 5] * 2)
    for place in (batch, batch["next"]):
        if key in place.keys():
            place[key] = place[key][..., :1].expand(2, 5, *shape).clone()
    with pytest.raises(ValueError, match=f"'{key}' of a record has the shape"):
        replay.extend(batch)
    assert (replay.buffer.storage._storage == before).all()


def test_a_capacity_below_a_batch_is_refused():
    with pytest.raises(
        ValueError, match="capacity of 12 holds 6 different sequences.*batch_size=50"
    ):
        make(capacity=12, batch=50, length=3)


def test_sampling_from_too_little(streams):
    replay = make()
    with pytest.raises(RuntimeError, match="needs 6 records.*at most 0"):
        replay.sample()
    replay.extend(streams(2).batch([[0] * 3] * 2))
    with pytest.raises(RuntimeError, match="needs 6 records.*at most 3"):
        replay.sample()


def test_write_back_of_the_wrong_entry_or_shape(streams):
    replay = make()
    replay.extend(streams(2).batch([[0] * 20] * 2))
    sample = replay.sample()
    with pytest.raises(KeyError, match="reward.*stores.*belief"):
        replay.write_back(sample, TensorDict(reward=torch.zeros(4, 5, 1), batch_size=[4, 5]))
    with pytest.raises(ValueError, match=r"\[4, 6\] must be those of rows 1 to T.*\[4, 5\]"):
        replay.write_back(sample, TensorDict(belief=torch.zeros(4, 6, 2), batch_size=[4, 6]))


def test_capacity_below_one_sequence():
    with pytest.raises(ValueError, match="capacity of 10 leaves 5 records.*fewer than the 6"):
        make(capacity=10)


def test_sizes_before_the_first_batch():
    with pytest.raises(RuntimeError, match="after the first batch"):
        make().sizes()
