"""Results on the same axes: every seed is a line, every result a colour."""

from __future__ import annotations

import re

import pytest


def test_curves_of_seeds_are_told_apart(recipe, tmp_path):
    compare = recipe("compare")
    for name, best in (("one", 3.0), ("other", 5.0)):
        lines = ["seed,step,seconds,mean", "0,10,1,1.0", f"0,20,2,{best}", "1,10,1,2.5"]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    assert compare.curves(tmp_path / "other.csv") == {"0": [(10, 1), (20, 5)], "1": [(10, 2.5)]}
    out = tmp_path / "both.png"
    compare.main([str(out), str(tmp_path / "one.csv"), str(tmp_path / "other.csv")])
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "text, message",
    [(None, "No such file"), ("", "no table of recipes/summarize.py.*'mean', 'seed', 'step'"),
     ("seed,mean\n0,1.0\n", r"no table .*\['step'\]"), ("seed,step,mean\n", "one.csv has no rows")],
)  # fmt: skip
def test_what_is_no_table_is_named_and_nothing_is_drawn(text, message, recipe, tmp_path, capsys):
    table, out = tmp_path / "one.csv", tmp_path / "out.png"
    if text is not None:
        table.write_text(text)
    with pytest.raises(SystemExit):
        recipe("compare").main([str(out), str(table)])
    assert re.search(message, capsys.readouterr().err) and not out.exists()


def test_a_table_is_not_drawn_over(recipe, tmp_path, capsys):
    table = tmp_path / "one.csv"
    table.write_text("seed,step,mean\n0,1,1.0\n")
    with pytest.raises(SystemExit):
        recipe("compare").main([str(table), str(table)])
    assert "name a picture" in capsys.readouterr().err and table.read_text().startswith("seed")
