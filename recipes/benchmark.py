"""Runs a benchmark by its name: ``python recipes/benchmark.py dreamer_update``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "benchmarks"
NAMES = ("acting", "dreamer_update", "planners", "replay", "search", "training_loop")


def main() -> None:
    """Runs ``benchmarks/<name>.py`` with the remaining arguments."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        asked = f"Unknown benchmark {sys.argv[1]!r}. " if len(sys.argv) > 1 else ""
        sys.exit(f"{asked}Usage: benchmark.py {{{'|'.join(NAMES)}}} [its options]")
    script = str(FOLDER / f"{sys.argv[1]}.py")
    sys.argv = [script, *sys.argv[2:]]
    sys.path.insert(0, str(FOLDER))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
