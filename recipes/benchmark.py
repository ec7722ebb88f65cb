"""Runs a benchmark by its name: ``python recipes/benchmark.py dreamer_update``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "benchmarks"
NAMES = ("acting", "dreamer_update", "planners", "replay", "search", "training_loop")


def main() -> None:
    """Runs ``benchmarks/<name>.py`` with the remaining arguments."""
    usage = f"Usage: benchmark.py {{{'|'.join(NAMES)}}} [its options]"
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(usage)
        return
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        asked = f"Unknown benchmark {sys.argv[1]!r}. " if len(sys.argv) > 1 else ""
        sys.exit(asked + usage)
    script = str(FOLDER / f"{sys.argv[1]}.py")
    sys.argv = [script, *sys.argv[2:]]
    sys.path.insert(0, str(FOLDER))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
