"""Keeps what runs showed: ``python recipes/summarize.py recipes/results/NAME RUN_DIR [RUN_DIR ...]``.

Writes ``NAME.csv`` (one row per run and evaluation), ``NAME.png`` (the curves) and ``NAME.md`` (commands,
versions and a table), so that a number can be traced to the command that reproduces it.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

from omegaconf import OmegaConf

from torchrl_wm.training import CheckpointError, RunFolder

COLUMNS = ("step", "seconds", "mean", "std", "min", "max", "episodes")


def main(arguments: list[str] | None = None) -> None:
    """Reads run folders and writes the three files."""
    parser = _parser()
    options = parser.parse_args(arguments)
    out = Path(options.out)
    if RunFolder(out).is_run():
        parser.error(f"{out} is a run: the first argument names the files to write.")
    runs = [RunFolder.open(path) for path in options.run_dirs]
    seeds = [OmegaConf.create(run.config).seed for run in runs]
    if len(set(seeds)) < len(seeds):
        parser.error(f"The runs have the seeds {seeds}; a table shows one run of each seed.")
    rows = [row for run in runs for row in evaluations(run)]
    out.parent.mkdir(parents=True, exist_ok=True)
    csv_file, report_file, plot = (out.with_name(out.name + end) for end in (".csv", ".md", ".png"))
    with csv_file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ("seed", *COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    report_file.write_text(report(out.name, runs, rows))
    draw(plot, out.name, rows)
    print(report_file.read_text())


def evaluations(run: RunFolder) -> list[dict[str, float]]:
    """The evaluations of a run, with its seed."""
    seed = OmegaConf.create(run.config).seed
    with (run.path / "evaluation.csv").open(newline="") as stream:
        return [{"seed": seed, **{k: r[k] for k in COLUMNS}} for r in csv.DictReader(stream)]


def report(name: str, runs: list[RunFolder], rows: list[dict[str, float]]) -> str:
    """Commands and returns as Markdown."""
    lines = [f"# {name}", ""]
    for run in runs:
        for line in (run.path / "starts.jsonl").read_text().splitlines():
            start = json.loads(line)
            lines.append(f"- `{start['command']}` ({start.get('commit') or start['torchrl_wm']})")
    steps = sorted({int(row["step"]) for row in rows})
    seeds = sorted({row["seed"] for row in rows})
    lines += ["", "Mean return of an evaluation, by environment step and seed:", ""]
    lines += [
        "| step | " + " | ".join(f"seed {s}" for s in seeds) + " |",
        "|---" * (1 + len(seeds)) + "|",
    ]
    found = {(int(r["step"]), r["seed"]): float(r["mean"]) for r in rows}
    for step in steps:
        cells = [f"{found[step, s]:.1f}" if (step, s) in found else "" for s in seeds]
        lines.append(f"| {step:,} | " + " | ".join(cells) + " |")
    ends = {
        s: max((r for r in rows if r["seed"] == s), key=lambda r: int(r["step"])) for s in seeds
    }
    seconds = ", ".join(f"{float(ends[s]['seconds']):.0f}" for s in seeds)
    return "\n".join([*lines, "", f"Seconds of training to the last row, by seed: {seconds}.", ""])


def draw(path: Path, name: str, rows: list[dict[str, float]]) -> None:
    """One curve per seed, with the spread over the episodes of each evaluation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed]
        steps, mean, std = ([float(r[k]) for r in own] for k in ("step", "mean", "std"))
        axes.plot(steps, mean, marker="o", label=f"seed {seed}")
        low = [m - s for m, s in zip(mean, std, strict=True)]
        high = [m + s for m, s in zip(mean, std, strict=True)]
        axes.fill_between(steps, low, high, alpha=0.2)
    axes.set(title=name, xlabel="environment steps", ylabel="return")
    axes.legend()
    figure.savefig(path, dpi=80, bbox_inches="tight")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="path of the files without their ending")
    parser.add_argument("run_dirs", nargs="+", help="folders of training runs")
    return parser


if __name__ == "__main__":
    try:
        main()
    except (CheckpointError, FileNotFoundError) as error:
        sys.exit(str(error))
