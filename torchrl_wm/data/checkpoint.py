"""Checkpoints of a replay without copies of its rows: cursors, checksums, and entries that may change."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import MemoryMappedTensor, TensorDict
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_wm import keys
from torchrl_wm.data.arrays import read_array, write_array
from torchrl_wm.data.checksums import RowChecksums
from torchrl_wm.data.durability import flush

if TYPE_CHECKING:
    from torchrl_wm.data.replay import StepReplay

_STATE, _FORMAT = "replay.json", "torchrl_wm step replay 1"
_GENERATIONS, _GENERATOR = "generations", "generator"
_BOOKKEEPING = (keys.IS_INIT, keys.IS_LAST, keys.TERMINATED, keys.PREVIOUS_ACTION, keys.REWARD)


class ReplayCheckpoint:
    """Saves and restores a :class:`~torchrl_wm.data.StepReplay`.

    Memory-mapped rows stay where they are. As records are only appended, and the rings have
    ``slack`` slots more than can be sampled, everything that a checkpoint refers to is still in place
    when the run is killed later. A checkpoint holds the counts, a checksum of each block of rows, and
    copies of what can change: the entries written by the policy, the generations and the state of the
    sampler's generator. Rows in RAM are copied too. Nothing is pickled; everything is checked before
    anything is restored.

    Args:
        replay (StepReplay): the replay; it uses this class through its ``save`` and ``load``.
    """

    def __init__(self, replay: StepReplay):
        self.replay, self.writer = replay, replay.writer
        self.storage = replay.buffer.storage
        self.checksums = RowChecksums()
        self._written: np.memmap | None = None

    # -- the folder of the rows ------------------------------------------------------------------

    @property
    def rows_dir(self) -> Path | None:
        """Where the memory-mapped rows lie; None for rows in RAM."""
        scratch = self.replay.scratch_dir
        return None if scratch is None else scratch / "rows"

    @property
    def _written_path(self) -> Path:
        return self.replay.scratch_dir / "written.npy"

    def claim_scratch_dir(self) -> None:
        """Before the first row is written: refuses a folder with the rows of another replay.

        Raises:
            FileExistsError: if there are such rows.
        """
        if self.rows_dir is None:
            return
        if self.rows_dir.exists() and any(self.rows_dir.iterdir()):
            raise FileExistsError(
                f"{self.rows_dir} holds the rows of another replay: load its checkpoint before the "
                "first extend(), or choose an empty scratch_dir."
            )
        self.rows_dir.mkdir(parents=True, exist_ok=True)
        self._written = np.lib.format.open_memmap(
            self._written_path, mode="w+", dtype=np.int64, shape=(self.writer.num_envs,)
        )

    def note_written(self) -> None:
        """Records how far each ring was ever written, for runs that are killed."""
        if self._written is not None:
            self._written[:] = np.maximum(self._written, self.writer.counts.numpy())

    # -- saving ----------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Writes the state to the folder ``path``, which is complete once it holds ``replay.json``.

        Raises:
            FileExistsError: if there is a checkpoint in ``path``.
        """
        path.mkdir(parents=True, exist_ok=True)
        if (path / _STATE).exists():
            raise FileExistsError(f"{path / _STATE} exists; save each checkpoint to a new folder.")
        rows = self._leaves()
        files, sums = {}, []
        if rows:
            for number, key in enumerate(self._copied(rows)):
                files[f"entry_{number}"] = write_array(
                    path / f"entry_{number}.npy", rows[key], self._row_chunks()
                )
            generations = self.writer.generations_of(torch.arange(self.storage.max_size))
            files[_GENERATIONS] = write_array(path / f"{_GENERATIONS}.npy", generations)
            if self.rows_dir is not None:
                sums = self.checksums.window(self._immutable(rows), self.writer)
                for leaf in rows.values():
                    flush(leaf.filename)
        if self.replay.generator is not None:
            state = self.replay.generator.get_state()
            files[_GENERATOR] = write_array(path / f"{_GENERATOR}.npy", state)
        body = json.dumps(self._layout(rows) | self._counts() | {"files": files, "sums": sums})
        text = json.dumps({"crc32": zlib.crc32(body.encode()), "body": body})
        (path / _STATE).write_text(text)
        if self.rows_dir is not None:
            self.writer.protect()

    def _counts(self) -> dict[str, Any]:
        return {"counts": self.writer.counts.tolist(), "write_count": self.writer._write_count}

    def _layout(self, rows: dict[NestedKey, Tensor]) -> dict[str, Any]:
        entries = [
            {"key": key, "dtype": str(leaf.dtype).split(".")[-1], "shape": list(leaf.shape[1:])}
            for key, leaf in rows.items()
        ]
        return {"format": _FORMAT, "rings": self._rings(), "entries": entries}

    def _rings(self) -> dict[str, Any]:
        return {
            "num_envs": self.writer.num_envs,
            "records per environment": self.writer.window,
            "slack per environment": self.writer.slack,
            "memory-mapped": self.rows_dir is not None,
            "own generator": self.replay.generator is not None,
        }

    def _leaves(self) -> dict[NestedKey, Tensor]:
        if not self.storage.initialized:
            return {}
        return dict(sorted(self.storage._storage.items(True, True), key=lambda item: str(item[0])))

    def _copied(self, rows: dict[NestedKey, Any]) -> list[NestedKey]:
        return [key for key in rows if self.rows_dir is None or key in self.replay.policy_keys]

    def _immutable(self, rows: dict[NestedKey, Tensor]) -> list[Tensor]:
        return [leaf for key, leaf in rows.items() if key not in self.replay.policy_keys]

    def _row_chunks(self, size: int = 4096) -> list[Tensor]:
        """The rows that can be sampled, environment by environment, in the order of time."""
        chunks = []
        counts = zip(self.writer.counts.tolist(), self.writer.sampleable().tolist(), strict=True)
        for environment, (last, length) in enumerate(counts):
            for first in range(last - length, last, size):
                chunks.append(self.writer.rows(environment, first, min(first + size, last)))
        return chunks

    # -- loading ---------------------------------------------------------------------------------

    def load(self, path: Path) -> None:
        """Restores the replay exactly as it was when ``path`` was written.

        Raises:
            FileNotFoundError: for a missing file of the checkpoint or of the rows.
            ValueError: for a damaged file, or the checkpoint of a replay that was built differently; the
                message names it.
            RuntimeError: when more records than the slack were written since.
        """
        state = self._read_state(path)
        rows = self._attach(state, path)
        counts = torch.tensor(state["counts"])
        before = self._counts()["counts"]
        self.writer.counts = counts  # the checks below read the rings as they were then
        try:
            arrays = self._verified(state, path, rows)
        except BaseException:
            self.writer.counts = torch.tensor(before)
            raise
        self._restore(state, rows, arrays)

    def _restore(
        self,
        state: dict[str, Any],
        rows: dict[NestedKey, Tensor],
        arrays: dict[str, Tensor],
    ) -> None:
        if rows:
            self._install(rows)
            for number, key in enumerate(self._copied(rows)):
                at, values = 0, arrays[f"entry_{number}"]
                for chunk in self._row_chunks():
                    piece = values[at : at + len(chunk)]
                    rows[key][chunk] = _typed(piece, rows[key])
                    at += len(chunk)
        writer_state = {
            "_cursor": 0,
            "_write_count": state["write_count"],
            "counts": state["counts"],
        }
        if _GENERATIONS in arrays:
            writer_state["_generation"] = arrays[_GENERATIONS].flatten().view(torch.long)
        self.writer.load_state_dict(writer_state)
        if _GENERATOR in arrays:
            self.replay.generator.set_state(arrays[_GENERATOR].flatten().clone())
        if self.rows_dir is not None:
            self.writer.protect()

    def _read_state(self, path: Path) -> dict[str, Any]:
        file = path / _STATE
        if not file.exists():
            raise FileNotFoundError(
                f"{path} is no complete checkpoint of a replay: {file} is missing."
            )
        try:
            outer = json.loads(file.read_text())
            if zlib.crc32(outer["body"].encode()) != outer["crc32"]:
                raise ValueError("its checksum is wrong")
            state = json.loads(outer["body"])
            if state["format"] != _FORMAT:
                raise ValueError(f"its format is {state['format']!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is damaged or no replay checkpoint: {error}.") from error
        if state["rings"] != self._rings():
            raise ValueError(
                f"{file} is of a replay that was built otherwise: {state['rings']}, "
                f"here {self._rings()}."
            )
        return state

    def _attach(self, state: dict[str, Any], path: Path) -> dict[NestedKey, Tensor]:
        """The stored leaves: those of this replay, mapped from their files, or newly made."""
        layout = {_key(e["key"]): (e["dtype"], tuple(e["shape"])) for e in state["entries"]}
        if not layout:
            return {}
        own = (*self.replay.observation_keys, *self.replay.action_keys, *self.replay.policy_keys)
        expected = {*own, *_BOOKKEEPING}
        if set(layout) != expected:
            raise ValueError(
                f"{path / _STATE} stores other entries: missing {_names(expected - set(layout))}, "
                f"unknown {_names(set(layout) - expected)}. It was written by another version, or with "
                "other options."
            )
        for key in self.replay.latent_keys:
            if layout[key][0] != str(self.replay.compression.stored_dtype(key)).split(".")[-1]:
                raise ValueError(
                    f"{path / _STATE} stores {key!r} as {layout[key][0]}; use that codec."
                )
        present = self._leaves()
        if not present:
            return {key: self._leaf(key, *spec) for key, spec in layout.items()}
        for key, leaf in present.items():
            if (str(leaf.dtype).split(".")[-1], tuple(leaf.shape[1:])) != layout[key]:
                raise ValueError(f"{path / _STATE} has another dtype or shape for {key!r}.")
        return present

    def _leaf(self, key: NestedKey, dtype_name: str, shape: tuple[int, ...]) -> Tensor:
        dtype = getattr(torch, dtype_name)
        shape = (self.storage.max_size, *shape)
        if self.rows_dir is None:
            return torch.zeros(shape, dtype=dtype)
        parts = (key,) if isinstance(key, str) else key
        file = self.rows_dir.joinpath(*parts[:-1]) / f"{parts[-1]}.memmap"
        if not file.exists():
            raise FileNotFoundError(f"The rows of {key!r} are missing: {file}.")
        expected = torch.Size(shape).numel() * dtype.itemsize
        if file.stat().st_size != expected:
            raise ValueError(f"{file} has {file.stat().st_size} bytes instead of {expected}.")
        return MemoryMappedTensor.from_filename(file, dtype, torch.Size(shape))

    def _verified(
        self, state: dict[str, Any], path: Path, rows: dict[NestedKey, Tensor]
    ) -> dict[str, Tensor]:
        """The copied arrays, once every checksum matched."""
        files = state["files"]
        arrays = {name: read_array(path / f"{name}.npy", crc) for name, crc in files.items()}
        if rows and self.rows_dir is not None:
            self._check_overwritten(path)
            found = self.checksums.mismatch(state["sums"], self._immutable(rows), self.writer)
            if found is not None:
                environment, first, last = found
                raise ValueError(
                    f"{self.rows_dir} does not hold what {path} saw: records {first} to {last} of "
                    f"environment {environment} are damaged or belong to another run."
                )
        return arrays

    def _check_overwritten(self, path: Path) -> None:
        if not self._written_path.exists():
            raise FileNotFoundError(
                f"{self._written_path}, which counts the rows written, is missing."
            )
        try:
            written = np.lib.format.open_memmap(self._written_path, mode="r+")
        except ValueError as error:
            raise ValueError(f"{self._written_path} is damaged: {error}.") from error
        if written.shape != (self.writer.num_envs,) or written.dtype != np.int64:
            raise ValueError(f"{self._written_path} is damaged: {written.dtype} {written.shape}.")
        since = torch.from_numpy(np.array(written)) - self.writer.counts
        first_kept = (self.writer.counts - self.writer.window).clamp(min=0)
        room = first_kept + self.writer.slots - self.writer.counts
        if (since > room).any():
            raise RuntimeError(
                f"{int(since.max())} records per environment were written to {self.rows_dir} since "
                f"{path} and have replaced rows that it needs (slack per environment: "
                f"{self.writer.slack}). Load a newer checkpoint; more slack keeps older ones."
            )
        self._written = written

    def _install(self, rows: dict[NestedKey, Tensor]) -> None:
        if self.storage.initialized:
            return
        stored = TensorDict({}, batch_size=[self.storage.max_size], device="cpu")
        for key, leaf in rows.items():
            stored.set(key, leaf)
        self.storage._storage = stored
        self.storage.initialized = True


def _typed(raw: Tensor, leaf: Tensor) -> Tensor:
    return raw.contiguous().flatten().view(leaf.dtype).reshape(len(raw), *leaf.shape[1:])


def _key(key: str | list[str]) -> NestedKey:
    return key if isinstance(key, str) else tuple(key)


def _names(found: set[NestedKey]) -> list[str]:
    return sorted(map(str, found))
