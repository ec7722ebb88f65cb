"""The folder of one run: its config, the commands that made it, its logs and checkpoints."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CONFIG = "config.yaml"
STARTS = "starts.jsonl"
LOCK = "lock"
CHECKPOINTS = "checkpoints"
REPLAY = "replay"


class RunFolder:
    """Paths inside a run folder, which :meth:`create` makes and :meth:`open` finds.

    Args:
        path (str or Path): the folder.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "first"
        >>> RunFolder.create(path, "seed: 3").config
        'seed: 3'
        >>> RunFolder.create(path, "seed: 4")
        Traceback (most recent call last):
        FileExistsError: ...
    """

    def __init__(self, path: str | Path):
        self.path, self.made = Path(path), False
        self.checkpoints = self.path / CHECKPOINTS
        self.replay = self.path / REPLAY

    @classmethod
    def create(cls, path: str | Path, config: str) -> RunFolder:
        """Makes the folder of a new run and writes its config.

        Args:
            path (str or Path): must not exist, or be an empty folder.
            config (str): the complete config, as YAML.

        Raises:
            FileExistsError: if something is there; nothing is overwritten.
        """
        run = cls(path)
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            begun = run.checkpoints.is_dir() and any(run.checkpoints.iterdir())
            go_on = f"Go on with that run: resume={run.path}; or choose" if begun else "Choose"
            raise FileExistsError(
                f"{run.path} exists already and nothing in it is overwritten. {go_on} another folder: "
                "run_dir=..."
            )
        run.made = not run.path.exists()
        run.path.mkdir(parents=True, exist_ok=True)
        (run.path / CONFIG).write_text(config)
        run.note_start()
        return run

    def rewrite(self, config: str) -> None:
        """Replaces the config atomically."""
        aside = self.path / f".{CONFIG}"
        aside.write_text(config)
        os.replace(aside, self.path / CONFIG)

    def discard(self) -> None:
        """Deletes what is in the folder of a run that never took a step, and the folder if it was made."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        if self.made:
            self.path.rmdir()

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Finds the folder of an existing run.

        Raises:
            FileNotFoundError: if ``path`` is not a run folder.
        """
        run = cls(path)
        if not run.is_run():
            raise FileNotFoundError(
                f"{run.path} is not a run folder (it has no {CONFIG}). Give the folder that a "
                "training run printed when it started."
            )
        return run

    def lock(self) -> IO[str] | None:
        """Keeps other processes from training in the folder while the returned file is open.

        The system releases it when the process ends, however that happens. ``None`` where the system or
        the file system locks nothing.

        Raises:
            RuntimeError: if another process trains in the folder.
        """
        if fcntl is None:
            return None
        file = (self.path / LOCK).open("a")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            raise RuntimeError(
                f"Another process trains in {self.path}: wait for its end, or stop it, and then resume."
            ) from None
        except OSError:
            file.close()
            return None
        return file

    def is_run(self) -> bool:
        """Whether a training run wrote this folder."""
        return (self.path / CONFIG).is_file()

    @property
    def config(self) -> str:
        """The config as it was written, YAML."""
        return (self.path / CONFIG).read_text()

    def note_start(self, **facts: object) -> None:
        """Appends the command line, the version and the time to ``starts.jsonl``."""
        start = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
            **code_version(),
            **facts,
        }
        with (self.path / STARTS).open("a") as stream:
            stream.write(json.dumps(start) + "\n")


def code_version() -> dict[str, str]:
    """Versions of this package, torch, torchrl and python, and the git commit of a checkout."""
    # The installed metadata leaves out what torch was built for.
    facts = {"python": sys.version.split()[0], "torch": torch.__version__}
    for package in ("torchrl_wm", "torchrl", "tensordict"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    commit = _git_commit(Path(__file__).resolve().parents[2])
    return facts | ({"commit": commit} if commit else {})


def _git_commit(folder: Path) -> str | None:
    if not (folder / ".git").exists():
        return None
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True,
                text=True,
                check=True,
                env=environment,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")
