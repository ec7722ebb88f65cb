"""Bad arguments of the commands are one line that names them, not a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["evaluate", "nowhere"], "nowhere is not a run folder"),
        (["arena", "nowhere"], "nowhere is not a run folder"),
        (["open_loop", "nowhere"], "nowhere is not a run folder"),
        (["summarize", "out", "nowhere"], "nowhere is not a run folder"),
        (["sample_efficiency", "out", "--run", "nowhere"], "nowhere is not a run folder"),
        (
            ["evaluate", "run", "--episodes", "0"],
            "--episodes: '0' must be a whole number of at least 1",
        ),
        (
            ["arena", "run", "--games", "many"],
            "--games: 'many' must be a whole number of at least 1",
        ),
        (["open_loop", "run", "--seed", "-1"], "--seed: '-1' must be a whole number of at least 0"),
        (["benchmark", "planners", "--rounds", "0"], "--rounds: '0' must be a whole number"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(command, said, tmp_path):
    script, *arguments = command
    run = [sys.executable, RECIPES / f"{script}.py", *arguments]
    ended = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode and said in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr and not list(tmp_path.iterdir())
