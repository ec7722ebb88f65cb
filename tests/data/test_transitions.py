from __future__ import annotations

import re

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import (
    Bounded,
    LazyTensorStorage,
    OneHot,
    ReplayBuffer,
    SliceSampler,
    TensorDictReplayBuffer,
    Unbounded,
)
from torchrl.envs import GymEnv, InitTracker, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.transforms import Compose

from torchrl_wm.data import StepRecords, gather_step_records
from torchrl_wm.modules.actions import ActionEncoding

KEYS = {"observation_keys": ["observation", ("camera", "pixels")], "policy_keys": ["belief"]}


@pytest.fixture
def encoding():
    return ActionEncoding(Unbounded(1))


@pytest.fixture
def transitions(streams, random_ends):
    """Plain transitions ``[E, T]``: without the entries that our environments add."""

    def make(ends, terminated=None):
        source = streams(len(ends))
        batch = source.batch(ends, terminated)
        added = ["previous_action", "previous_reward"]
        return batch.exclude(*added, *[("next", key) for key in added]), source

    return make


def oracle(rows: TensorDict) -> list[dict]:
    """Records of one slice ``[L]``, one after the other."""
    out = []
    for t in range(len(rows)):
        starts = t > 0 and bool(rows["next", "done"][t - 1])
        known = t > 0 and not starts
        led = rows[t - 1]
        out.append(
            {
                "observation": rows["observation"][t],
                "is_init": starts,
                "is_last": False,
                "terminated": False,
                "previous_action": led["action"] if known else torch.zeros(1),
                "reward": led["next", "reward"] if known else torch.zeros(1),
                "action": rows["action"][t],
                "belief": rows["belief"][t],
                "row": t,
                "owns_row": True,
            }
        )
        if rows["next", "done"][t]:
            out.append(
                {
                    "observation": rows["next", "observation"][t],
                    "is_init": False,
                    "is_last": True,
                    "terminated": bool(rows["next", "terminated"][t]),
                    "previous_action": rows["action"][t],
                    "reward": rows["next", "reward"][t],
                    "action": torch.zeros(1),
                    "belief": torch.zeros(2),
                    "row": t,
                    "owns_row": False,
                }
            )
    return out[: len(rows)]


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_equals_brute_force(transitions, random_ends, encoding, probability):
    ends = random_ends(20, 13, probability, seed=1)
    rows, _ = transitions(ends, random_ends(20, 13, 0.5, seed=2))
    records = StepRecords(encoding, length=13, **KEYS)(rows.flatten())
    for b in range(20):
        for t, expected in enumerate(oracle(rows[b])):
            for key, value in expected.items():
                assert torch.equal(
                    records[key][b, t], torch.as_tensor(value).expand_as(records[key][b, t])
                ), key


def test_equals_the_records_of_the_collector(transitions, encoding, assert_same):
    rows, source = transitions([[0, 1, 1, 0, 0, 1, 0]], [[0, 1, 0, 0, 0, 0, 0]])
    records = StepRecords(encoding, length=7, **KEYS)(rows)
    log = source.records(0)[:7]
    assert_same(records[0, 1:], log[1:])


def test_compiles_without_a_graph_break(transitions, random_ends, encoding):
    rows, _ = transitions(random_ends(4, 9, 0.3, seed=0))
    rows["collector", "traj_ids"] = _trajectories(rows)
    compiled = torch.compile(gather_step_records, fullgraph=True, backend="aot_eager")
    eager = gather_step_records(rows, encoding, **KEYS)
    assert (compiled(rows, encoding, **KEYS) == eager).all()


def _trajectories(rows):
    done = rows["next", "done"][..., 0].long()
    return done.cumsum(1) - done + 100 * torch.arange(len(rows))[:, None]


def test_interleaved_trajectories_are_ordered(transitions, encoding):
    rows, _ = transitions([[0, 0, 1, 0, 0, 0]])
    rows["collector", "traj_ids"] = _trajectories(rows)
    mixed = torch.tensor([0, 3, 1, 4, 2, 5])
    to_records = StepRecords(encoding, length=6, **KEYS)
    straight, ordered = to_records(rows), to_records(rows[:, mixed])
    assert torch.equal(mixed[ordered["row"]], straight["row"])
    assert (straight.exclude("row") == ordered.exclude("row")).all()


def env(limit=7):
    return TransformedEnv(GymEnv("CartPole-v1"), Compose(InitTracker(), StepCounter(limit)))


def filled(kind, **sampler_options):
    torch.manual_seed(0)
    sampler = SliceSampler(slice_len=6, traj_key=("collector", "traj_ids"), **sampler_options)
    buffer = kind(storage=LazyTensorStorage(300), sampler=sampler, batch_size=48)
    single = env()
    for batch in Collector(single, frames_per_batch=150, total_frames=300):
        buffer.extend(batch)
    return buffer, ActionEncoding(single.action_spec)


def test_stock_slices_with_the_default_marks(assert_same):
    """SliceSampler marks slice starts as is_init and slice ends as done; neither gets through."""
    buffer, encoding = filled(TensorDictReplayBuffer)
    sample = buffer.sample()
    assert (
        sample["is_init"].reshape(8, 6)[:, 0].all()
        and sample["next", "done"].reshape(8, 6)[:, -1].all()
    )
    records = StepRecords(encoding, length=6, observation_keys=["observation"])(sample)
    stored = buffer.storage._storage[sample["index"].reshape(8, 6)]
    expected = gather_step_records(stored, encoding, observation_keys=["observation"])
    assert_same(records, expected)
    assert not records["is_last"].any() and not records["is_init"].any()
    assert torch.equal(records["previous_action"][:, 1:], stored["action"][:, :-1].float())


def test_as_a_transform_of_a_plain_buffer():
    buffer, encoding = filled(ReplayBuffer)
    buffer.append_transform(StepRecords(encoding, length=6, observation_keys=["observation"]))
    sample, info = buffer.sample(return_info=True)
    assert sample.shape == (8, 6) and len(info["index"][0]) == 48
    assert not sample["is_init"].any()
    buffer.extend(buffer.storage._storage[:3].clone())


def test_as_a_transform_of_a_tensordict_buffer_is_refused():
    buffer, encoding = filled(TensorDictReplayBuffer)
    buffer.append_transform(StepRecords(encoding, length=6, observation_keys=["observation"]))
    with pytest.raises(RuntimeError, match="transforms has probably modified the shape"):
        buffer.sample()


def test_write_back_through_the_row_map(transitions, encoding):
    rows, _ = transitions([[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
    index = torch.arange(12).reshape(2, 6)
    records = StepRecords(encoding, length=6, **KEYS)(rows)
    owns = records["owns_row"]
    target = torch.zeros(12)
    target[index.gather(1, records["row"])[owns]] = records["observation"][owns][:, 0]
    kept = [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]  # two final records have pushed two rows out
    expected = torch.zeros(2, 6)
    for b, columns in enumerate(kept):
        expected[b, columns] = rows["observation"][b, columns, 0]
    assert torch.equal(target.reshape(2, 6), expected)


def test_interleaved_environments_are_refused():
    torch.manual_seed(0)
    sampler = SliceSampler(slice_len=6, end_key=("next", "done"))
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(400), sampler=sampler, batch_size=96)
    serial = SerialEnv(2, [env, env])
    for batch in Collector(serial, frames_per_batch=20, total_frames=400):
        buffer.extend(batch.reshape(-1).exclude(("collector", "traj_ids"), "step_count"))
    encoding = ActionEncoding(OneHot(2))
    with pytest.raises(ValueError, match="shows that row . of slice .* does not follow"):
        for _ in range(10):
            StepRecords(encoding, length=6, observation_keys=["observation"])(buffer.sample())


def test_each_broken_proof_is_named(transitions, encoding):
    to_records = StepRecords(encoding, length=4, **KEYS)
    rows, _ = transitions([[0, 0, 0, 0], [0, 1, 0, 0]])
    rows["collector", "traj_ids"] = _trajectories(rows)
    rows["step_count"] = torch.tensor([[0, 1, 2, 3], [8, 9, 0, 1]]).unsqueeze(-1)
    to_records(rows)
    changes = {
        "traj_ids": (("collector", "traj_ids"), 0, 3, 50),
        "step_count": ("step_count", 0, 3, 7),
        "is_init": ("is_init", 1, 2, False),
        "observation": (("next", "observation"), 0, 2, -1.0),
        "pixels": (("next", "camera", "pixels"), 0, 2, 99),
    }
    for name, (key, b, t, value) in changes.items():
        broken = rows.clone()
        broken[key][b, t] = value
        with pytest.raises(ValueError, match=f"{name}.*shows that row . of slice {b}"):
            to_records(broken)


def test_what_is_not_a_number_is_not_blamed_on_the_order(transitions, encoding):
    rows, _ = transitions([[0, 0, 0, 0]])
    rows["next", "observation"][0, 1] = float("nan")
    with pytest.raises(ValueError, match="'observation'.* holds NaN or infinite"):
        StepRecords(encoding, length=4, **KEYS)(rows)


@pytest.mark.parametrize(
    "key",
    ["observation", ("next", "observation"), ("next", "reward"), ("next", "camera", "pixels")],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(transitions, encoding, key, value):
    rows, _ = transitions([[0] * 6])
    if key == ("next", "camera", "pixels"):
        rows = rows.apply(lambda x: x.float() if x.dtype == torch.uint8 else x)
    rows[key][0, 2] = value
    name = re.escape(repr(key))
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinite"):
        StepRecords(encoding, length=6, **KEYS)(rows)


def test_a_slice_behind_an_end_needs_a_proof(transitions, encoding):
    rows, _ = transitions([[0, 0, 1, 0, 0, 0]])
    convert = StepRecords(encoding, length=6, **KEYS)
    assert convert(rows).shape == (1, 6)
    with pytest.raises(ValueError, match="'step_count' nor 'is_init'.*StepCounter"):
        convert(rows.exclude("is_init", ("next", "is_init")))


def test_ragged_and_padded_batches_are_refused(transitions, encoding):
    rows, _ = transitions([[0, 0, 0, 0]])
    with pytest.raises(ValueError, match="4 rows are no slices of 3.*strict_length"):
        StepRecords(encoding, length=3, **KEYS)(rows.flatten())
    rows["collector", "mask"] = torch.tensor([[True, True, True, False]])
    with pytest.raises(ValueError, match="mask.*marks padding"):
        StepRecords(encoding, length=4, **KEYS)(rows)


@pytest.mark.parametrize(
    "key", [("next", "observation"), ("next", "reward"), "belief", ("next", "done")]
)
def test_missing_entry_is_named(transitions, encoding, key):
    rows, _ = transitions([[0, 0, 0, 0]])
    name = key if isinstance(key, str) else key[-1]
    with pytest.raises(KeyError, match=f"{name}.*found"):
        StepRecords(encoding, length=4, **KEYS)(rows.exclude(key))


def test_a_slice_of_one_row():
    with pytest.raises(ValueError, match="at least one more, got 1"):
        StepRecords(
            ActionEncoding(Bounded(-1, 1, (1,))), length=1, observation_keys=["observation"]
        )
