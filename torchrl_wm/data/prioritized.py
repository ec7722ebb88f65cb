"""Prioritised sampling of sequences in plain torch, with the priorities among the records."""

from __future__ import annotations

import torch
from torch import Tensor
from torchrl.data.replay_buffers.storages import Storage

from torchrl_wm import keys
from torchrl_wm.data.rings import RingWriter
from torchrl_wm.data.samplers import SequenceSampler
from torchrl_wm.functional.priorities import importance_weights, priority_probabilities


class PrioritizedSequenceSampler(SequenceSampler):
    """Draws sequences by the priority of one of their records, the *root*.

    The priority is an entry of the records, ``[..., 1]``, so it is written, written back and
    checkpointed with them and this sampler keeps no state. An infinite one, that of a record not yet
    trained on, counts as the largest of the others. Final records are no roots: nothing was done there.

    Every sample goes over the priorities of all roots, which for a million records takes a few
    milliseconds. Beside the rows it gives ``priority_weight``, the importance weight of each sequence.

    Args:
        writer (RingWriter): the writer of the same buffer.
        length (int): records in a sequence.

    Keyword Args:
        root (int, optional): position of the root in its sequence. Defaults to ``0``.
        alpha (float, optional): 0 draws evenly, 1 in proportion to the priorities. Defaults to ``0.6``.
        beta (float, optional): 0 corrects nothing, 1 everything. Defaults to ``0.4``.

    Raises:
        ValueError: for a length below 1, a root outside the sequence, or exponents out of [0, 1].
        KeyError: while sampling by priority, for records without the entry ``priority``.
        RuntimeError: while there is no sequence to draw.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> writer = RingWriter(1)
        >>> sampler = PrioritizedSequenceSampler(writer, 3, alpha=1.0)
        >>> buffer = TensorDictReplayBuffer(
        ...     storage=LazyTensorStorage(20), writer=writer, sampler=sampler, batch_size=6)
        >>> zeros = torch.zeros(10, 1)
        >>> records = TensorDict(
        ...     x=torch.arange(10), priority=zeros.index_fill(0, torch.tensor(4), 1e6),
        ...     is_last=zeros.bool(), environment=zeros[:, 0].long(), batch_size=[10])
        >>> index = buffer.extend(records)
        >>> buffer.sample().reshape(-1, 3)["x"]
        tensor([[4, 5, 6],
                [4, 5, 6]])
    """

    def __init__(
        self,
        writer: RingWriter,
        length: int,
        *,
        root: int = 0,
        alpha: float = 0.6,
        beta: float = 0.4,
    ):
        super().__init__(writer, length)
        if not 0 <= root < length:
            raise ValueError(f"root={root} must be a position in a sequence of {length} records.")
        if not (0 <= alpha <= 1 and 0 <= beta <= 1):
            raise ValueError(f"Exponents lie within 0 and 1, got alpha={alpha} and beta={beta}.")
        self.root, self.alpha, self.beta = root, alpha, beta

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict]:
        """Rows of ``batch_size // length`` sequences, joined, and the weight of each row."""
        self._check_batch_size(batch_size)
        slots, environment = self._roots(storage)
        writer = self.writer
        probability = self._probabilities(storage, slots * writer.num_envs + environment)
        edges = probability.cumsum(0)
        count = batch_size // self.length
        draw = torch.rand(count, generator=self._rng, dtype=edges.dtype) * edges[-1]
        drawn = torch.searchsorted(edges, draw, right=True).clamp_max(len(edges) - 1)
        weight = importance_weights(probability[drawn], len(probability), beta=self.beta).float()
        offsets = torch.arange(self.length) - self.root
        slot = (slots[drawn, None] + offsets) % writer.slots
        rows = (slot * writer.num_envs + environment[drawn, None]).flatten()
        return rows, {keys.PRIORITY_WEIGHT: weight.repeat_interleave(self.length)}

    def _roots(self, storage: Storage) -> tuple[Tensor, Tensor]:
        """Slot and environment of every record that may be a root, each ``[N]``."""
        writer, starts = self.writer, self.starts()
        environment = torch.arange(writer.num_envs).repeat_interleave(starts)
        first = writer.counts - writer.sampleable() + self.root
        offset = torch.arange(len(environment)) - (starts.cumsum(0) - starts)[environment]
        slots = (first[environment] + offset) % writer.slots
        rows = slots * writer.num_envs + environment
        # By column: `storage.get(rows)` would gather the observations of all rows.
        going_on = ~storage._storage.get(keys.IS_LAST)[rows, 0] if len(rows) else rows.bool()
        if not going_on.any():
            raise RuntimeError(
                f"A sequence needs {self.length} records of one environment and a root that is not "
                "the end of an episode; collect more before sampling."
            )
        return slots[going_on], environment[going_on]

    def _probabilities(self, storage: Storage, rows: Tensor) -> Tensor:
        if not self.alpha:
            return torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
        column = storage._storage.get(keys.PRIORITY, None)
        if column is None:
            raise KeyError(
                f"Sampling by priority needs the entry {keys.PRIORITY!r} among the records; name it in "
                "extra_keys of the replay and let the policy write it, or use alpha=0."
            )
        priority = column[rows, 0].double()
        fresh = priority.isinf()
        if fresh.any():
            known = priority[~fresh]
            largest = known.max() if len(known) else priority.new_zeros(())
            priority = torch.where(
                fresh, largest if largest > 0 else torch.ones_like(largest), priority
            )
        return priority_probabilities(priority, alpha=self.alpha)
