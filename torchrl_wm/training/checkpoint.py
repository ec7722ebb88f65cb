"""Checkpoints: atomic, verified, and free of pickled code.

A checkpoint is a folder of payload files and a ``manifest.json`` with the size and SHA-256 of each of
them. It is written under another name, flushed to the disk and renamed, so a folder of the final name is
always complete; files that are damaged later are refused when they are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torchrl_wm.data.durability import flush

FORMAT = "torchrl_wm checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
_ASIDE = ".writing-"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: missing, damaged, truncated or foreign."""


def write_checkpoint(
    folder: str | Path,
    step: int,
    states: dict[str, Any],
    *,
    writers: dict[str, Callable[[Path], None]] | None = None,
    keep: int = 2,
) -> Path:
    """Writes ``folder/step_<step>`` atomically and removes all but the ``keep`` newest.

    Args:
        folder (str or Path): the folder of all checkpoints of a run; created if it is missing.
        step (int): the environment step; the newest checkpoint is that of the largest step.
        states (dict): by name, nested dicts, lists, numbers, strings and tensors, one file each.

    Keyword Args:
        writers (dict, optional): by name, a callable that fills the folder it is given.
        keep (int, optional): how many checkpoints stay. Defaults to 2.

    Returns:
        Path: the folder of the new checkpoint.

    Examples:
        >>> import tempfile, torch
        >>> runs = tempfile.mkdtemp()
        >>> path = write_checkpoint(runs, 7, {"model": {"weight": torch.ones(2)}})
        >>> path.name
        'step_000000000007'
        >>> read_checkpoint(path).state("model")
        {'weight': tensor([1., 1.])}
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{_ASIDE}*"):
        shutil.rmtree(stale)
    target = folder / f"step_{step:012d}"
    replaced = [path for path in list_checkpoints(folder) if path.name.startswith(target.name)]
    if replaced:  # an update or an evaluation later: the old one stays until the new one is there
        number = int(replaced[-1].name[len(target.name) + 1 :] or 0) + 1
        target = folder / f"{target.name}_{number:06d}"
    aside = folder / f"{_ASIDE}{target.name}"
    aside.mkdir()
    for name, state in states.items():
        torch.save(state, aside / f"{name}.pt")
    for name, write in (writers or {}).items():
        (aside / name).mkdir()
        write(aside / name)
    _seal(aside, step)
    os.rename(aside, target)
    flush(folder)
    older = [path for path in list_checkpoints(folder) if path not in replaced]
    for old in [*replaced, *older[:-keep]]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The complete checkpoints in ``folder``, oldest first."""
    return sorted(path for path in Path(folder).glob("step_*") if path.is_dir())


def latest_checkpoint(folder: str | Path) -> Path:
    """The newest checkpoint in ``folder``.

    Raises:
        CheckpointError: if there is none.
    """
    found = list_checkpoints(folder)
    if not found:
        raise CheckpointError(
            f"There is no checkpoint in {folder}: the run ended before it wrote its first one. "
            "Start it again with another run_dir."
        )
    return found[-1]


class Checkpoint:
    """A verified checkpoint, read lazily.

    Args:
        path (Path): its folder.
        manifest (dict): its manifest.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.step: int = manifest["step"]

    def state(self, name: str) -> Any:
        """The payload ``name``; nothing in it can execute code.

        Raises:
            CheckpointError: if there is no such payload or it holds more than plain data.
        """
        file = self.path / f"{name}.pt"
        if not file.exists():
            raise _refusal(self.path, f"it has no payload {name!r}")
        try:
            return torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:
            raise _refusal(self.path, f"{file.name} does not hold plain data ({error})") from error

    def folder(self, name: str) -> Path:
        """The folder that the writer ``name`` filled."""
        return self.path / name


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Verifies every payload of the checkpoint ``path`` and opens it.

    Raises:
        CheckpointError: if it is missing, foreign, truncated or damaged; the message names the
            folder and the file, and says what to do.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    for name, facts in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise _refusal(path, f"{name} is missing")
        if file.stat().st_size != facts["bytes"]:
            raise _refusal(path, f"{name} has {file.stat().st_size} bytes, not {facts['bytes']}")
        if _checksum(file) != facts["sha256"]:
            raise _refusal(path, f"{name} does not have the checksum of the manifest")
    extra = {str(f.relative_to(path)) for f in _files(path)} - set(manifest["files"]) - {MANIFEST}
    if extra:
        raise _refusal(path, f"it holds files that the manifest does not list: {sorted(extra)}")
    return Checkpoint(path, manifest)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError):
        if not path.name.startswith("step_") or not path.is_dir():
            raise CheckpointError(
                f"{path} is no checkpoint. Those of a run are the folders RUN_DIR/checkpoints/step_..."
            ) from None
        raise _refusal(path, f"it has no {MANIFEST}") from None
    except (ValueError, UnicodeDecodeError):
        raise _refusal(path, f"{MANIFEST} is not valid JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _refusal(path, f"{MANIFEST} does not say {FORMAT!r}: something else wrote it")
    if not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("step"), int):
        raise _refusal(path, f"{MANIFEST} lacks its files or its step")
    if manifest.get("version") != VERSION:
        raise _refusal(
            path, f"its version is {manifest.get('version')}; this package reads version {VERSION}"
        )
    return manifest


def _seal(folder: Path, step: int) -> None:
    """Writes the manifest of ``folder`` and flushes everything to the disk."""
    files = {}
    for file in _files(folder):
        flush(file)
        files[str(file.relative_to(folder))] = {
            "bytes": file.stat().st_size,
            "sha256": _checksum(file),
        }
    manifest = {"format": FORMAT, "version": VERSION, "step": step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    flush(folder / MANIFEST)
    for path in folder.rglob("*"):
        if path.is_dir():
            flush(path)
    flush(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _checksum(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _refusal(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint {path} cannot be used: {reason}. Delete that folder to resume from the "
        "checkpoint before it, if there is one."
    )
