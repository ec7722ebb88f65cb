"""Environments whose step depends on its input alone, as planners and searches need them."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.envs import EnvBase, TransformedEnv


def check_unbatched(env: EnvBase) -> None:
    """Checks that an environment steps any number of rows.

    Raises:
        ValueError: where it is batch-locked or has a batch size.
    """
    if env.batch_locked:
        raise ValueError(
            f"{type(env).__name__} is batch-locked: it cannot step several candidates from one state. "
            "Planning and search need a stateless environment (batch_locked=False) or a world model."
        )
    if env.batch_size:
        raise ValueError(
            f"{type(env).__name__} has the batch size {list(env.batch_size)} and steps no other number of "
            "rows: make the one to plan or search in without a batch size. It takes any batch."
        )


def start_keys(env: EnvBase, *, observed: bool = False) -> list[NestedKey]:
    """What an environment steps from: its state; its observations too, where it names no state itself.

    Args:
        env (EnvBase): the environment.

    Keyword Args:
        observed (bool, optional): the observations in any case. Defaults to ``False``.
    """
    itself = env
    while isinstance(itself, TransformedEnv):
        itself = itself.base_env  # transforms such as StepCounter have a state of their own
    specs = [env.state_spec]
    if observed or itself.state_spec.is_empty():
        specs.append(env.observation_spec)
    return list(dict.fromkeys(key for spec in specs for key in spec.keys(True, True)))


def outermost(env: EnvBase, name: str) -> list[NestedKey]:
    """The entries ``name`` (``"done"``, ``"terminated"``) nearest to the root, below ``"next"``.

    That of a team takes precedence over its members'.
    """
    keys = [(key,) if isinstance(key, str) else key for key in env.done_keys]
    found = [key for key in keys if key[-1] == name]
    depth = min(map(len, found))
    return [unravel_key(("next", *key)) for key in found if len(key) == depth]


def ended(row: TensorDictBase, keys: list[NestedKey]) -> Tensor:
    """Whether rows ``[N]`` have ended, ``[N]``: one entry says so for all its members."""
    return torch.stack([flat(row.get(key)).all(1) for key in keys]).any(0)


def flat(value: Tensor) -> Tensor:
    """``[N, ...]`` as ``[N, size]``, for no rows too."""
    return value.reshape(len(value), value.shape[1:].numel())
