"""Results on the same axes: every seed is a line, every result a colour."""

from __future__ import annotations


def test_curves_of_seeds_are_told_apart(recipe, tmp_path):
    compare = recipe("compare")
    for name, best in (("one", 3.0), ("other", 5.0)):
        lines = ["seed,step,seconds,mean", "0,10,1,1.0", f"0,20,2,{best}", "1,10,1,2.5"]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    assert compare.curves(tmp_path / "other.csv") == {"0": [(10, 1), (20, 5)], "1": [(10, 2.5)]}
    out = tmp_path / "both.png"
    compare.main([str(out), str(tmp_path / "one.csv"), str(tmp_path / "other.csv")])
    assert out.read_bytes().startswith(b"\x89PNG")
