from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer

from torchrl_wm.data import RingWriter


def make(num_envs=3, rows=12, slack=0, storage=LazyTensorStorage):
    writer = RingWriter(num_envs, slack=slack)
    return TensorDictReplayBuffer(storage=storage(rows), writer=writer, batch_size=4)


def records(environments, values=None):
    environments = torch.tensor(environments)
    values = torch.arange(len(environments)) if values is None else torch.tensor(values)
    return TensorDict(x=values, environment=environments, batch_size=[len(environments)])


def test_rows_of_one_environment_stand_in_successive_slots():
    buffer = make()
    assert buffer.extend(records([0, 0, 2])).tolist() == [0, 3, 2]
    assert buffer.extend(records([0, 1, 0, 1, 2])).tolist() == [6, 1, 9, 4, 5]
    assert buffer.writer.counts.tolist() == [4, 2, 2]


def test_rings_wrap_apart_and_generations_count():
    buffer = make()
    buffer.extend(records([0, 0, 0, 1]))
    index = buffer.extend(records([0, 0, 1], [10, 11, 12]))
    assert index.tolist() == [9, 0, 4]
    assert buffer.storage._storage["x"][[0, 3, 9, 1, 4]].tolist() == [11, 1, 10, 3, 12]
    assert buffer.writer.generations_of(torch.tensor([0, 3, 9, 1, 2])).tolist() == [1, 0, 0, 0, -1]


def test_length_is_the_highest_row_in_use():
    buffer = make()
    buffer.extend(records([1]))
    assert len(buffer) == 2
    buffer.extend(records([0, 0]))
    assert len(buffer) == 4
    buffer.extend(records([2] * 4 + [1] * 3))
    assert len(buffer) == 12


def test_the_environment_is_not_stored():
    buffer = make()
    buffer.extend(records([0, 1, 2]))
    assert set(buffer.storage._storage.keys()) == {"x"}


def test_add_appends_one():
    buffer = make()
    buffer.extend(records([1]))
    buffer.add(records([1], [7])[0])
    assert buffer.storage._storage["x"][4] == 7
    assert buffer.writer.counts.tolist() == [0, 2, 0]


def test_slack_is_written_but_not_sampled():
    buffer = make(num_envs=2, rows=10, slack=2)
    buffer.extend(records([0] * 3))
    buffer.extend(records([0] * 3))
    assert (buffer.writer.slots, buffer.writer.window) == (5, 3)
    assert buffer.writer.sampleable().tolist() == [3, 0]
    assert buffer.writer.rows(0, 3, 6).tolist() == [6, 8, 0]


def test_room_in_a_ring_that_is_not_full():
    buffer = make(num_envs=1, rows=5, slack=2)
    buffer.extend(records([0]))
    buffer.writer.protect()
    assert buffer.writer.room() == 4


def test_protected_rows_are_not_overwritten():
    buffer = make(num_envs=1, rows=5, slack=2)
    buffer.extend(records([0] * 3))
    assert buffer.writer.room() is None
    buffer.writer.protect()
    assert buffer.writer.room() == 2
    buffer.extend(records([0, 0], [8, 9]))
    before = buffer.storage._storage["x"].clone()
    with pytest.raises(RuntimeError, match="overwrite rows of the last checkpoint.*0 fit"):
        buffer.extend(records([0]))
    assert torch.equal(buffer.storage._storage["x"], before)
    assert buffer.writer.counts.tolist() == [5]
    buffer.writer.protect()
    buffer.extend(records([0]))


@pytest.mark.parametrize("storage", [LazyTensorStorage, LazyMemmapStorage])
def test_dumps_and_loads_with_stock_methods(tmp_path, storage):
    buffer, other = make(storage=storage), make(storage=storage)
    buffer.extend(records([0, 0, 1, 1, 1]))
    buffer.extend(records([0, 0, 0]))
    buffer.dumps(tmp_path / "replay")
    other.loads(tmp_path / "replay")
    rows = torch.arange(12)
    assert other.writer.counts.tolist() == [5, 3, 0]
    assert len(other) == len(buffer)
    assert torch.equal(other.writer.generations_of(rows), buffer.writer.generations_of(rows))
    assert torch.equal(buffer.extend(records([0, 1, 2])), other.extend(records([0, 1, 2])))


def test_state_dict_restores_counts_and_generations():
    buffer, other = make(), make()
    buffer.extend(records([0] * 3 + [1]))
    buffer.extend(records([0] * 3 + [1]))
    other.load_state_dict(buffer.state_dict())
    assert other.writer.counts.tolist() == [6, 2, 0]
    assert other.writer.generations_of(torch.tensor([0, 6])).tolist() == [1, 0]


def test_empty_forgets_counts():
    buffer = make()
    buffer.extend(records([0, 0]))
    buffer.empty()
    assert buffer.writer.counts.tolist() == [0, 0, 0]
    assert buffer.extend(records([0])).tolist() == [0]


def test_missing_environment_entry():
    with pytest.raises(KeyError, match="'environment'.*found.*'x'"):
        make().extend(records([0]).exclude("environment"))


def test_unknown_environment():
    with pytest.raises(ValueError, match="environment 3.*num_envs=3"):
        make().extend(records([0, 3]))


def test_batch_larger_than_its_ring():
    with pytest.raises(ValueError, match="5 records of one environment.*rings of 4"):
        make().extend(records([0] * 5))


def test_other_entries_than_before():
    buffer = make()
    buffer.extend(records([0]))
    with pytest.raises(KeyError, match=r"missing \['x'\], unknown \['y'\]"):
        buffer.extend(records([0]).rename_key_("x", "y"))


def test_storage_that_does_not_divide():
    with pytest.raises(ValueError, match="10 rows does not divide into 3 rings"):
        make(rows=10)
    with pytest.raises(ValueError, match="more than slack=4 slots"):
        make(slack=4)


@pytest.mark.parametrize(("num_envs", "slack"), [(0, 0), (1, -1)])
def test_bad_sizes(num_envs, slack):
    with pytest.raises(ValueError, match="num_envs >= 1 and slack >= 0"):
        RingWriter(num_envs, slack=slack)


def test_state_of_other_rings():
    with pytest.raises(ValueError, match="State of 3 rings, but this writer has 2"):
        RingWriter(2).load_state_dict(RingWriter(3).state_dict())
