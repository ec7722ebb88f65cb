from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Unbounded

from torchrl_wm.data import StepReplay
from torchrl_wm.data.arrays import write_array


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process():
    with pytest.raises(OSError, match="No space left"):
        write_array(Path("/dev/full"), torch.zeros(100_000, 1))


def make(scratch_dir=None, *, capacity=30, slack=12, **options):
    options = {
        "action_spec": Unbounded(1),
        "observation_keys": ["observation", ("camera", "pixels")],
        "latents": {"belief": torch.float16},
        "seed": 0,
    } | options
    return StepReplay(capacity, 2, 3, 4, scratch_dir=scratch_dir, slack=slack, **options)


def fill(replay, source, random_ends, seeds, steps=2):
    for seed in seeds:
        replay.extend(source.batch(random_ends(2, steps, 0.3, seed)))
        if replay.ready:
            sample = replay.sample()
            fresh = torch.full((3, 4, 2), float(seed))
            replay.write_back(sample, TensorDict(belief=fresh, batch_size=[3, 4]))


def content(replay):
    """All that can be sampled, in the order of time, with generations."""
    writer, stored = replay.writer, replay.buffer.storage._storage
    rows = []
    for e, (last, size) in enumerate(
        zip(writer.counts.tolist(), writer.sampleable().tolist(), strict=True)
    ):
        rows.append(writer.rows(e, last - size, last))
    rows = torch.cat(rows)
    out = stored[rows].clone()
    out["generation"] = writer.generations_of(rows)
    return out


def assert_equal_states(a, b):
    assert torch.equal(a.writer.counts, b.writer.counts)
    assert len(a.buffer) == len(b.buffer) and a.buffer.write_count == b.buffer.write_count
    assert (content(a) == content(b)).all()
    for _ in range(3):
        assert (a.sample() == b.sample()).all()


@pytest.fixture(params=["mapped", "in RAM"])
def place(request, tmp_path):
    """A scratch_dir, or None, for the same replay built twice."""
    return tmp_path / "scratch" if request.param == "mapped" else None


@pytest.mark.parametrize("batches", [3, 14, 25])
def test_restores_the_state_of_the_save(streams, random_ends, tmp_path, place, batches):
    """Rows and latents are written after the save; a new process knows nothing of them."""
    reference = make(place and tmp_path / "reference")
    replay = make(place)
    fill(reference, streams(2), random_ends, range(batches))
    source = streams(2)
    fill(replay, source, random_ends, range(batches))
    replay.save(tmp_path / "saved")
    fill(replay, source, random_ends, range(100, 102))
    restored = make(place)
    restored.load(tmp_path / "saved")
    assert_equal_states(restored, reference)
    second, third = streams(2), streams(2)
    for e in range(2):  # the environments go on from where the save was
        for other in (second, third):
            other.count[e] = len(reference_log(reference, e))
            newest = content_of(reference, e)[-1]
            other.carried[e] = None if newest["is_last"] else (newest["action"], 0.0)
    fill(reference, second, random_ends, range(200, 202))
    fill(restored, third, random_ends, range(200, 202))
    assert_equal_states(restored, reference)


def reference_log(replay, e):
    return range(int(replay.writer.counts[e]))


def content_of(replay, e):
    last = int(replay.writer.counts[e])
    return replay.buffer.storage._storage[replay.writer.rows(e, last - 1, last)]


def test_loads_into_a_replay_that_is_in_use(streams, random_ends, tmp_path, place):
    replay, source = make(place), streams(2)
    fill(replay, source, random_ends, range(14))
    replay.save(tmp_path / "saved")
    before = content(replay)
    fill(replay, source, random_ends, range(50, 52))
    replay.load(tmp_path / "saved")
    assert (content(replay) == before).all()


def test_empty_replay(streams, tmp_path, place):
    make(place).save(tmp_path / "saved")
    replay = make(place)
    replay.load(tmp_path / "saved")
    assert len(replay) == 0
    replay.extend(streams(2).batch([[0] * 6] * 2))
    assert len(replay) == 12


KILLED = """
    import os, signal, sys, torch
    from pathlib import Path
    from tensordict import TensorDict
    from torchrl.data import Unbounded
    from torchrl_wm.data import StepReplay
    batches = torch.load(sys.argv[2], weights_only=True)
    replay = StepReplay(
        30, 2, 3, 4, action_spec=Unbounded(1), latents={"belief": torch.float16}, seed=0, slack=16,
        observation_keys=["observation", ("camera", "pixels")], scratch_dir=Path(sys.argv[1]))
    for number, batch in enumerate(batches):
        if number == 15:
            replay.save(Path(sys.argv[3]))
        replay.extend(TensorDict(batch, batch_size=[2, 2]))
        if replay.ready:
            sample = replay.sample()
            fresh = torch.full((3, 4, 2), float(number))
            replay.write_back(sample, TensorDict(belief=fresh, batch_size=[3, 4]))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_after_the_save(streams, random_ends, tmp_path):
    source = streams(2)
    batches = [source.batch(random_ends(2, 2, 0.3, seed)) for seed in range(17)]
    torch.save([batch.to_dict() for batch in batches], tmp_path / "batches.pt")
    arguments = [tmp_path / "scratch", tmp_path / "batches.pt", tmp_path / "saved"]
    command = [sys.executable, "-c", textwrap.dedent(KILLED), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    reference = make(tmp_path / "reference", slack=16)
    for number, batch in enumerate(batches[:15]):
        reference.extend(batch)
        if reference.ready:
            sample = reference.sample()
            fresh = torch.full((3, 4, 2), float(number))
            reference.write_back(sample, TensorDict(belief=fresh, batch_size=[3, 4]))
    restored = make(tmp_path / "scratch", slack=16)
    restored.load(tmp_path / "saved")
    assert_equal_states(restored, reference)


def test_mapped_rows_are_not_copied(streams, random_ends, tmp_path):
    mapped, in_ram = make(tmp_path / "scratch", capacity=2000), make(capacity=2000)
    for replay, name in ((mapped, "mapped"), (in_ram, "ram")):
        fill(replay, streams(2), random_ends, range(10), steps=80)
        replay.save(tmp_path / name)
    size = {n: sum(f.stat().st_size for f in (tmp_path / n).iterdir()) for n in ("mapped", "ram")}
    per_record = 2 * 2 + 8  # a latent in half precision and the generation
    assert size["mapped"] < 2000 * per_record * 1.5 + 4096 < size["ram"]
    assert not list(tmp_path.rglob("*.pkl"))


def test_checksums_are_computed_once(streams, random_ends, tmp_path, monkeypatch):
    from torchrl_wm.data import checksums

    replay, source = make(tmp_path / "scratch", capacity=4000, slack=400), streams(2)
    fill(replay, source, random_ends, range(10), steps=100)
    computed = []
    whole = checksums.checksum
    monkeypatch.setattr(checksums, "checksum", lambda *a: computed.append(1) or whole(*a))
    replay.save(tmp_path / "first")
    first = len(computed)
    replay.save(tmp_path / "second")
    assert first >= 8 and len(computed) - first == 2  # the open block of each environment
    assert read(tmp_path / "first")["sums"] == read(tmp_path / "second")["sums"]


def read(path):
    return json.loads(json.loads((path / "replay.json").read_text())["body"])


@pytest.fixture
def saved(streams, random_ends, tmp_path):
    """A replay in the middle of its second round, saved; its scratch_dir and its checkpoint."""
    replay, source = make(tmp_path / "scratch"), streams(2)
    fill(replay, source, random_ends, range(14))
    replay.save(tmp_path / "saved")
    return replay, source, tmp_path / "scratch", tmp_path / "saved"


def flip(file, at=-1):
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize("name", ["entry_0.npy", "generations.npy", "generator.npy"])
@pytest.mark.parametrize("at", [-1, 0])
def test_damaged_copies_are_refused(saved, name, at):
    _, _, scratch, path = saved
    flip(path / name, at)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        make(scratch).load(path)
    (path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        make(scratch).load(path)


def test_every_row_is_under_a_checksum(saved):
    """Any byte of a row that can be sampled: observations, actions, marks."""
    replay, _, scratch, path = saved
    rows = torch.cat(
        [replay.writer.rows(e, int(n) - 15, int(n)) for e, n in enumerate(replay.writer.counts)]
    )
    files = [f for f in (scratch / "rows").rglob("*.memmap") if f.stem != "belief"]
    assert len(files) == 8
    for file in files:
        width = file.stat().st_size // replay.buffer.storage.max_size
        for row in rows[::7].tolist():
            flip(file, row * width)
            with pytest.raises(ValueError, match="rows does not hold what .*saved saw: records"):
                make(scratch).load(path)
            flip(file, row * width)
    make(scratch).load(path)


def test_a_refused_load_leaves_the_replay_as_it_was(saved, random_ends):
    replay, source, _, path = saved
    fill(replay, source, random_ends, [60])
    before, counts = content(replay), replay.writer.counts.clone()
    flip(path / "generations.npy")
    with pytest.raises(ValueError, match="damaged"):
        replay.load(path)
    assert torch.equal(replay.writer.counts, counts) and (content(replay) == before).all()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"body": "{}", "crc32": 0}', "not json"])
def test_foreign_state_file_is_refused(saved, text):
    _, _, scratch, path = saved
    (path / "replay.json").write_text(text)
    with pytest.raises(ValueError, match="replay.json is damaged or no replay checkpoint"):
        make(scratch).load(path)


def test_flipped_cursor_and_other_format_are_refused(saved):
    _, _, scratch, path = saved
    file = path / "replay.json"
    good = file.read_text()
    file.write_text(good.replace('\\"counts\\": [', '\\"counts\\": [1'))
    with pytest.raises(ValueError, match="replay.json is damaged.*checksum"):
        make(scratch).load(path)
    body = json.dumps(read_text(good) | {"format": "other"})
    file.write_text(json.dumps({"crc32": zlib.crc32(body.encode()), "body": body}))
    with pytest.raises(ValueError, match="replay.json.*format is 'other'"):
        make(scratch).load(path)


def read_text(text):
    return json.loads(json.loads(text)["body"])


def test_half_written_checkpoint_is_refused(saved):
    _, _, scratch, path = saved
    (path / "replay.json").unlink()
    with pytest.raises(FileNotFoundError, match="no complete checkpoint.*replay.json"):
        make(scratch).load(path)


@pytest.mark.parametrize(
    "options",
    [{"capacity": 32}, {"slack": 14}, {"seed": None}, {"scratch_dir": None}],
    ids=["capacity", "slack", "seed", "scratch_dir"],
)
def test_replay_built_otherwise(saved, options):
    _, _, scratch, path = saved
    with pytest.raises(ValueError, match="replay.json is of a replay that was built otherwise"):
        make(**{"scratch_dir": scratch} | options).load(path)


def test_other_entries_and_codecs(saved):
    _, _, scratch, path = saved
    with pytest.raises(ValueError, match=r"missing \[\], unknown \['belief'\]"):
        make(scratch, latents={}).load(path)
    with pytest.raises(ValueError, match="stores 'belief' as float16"):
        make(scratch, latents={"belief": torch.float32}).load(path)


def test_other_shapes_in_a_replay_in_use(saved, streams, tmp_path):
    _, _, _, path = saved
    other = make(tmp_path / "other")
    batch = streams(2).batch([[0], [0]])
    batch["belief"] = torch.zeros(2, 1, 3)
    other.extend(batch)
    with pytest.raises(ValueError, match="another dtype or shape for 'belief'"):
        other.load(path)


def test_missing_and_cut_rows(saved):
    _, _, scratch, path = saved
    file = scratch / "rows" / "camera" / "pixels.memmap"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1])
    with pytest.raises(ValueError, match=f"pixels.memmap has {len(raw) - 1} bytes instead of"):
        make(scratch).load(path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="pixels.memmap"):
        make(scratch).load(path)


def test_rows_of_another_run_are_refused(saved, streams, random_ends, tmp_path):
    _, _, scratch, path = saved
    fill(make(tmp_path / "other"), streams(2), random_ends, range(40, 54))
    shutil.rmtree(scratch / "rows")
    shutil.copytree(tmp_path / "other" / "rows", scratch / "rows")
    with pytest.raises(ValueError, match="damaged or belong to another run"):
        make(scratch).load(path)


def test_extend_stops_before_rows_of_the_checkpoint_are_lost(saved, streams, random_ends):
    replay, source, scratch, path = saved
    assert replay.room() == 6
    with pytest.raises(RuntimeError, match="Save the replay before extending"):
        fill(replay, source, random_ends, range(70, 90))
    restored = make(scratch)
    restored.load(path)
    assert restored.room() == 6


def test_an_older_checkpoint_is_refused_once_its_rows_are_gone(saved, random_ends, tmp_path):
    replay, source, scratch, path = saved
    fill(replay, source, random_ends, [70])
    replay.save(tmp_path / "second")
    make(scratch).load(path)  # the slack covers it still
    replay = make(scratch)
    replay.load(tmp_path / "second")
    source.carried = [None, None]
    for _ in range(2):
        batch = source.batch([[0, 0], [0, 0]])
        replay.extend(batch)
    with pytest.raises(RuntimeError, match="records per environment were written.*slack per env"):
        make(scratch).load(path)
    make(scratch).load(tmp_path / "second")


def test_no_limit_in_ram_or_before_the_first_save(streams, random_ends, tmp_path):
    in_ram, mapped = make(), make(tmp_path / "scratch")
    assert in_ram.room() is None and mapped.room() is None
    in_ram.save(tmp_path / "saved")
    fill(in_ram, streams(2), random_ends, range(30))
    assert in_ram.room() is None


def test_missing_count_of_rows(saved):
    _, _, scratch, path = saved
    (scratch / "written.npy").unlink()
    with pytest.raises(FileNotFoundError, match="written.npy"):
        make(scratch).load(path)


def test_scratch_dir_with_other_rows(saved, streams):
    _, _, scratch, _ = saved
    with pytest.raises(FileExistsError, match="rows holds the rows of another replay"):
        make(scratch).extend(streams(2).batch([[0], [0]]))


def test_checkpoints_are_not_overwritten(saved):
    replay, _, _, path = saved
    with pytest.raises(FileExistsError, match="replay.json exists"):
        replay.save(path)
