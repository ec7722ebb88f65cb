"""Fresh searches for old records: which rows, and what is written back where."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Unbounded

from torchrl_wm.data import Reanalyze, StepReplay


def sample(last=()):
    """Four sequences of five records that count."""
    number = torch.arange(20.0).reshape(4, 5, 1)
    ends = torch.zeros(4, 5, 1, dtype=torch.bool)
    ends[:, list(last)] = True
    return TensorDict(
        observation=number,
        search_policy=torch.zeros(4, 5, 2),
        root_value=torch.zeros(4, 5, 1),
        search_version=torch.full((4, 5, 1), 3),
        is_last=ends,
        batch_size=[4, 5],
    )


def search(records):
    number = records["observation"]
    return TensorDict(
        search_policy=number.expand(-1, 2) + 0.5, root_value=-number, batch_size=[len(records)]
    )


def again(ratio=0.5, find=search):
    return Reanalyze(find, ratio=ratio, length=5, root=1, unroll_steps=2, version=lambda: 9)


@pytest.mark.parametrize("flat", [False, True])
def test_a_share_of_the_sequences_is_searched_in_one_batch(flat):
    calls = []
    rows = sample(last=[2])
    before = rows.clone()
    rows = rows.reshape(-1) if flat else rows
    out = again(find=lambda records: calls.append(len(records)) or search(records))(rows)
    out = out.reshape(4, 5)
    assert calls == [2]  # record 1 of two sequences: 2 is final, 3 is of the next episode
    fresh = torch.zeros(4, 5, dtype=torch.bool)
    fresh[:2, 1] = True
    assert torch.equal(out["search_version"][..., 0] == 9, fresh)
    assert torch.equal(out["root_value"][fresh], -before["observation"][fresh])
    assert torch.equal(
        out["search_policy"][fresh], before["observation"][fresh].expand(-1, 2) + 0.5
    )
    for key in ("search_policy", "root_value", "search_version"):
        assert torch.equal(out[key][~fresh], before[key][~fresh])


def test_a_small_share_is_searched_now_and_then():
    torch.manual_seed(0)
    calls = []
    rare = again(ratio=0.05, find=lambda records: calls.append(len(records)) or search(records))
    for _ in range(400):
        rare(sample())  # 4 sequences: a fifth of one in each batch
    assert 50 < len(calls) < 110


def test_nothing_to_do_is_no_search():
    never = again(ratio=0.0, find=None)
    assert (never(sample())["search_version"] == 3).all()


def test_bad_ratios_and_missing_entries_are_named():
    with pytest.raises(ValueError, match="reanalyze_ratio=1.5"):
        again(ratio=1.5)
    with pytest.raises(KeyError, match="search_version"):
        again()(sample().exclude("search_version"))
    with pytest.raises(KeyError, match="root_value"):
        again(find=lambda records: search(records).exclude("root_value"))(sample())


# -- writing back -----------------------------------------------------------------------------------


@pytest.fixture
def replay(streams):
    replay = StepReplay(
        8,
        num_envs=1,
        batch_size=3,
        slice_length=2,
        action_spec=Unbounded(1),
        observation_keys=["observation"],
        extra_keys=["root_value", "search_version"],
    )
    stream = streams(1)

    def collect(steps, version):
        batch = stream.batch([[0] * steps])
        batch["root_value"] = torch.zeros(1, steps, 1)
        batch["search_version"] = torch.full((1, steps, 1), version)
        replay.extend(batch)

    replay.collect = collect
    replay.column = lambda key: replay.buffer.storage._storage[key][:, 0]
    return replay


def rows(replay, indices):
    """A sample ``[1, n + 1]`` of the given rows, behind one that is never written."""
    index = torch.tensor([[0, *indices]])
    generation = replay.writer.generations_of(index[0])[None]
    return TensorDict(index=index, index_generation=generation, batch_size=index.shape)


def notes(values, versions):
    values = torch.tensor([values], dtype=torch.float32)[..., None]
    versions = torch.tensor([versions])[..., None]
    return TensorDict(root_value=values, search_version=versions, batch_size=values.shape[:2])


def test_the_newest_of_several_searches_is_kept(replay):
    replay.collect(6, version=1)
    # Row 2 three times: the stale copy of a sequence that was not searched again comes last.
    count = replay.write_back(rows(replay, [2, 2, 2, 4]), notes([5.0, 6.0, 0.0, 7.0], [8, 9, 1, 9]))
    assert count == 2
    assert replay.column("root_value")[:6].tolist() == [0, 0, 6, 0, 7, 0]
    assert replay.column("search_version")[:6].tolist() == [1, 1, 9, 1, 9, 1]


def test_an_older_search_replaces_nothing(replay):
    replay.collect(6, version=5)
    assert replay.write_back(rows(replay, [2, 3]), notes([5.0, 6.0], [4, 5])) == 1
    assert replay.column("root_value")[:6].tolist() == [0, 0, 0, 6, 0, 0]


def test_a_row_that_holds_another_record_is_left_alone(replay):
    replay.collect(6, version=1)
    taken = rows(replay, [1, 5])
    replay.collect(4, version=2)  # rows 6 and 7, then 0 and 1 again
    assert replay.write_back(taken, notes([5.0, 6.0], [9, 9])) == 1
    assert replay.column("root_value").tolist() == [0, 0, 0, 0, 0, 6, 0, 0]
    assert replay.column("search_version")[1] == 2
