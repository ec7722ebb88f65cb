"""Third-party TorchRL environments, with seeded episodes and the entries of this package."""

from __future__ import annotations

import math

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.data import Bounded, Composite
from torchrl.envs import Compose, EnvBase, TransformedEnv, step_mdp
from torchrl.envs.transforms import ActionScaling, DoubleToFloat, Transform, UnsqueezeTransform

from torchrl_wm.envs.episodes import EpisodeLog, WorkerState


class SeededTorchRL(TransformedEnv):
    """A TorchRL environment whose resets are seeded from (seed, index, episode).

    Bounded actions are rescaled to [-1, 1], float64 entries become float32 and scalars get a dimension.
    The environment's ``set_seed`` must determine all of its randomness.

    Args:
        env (EnvBase): environment of batch size ``[]``.
        seed (int): seed of the run.
        index (int): index of the environment in the batch.

    Raises:
        ValueError: when the environment has a batch size.

    Examples:
        >>> from torchrl.envs import PendulumEnv
        >>> env = SeededTorchRL(PendulumEnv(), seed=0, index=0)
        >>> env.reset()["th"].shape
        torch.Size([1])
    """

    def __init__(self, env: EnvBase, seed: int, index: int):
        if env.batch_size:
            raise ValueError(
                f"The environment has the batch size {tuple(env.batch_size)}; make single ones of "
                "batch size () and ask for several with num_envs=."
            )
        super().__init__(env, Compose(*_transforms(env)), auto_unwrap=False)
        self.log = EpisodeLog(seed, index)

    def rand_action(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        """Random actions of this spec: those of ``env`` are not rescaled."""
        return EnvBase.rand_action(self, tensordict)

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self.log = EpisodeLog(seed, self.log.index)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        self.base_env.set_seed(self.log.begin())
        result = super()._reset(tensordict, **kwargs)
        self.log.observe(self._observed(result))
        return result

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = [
            tensordict.get(key).reshape(-1).double() for key in sorted(self.action_keys, key=str)
        ]
        self.log.record(torch.cat(actions).cpu().numpy())
        result = super()._step(tensordict)
        self.log.observe(self._observed(result), result.get(self.reward_key).cpu().numpy())
        return result

    def _observed(self, result: TensorDictBase) -> dict[str, np.ndarray]:
        keys = self.observation_keys
        return {str(key): result.get(key).cpu().numpy() for key in keys}

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
            self._write_action(tensordict, torch.from_numpy(action))
            tensordict = step_mdp(self.step(tensordict))
        return self.log.verdict(state, type(self.base_env).__name__)

    def _write_action(self, tensordict: TensorDictBase, logged: torch.Tensor) -> None:
        names = sorted(self.action_keys, key=str)
        specs = [self.full_action_spec[name] for name in names]
        parts = logged.split([spec.shape.numel() for spec in specs])
        for name, spec, part in zip(names, specs, parts, strict=True):
            tensordict.set(name, part.reshape(spec.shape).to(spec.dtype))


class _ScalarsToVectors(UnsqueezeTransform):
    """UnsqueezeTransform whose state spec also covers nested entries."""

    def transform_state_spec(self, state_spec: Composite) -> Composite:
        for key in self.in_keys_inv:
            state_spec[key] = self._transform_spec(state_spec[key].clone())
        return state_spec


def _transforms(env: EnvBase) -> list[Transform]:
    transforms: list[Transform] = []
    scalars = _keys_of(env.full_observation_spec, lambda spec: not spec.shape)
    if scalars:
        # Entries that the environment reads back from the TensorDict must lose the dimension again.
        states = set(env.full_state_spec.keys(True, True))
        back = [key for key in scalars if key in states]
        transforms.append(_ScalarsToVectors(-1, in_keys=scalars, in_keys_inv=back))
    for key in _keys_of(env.full_action_spec, _is_rescalable):
        transforms.append(ActionScaling(in_keys_inv=[key], in_keys=[]))
    doubles = _keys_of(env.full_observation_spec, lambda spec: spec.dtype == torch.float64)
    doubles += _keys_of(env.full_reward_spec, lambda spec: spec.dtype == torch.float64)
    actions = _keys_of(env.full_action_spec, lambda spec: spec.dtype == torch.float64)
    if doubles or actions:
        transforms.append(DoubleToFloat(in_keys=doubles, in_keys_inv=actions))
    return transforms


def _keys_of(spec: Composite, test: object) -> list:
    return [key for key, leaf in spec.items(True, True) if test(leaf)]


def _is_rescalable(spec: object) -> bool:
    if not isinstance(spec, Bounded) or not spec.dtype.is_floating_point:
        return False
    limit = torch.finfo(spec.dtype).max
    bounds = (*spec.space.low.flatten().tolist(), *spec.space.high.flatten().tolist())
    return all(math.isfinite(bound) and abs(bound) < limit for bound in bounds)
