"""Uniform sampling of sequences from the rings of a replay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.data.replay_buffers.storages import Storage

from torchrl_wm.data.rings import RingWriter


class SequenceSampler(Sampler):
    """Draws start positions uniformly over all environments and reads on from there.

    Every start that leaves a whole sequence inside the newest ``writer.window`` records of its
    environment is equally likely, so episodes are weighted by their length, and sequences cross the ends
    of episodes (the records say where). The seam of a ring is invisible.

    Random numbers come from the ``generator`` of the replay buffer, or else from the global one.

    Args:
        writer (RingWriter): the writer of the same buffer.
        length (int): records in a sequence.

    Raises:
        ValueError: for a batch size that is not a multiple of ``length``.
        RuntimeError: while no environment has written ``length`` records.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> writer = RingWriter(2)
        >>> buffer = TensorDictReplayBuffer(
        ...     storage=LazyTensorStorage(20), writer=writer, sampler=SequenceSampler(writer, 3),
        ...     batch_size=6)
        >>> records = TensorDict(
        ...     x=torch.arange(10), environment=torch.zeros(10, dtype=torch.long), batch_size=[10])
        >>> index = buffer.extend(records)
        >>> buffer.sample().reshape(-1, 3)["x"].diff(dim=1)
        tensor([[1, 1],
                [1, 1]])
    """

    def __init__(self, writer: RingWriter, length: int):
        if length < 1:
            raise ValueError(f"A sequence has at least one record, got length={length}.")
        self.writer, self.length = writer, length

    def starts(self) -> Tensor:
        """``[E]``: number of start positions in each environment."""
        return (self.writer.sampleable() - self.length + 1).clamp(min=0)

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict]:
        """Rows of ``batch_size // length`` sequences, joined: ``[batch_size]`` int64."""
        self._check_batch_size(batch_size)
        return self._rows(*self._draw(storage, batch_size // self.length)), {}

    def _draw(self, storage: Storage, count: int) -> tuple[Tensor, Tensor]:
        """First slot and environment of ``count`` sequences."""
        writer = self.writer
        starts = self.starts()
        edges = starts.cumsum(0)
        total = int(edges[-1])
        if not total:
            raise RuntimeError(
                f"A sequence needs {self.length} records of one environment, but the replay holds "
                f"at most {int(writer.sampleable().max())}; collect more before sampling."
            )
        draw = torch.randint(total, (count,), generator=self._rng)
        environment = torch.searchsorted(edges, draw, right=True)
        oldest = writer.counts - writer.sampleable()
        first = draw - (edges - starts)[environment] + oldest[environment]
        return first % writer.slots, environment

    def _rows(self, first: Tensor, environment: Tensor) -> Tensor:
        """The rows of the sequences that begin in these slots, joined."""
        slot = (first[:, None] + torch.arange(self.length)) % self.writer.slots
        return (slot * self.writer.num_envs + environment[:, None]).flatten()

    def _check_batch_size(self, batch_size: int) -> None:
        if batch_size < self.length or batch_size % self.length:
            raise ValueError(
                f"The batch size counts records and must be a multiple of the sequence length "
                f"{self.length}, got {batch_size}."
            )

    def _sampleable_count(self, storage: Storage, batch_size: int) -> int:
        return int(self.starts().sum())

    def state_dict(self) -> dict[str, Any]:
        """Empty: the state is that of the writer and the generator."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""

    def dumps(self, path) -> None:
        """Nothing to write."""

    def loads(self, path) -> None:
        """Nothing to read."""

    def _empty(self) -> None:
        """Nothing to forget."""
