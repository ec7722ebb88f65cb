"""The writer of the replay: one ring per environment, side by side in one storage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import TensorDictRoundRobinWriter

from torchrl_wm.data.records import ENVIRONMENT

_COUNTS = "counts.json"


class RingWriter(TensorDictRoundRobinWriter):
    """Appends records to the ring of their environment: row = slot * environments + environment.

    Successive records of one environment are in successive slots, so a sequence is read by a start and
    a length; slots are reused in a circle. Every row carries a generation, with which
    :meth:`torchrl.data.ReplayBuffer.update_if_present` skips rows that were overwritten in the meantime.

    Rows are only ever appended. With ``slack`` a ring is longer than the window that may be sampled;
    that many newer records leave everything that a checkpoint refers to in place (see :meth:`protect`).

    Args:
        num_envs (int): number of rings; the storage must hold a multiple of it.

    Keyword Args:
        slack (int, optional): slots of each ring that are written but not sampled. Defaults to 0.
        environment_key (NestedKey, optional): in-entry ``[N]`` int64, the ring; it is not stored.

    Raises:
        ValueError: for a storage that does not divide into rings longer than the slack, a batch
            that does not fit into its ring, an unknown environment, or entries of another shape than
            those already stored.
        KeyError: for records with other entries than those already stored.
        RuntimeError: when a protected row would be overwritten.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(8), writer=RingWriter(2))
        >>> records = TensorDict(
        ...     x=torch.arange(3), environment=torch.tensor([0, 0, 1]), batch_size=[3])
        >>> buffer.extend(records)
        tensor([0, 2, 1])
        >>> buffer.writer.counts
        tensor([2, 1])
    """

    def __init__(self, num_envs: int, *, slack: int = 0, environment_key: NestedKey = ENVIRONMENT):
        super().__init__(track_generations=True)
        if num_envs < 1 or slack < 0:
            raise ValueError(f"Need num_envs >= 1 and slack >= 0, got {num_envs} and {slack}.")
        self.num_envs, self.slack = num_envs, slack
        self.environment_key = environment_key
        self.counts = torch.zeros(num_envs, dtype=torch.long)
        """``[E]``: records that each environment has ever written."""
        self._protected: Tensor | None = None

    def register_storage(self, storage) -> None:
        """Attaches the storage and divides it into rings."""
        super().register_storage(storage)
        if storage.max_size % self.num_envs or self.slots <= self.slack:
            raise ValueError(
                f"A storage of {storage.max_size} rows does not divide into {self.num_envs} rings "
                f"of equal length with more than slack={self.slack} slots; take a max_size of "
                "num_envs * (sampled records per environment + slack)."
            )

    @property
    def slots(self) -> int:
        """Length of a ring."""
        return self._storage.max_size // self.num_envs

    @property
    def window(self) -> int:
        """How many of the newest records of each environment may be sampled."""
        return self.slots - self.slack

    def sampleable(self) -> Tensor:
        """``[E]``: number of records of each environment inside the window."""
        return self.counts.clamp(max=self.window)

    def rows(self, environment: int, first: int, last: int) -> Tensor:
        """Storage rows of the records ``first`` to ``last`` (excluded) of one environment."""
        return torch.arange(first, last) % self.slots * self.num_envs + environment

    def protect(self) -> None:
        """Protects all records that can be sampled now from being overwritten."""
        self._protected = self.counts.clone()

    def room(self) -> int | None:
        """Records per environment until a protected one would be overwritten; None for no limit."""
        if self._protected is None:
            return None
        first_kept = (self._protected - self.window).clamp(min=0)
        return int((first_kept + self.slots - self.counts).min())

    def add(self, data: TensorDictBase) -> Tensor:
        """Appends one record; returns its row."""
        return self.extend(data.unsqueeze(0))[0]

    def extend(self, data: TensorDictBase) -> Tensor:
        """Appends records ``[N]``, those of each environment in the order of time.

        Returns:
            Tensor: ``[N]`` int64, the row of each record.
        """
        environment = data.get(self.environment_key, None)
        if environment is None:
            raise KeyError(
                f"The writer needs the entry {self.environment_key!r}, [N] int64, that names the "
                f"environment of each record; found {sorted(map(str, data.keys(True, True)))}."
            )
        environment = environment.reshape(-1).cpu()
        added = torch.bincount(environment, minlength=self.num_envs)
        self._check(environment, added)
        data = data.exclude(self.environment_key)
        self._check_entries(data)
        rank = self._rank(environment, added)
        index = (self.counts[environment] + rank) % self.slots * self.num_envs + environment
        # Bypasses the cursor of `set`, which assumes a single ring.
        self._storage.set(index, data, set_cursor=False)
        self._storage._set_last_cursor(index)
        self.counts = self.counts + added
        self._write_count += len(index)
        self._set_length()
        self._bump_generation(index, data)
        self._mark_update_entities(index)
        return index

    def _check(self, environment: Tensor, added: Tensor) -> None:
        if len(added) > self.num_envs:
            raise ValueError(
                f"Record of environment {int(environment.max())}, but the replay was made for "
                f"num_envs={self.num_envs}."
            )
        most = int(added.max())
        if most > self.window:
            raise ValueError(
                f"A batch with {most} records of one environment does not fit into rings of "
                f"{self.window}; use a larger capacity or smaller batches."
            )
        room = self.room()
        if room is not None and most > room:
            raise RuntimeError(
                f"{most} more records per environment would overwrite rows of the last checkpoint "
                f"({room} fit). Save the replay before extending it further, or give it a slack of "
                f"at least the records between two checkpoints (now {self.slack} per environment)."
            )

    def _check_entries(self, data: TensorDictBase) -> None:
        # A storage silently keeps the old values of missing entries.
        if not self._storage.initialized:
            return
        stored, given = set(self._storage._storage.keys(True, True)), set(data.keys(True, True))
        if stored != given:
            raise KeyError(
                f"Records must have the entries of those stored before: missing "
                f"{sorted(map(str, stored - given))}, unknown {sorted(map(str, given - stored))}."
            )
        for key in given:
            kept, shape = self._storage._storage.get(key).shape[1:], data.get(key).shape[1:]
            if kept != shape:
                raise ValueError(
                    f"The entry {key!r} of a record has the shape {list(shape)}, but those stored before "
                    f"have {list(kept)}; nothing of the batch was stored."
                )

    def _rank(self, environment: Tensor, added: Tensor) -> Tensor:
        """How many earlier records of this batch come from the same environment, ``[N]``."""
        if len(environment) == 1:
            return torch.zeros_like(environment)
        order = environment.argsort(stable=True)
        before = (added.cumsum(0) - added)[environment[order]]
        rank = torch.empty_like(environment)
        rank[order] = torch.arange(len(environment)) - before
        return rank

    def _set_length(self) -> None:
        used = self.counts.clamp(max=self.slots)
        highest = (used - 1) * self.num_envs + torch.arange(self.num_envs)
        self._storage._len = int(highest[used > 0].max()) + 1 if used.any() else 0

    def _restore(self, counts: list[int]) -> None:
        if len(counts) != self.num_envs:
            raise ValueError(f"State of {len(counts)} rings, but this writer has {self.num_envs}.")
        self.counts = torch.tensor(counts, dtype=torch.long)
        self._protected = None
        if self._storage is not None:
            self._set_length()

    def state_dict(self) -> dict[str, Any]:
        """Counts and generations."""
        return {**super().state_dict(), "counts": self.counts.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self._restore(state_dict["counts"])

    def dumps(self, path: str | Path) -> None:
        """Writes counts and generations to the folder ``path``."""
        super().dumps(path)
        (Path(path) / _COUNTS).write_text(json.dumps(self.counts.tolist()))

    def loads(self, path: str | Path) -> None:
        """Restores what :meth:`dumps` wrote; load the storage first."""
        super().loads(path)
        self._restore(json.loads((Path(path) / _COUNTS).read_text()))

    def _empty(self, empty_write_count: bool = True) -> None:
        super()._empty(empty_write_count)
        self.counts = torch.zeros_like(self.counts)
        self._protected = None

    def __repr__(self) -> str:
        return f"RingWriter(num_envs={self.num_envs}, counts={self.counts.tolist()})"
