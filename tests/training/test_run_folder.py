"""Folders of runs that could not begin, and what is advised when one exists."""

import pytest

from torchrl_wm.training import RunFolder


def test_a_run_that_did_not_begin_leaves_what_was_there(tmp_path):
    mine, link = tmp_path / "mine", tmp_path / "link"
    mine.mkdir()
    link.symlink_to(mine)
    for path in (mine, link, tmp_path / "made"):
        run = RunFolder.create(path, "seed: 1")
        run.replay.mkdir()
        run.discard()
    assert not any(mine.iterdir())
    assert link.is_symlink()
    assert not (tmp_path / "made").exists()


def test_a_run_without_a_checkpoint_is_not_offered_for_resuming(tmp_path):
    run = RunFolder.create(tmp_path / "run", "seed: 1")
    with pytest.raises(FileExistsError, match=r"overwritten\. Choose another folder"):
        RunFolder.create(run.path, "seed: 1")
    (run.checkpoints / "100").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="resume="):
        RunFolder.create(run.path, "seed: 1")
