"""Batches of environments, with the entries that every world model reads."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial

import torch
from torchrl.envs import Compose, EnvBase, ParallelEnv, SerialEnv, TransformedEnv
from torchrl.envs.transforms import InitTracker, StepCounter

from torchrl_wm import keys
from torchrl_wm.envs.episodes import innermost, remember_single
from torchrl_wm.envs.transforms import PreviousStep
from torchrl_wm.ranges import COUNT

VECTORIZATIONS = ("serial", "parallel", "gymnasium")
_REPEAT = "torchrl_wm_action_repeat"


def assemble(
    single: Callable[..., EnvBase],
    num_envs: int,
    vectorization: str,
    action_repeat: int,
    *,
    base: EnvBase | None = None,
) -> TransformedEnv:
    """Runs a batch of environments and adds the entries that the root of every environment has.

    Args:
        single (callable or EnvBase): makes one environment from ``index=``; it must be picklable
            for ``"parallel"``.
        num_envs (int): number of environments.
        vectorization (str): ``"serial"`` or ``"parallel"``; ignored with ``base``.
        action_repeat (int): simulator steps per decision, see :func:`action_repeat`.
        base (EnvBase, optional): the ``num_envs`` environments, if they are already batched.

    Returns:
        TransformedEnv: batch size ``[num_envs]``, with ``is_init``, ``step_count``,
        ``previous_action`` and ``previous_reward``.

    Examples:
        >>> from torchrl.envs import GymEnv
        >>> env = assemble(lambda index: GymEnv("CartPole-v1"), 2, "serial", 1)
        >>> env.batch_size
        torch.Size([2])
    """
    if base is None:
        base = _batch(single, num_envs, vectorization)
    remember_single(base, single)
    base.__dict__[_REPEAT] = action_repeat
    transforms = Compose(InitTracker(keys.IS_INIT), StepCounter(), PreviousStep())
    # The inner environment may have its own transforms; they must stay inside, in that order.
    return TransformedEnv(base, transforms, auto_unwrap=False)


def action_repeat(env: EnvBase) -> int:
    """Simulator steps (frames) that one decision in ``env`` counts as.

    All accounting of frames relies on it: environment steps = decisions x ``action_repeat(env)``, even
    where an episode ends inside a repeat.

    Examples:
        >>> from torchrl_wm.envs import gymnasium
        >>> action_repeat(gymnasium("Pendulum-v1", action_repeat=2))
        2
    """
    return innermost(env).__dict__.get(_REPEAT, 1)


def check_common_options(
    num_envs: int,
    vectorization: str,
    action_repeat: int,
    image_size: int,
    max_episode_steps: int | None,
) -> None:
    """Raises a ValueError that names the option and the valid values, where one of them is wrong.

    Examples:
        >>> check_common_options(1, "threads", 1, 64, None)
        Traceback (most recent call last):
        ...
        ValueError: Unknown vectorization 'threads'; known are 'serial', 'parallel', 'gymnasium'.
    """
    if vectorization not in VECTORIZATIONS:
        known = ", ".join(map(repr, VECTORIZATIONS))
        raise ValueError(f"Unknown vectorization {vectorization!r}; known are {known}.")
    COUNT.check(num_envs=num_envs, action_repeat=action_repeat, image_size=image_size)
    if max_episode_steps is not None:
        COUNT.check(max_episode_steps=max_episode_steps)


def _undisturbed(single: Callable[..., EnvBase], learner: int, **options) -> EnvBase:
    """One environment; in a worker process it ignores the signals to stop, which the learner handles.

    Ctrl-C reaches all processes of a terminal, and without its workers a run could not be saved.
    """
    if os.getpid() != learner:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    return single(**options)


def _batch(single: Callable[..., EnvBase], num_envs: int, vectorization: str) -> EnvBase:
    # One callable with different indices: TorchRL then knows that all have the same specs.
    indices = [{"index": index} for index in range(num_envs)]
    if vectorization == "serial":
        return SerialEnv(num_envs, single, create_env_kwargs=indices)
    # Collecting and learning alternate, so the learner keeps its threads and a worker gets one.
    return ParallelEnv(
        num_envs,
        partial(_undisturbed, single, os.getpid()),
        create_env_kwargs=indices,
        num_threads=torch.get_num_threads(),
        num_sub_threads=1,
    )
