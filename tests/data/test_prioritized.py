"""Sampling by priority: the right shares, ends, seams, and what is written back."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_wm.data import PrioritizedSequenceSampler, RingWriter
from torchrl_wm.functional import priority_probabilities


def fill(priority, last=(), num_envs=1, capacity=40, length=3, draws=2000, **options):
    """A buffer of records that count, and a sampler with a generator of its own."""
    writer = RingWriter(num_envs)
    sampler = PrioritizedSequenceSampler(writer, length, **options)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(capacity),
        writer=writer,
        sampler=sampler,
        batch_size=length * draws,
        generator=torch.Generator().manual_seed(0),
    )
    count = len(priority)
    ends = torch.zeros(count, 1, dtype=torch.bool)
    ends[list(last)] = True
    records = TensorDict(
        x=torch.arange(count),
        priority=torch.tensor(priority, dtype=torch.float32)[:, None],
        is_last=ends,
        environment=torch.arange(count) % num_envs,
        batch_size=[count],
    )
    for part in records.split(12):
        buffer.extend(part)
    return buffer


def shares(buffer, root=0, length=3):
    rows = buffer.sample().reshape(-1, length)
    return torch.bincount(rows["x"][:, root], minlength=40) / len(rows), rows


def test_roots_are_drawn_by_their_priority():
    priority = [1.0, 2.0, 0.5, 4.0, 3.0, 9.0, 9.0]
    found, rows = shares(fill(priority, alpha=1.0, beta=1.0))
    expected = priority_probabilities(torch.tensor(priority[:5]), alpha=1.0)
    torch.testing.assert_close(found[:5], expected, rtol=0, atol=0.04)
    assert (rows["x"].diff(dim=1) == 1).all()
    weight = rows["priority_weight"]
    assert (weight == weight[:, :1]).all() and weight.max() == 1
    drawn = expected[rows["x"][:, 0]]
    torch.testing.assert_close(weight[:, 0], drawn.min() / drawn, rtol=1e-4, atol=1e-6)


def test_the_root_may_stand_inside_its_sequence():
    found, rows = shares(fill([0, 0, 0, 50.0, 0, 0, 0, 0], root=1, alpha=1.0), root=1)
    assert found[3] > 0.99 and (rows["x"][0] == torch.tensor([2, 3, 4])).all()


def test_final_records_are_no_roots():
    for alpha in (0.0, 1.0):
        found, _ = shares(fill([1.0] * 8, last=[2, 4], alpha=alpha))
        assert (found[:6] > 0).tolist() == [True, True, False, True, False, True]
        assert found[6:].sum() == 0


def test_new_records_count_as_the_largest():
    inf = float("inf")
    found, _ = shares(fill([1.0, inf, 2.0, inf, 1.0, 0.0, 0.0], alpha=1.0))
    torch.testing.assert_close(found[:5], torch.tensor([1, 2, 2, 2, 1]) / 8, rtol=0, atol=0.04)
    found, _ = shares(fill([inf] * 6, alpha=1.0))
    torch.testing.assert_close(found[:4], torch.full((4,), 0.25), rtol=0, atol=0.04)


def test_without_alpha_draws_are_even_and_need_no_priorities():
    found, rows = shares(fill([0.0, 100.0, 0.0, 0.0, 5.0, 5.0], alpha=0.0))
    torch.testing.assert_close(found[:4], torch.full((4,), 0.25), rtol=0, atol=0.04)
    assert (rows["priority_weight"] == 1).all()


def test_seams_and_environments():
    # 3 rings of 5 slots, 27 records: each ring holds the newest 5 of its environment.
    buffer = fill(list(range(1, 28)), num_envs=3, capacity=15, alpha=1.0)
    found, rows = shares(buffer)
    assert (rows["x"].diff(dim=1) == 3).all()
    assert found.nonzero().flatten().tolist() == list(range(12, 21))


def test_the_same_seed_draws_the_same():
    one, two = (fill([1.0, 2.0, 3.0, 4.0, 5.0], alpha=0.5) for _ in range(2))
    assert torch.equal(one.sample()["x"], two.sample()["x"])


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="root=3 must be a position in a sequence of 3"):
        PrioritizedSequenceSampler(RingWriter(1), 3, root=3)
    with pytest.raises(ValueError, match="alpha=2"):
        PrioritizedSequenceSampler(RingWriter(1), 3, alpha=2)
    with pytest.raises(RuntimeError, match="not the end of an episode; collect more"):
        fill([1.0] * 3, last=[0]).sample()
    with pytest.raises(RuntimeError, match="collect more"):
        fill([1.0] * 2).sample()
    writer = RingWriter(1)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(9),
        writer=writer,
        sampler=PrioritizedSequenceSampler(writer, 2),
        batch_size=2,
    )
    zeros = torch.zeros(4, 1)
    buffer.extend(TensorDict(is_last=zeros.bool(), environment=zeros[:, 0].long(), batch_size=[4]))
    with pytest.raises(KeyError, match="'priority'.*extra_keys"):
        buffer.sample()


def test_a_replay_takes_the_sampler_and_stores_fresh_priorities(streams):
    from torchrl_wm.data import StepReplay

    replay = StepReplay(
        20,
        num_envs=1,
        batch_size=4,
        slice_length=2,
        action_spec=_action_spec(),
        observation_keys=["observation"],
        extra_keys=["priority"],
        sampler=partial(PrioritizedSequenceSampler, root=1, alpha=1.0),
    )
    batch = streams(1).batch([[0] * 9])
    replay.extend(batch.set("priority", torch.ones(1, 9, 1)))
    sample = replay.sample()
    found = torch.arange(8.0).reshape(4, 2, 1) * 10
    mask = torch.tensor([[True, False]] * 4)
    count = replay.write_back(
        sample, TensorDict(priority=found, collector={"mask": mask}, batch_size=[4, 2])
    )
    rows = sample["index"][:, 1]
    stored = replay.buffer.storage._storage["priority"]
    assert count == len(rows.unique())
    for row in rows.unique():
        assert stored[row] == found[:, 0][rows == row][-1]
    untouched = sorted(set(range(9)) - set(rows.tolist()))
    assert (stored[untouched] == 1).all()


def _action_spec():
    from torchrl.data import Unbounded

    return Unbounded(1)
