"""The table of returns against tried trajectories: what is counted, and what is compared."""

from __future__ import annotations

import csv

import pytest


@pytest.fixture(scope="module")
def table(recipe):
    return recipe("sample_efficiency")


def test_every_planner_is_played_at_every_budget(table, tmp_path):
    out = tmp_path / "table"
    sizes = ["--candidates", "4", "8", "--horizon", "3", "--steps", "4", "--episodes", "2"]
    table.main([str(out), *sizes, "--seeds", "0", "1"])
    with out.with_suffix(".csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(table.PLANNERS) * 2 * 2
    tried = {(row["planner"], row["candidates"]): float(row["trajectories"]) for row in rows}
    assert tried["CEM", "4"] == 5 * 4 and tried["CEM", "8"] == 5 * 8  # five iterations
    # The reference code keeps elites from one decision to the next, so more is tried than is drawn.
    assert tried["iCEM", "8"] > 8 and tried["iCEM", "8"] < tried["CEM", "8"]
    assert all(float(row["mean"]) < 0 for row in rows)
    assert out.with_suffix(".png").stat().st_size
    text = out.with_suffix(".md").read_text()
    assert all(f"| {name} |" in text for name in table.PLANNERS)


def test_an_earlier_table_is_not_overwritten(table, tmp_path, capsys):
    (tmp_path / "table.csv").write_text("kept")
    with pytest.raises(SystemExit):
        table.main([str(tmp_path / "table")])
    assert "table.csv is there already" in capsys.readouterr().err
    assert (tmp_path / "table.csv").read_text() == "kept"


def test_the_comparison_names_the_fewest_trajectories_that_suffice(table):
    numbers = [("CEM", 100, -5.0), ("iCEM", 10, -9.0), ("iCEM", 20, -4.0), ("iCEM", 40, -3.0)]
    rows = [
        {"planner": name, "trajectories": count, "mean": mean, "std": 1.0, "episodes": 2, "seed": 0}
        for name, count, mean in numbers
    ]
    assert table.comparison(rows)[-1] == "| CEM | 100 | -5.0 | 20 | -4.0 | 0.20 |"
    rows[0]["mean"] = 0.0
    assert table.comparison(rows)[-1].startswith("| CEM | 100 | 0.0 | none |")
