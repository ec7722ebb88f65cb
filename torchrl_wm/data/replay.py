"""The replay of a training loop: step records in rings on TorchRL's own replay buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer, TensorSpec
from torchrl.envs.transforms import Compose, Transform

from torchrl_wm import keys
from torchrl_wm.data.checkpoint import ReplayCheckpoint
from torchrl_wm.data.compression import Codec, LatentCompression
from torchrl_wm.data.interruptions import InterruptedEpisodes
from torchrl_wm.data.records import ENVIRONMENT, required, step_records
from torchrl_wm.data.rings import RingWriter
from torchrl_wm.data.samplers import SequenceSampler
from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.ranges import COUNT


class StepReplay:
    """Stores collected batches as step records and samples sequences of them.

    A sample is ``[B, T + 1]`` contiguous records of one environment each: row 0 is not trained on, its
    latents are the carry of row 1 (unless row 1 ``is_init``). Besides the records it has ``index`` and
    ``index_generation``, with which :meth:`write_back` refreshes the stored latents.

    It wraps :attr:`buffer`, a stock ``TensorDictReplayBuffer``; the example builds the same from parts.

    Args:
        capacity (int): records that can be sampled, over all environments; the final observation of an
            episode is a record of its own. Rounded up to a multiple of ``num_envs``.
        num_envs (int): environments in a batch of the collector.
        batch_size (int): ``B``, sequences in a sample.
        slice_length (int): ``T``, records to train on in each.

    Keyword Args:
        action_spec (TensorSpec): spec of one unbatched action, for the names of the action entries.
        observation_keys (sequence of NestedKey): observations to store.
        latents (mapping of NestedKey to torch.dtype or int, optional): latent entries and how they
            are stored, see :class:`~torchrl_wm.data.LatentCompression`. Defaults to none.
        extra_keys (sequence of NestedKey, optional): further root entries that the policy writes,
            stored as they are. Defaults to none.
        scratch_dir (str or Path, optional): folder of the memory-mapped rows; it must be empty,
            unless :meth:`load` is called before the first :meth:`extend`. Defaults to rows in RAM.
        slack (int, optional): records that can be collected between two checkpoints, over all
            environments (the end of an episode gives two in one step). With memory-mapped rows, which a
            checkpoint does not copy, the rings are that much longer. :meth:`extend` refuses to write
            more, see :meth:`room`. Defaults to 0.
        seed (int, optional): of the sampler's own generator. Defaults to the global generator.
        sampler (callable, optional): makes the sampler from the writer and the number of records in a
            sequence. Defaults to :class:`~torchrl_wm.data.SequenceSampler`, uniform over start positions.
        transforms (sequence of Transform, optional): applied to the sampled ``[B * (T + 1)]`` records
            after the latents are decoded; they keep the shape. Defaults to none.

    Raises:
        ValueError: for a count below 1, or a capacity that leaves an environment fewer records than one
            sequence has.
        TypeError: for an action spec without an encoding, or a codec of ``latents`` of the wrong type.

    Examples:
        >>> from torchrl.data import OneHot
        >>> replay = StepReplay(
        ...     100, num_envs=2, batch_size=4, slice_length=8, action_spec=OneHot(3),
        ...     observation_keys=["observation"], latents={"belief": torch.float16})
        >>> len(replay), replay.ready
        (0, False)

        The same from parts, where a pipeline of your own needs another storage, sampler or
        transform:

        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> writer = RingWriter(num_envs=2)
        >>> buffer = TensorDictReplayBuffer(
        ...     storage=LazyTensorStorage(100), writer=writer, sampler=SequenceSampler(writer, 9),
        ...     transform=LatentCompression({"belief": torch.float16}), batch_size=4 * 9)
        >>> records = TensorDict(
        ...     belief=torch.zeros(60, 5), environment=torch.arange(60) % 2, batch_size=[60])
        >>> index = buffer.extend(records)  # records of torchrl_wm.data.step_records(batch, ...)
        >>> buffer.sample().reshape(4, 9)["belief"].shape
        torch.Size([4, 9, 5])
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        batch_size: int,
        slice_length: int,
        *,
        action_spec: TensorSpec,
        observation_keys: Sequence[NestedKey],
        latents: Mapping[NestedKey, Codec] | None = None,
        extra_keys: Sequence[NestedKey] = (),
        scratch_dir: str | Path | None = None,
        slack: int = 0,
        seed: int | None = None,
        sampler: Callable[[RingWriter, int], SequenceSampler] = SequenceSampler,
        transforms: Sequence[Transform] = (),
    ):
        COUNT.check(capacity=capacity, num_envs=num_envs)
        COUNT.check(batch_size=batch_size, slice_length=slice_length)
        self.num_envs, self.batch_size, self.slice_length = num_envs, batch_size, slice_length
        window, spare = -(-capacity // num_envs), -(-slack // num_envs)
        if window < slice_length + 1:
            raise ValueError(
                f"A capacity of {capacity} leaves {window} records to each of {num_envs} "
                f"environments, fewer than the {slice_length + 1} of one sequence."
            )
        if num_envs * (window - slice_length) < batch_size:
            raise ValueError(
                f"A capacity of {capacity} holds {num_envs * (window - slice_length)} different sequences of "
                f"{slice_length} records, fewer than batch_size={batch_size}: raise capacity, or lower "
                "batch_size or slice_length."
            )
        self.observation_keys = [unravel_key(key) for key in observation_keys]
        self.encoding = ActionEncoding(action_spec)
        self.action_keys = [unravel_key(key) for key in self.encoding.in_keys]
        self.compression = LatentCompression(latents or {})
        self.latent_keys = list(self.compression.codecs)
        self.policy_keys = self.latent_keys + [unravel_key(key) for key in extra_keys]
        self.scratch_dir = None if scratch_dir is None else Path(scratch_dir)
        spare = 0 if scratch_dir is None else spare
        self.writer = RingWriter(num_envs, slack=spare)
        self.sampler = sampler(self.writer, slice_length + 1)
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        rows = (window + spare) * num_envs
        self.buffer = TensorDictReplayBuffer(
            storage=self._make_storage(rows),
            writer=self.writer,
            sampler=self.sampler,
            transform=Compose(self.compression, InterruptedEpisodes(slice_length + 1), *transforms),
            batch_size=batch_size * (slice_length + 1),
            generator=self.generator,
        )
        self._checkpoint = ReplayCheckpoint(self)

    def _make_storage(self, rows: int) -> LazyTensorStorage:
        if self.scratch_dir is None:
            return LazyTensorStorage(rows)
        return LazyMemmapStorage(rows, scratch_dir=self.scratch_dir / "rows", auto_cleanup=False)

    # -- writing ---------------------------------------------------------------------------------

    def extend(self, batch: TensorDictBase) -> None:
        """Stores a collected batch ``[E, T]``, all of it or nothing.

        Raises:
            KeyError: for a missing entry.
            ValueError: for another number of environments, an observation or reward that is not
                finite (names the entry, the environment and the step), or an episode that goes on
                after its end.
            RuntimeError: when rows of the last checkpoint would be overwritten, see ``slack``.
            FileExistsError: when ``scratch_dir`` holds the rows of another replay.
        """
        if batch.ndim != 2 or batch.shape[0] != self.num_envs:
            raise ValueError(
                f"A batch must be [{self.num_envs}, steps] (num_envs={self.num_envs}), but its "
                f"shape is {list(batch.shape)}. MultiSyncCollector joins its workers so with cat_results=0."
            )
        records = step_records(
            batch,
            observation_keys=self.observation_keys,
            action_keys=self.action_keys,
            policy_keys=self.policy_keys,
        )
        if not len(records):
            return
        self._check_finite(records, batch)
        if next(records.values(True, True)).device.type != "cpu":
            records = records.to("cpu")
        self._check_continued(records)
        if not self.buffer.storage.initialized:
            self._checkpoint.claim_scratch_dir()
        self.buffer.extend(records)
        self._checkpoint.note_written()

    def write_back(self, sample: TensorDictBase, latents: TensorDictBase) -> int:
        """Replaces the stored latents of a sample by fresh ones.

        Rows that were overwritten since sampling are skipped; of a row that is in the sample more than
        once, the last occurrence is kept.

        Args:
            sample (TensorDictBase): ``[B, T + 1]``, as returned by :meth:`sample` (any device).
            latents (TensorDictBase): ``[B, T]``, for rows 1 to T: some or all of the latents and
                extra entries. Rows whose :data:`~torchrl_wm.keys.MASK` is False are left alone; of
                rows with a :data:`~torchrl_wm.keys.SEARCH_VERSION` the newest is kept, and none
                that is older than what is stored.

        Returns:
            int: number of records replaced.

        Raises:
            KeyError: for an entry that is not stored or that the policy does not write.
            ValueError: for latents of another shape than the sample's rows 1 to T, or that their codec
                cannot store, such as NaN.
        """
        mask = latents.get(keys.MASK, None)
        entries = dict(latents.exclude(keys.MASK).items(True, True))
        if unknown := [key for key in entries if key not in self.policy_keys]:
            raise KeyError(f"Cannot write back {unknown}; the replay stores {self.policy_keys}.")
        if latents.shape != sample[:, 1:].shape:
            raise ValueError(
                f"Latents {list(latents.shape)} must be those of rows 1 to T of the sample "
                f"{list(sample.shape)}: {list(sample[:, 1:].shape)}."
            )
        index = sample.get("index")[:, 1:].flatten().cpu()
        generation = sample.get("index_generation")[:, 1:].flatten().cpu()
        kept = self._kept(index, mask, entries.get(keys.SEARCH_VERSION))
        patch = {}
        for key, value in entries.items():
            value = value.detach().flatten(0, 1)
            if key in self.compression.codecs:
                value = self.compression.encode(key, value)
            patch[key] = value.cpu()[kept]
        result = self.buffer.update_if_present(
            index=index[kept], generation=generation[kept], patch=patch
        )
        return result.updated_count

    def _kept(self, index: Tensor, mask: Tensor | None, version: Tensor | None) -> Tensor:
        """Positions of ``index`` ``[N]`` to write: one for each row, the newest, or last, of several."""
        kept = torch.arange(len(index)) if mask is None else mask.flatten().cpu().nonzero()[:, 0]
        if version is not None:
            version = version.flatten().cpu()
            stored = self.buffer.storage._storage.get(keys.SEARCH_VERSION)[index[kept], 0]
            kept = kept[version[kept] >= stored]
            kept = kept[version[kept].argsort(stable=True)]
        return kept[_last_occurrences(index[kept])]

    # -- reading ---------------------------------------------------------------------------------

    def sample(self) -> TensorDict:
        """``[B, T + 1]`` records with ``index`` and ``index_generation``, on the CPU.

        Raises:
            RuntimeError: while no environment has written ``T + 1`` records.
        """
        return self.buffer.sample().reshape(self.batch_size, self.slice_length + 1)

    def __len__(self) -> int:
        """Number of records that can be sampled."""
        return int(self.writer.sampleable().sum())

    @property
    def ready(self) -> bool:
        """Whether there are at least ``B`` different sequences to sample."""
        return int(self.sampler.starts().sum()) >= self.batch_size

    def room(self) -> int | None:
        """Records that each environment can still write before a checkpoint is due; None for no limit.

        A transition gives one record, and two where the episode ends.
        """
        return None if self.scratch_dir is None else self.writer.room()

    def sizes(self) -> dict[str, int]:
        """Bytes of one record: ``observations``, ``latents`` and ``rest`` (generation included).

        Raises:
            RuntimeError: before the first batch.
        """
        if not self.buffer.storage.initialized:
            raise RuntimeError("The sizes are known after the first batch; call extend() before.")
        sizes = {"observations": 0, "latents": 0, "rest": torch.long.itemsize}
        for key, value in self.buffer.storage._storage.items(True, True):
            kind = "observations" if key in self.observation_keys else "rest"
            kind = "latents" if key in self.latent_keys else kind
            sizes[kind] += value[0].numel() * value.element_size()
        return sizes

    # -- checkpoints -----------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Writes the state to a new folder; see :class:`~torchrl_wm.data.ReplayCheckpoint`."""
        self._checkpoint.save(Path(path))

    def load(self, path: str | Path) -> None:
        """Restores what :meth:`save` wrote; see :class:`~torchrl_wm.data.ReplayCheckpoint`."""
        self._checkpoint.load(Path(path))

    # -- checks ----------------------------------------------------------------------------------

    def _check_finite(self, records: TensorDictBase, batch: TensorDictBase) -> None:
        for key in (*self.observation_keys, keys.REWARD):
            value = records.get(key)
            if not value.is_floating_point() or value.isfinite().all():
                continue
            source = keys.PREVIOUS_REWARD if key == keys.REWARD else key
            where = _first_not_finite(batch, source)
            raise ValueError(
                f"{source!r} is not finite in {where}; nothing of the batch was stored."
            )

    def _check_continued(self, records: TensorDictBase) -> None:
        """A batch has to go on where the one before it ended, or begin an episode."""
        written = (self.writer.counts > 0).nonzero()[:, 0]
        if not len(written):
            return
        environment = records.get(ENVIRONMENT)  # sorted
        first = torch.searchsorted(environment, written).clamp_max(len(environment) - 1)
        present = environment[first] == written
        first, written = first[present], written[present]
        newest = (self.writer.counts[written] - 1) % self.writer.slots * self.num_envs + written
        stored = self.buffer.storage._storage
        going_on = ~records.get(keys.IS_INIT)[first, 0]
        ended = going_on & stored.get(keys.IS_LAST)[newest, 0]
        if ended.any():
            raise ValueError(
                f"Environment {int(written[ended][0])} goes on at step 0 of the batch although its episode "
                "had ended: a batch is missing, or its rows are not the environments in order."
            )
        taken = self.encoding(stored.select(*self.action_keys)[newest])
        other = going_on & (records.get(keys.PREVIOUS_ACTION)[first] != taken).any(-1)
        if other.any():
            raise ValueError(
                f"Environment {int(written[other][0])} goes on at step 0 of the batch from another action "
                "than the one stored last: a batch is missing, or batches of several workers arrive in "
                "turn, as from MultiAsyncCollector. Use Collector or MultiSyncCollector(cat_results=0), or a "
                "replay for each worker."
            )


def _first_not_finite(batch: TensorDictBase, key: NestedKey) -> str:
    """Where the entry, or its value under ``next`` in a done step, has its first bad number."""
    for name, value in (("", required(batch, key)), ("next of ", required(batch, ("next", key)))):
        bad = ~value.isfinite().reshape(*batch.shape, -1).all(2)
        if name:
            bad = bad & batch.get(("next", "done")).reshape(batch.shape)
        if bad.any():
            environment, step = bad.nonzero()[0].tolist()
            return f"environment {environment}, {name}step {step} of the batch"
    return "the batch"


def _last_occurrences(index: Tensor) -> Tensor:
    """Positions of the last occurrence of each value of ``index`` ``[N]``."""
    _, first_from_behind = np.unique(index.numpy()[::-1], return_index=True)
    return torch.from_numpy(len(index) - 1 - first_from_behind)
