"""Episodes that can be continued exactly: seeded resets and a log of the actions since.

The simulator need not be able to store its state. Every reset is seeded from (seed, environment index,
episode number), so that the state is a function of the episode number and the actions taken since; both
are small, plain numbers. To restore it, the environment is reset to that episode and the actions are
replayed; a checksum over all observations tells whether the environment really is deterministic.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv, TransformedEnv

WorkerState = dict[str, "int | np.ndarray"]

_FAULT = "torchrl_wm_fault"
_SINGLE = "torchrl_wm_single"


class NotReproducibleError(RuntimeError):
    """An environment cannot be stored, or was not restored as it was stored."""


class EpisodeLog:
    """The record from which one environment can be restored.

    Args:
        seed (int): seed of the run.
        index (int): index of the environment in the batch.

    Examples:
        >>> log = EpisodeLog(seed=0, index=0)
        >>> first, second = log.begin(), log.begin()
        >>> first != second, log.episode
        (True, 2)
    """

    def __init__(self, seed: int, index: int):
        self.seed = int(seed)
        self.index = int(index)
        self.episode = 0
        self.checksum = 0
        self.actions: list[np.ndarray] = []

    def begin(self) -> int:
        """Starts the next episode and returns the 32-bit seed of its reset."""
        entropy = [self.seed, self.index, self.episode]
        self.episode += 1
        self.checksum = 0
        self.actions = []
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def observe(self, *arrays: object) -> None:
        """Adds observations, (nested) dicts of arrays or numbers, to the checksum."""
        for value in arrays:
            if isinstance(value, Mapping):
                self.observe(*(value[key] for key in sorted(value)))
            else:
                self.checksum = zlib.crc32(np.ascontiguousarray(value).tobytes(), self.checksum)

    def record(self, action: np.ndarray) -> None:
        """Records an action that is about to be taken."""
        self.actions.append(np.array(action))

    def state(self) -> WorkerState:
        """The log as plain numbers and arrays."""
        state: WorkerState = {
            "seed": self.seed,
            "episode": self.episode,
            "checksum": self.checksum,
        }
        if self.actions:
            state["actions"] = np.stack(self.actions)
        return state

    def rewind(self, state: Mapping[str, Tensor]) -> np.ndarray:
        """Rewinds to just before the stored episode; returns the actions after its reset."""
        self.seed = int(state["seed"])
        self.episode = max(int(state["episode"]) - 1, 0)
        actions = state.get("actions")
        return np.zeros(0) if actions is None else actions.numpy()

    def verdict(self, state: Mapping[str, Tensor], name: str) -> str | None:
        """None when the replayed episode equals the stored one, otherwise the reason as text."""
        if self.checksum == int(state["checksum"]):
            return None
        return (
            f"{name} (index {self.index}) is not deterministic: episode {self.episode}, reset with "
            f"the same seed and given the same {len(self.actions)} actions, looks different"
        )


def episode_state(env: EnvBase) -> dict[str, Tensor]:
    """Everything from which the simulators of an environment of this package can be restored.

    The first call tests, on two further environments, whether that works for this one.

    Args:
        env (EnvBase): result of a factory of this package, also with transforms appended.

    Returns:
        A flat dict of tensors, ``"<index>.<name>"``: per environment the seed, the episode number,
        a checksum and the actions since the reset (or a generator's state). Safe to store without
        pickle. The collector's carried TensorDict is not part of it.

    Raises:
        NotReproducibleError: naming the environment for which this is impossible.

    Examples:
        >>> from torchrl_wm.envs import gymnasium
        >>> env = gymnasium("CartPole-v1", num_envs=2)
        >>> _ = env.rollout(3)
        >>> state = episode_state(env)
        >>> int(state["1.episode"]), state["1.actions"].shape
        (1, torch.Size([3]))
    """
    _check_reproducible(env)
    workers = _call(env, "get_episode_state")
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, worker in enumerate(workers)
        for name, value in worker.items()
    }


def restore_episode_state(env: EnvBase, state: Mapping[str, Tensor]) -> None:
    """Brings the simulators of ``env`` back to where :func:`episode_state` found them.

    The environment must have been made with the same arguments, ``seed`` included. Its
    next step then continues the stored episodes; the TensorDict to step from is the caller's.

    Args:
        env (EnvBase): result of a factory of this package.
        state (dict): what :func:`episode_state` returned.

    Raises:
        ValueError: when the state belongs to another number of environments.
        NotReproducibleError: when a replayed episode differs from the stored one.

    Examples:
        >>> from torchrl_wm.envs import gymnasium
        >>> env, other = gymnasium("CartPole-v1"), gymnasium("CartPole-v1")
        >>> last = env.rollout(3)[:, -1]["next"]
        >>> last["action"] = env.action_spec.rand()
        >>> restore_episode_state(other, episode_state(env))
        >>> a, b = (e.step(last.clone())["next", "observation"] for e in (env, other))
        >>> torch.equal(a, b)
        True
    """
    workers: dict[int, dict[str, np.ndarray]] = {}
    for key, value in state.items():
        index, name = key.split(".", 1)
        workers.setdefault(int(index), {})[name] = value
    count = env.batch_size.numel()
    if sorted(workers) != list(range(count)):
        raise ValueError(f"The state is of {len(workers)} environments, but there are {count}.")
    # Starts worker processes and fills the buffers of batched environments, which a step needs.
    env.reset()
    faults = _call(env, "set_episode_state", [workers[index] for index in range(count)])
    faults = [fault for fault in faults if fault is not None]
    if faults:
        raise NotReproducibleError(
            "Environments that were not restored: " + "; ".join(faults) + "."
        )


def innermost(env: EnvBase) -> EnvBase:
    """The environment below all transforms.

    Examples:
        >>> from torchrl_wm.envs import gymnasium
        >>> type(innermost(gymnasium("CartPole-v1"))).__name__
        'SerialEnv'
    """
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env


def remember_single(env: EnvBase, single: Callable[..., EnvBase]) -> None:
    """Remembers how one of the environments in ``env`` is made, so that it can be tested later.

    Args:
        env (EnvBase): a batch of environments.
        single (callable): makes one of them from ``index=``.

    Examples:
        >>> from torchrl_wm.envs import gymnasium
        >>> remember_single(gymnasium("CartPole-v1"), lambda index: gymnasium("CartPole-v1"))
    """
    innermost(env).__dict__[_SINGLE] = single


def _check_reproducible(env: EnvBase) -> None:
    """Tests once, on two further environments, whether episodes can be restored."""
    notes = innermost(env).__dict__
    if _FAULT not in notes and _SINGLE in notes:
        first, second = notes[_SINGLE](index=0), notes[_SINGLE](index=0)
        with torch.random.fork_rng(devices=[]):
            # The second episode: state that leaks from one to the next does not show in the first.
            first.rollout(32, break_when_any_done=False)
            first.rollout(8)
        state = {name: torch.as_tensor(value) for name, value in first.get_episode_state().items()}
        notes[_FAULT] = second.set_episode_state([state])
        first.close()
        second.close()
    if notes.get(_FAULT) is not None:
        raise NotReproducibleError(f"The environment cannot be stored: {notes[_FAULT]}.")


def _call(env: EnvBase, method: str, *args: object) -> list:
    """Calls a method of every worker, wherever it lives; each picks its part by its index."""
    base = innermost(env)
    if isinstance(base, SerialEnv | ParallelEnv):
        if base.is_closed:
            base.start()
        return list(getattr(base, method)(*args))
    vector = getattr(base, "_env", None)
    if hasattr(vector, "call"):
        return list(vector.call(method, *args))
    raise NotReproducibleError(
        f"{type(base).__name__} was not made by a factory of torchrl_wm.envs: its episodes are not "
        "seeded. Make it with gymnasium(), dm_control(), atari() or wrap()."
    )
