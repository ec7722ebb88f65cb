"""Which reward, value and action belong to which imagined state: all indexing of the Dreamers is here.

A trajectory is a TensorDict ``[H + 1, N]`` (time first) of imagined states, the start included, with
``features``, the ``action`` taken there, and the heads' ``reward``, ``continuation`` (a discount) and
``state_value`` of that state, ``[..., 1]`` each. An alignment returns the rows that train the actor and
those that train the critic, each with ``lambda_target``, ``baseline`` and ``weight``.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_wm import keys
from torchrl_wm.functional.returns import lambda_return

LAMBDA_TARGET = "lambda_target"
BASELINE = "baseline"
WEIGHT = "weight"


def align_v1(
    trajectory: TensorDictBase, lambda_: float = 0.95
) -> tuple[TensorDictBase, TensorDictBase]:
    """Dreamer v1: without the start state; H - 1 returns that include the state's own reward.

    Examples:
        >>> entries = {k: torch.ones(4, 2, 1) for k in ("reward", "continuation", "state_value")}
        >>> actor, critic = align_v1(TensorDict(entries, [4, 2]))
        >>> actor.batch_size
        torch.Size([2, 2])
    """
    trajectory = trajectory[1:]
    target = _state_reward_return(trajectory, lambda_)
    weight = _weights(trajectory.get(keys.CONTINUATION)[:-1])
    rows = _rows(trajectory[:-1], target, trajectory.get(keys.STATE_VALUE)[:-1], weight)
    return rows, rows


def align_v2(
    trajectory: TensorDictBase, lambda_: float = 0.95
) -> tuple[TensorDictBase, TensorDictBase]:
    """Dreamer v2: H returns with the state's own reward; the actor is trained on the next state's return.

    Examples:
        >>> entries = {k: torch.ones(4, 2, 1) for k in ("reward", "continuation", "state_value")}
        >>> actor, critic = align_v2(TensorDict(entries, [4, 2]))
        >>> actor.batch_size, critic.batch_size
        (torch.Size([2, 2]), torch.Size([3, 2]))
    """
    target = _state_reward_return(trajectory, lambda_)
    value = trajectory.get(keys.STATE_VALUE)
    weight = _weights(trajectory.get(keys.CONTINUATION))
    actor = _rows(trajectory[:-2], target[1:], value[:-2], weight[:-2])
    return actor, _rows(trajectory[:-1], target, value[:-1], weight[:-1])


def align_v3(
    trajectory: TensorDictBase, lambda_: float = 0.95, discount: float = 1.0
) -> tuple[TensorDictBase, TensorDictBase]:
    """DreamerV3: H returns of the rewards that arrive later; the start is weighted by its continuation.

    ``discount`` multiplies continuations that do not include it.

    Examples:
        >>> entries = {k: torch.ones(4, 2, 1) for k in ("reward", "continuation", "state_value")}
        >>> actor, critic = align_v3(TensorDict(entries, [4, 2]))
        >>> actor.batch_size
        torch.Size([3, 2])
    """
    continuation = trajectory.get(keys.CONTINUATION) * discount
    value = trajectory.get(keys.STATE_VALUE)
    target = lambda_return(
        trajectory.get(keys.REWARD)[1:], value[1:], continuation[1:], lambda_, time_dim=0
    )
    weight = continuation.detach().cumprod(0) / discount
    rows = _rows(trajectory[:-1], target, value[:-1], weight[:-1])
    return rows, rows


def _state_reward_return(trajectory: TensorDictBase, lambda_: float) -> Tensor:
    reward, value = trajectory.get(keys.REWARD), trajectory.get(keys.STATE_VALUE)
    continuation = trajectory.get(keys.CONTINUATION)
    return lambda_return(reward[:-1], value[1:], continuation[:-1], lambda_, time_dim=0)


def _weights(continuation: Tensor) -> Tensor:
    """1 for the first row, then the product of the earlier continuations."""
    ones = torch.ones_like(continuation[:1])
    return torch.cat([ones, continuation[:-1].detach()]).cumprod(0)


def _rows(rows: TensorDictBase, target: Tensor, baseline: Tensor, weight: Tensor) -> TensorDict:
    kept = rows.select("features", keys.ACTION, keys.RAW_POLICY, strict=False)
    return kept.update({LAMBDA_TARGET: target, BASELINE: baseline, WEIGHT: weight})
