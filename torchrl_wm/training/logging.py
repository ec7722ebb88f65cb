"""The logs of a run: CSV files and TensorBoard events."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from torchrl_wm.training.evaluation import EvaluationResult


class CsvFile:
    """A CSV file whose rows may have changing columns, and that survives a kill at any moment.

    Args:
        path (str or Path): the file; rows are appended if it exists.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.csv"
        >>> file = CsvFile(path)
        >>> file.write({"step": 1, "loss": 0.5})
        >>> file.write({"step": 2, "loss": 0.25, "return": 7.0})
        >>> CsvFile(path).rows()[-1]
        {'step': '2', 'loss': '0.25', 'return': '7.0'}
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.columns: list[str] = []
        if self.path.exists():
            with self.path.open(newline="") as stream:
                self.columns = next(csv.reader(stream), [])

    def rows(self) -> list[dict[str, str]]:
        """All rows, as strings; a truncated last line is dropped."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as stream:
            complete = [line for line in stream if line.endswith("\n")]
        rows = csv.DictReader(complete)
        return [row for row in rows if None not in row.values() and None not in row]

    def write(self, row: dict[str, object]) -> None:
        """Appends ``row``; a new column is added to the whole file."""
        new = [name for name in row if name not in self.columns]
        if new:
            self._rewrite(self.rows(), self.columns + new)
        with self.path.open("a", newline="") as stream:
            csv.DictWriter(stream, self.columns, restval="", lineterminator="\n").writerow(row)

    def keep(self, count: int) -> None:
        """Removes all but the first ``count`` rows; a resumed run will write them again."""
        if self.path.exists():
            self._rewrite(self.rows()[:count], self.columns)

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        aside = self.path.with_suffix(".writing")
        with aside.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(aside, self.path)
        self.columns = columns


class MetricLog:
    """``metrics.csv``, ``evaluation.csv`` and optional TensorBoard events in a run folder.

    Args:
        run_dir (str or Path): the run folder.

    Keyword Args:
        tensorboard (bool, optional): also write ``tensorboard/``. Defaults to True.
    """

    def __init__(self, run_dir: str | Path, *, tensorboard: bool = True):
        self.run_dir, self.tensorboard = Path(run_dir), tensorboard
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.metrics = CsvFile(self.run_dir / "metrics.csv")
        self.evaluations = CsvFile(self.run_dir / "evaluation.csv")
        self._writer, self._purge_step = None, None
        self.step = 0

    def write_metrics(self, step: int, seconds: float, values: dict[str, float]) -> None:
        """One row of ``metrics.csv``: the step, the seconds since the start, and the values."""
        self.metrics.write({"step": step, "seconds": round(seconds, 3), **values})
        self._write_scalars(step, values)

    def write_evaluation(self, step: int, seconds: float, result: EvaluationResult) -> None:
        """One row of ``evaluation.csv``; the returns of the episodes are separated by spaces."""
        summary = result.summary()
        facts = {"step": step, "seconds": round(seconds, 3), **summary}
        returns = " ".join(f"{value:.9g}" for value in result.returns)
        self.evaluations.write(facts | {"episodes": len(result.returns), "returns": returns})
        self._write_scalars(step, {f"evaluation/{name}": v for name, v in summary.items()})

    def close(self) -> None:
        """Flushes and closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def state_dict(self) -> dict[str, int]:
        """How much was written, so that a resumed run writes every row once."""
        return {
            "metrics": len(self.metrics.rows()),
            "evaluations": len(self.evaluations.rows()),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Drops what was written after :meth:`state_dict` was taken."""
        self.metrics.keep(state["metrics"])
        self.evaluations.keep(state["evaluations"])
        # Events are dropped from a step on: also those of that step which came before.
        self.step = self._purge_step = state["step"]
        self._write_again(self.metrics.rows(), "", ("step", "seconds"))
        self._write_again(
            self.evaluations.rows(), "evaluation/", ("step", "seconds", "episodes", "returns")
        )

    def _write_again(self, rows: list[dict[str, str]], prefix: str, others: Sequence[str]) -> None:
        """The events of the rows of the present step; ``others`` are columns that events do not have."""
        for row in rows:
            if int(row["step"]) == self.step:
                found = {k: float(v) for k, v in row.items() if v and k not in others}
                self._write_scalars(self.step, {f"{prefix}{k}": v for k, v in found.items()})

    def _write_scalars(self, step: int, values: dict[str, float]) -> None:
        self.step = step
        if not self.tensorboard:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            folder = str(self.run_dir / "tensorboard")
            self._writer = SummaryWriter(folder, purge_step=self._purge_step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
