"""From the transitions of a collector to step records, the rows that sequence models read.

Reads, per transition ``[E, T]``: the observations, ``is_init``, ``previous_action`` and
``previous_reward`` at the root and under ``"next"``, the action, the entries written by the policy,
``("next", "done")`` and ``("next", "terminated")``. Writes one record for each observation of an
episode, the final one included, with the action that led to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor

from torchrl_wm import keys

ENVIRONMENT = "environment"
"""``[...]`` int64: where a record came from; the writer reads it and does not store it."""


def step_records(
    batch: TensorDictBase,
    *,
    observation_keys: Sequence[NestedKey],
    action_keys: Sequence[NestedKey] = (keys.ACTION,),
    policy_keys: Sequence[NestedKey] = (),
    environment_key: NestedKey = ENVIRONMENT,
    mask_key: NestedKey = keys.MASK,
) -> TensorDict:
    """Converts collected transitions to step records, without any state between batches.

    An episode of ``n`` transitions gives ``n + 1`` records. The final one has ``is_last`` True, and its
    ``terminated`` tells an end from a time limit. As no action was taken there, its action and all
    entries written by the policy (latents, log-probabilities, search statistics) are zero.

    Args:
        batch (TensorDictBase): ``[E, T]`` transitions, row ``e`` from environment ``e``, with the
            entries of :class:`~torchrl_wm.envs.PreviousStep` at the root. Steps where ``mask_key``
            is False are padding and give no record.

    Keyword Args:
        observation_keys (sequence of NestedKey): observations to keep.
        action_keys (sequence of NestedKey, optional): actions, in the environment's own encoding.
        policy_keys (sequence of NestedKey, optional): root entries that the policy wrote.
        environment_key (NestedKey, optional): out-entry ``[N]`` int64, the row of the batch.
        mask_key (NestedKey, optional): ``[E, T]`` bool, used where it is present.

    Returns:
        TensorDict: ``[N]`` records, all of environment 0 first, in the order of time.

    Raises:
        KeyError: for a missing entry; the message names it and the entries found.
        ValueError: for a batch that is not ``[E, T]``, rewards that a transform behind ``PreviousStep``
            has changed, and where a done step is not followed by
            ``is_init``.

    Examples:
        >>> one = torch.ones(1, 2, 1)
        >>> ends = torch.tensor([[[False], [True]]])
        >>> step = {"observation": one, "previous_action": one, "previous_reward": one}
        >>> batch = TensorDict(
        ...     {**step, "is_init": ends.flip(1), "action": one,
        ...      "next": {**step, "done": ends, "terminated": ends}}, batch_size=[1, 2])
        >>> records = step_records(batch, observation_keys=["observation"])
        >>> records["is_last"][:, 0]
        tensor([False, False,  True])
    """
    done, kept = _ends(batch, mask_key)
    sources = {key: key for key in (*observation_keys, keys.PREVIOUS_ACTION)}
    sources |= {keys.REWARD: keys.PREVIOUS_REWARD}
    own_only = (*action_keys, *policy_keys)
    own = {key: required(batch, source) for key, source in sources.items()}
    own |= {key: required(batch, key) for key in own_only}
    own |= {keys.IS_INIT: required(batch, keys.IS_INIT)}
    never = torch.zeros_like(own[keys.IS_INIT])
    own |= {keys.IS_LAST: never, keys.TERMINATED: never}
    _check_restarts(own[keys.IS_INIT], done, kept)
    _check_rewards(batch, kept)

    num_envs, steps = batch.shape
    environment = torch.arange(num_envs, device=done.device).repeat_interleave(steps)
    if kept is None and not done.any():
        flat = {key: value.flatten(0, 1) for key, value in own.items()}
        return _tensordict(flat | {environment_key: environment})

    final = {key: required(batch, ("next", source))[done] for key, source in sources.items()}
    final |= {keys.TERMINATED: required(batch, ("next", keys.TERMINATED))[done]}
    final |= {keys.IS_LAST: torch.ones_like(final[keys.TERMINATED])}
    own |= {environment_key: environment.view(num_envs, steps)}
    final |= {environment_key: own[environment_key][done]}
    return _tensordict(_interleave(own, final, done, kept))


def sequences(tensordict: TensorDictBase, length: int) -> TensorDictBase:
    """Records ``[B * length]`` or ``[B, length]`` as ``[B, length]``; of length 1, of any shape.

    Raises:
        ValueError: for records of another shape.
    """
    shape = tensordict.shape
    joined = len(shape) == 1 and not shape[0] % length
    if length == 1 or joined or (len(shape) == 2 and shape[1] == length):
        return tensordict.reshape(-1, length)
    raise ValueError(
        f"Sequences of {length} records are needed, [B * {length}] or [B, {length}], but the batch has the "
        f"shape {list(shape)}."
    )


def required(tensordict: TensorDictBase, key: NestedKey) -> Tensor:
    """The entry ``key``.

    Raises:
        KeyError: where it is missing; the message names it and the entries found.
    """
    value = tensordict.get(key, None)
    if value is None:
        found = sorted(map(str, tensordict.keys(True, True)))
        raise KeyError(f"The batch has no entry {key!r}; found {', '.join(found)}.")
    return value


def _ends(batch: TensorDictBase, mask_key: NestedKey) -> tuple[Tensor, Tensor | None]:
    """``done`` and the mask, both ``[E, T]`` bool; the mask is None where nothing is padded."""
    if batch.ndim != 2:
        raise ValueError(f"A batch is [environments, steps], but its shape is {list(batch.shape)}.")
    done = required(batch, ("next", "done")).reshape(batch.shape)
    mask = batch.get(mask_key, None)
    if mask is None:
        return done, None
    mask = mask.reshape(batch.shape)
    return done & mask, mask


def _check_restarts(is_init: Tensor, done: Tensor, kept: Tensor | None) -> None:
    broken = done[:, :-1] & ~is_init[:, 1:].reshape(done[:, 1:].shape)
    if kept is not None:
        broken = broken & kept[:, 1:]
    if broken.any():
        environment, step = broken.nonzero()[0].tolist()
        raise ValueError(
            f"{keys.IS_INIT!r} is False at step {step + 1} of environment {environment}, but "
            f"step {step} is done. Rows of a batch are environments in the order of time; do not "
            "reshape or shuffle it, and put an InitTracker into the environment."
        )


def _check_rewards(batch: TensorDictBase, kept: Tensor | None) -> None:
    """The reward of a step has to be the one that ``PreviousStep`` saw."""
    given, seen = (batch.get(("next", k), None) for k in (keys.REWARD, keys.PREVIOUS_REWARD))
    if given is None or seen is None or given.shape != seen.shape:
        return
    differs = (given.float() != seen) & seen.isfinite()  # the replay names what is not finite
    if kept is not None:
        differs = differs & kept.reshape(differs.shape)
    if differs.any():
        environment, step = differs.reshape(batch.shape).nonzero()[0].tolist()
        raise ValueError(
            f"The reward of step {step} of environment {environment} is {given[environment, step].item():g}, "
            f"but {keys.PREVIOUS_REWARD!r} says {seen[environment, step].item():g}: a transform behind "
            "PreviousStep changes rewards, and what is stored would not be changed. Put it in front: "
            "env.insert_transform(0, ...) instead of env.append_transform(...)."
        )


def _interleave(
    own: dict[NestedKey, Tensor],
    final: dict[NestedKey, Tensor],
    done: Tensor,
    kept: Tensor | None,
) -> dict[NestedKey, Tensor]:
    """Inserts final records after those of their steps; entries absent from ``final`` get zeros."""
    width = (done.long() + (1 if kept is None else kept.long())).flatten()
    behind = width.cumsum(0)
    total = int(behind[-1])
    own_at = behind - width
    own_at = own_at if kept is None else own_at[kept.flatten()]
    final_at = (behind - 1)[done.flatten()]
    out = {}
    for key, value in own.items():
        merged = value.new_zeros(total, *value.shape[2:])
        merged[own_at] = value.flatten(0, 1) if kept is None else value[kept]
        if key in final:
            merged[final_at] = final[key].to(value.dtype)
        out[key] = merged
    return out


def _tensordict(entries: dict[NestedKey, Tensor]) -> TensorDict:
    size = next(iter(entries.values())).shape[0]
    out = TensorDict({}, batch_size=[size])
    for key, value in entries.items():
        out.set(unravel_key(key), value)
    return out
