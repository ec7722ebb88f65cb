"""TorchRL's dm_control wrapper with float32 vectors, actions in [-1, 1] and seeded episodes."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.data import Bounded, Unbounded
from torchrl.envs import DMControlWrapper

from torchrl_wm.envs.episodes import EpisodeLog, WorkerState
from torchrl_wm.envs.images import channels_first


class SeededDMControl(DMControlWrapper):
    """A dm_control environment whose resets are seeded from (seed, index, episode).

    Observations stay separate entries, each a float32 vector (scalars get a dimension); ``pixels``
    are uint8 ``[3, H, W]``. Actions are float32 in [-1, 1]. Episodes end by truncation, and by
    termination only where the task ends them with a discount below one.

    Args:
        env (dm_control Environment): as returned by ``suite.load``.
        seed (int): seed of the run.
        index (int): index of the environment in the batch.
        **kwargs: options of :class:`torchrl.envs.DMControlWrapper`.
    """

    def __init__(self, env: Any, *, seed: int, index: int, **kwargs: Any):
        self.log: EpisodeLog | None = None
        super().__init__(env, **kwargs)
        self.log = EpisodeLog(seed, index)

    def _build_env(self, env: Any, **kwargs: Any) -> Any:
        env = super()._build_env(env, **kwargs)
        # A renderer that is collected in a reference cycle waits forever for its own thread, which was
        # collected in the same cycle. A reference from outside makes it be freed in the right order.
        self.__dict__["_free"] = weakref.finalize(self, env.physics.free)
        self._free.atexit = False
        return env

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Frees the simulator and its renderer."""
        super().close(raise_if_closed=raise_if_closed)
        self._free()

    def _make_specs(self, env: Any) -> None:
        super()._make_specs(env)
        for key, spec in list(self.observation_spec.items()):
            if spec.dtype == torch.uint8:
                height, width, channels = spec.shape
                new = Bounded(0, 255, (channels, height, width), dtype=torch.uint8)
            else:
                new = Unbounded((spec.shape.numel(),), dtype=torch.float32)
            self.observation_spec[key] = new.to(self.device)
        self.reward_spec = Unbounded((1,), dtype=torch.float32, device=self.device)
        self._bounds = env.action_spec()
        if not (
            np.isfinite(self._bounds.minimum).all() and np.isfinite(self._bounds.maximum).all()
        ):
            # Only custom tasks have them; those of the suite are bounded.
            raise ValueError(
                f"The actions are not bounded ({self._bounds}) and cannot be rescaled."
            )
        self.action_spec = Bounded(
            -1.0, 1.0, self._bounds.shape, dtype=torch.float32, device=self.device
        )

    def _output_transform(self, timestep_tuple: Any) -> tuple:
        observation, *rest = super()._output_transform(timestep_tuple)
        observation = {key: _to_array(value) for key, value in observation.items()}
        return observation, *rest

    def read_action(self, action: torch.Tensor) -> np.ndarray:
        """Maps [-1, 1] to the bounds of the task, in float64 as the simulator computes."""
        low, high = self._bounds.minimum, self._bounds.maximum
        unit = super().read_action(action).astype(np.float64)
        return np.clip(low + (unit + 1.0) * 0.5 * (high - low), low, high)

    def _set_seed(self, seed: int | None) -> None:
        # The parent's constructor seeds once, before the log exists; the log seeds each reset.
        if seed is not None and self.log is not None:
            self.log = EpisodeLog(seed, self.log.index)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        self._env.task.random.seed(self.log.begin())
        result = super()._reset(tensordict, **kwargs)
        self._observe(result)
        return result

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.log.record(tensordict["action"].numpy())
        result = super()._step(tensordict)
        self._observe(result, result["reward"].numpy())
        return result

    def _observe(self, result: TensorDictBase, *rest: np.ndarray) -> None:
        observed = {key: result[key].numpy() for key in self.observation_spec.keys()}
        self.log.observe(observed, *rest)

    def get_episode_state(self) -> WorkerState:
        """The state of this environment, see :func:`torchrl_wm.envs.episode_state`."""
        return self.log.state()

    def set_episode_state(self, states: list[dict[str, torch.Tensor]]) -> str | None:
        """Replays the stored episode of this environment; returns the mismatch, if there is one."""
        state = states[self.log.index]
        actions = self.log.rewind(state)
        if not int(state["episode"]):
            return None
        tensordict = self.reset()
        for action in actions:
            self._step(tensordict.set("action", torch.from_numpy(np.array(action))))
        task = self._env.task
        return self.log.verdict(state, f"{type(task).__module__}.{type(task).__name__}")


def _to_array(value: Any) -> np.ndarray:
    value = np.asarray(value)
    if value.dtype == np.uint8:
        return channels_first(value)
    return value.astype(np.float32).reshape(-1)
