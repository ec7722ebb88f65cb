import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

from torchrl_wm.training import (
    CheckpointError,
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)


def _write(folder, step=1):
    states = {"model": {"w": torch.arange(3.0)}, "run": {"steps": step, "name": "x"}}
    return write_checkpoint(folder, step, states, writers={"rows": _rows})


def _rows(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "a.bin").write_bytes(b"rows" * 10)


def test_reads_what_was_written_and_keeps_two(tmp_path):
    for step in (5, 40, 300):
        _write(tmp_path, step)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step_000000000040",
        "step_000000000300",
    ]
    checkpoint = read_checkpoint(latest_checkpoint(tmp_path))
    assert checkpoint.step == 300
    assert checkpoint.state("run") == {"steps": 300, "name": "x"}
    assert torch.equal(checkpoint.state("model")["w"], torch.arange(3.0))
    assert (checkpoint.folder("rows") / "deep" / "a.bin").read_bytes() == b"rows" * 10


def test_same_step_again_replaces(tmp_path):
    _write(tmp_path)
    write_checkpoint(tmp_path, 1, {"run": {"steps": 2}})
    assert read_checkpoint(latest_checkpoint(tmp_path)).state("run") == {"steps": 2}
    write_checkpoint(tmp_path, 1, {"run": {"steps": 3}})
    assert read_checkpoint(latest_checkpoint(tmp_path)).state("run") == {"steps": 3}
    assert len(list(tmp_path.iterdir())) == 1


def test_the_old_state_of_a_step_stays_until_the_new_one_is_there(tmp_path, monkeypatch):
    _write(tmp_path)
    rename = os.rename

    def end(source, target):
        """The process ends when the new one is to take its place."""
        if "step_" in Path(target).name[:5]:
            sys.exit(1)
        rename(source, target)

    monkeypatch.setattr(os, "rename", end)
    with pytest.raises(SystemExit):
        write_checkpoint(tmp_path, 1, {"run": {"steps": 2}})
    assert read_checkpoint(latest_checkpoint(tmp_path)).state("run")["steps"] != 2


@pytest.mark.parametrize("name", ["model.pt", "rows/deep/a.bin"])
def test_a_flipped_byte_is_refused_by_name(tmp_path, name):
    path = _write(tmp_path)
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path.name}.*{name}.*checksum.*Delete that folder"):
        read_checkpoint(path)


def test_truncated_missing_and_extra_files_are_refused(tmp_path):
    path = _write(tmp_path)
    (path / "extra.pkl").write_bytes(b"")
    with pytest.raises(CheckpointError, match="extra.pkl"):
        read_checkpoint(path)
    (path / "extra.pkl").unlink()
    (path / "model.pt").write_bytes((path / "model.pt").read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="model.pt has .* bytes"):
        read_checkpoint(path)
    (path / "model.pt").unlink()
    with pytest.raises(CheckpointError, match="model.pt is missing"):
        read_checkpoint(path)


def test_foreign_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no checkpoint.*checkpoints/step_"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        read_checkpoint(tmp_path / "step_50")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_checkpoint(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(CheckpointError, match="something else wrote it"):
        read_checkpoint(tmp_path)
    path = _write(tmp_path / "new")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(CheckpointError, match="version is 99"):
        read_checkpoint(path)


class _Trap:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_pickled_code_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_checkpoint(tmp_path / "c", 1, {"run": _Trap()})
    assert b"open" in pickle.dumps(_Trap())
    with pytest.raises(CheckpointError, match="plain data"):
        read_checkpoint(path).state("run")
    assert not (tmp_path / "executed").exists()


def test_half_written_folders_are_ignored_and_removed(tmp_path):
    _write(tmp_path, 1)
    (tmp_path / ".writing-step_000000000002").mkdir()
    assert latest_checkpoint(tmp_path).name == "step_000000000001"
    _write(tmp_path, 3)
    assert not list(tmp_path.glob(".writing*"))


def test_no_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        latest_checkpoint(tmp_path)
