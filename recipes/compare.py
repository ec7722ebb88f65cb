"""Kept results on the same axes: ``python recipes/compare.py OUT.png RESULT.csv [RESULT.csv ...]``.

Reads what ``recipes/summarize.py`` wrote; every seed is a line, every file a colour.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

Curve = list[tuple[float, float]]


def main(arguments: list[str] | None = None) -> None:
    """Draws the mean returns of evaluations over environment steps."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if Path(options.out).suffix == ".csv":
        parser.error(
            f"{options.out} comes first, so it would be written: name a picture, OUT.png, before it"
        )
    try:
        found = {Path(path).stem: curves(path) for path in options.results}
    except (OSError, ValueError) as error:
        parser.error(str(error))
    draw(Path(options.out), found)


def curves(path: str | Path) -> dict[str, Curve]:
    """Steps and mean returns of each seed.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for one without rows, or that ``recipes/summarize.py`` did not write.
    """
    found: dict[str, Curve] = {}
    with Path(path).open(newline="") as stream:
        table = csv.DictReader(stream)
        if missing := {"seed", "step", "mean"} - set(table.fieldnames or ()):
            raise ValueError(
                f"{path} is no table of recipes/summarize.py: it has no column {sorted(missing)}"
            )
        for row in table:
            found.setdefault(row["seed"], []).append((float(row["step"]), float(row["mean"])))
    if not found:
        raise ValueError(f"{path} has no rows")
    return found


def draw(path: Path, results: dict[str, dict[str, Curve]]) -> None:
    """One colour per result, one line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for number, (name, seeds) in enumerate(results.items()):
        for label, curve in zip([name] + [None] * len(seeds), seeds.values(), strict=False):
            axes.plot(*zip(*curve, strict=True), marker=".", color=f"C{number}", label=label)
    axes.set(xlabel="environment steps", ylabel="return")
    axes.legend()
    figure.savefig(path, dpi=80, bbox_inches="tight")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="the picture to write")
    parser.add_argument("results", nargs="+", help="CSV files of recipes/results")
    return parser


if __name__ == "__main__":
    main()
