"""Step records from replay buffers of plain transitions that other code filled.

Reads ``[B, L]`` contiguous transition rows (observation, action, ``("next", ...)``), writes ``[B,
L]`` step records; every shape is static, so the gather runs on any device and under
``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.envs.transforms import Transform

from torchrl_wm import keys
from torchrl_wm.data.records import required
from torchrl_wm.modules.actions import ActionEncoding

TRAJECTORY = ("collector", "traj_ids")
STEP_COUNT = "step_count"


class StepRecords(Transform):
    """Turns slices of transitions into step records; refuses slices that it cannot prove contiguous.

    A slice of ``length`` transitions gives ``length`` records. Record 0 belongs to row 0 and only
    supplies the carry: what led to it is unknown, so its ``previous_action`` and ``reward`` are zero
    and its ``is_init`` is False. Records 1 and later are trained on. Each end of an episode inside a
    slice adds the final observation and pushes one record out at the tail. Rows are ordered by
    trajectory id where there is one.

    Besides the records of :func:`~torchrl_wm.data.step_records` it writes ``row`` (``[B, L]`` int64,
    the row of the slice) and ``owns_row`` (``[B, L]`` bool, False on final records, which have no
    row of their own): write back ``latents[owns_row]`` to ``index.gather(1, row)[owns_row]``.

    On a plain ``ReplayBuffer`` append it as a transform. On a ``TensorDictReplayBuffer`` call it on
    the sample: that class writes the sampler's marks over a transform's output (``SliceSampler`` marks
    every slice start ``is_init`` and every slice end ``done``), so it refuses this transform. The
    marks do no harm in a sample passed to it by hand, as neither ``is_init`` of row 0 nor ``done`` of
    the last row is read.

    Args:
        encoding (ActionEncoding): how actions become ``previous_action``.

    Keyword Args:
        length (int): rows in a slice: one for the carry and those to train on.
        observation_keys (sequence of NestedKey): observations to keep.
        policy_keys (sequence of NestedKey, optional): root entries that the policy wrote, zero on
            final records.
        trajectory_key, step_count_key (NestedKey, optional): used where they are present.
        mask_key (NestedKey, optional): where present it must be True everywhere.

    Raises:
        KeyError: for a missing entry; the message names it and the entries found.
        ValueError: for a ragged or padded batch (``strict_length=False``), and for rows that are not
            proven to follow each other; the message names the entry that shows it.

    Examples:
        >>> from torchrl.collectors import Collector
        >>> from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
        >>> from torchrl.envs import PendulumEnv, StepCounter, TransformedEnv
        >>> env = TransformedEnv(PendulumEnv(), StepCounter(50))
        >>> buffer = TensorDictReplayBuffer(
        ...     storage=LazyTensorStorage(200), batch_size=36,
        ...     sampler=SliceSampler(slice_len=9, traj_key=("collector", "traj_ids")))
        >>> for batch in Collector(env, frames_per_batch=200, total_frames=200):
        ...     index = buffer.extend(batch)
        >>> to_records = StepRecords(
        ...     ActionEncoding(env.action_spec), length=9, observation_keys=["th", "thdot"])
        >>> records = to_records(buffer.sample())
        >>> records["previous_action"].shape
        torch.Size([4, 9, 1])
    """

    def __init__(
        self,
        encoding: ActionEncoding,
        *,
        length: int,
        observation_keys: Sequence[NestedKey],
        policy_keys: Sequence[NestedKey] = (),
        trajectory_key: NestedKey = TRAJECTORY,
        step_count_key: NestedKey = STEP_COUNT,
        mask_key: NestedKey = keys.MASK,
    ):
        super().__init__()
        if length < 2:
            raise ValueError(f"A slice is a row for the carry and at least one more, got {length}.")
        self.encoding, self.length = encoding, length
        self.observation_keys, self.policy_keys = list(observation_keys), list(policy_keys)
        self.trajectory_key, self.step_count_key = trajectory_key, step_count_key
        self.mask_key = mask_key

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Checks and converts rows ``[B * length]`` or ``[B, length]``; gives ``[B, length]``."""
        rows = self._slices(tensordict)
        self._check(_ordered(rows, self.trajectory_key)[0])
        return gather_step_records(
            rows,
            self.encoding,
            observation_keys=self.observation_keys,
            policy_keys=self.policy_keys,
            trajectory_key=self.trajectory_key,
        )

    def _slices(self, tensordict: TensorDictBase) -> TensorDictBase:
        mask = tensordict.get(self.mask_key, None)
        if mask is not None and not mask.all():
            raise ValueError(f"{self.mask_key!r} marks padding; sample with pad_output=False.")
        if tensordict.numel() % self.length:
            raise ValueError(
                f"{tensordict.numel()} rows are no slices of {self.length}; sample slices of one "
                "length (strict_length=True) and give it as length=."
            )
        return tensordict.reshape(-1, self.length)

    def _check(self, rows: TensorDictBase) -> None:
        """Refuses rows that do not follow each other."""
        done = required(rows, ("next", "done")).reshape(rows.shape)[:, :-1]
        following = [unravel_key(("next", key)) for key in (*self.observation_keys, keys.REWARD)]
        for key in (*self.observation_keys, *following):
            if not required(rows, key).isfinite().all():
                raise ValueError(f"The entry {key!r} holds NaN or infinite numbers.")
        proofs: dict[NestedKey, Tensor] = {}
        trajectory = _row_value(rows, self.trajectory_key)
        if trajectory is not None:
            proofs[self.trajectory_key] = (trajectory[:, 1:] != trajectory[:, :-1]) == done
        count = _row_value(rows, self.step_count_key)
        if count is not None:
            expected = torch.where(done, 0, count[:, :-1] + 1)
            proofs[self.step_count_key] = count[:, 1:] == expected
        is_init = _row_value(rows, keys.IS_INIT)
        if is_init is not None:
            proofs[keys.IS_INIT] = is_init[:, 1:] == done
        for key in self.observation_keys:
            arrived = required(rows, ("next", key))[:, :-1]
            same = required(rows, key)[:, 1:] == arrived
            proofs[key] = same.reshape(*done.shape, -1).all(2) | done
        if done.any() and count is None and is_init is None:
            raise ValueError(
                f"A slice goes on behind a done row, and neither {self.step_count_key!r} nor "
                f"{keys.IS_INIT!r} shows that an episode begins there: append torchrl.envs.StepCounter or "
                "InitTracker to the environment, or sample within episodes (SliceSampler)."
            )
        for key, proven in proofs.items():
            if not proven.all():
                where, row = (~proven).nonzero()[0].tolist()
                raise ValueError(
                    f"{key!r} shows that row {row + 1} of slice {where} does not follow row {row}: "
                    "sample contiguous slices of one environment (SliceSampler with "
                    f"traj_key={self.trajectory_key!r}), without transforms that alter this entry."
                )


def gather_step_records(
    rows: TensorDictBase,
    encoding: ActionEncoding,
    *,
    observation_keys: Sequence[NestedKey],
    policy_keys: Sequence[NestedKey] = (),
    trajectory_key: NestedKey = TRAJECTORY,
) -> TensorDict:
    """The conversion of :class:`StepRecords` without its checks: static shapes, no synchronisation.

    Args:
        rows (TensorDictBase): ``[B, L]`` transitions.
        encoding (ActionEncoding): how actions become ``previous_action``.

    Keyword Args:
        observation_keys (sequence of NestedKey): observations to keep.
        policy_keys (sequence of NestedKey, optional): root entries that the policy wrote.
        trajectory_key (NestedKey, optional): used where it is present.

    Returns:
        TensorDict: ``[B, L]`` records with ``row`` and ``owns_row``.

    Raises:
        KeyError: for a missing entry; the message names it and the entries found.
        ValueError: for a reward of more than one number.
    """
    rows, order = _ordered(rows, trajectory_key)
    size, length = rows.shape
    done = required(rows, ("next", "done")).reshape(size, length)
    slot = torch.arange(length, device=done.device).expand(size, length).contiguous()
    # Each episode that ended before a row shifts it by one record, the final one.
    ended = done.long()
    position = slot + ended.cumsum(1) - ended
    row = torch.searchsorted(position, slot, right=True) - 1
    is_last = position.gather(1, row) != slot
    starts = torch.cat([torch.zeros_like(done[:, :1]), done[:, :-1]], 1)
    is_init = starts.gather(1, row) & ~is_last
    # The last transition before a record led to it: for a final record that of its own row.
    led = torch.where(is_last, row, (row - 1).clamp(min=0))
    unknown = is_init | (slot == 0)

    def arrived(value: Tensor) -> Tensor:
        return _zero(_take(value, led), unknown)

    out = TensorDict({}, batch_size=rows.shape, device=rows.device)
    for key in observation_keys:
        final = _take(required(rows, ("next", key)), row)
        own = _take(required(rows, key), row)
        out.set(key, torch.where(_expand(is_last, own), final, own))
    out.set(keys.IS_INIT, is_init.unsqueeze(-1))
    out.set(keys.IS_LAST, is_last.unsqueeze(-1))
    terminated = required(rows, ("next", keys.TERMINATED)).reshape(size, length, 1)
    out.set(keys.TERMINATED, _zero(_take(terminated, row), ~is_last))
    reward = required(rows, ("next", "reward"))
    if reward.numel() != size * length:
        raise ValueError(
            f"('next', 'reward') has the shape {list(reward.shape)}: one number is needed for each of "
            f"{size} x {length} steps. Sum several rewards, or choose one, before."
        )
    reward = reward.reshape(size, length, 1)
    out.set(keys.REWARD, arrived(reward.float()))
    out.set(keys.PREVIOUS_ACTION, arrived(encoding(rows)))
    for key in (*encoding.in_keys, *policy_keys):
        out.set(key, _zero(_take(required(rows, key), row), is_last))
    out.set("row", row if order is None else order.gather(1, row))
    return out.set("owns_row", ~is_last)


def _ordered(
    rows: TensorDictBase, trajectory_key: NestedKey
) -> tuple[TensorDictBase, Tensor | None]:
    """Rows sorted stably by trajectory id, and the order."""
    trajectory = _row_value(rows, trajectory_key)
    if trajectory is None:
        return rows, None
    order = trajectory.argsort(dim=1, stable=True)
    out = rows.empty()
    for key, value in rows.items(True, True):
        out.set(key, _take(value, order))
    return out, order


def _row_value(rows: TensorDictBase, key: NestedKey) -> Tensor | None:
    value = rows.get(key, None)
    return None if value is None else value.reshape(rows.shape)


def _take(value: Tensor, row: Tensor) -> Tensor:
    """Rows of each slice: ``[B, L, ...]`` and ``[B, L]`` to ``[B, L, ...]``, copied row by row."""
    size, length = row.shape
    first = torch.arange(size, device=row.device).unsqueeze(1) * length
    return value.flatten(0, 1).index_select(0, (first + row).flatten()).unflatten(0, row.shape)


def _expand(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (value.ndim - 2))


def _zero(value: Tensor, mask: Tensor) -> Tensor:
    return torch.where(_expand(mask, value), torch.zeros_like(value), value)
