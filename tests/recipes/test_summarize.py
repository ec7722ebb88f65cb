"""Which folders are no runs to summarise, and which runs do not fit into one table."""

from __future__ import annotations

import pytest


def make_run(path, seed):
    path.mkdir()
    (path / "config.yaml").write_text(f"seed: {seed}\n")
    (path / "starts.jsonl").write_text('{"command": "train", "commit": null, "torchrl_wm": "0"}\n')
    row = "10,1.5,3.0,0.5,2.0,4.0,2"
    (path / "evaluation.csv").write_text(f"step,seconds,mean,std,min,max,episodes\n{row}\n")
    return str(path)


def test_runs_of_several_seeds_become_one_table(recipe, tmp_path):
    runs = [make_run(tmp_path / f"run{seed}", seed) for seed in (0, 1)]
    recipe("summarize").main([str(tmp_path / "kept" / "name"), *runs])
    found = (tmp_path / "kept" / "name.md").read_text()
    assert "| step | seed 0 | seed 1 |" in found and "| 10 | 3.0 | 3.0 |" in found
    assert (tmp_path / "kept" / "name.csv").read_text().count("\n") == 3
    assert (tmp_path / "kept" / "name.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_not_taken_for_the_files_to_write(recipe, tmp_path, capsys):
    runs = [make_run(tmp_path / f"run{seed}", seed) for seed in (0, 1)]
    with pytest.raises(SystemExit):
        recipe("summarize").main(runs)
    assert "run0 is a run: the first argument names the files" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.md"))


def test_two_runs_of_one_seed_are_refused(recipe, tmp_path, capsys):
    runs = [make_run(tmp_path / name, 3) for name in ("one", "other")]
    with pytest.raises(SystemExit):
        recipe("summarize").main([str(tmp_path / "name"), *runs])
    assert "have the seeds [3, 3]; a table shows one run of each" in capsys.readouterr().err
    assert not list(tmp_path.glob("name*"))


def test_a_folder_that_is_no_run_is_named(recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty is not a run folder"):
        recipe("summarize").main([str(tmp_path / "name"), str(tmp_path / "empty")])
