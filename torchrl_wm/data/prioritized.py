"""Prioritised sampling of sequences in plain torch, with the priorities among the records."""

from __future__ import annotations

import torch
from torch import Tensor
from torchrl.data.replay_buffers.storages import Storage

from torchrl_wm import keys
from torchrl_wm.data.rings import RingWriter
from torchrl_wm.data.samplers import SequenceSampler
from torchrl_wm.functional.priorities import importance_weights, priority_probabilities

_TRIES = 8


class PrioritizedSequenceSampler(SequenceSampler):
    """Draws sequences by the priority of one of their records, the *root*.

    The priority is an entry of the records, ``[..., 1]``, so it is written, updated and checkpointed
    with them and this sampler keeps no state. An infinite priority, that of a record not yet trained on,
    counts as the largest finite one. Final records are not roots: no action was taken there.

    Sampling by priority reads the priorities of all records once; uniform sampling reads none. Besides
    the rows it gives ``priority_weight``, the importance weight of each sequence.

    Args:
        writer (RingWriter): the writer of the same buffer.
        length (int): records in a sequence.

    Keyword Args:
        root (int, optional): position of the root in its sequence. Defaults to ``0``.
        alpha (float, optional): 0 draws uniformly, 1 in proportion to the priorities. Defaults to
            ``0.6``.
        beta (float, optional): 0 corrects nothing, 1 corrects fully. Defaults to ``0.4``.

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
        count = batch_size // self.length
        if self.alpha:
            first, environment, weight = self._draw_by_priority(storage, count)
        else:
            (first, environment), weight = self._draw(storage, count), torch.ones(count)
        weights = weight.repeat_interleave(self.length)
        return self._rows(first, environment), {keys.PRIORITY_WEIGHT: weights}

    def _draw(self, storage: Storage, count: int) -> tuple[Tensor, Tensor]:
        """Sequences drawn uniformly among those whose root is not final."""
        first, environment = super()._draw(storage, count)
        # Few roots are final: it is faster to redraw than to list all the others.
        for _ in range(_TRIES):
            final = self._final(storage)[self._root_row(first, environment)]
            if not final.any():
                return first, environment
            first[final], environment[final] = super()._draw(storage, int(final.sum()))
        even = self._roots(storage).double()
        return self._sequences(self._draw_rows(even.cumsum(0), count))

    def _draw_by_priority(self, storage: Storage, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """First slot, environment and importance weight of sequences drawn by their priority."""
        roots = self._roots(storage)
        priority = self._priorities(storage, roots)
        probability = priority_probabilities(priority, alpha=self.alpha).masked_fill(~roots, 0.0)
        edges = probability.cumsum(0, dtype=torch.float64)
        drawn = self._draw_rows(edges, count)
        probability = probability[drawn].double() / edges[-1]
        weight = importance_weights(probability, int(roots.sum()), beta=self.beta)
        return *self._sequences(drawn), weight.float()

    def _draw_rows(self, edges: Tensor, count: int) -> Tensor:
        draw = torch.rand(count, generator=self._rng, dtype=edges.dtype) * edges[-1]
        below = torch.nextafter(edges[-1], edges[-1].new_zeros(()))
        return torch.searchsorted(edges, draw.clamp_max(below), right=True)

    def _sequences(self, root_row: Tensor) -> tuple[Tensor, Tensor]:
        """First slot and environment of the sequences with these roots."""
        slot, environment = root_row // self.writer.num_envs, root_row % self.writer.num_envs
        return (slot - self.root) % self.writer.slots, environment

    def _root_row(self, first: Tensor, environment: Tensor) -> Tensor:
        return (first + self.root) % self.writer.slots * self.writer.num_envs + environment

    def _final(self, storage: Storage) -> Tensor:
        # By column: `storage.get(rows)` would gather the observations of all rows.
        return storage._storage.get(keys.IS_LAST)[
            : self.writer.slots * self.writer.num_envs, 0
        ].cpu()

    def _roots(self, storage: Storage) -> Tensor:
        """Whether each row may be a root, ``[slots * E]``."""
        writer = self.writer
        begins = (writer.counts - writer.sampleable() + self.root) % writer.slots
        roots = torch.zeros(writer.slots, writer.num_envs, dtype=torch.bool)
        ends = begins + self.starts()
        for environment, (begin, end) in enumerate(
            zip(begins.tolist(), ends.tolist(), strict=True)
        ):
            roots[begin:end, environment] = True
            roots[: max(end - writer.slots, 0), environment] = True  # beyond the seam of the ring
        roots = roots.flatten() & ~self._final(storage)
        if not roots.any():
            raise RuntimeError(
                f"A sequence needs {self.length} records of one environment and a root that is not "
                "the end of an episode; collect more before sampling."
            )
        return roots

    def _priorities(self, storage: Storage, roots: Tensor) -> Tensor:
        """The priorities of all rows ``[slots * E]``, finite where a row may be a root."""
        column = storage._storage.get(keys.PRIORITY, None)
        if column is None:
            raise KeyError(
                f"Sampling by priority needs the entry {keys.PRIORITY!r} among the records; name it in "
                "extra_keys of the replay and let the policy write it, or use alpha=0."
            )
        priority = column[: len(roots), 0].cpu().masked_fill(~roots, 0.0)
        fresh = priority.isinf()
        largest = priority.masked_fill(fresh, 0.0).max()
        return priority.masked_fill(fresh, float(largest) or 1.0)
