from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_wm.data import RingWriter, SequenceSampler


def make(counts, length=4, rows_per_env=20, slack=0, batch=8, generator=None):
    writer = RingWriter(len(counts), slack=slack)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage((rows_per_env + slack) * len(counts)),
        writer=writer,
        sampler=SequenceSampler(writer, length),
        batch_size=batch * length,
        generator=generator,
    )
    written = [0] * len(counts)
    while written != list(counts):  # in small batches, so that rings wrap in mid-batch
        step = [min(3, total - done) for total, done in zip(counts, written, strict=True)]
        parts = [(e, written[e] + k) for e in range(len(counts)) for k in range(step[e])]
        environment, number = torch.tensor(parts).unbind(1)
        buffer.extend(
            TensorDict(n=number, e=environment, environment=environment, batch_size=[len(parts)])
        )
        written = [a + b for a, b in zip(written, step, strict=True)]
    return buffer


@pytest.mark.parametrize("slack", [0, 7])
@pytest.mark.parametrize("counts", [(9, 4, 0), (20, 20, 20), (53, 31, 7)])
def test_slices_are_contiguous_and_inside_the_window(counts, slack):
    torch.manual_seed(0)
    buffer = make(counts, slack=slack)
    for _ in range(60):
        sample = buffer.sample().reshape(8, 4)
        assert (sample["n"].diff(dim=1) == 1).all()
        assert (sample["e"] == sample["e"][:, :1]).all()
        newest = torch.tensor(counts)[sample["e"]]
        assert (sample["n"] < newest).all() and (sample["n"] >= newest - 20).all()


def test_starts_are_uniform():
    """Chi-square over every start; the 0.999 quantile for 35 degrees of freedom is 66.6."""
    buffer = make((23, 12, 13), batch=500, generator=torch.Generator().manual_seed(3))
    starts = 17 + 9 + 10
    seen = torch.zeros(3, 30)
    for _ in range(40):
        first = buffer.sample().reshape(500, 4)[:, 0]
        seen.index_put_((first["e"], first["n"]), torch.ones(500), accumulate=True)
    seen = seen[seen > 0]
    assert len(seen) == starts
    expected = 40 * 500 / starts
    assert ((seen - expected) ** 2 / expected).sum() < 66.6


def test_same_generator_same_samples_apart_from_the_global_one():
    first = make((20, 20), generator=torch.Generator().manual_seed(1))
    second = make((20, 20), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    a = first.sample()["index"]
    torch.manual_seed(1)
    assert torch.equal(a, second.sample()["index"])
    third = make((20, 20), generator=torch.Generator().manual_seed(2))
    assert not torch.equal(a, third.sample()["index"])


def test_the_global_generator_without_one():
    buffer = make((20, 20))
    torch.manual_seed(5)
    a = buffer.sample()["index"]
    torch.manual_seed(5)
    assert torch.equal(a, buffer.sample()["index"])


def test_can_sample():
    assert not make((3, 3)).can_sample()
    assert make((3, 4)).can_sample()


def test_too_few_records():
    with pytest.raises(RuntimeError, match="needs 4 records.*holds at most 3"):
        make((3, 2)).sample()


@pytest.mark.parametrize("size", [3, 10])
@pytest.mark.filterwarnings("ignore:Got conflicting")
def test_batch_size_that_is_no_multiple(size):
    with pytest.raises(ValueError, match=f"multiple of the sequence length 4, got {size}"):
        make((9,)).sample(size)


def test_bad_length():
    with pytest.raises(ValueError, match="length=0"):
        SequenceSampler(RingWriter(1), 0)
