"""The wrappers that the factories put around a gymnasium environment, innermost first."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from torchrl_wm.envs.episodes import EpisodeLog, WorkerState
from torchrl_wm.envs.images import area_resize, channels_first


class RepeatAction(gym.Wrapper):
    """Takes every action ``repeat`` times, or until the episode ends, and sums the rewards.

    Examples:
        >>> env = RepeatAction(gym.make("CartPole-v1"), 3)
        >>> _ = env.reset(seed=0)
        >>> env.step(0)[1]
        3.0
    """

    def __init__(self, env: gym.Env, repeat: int):
        super().__init__(env)
        self.repeat = repeat

    def step(self, action: Any) -> tuple:
        """One decision: up to ``repeat`` steps of the environment."""
        total = 0.0
        for _ in range(self.repeat):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


class AtariFrames(gym.Wrapper):
    """Frame skip with the maximum over the last two frames, no-op starts and resizing, for Atari.

    Machado et al., "Revisiting the Arcade Learning Environment", 2018. Only the frames that are used
    are rendered; where an episode ends inside the skip, the observation is the final frame.

    Args:
        env (gym.Env): ALE environment with ``frameskip=1``.
        repeat (int): frames per action.
        size (int): height and width of ``pixels``.
        grayscale (bool): one channel of luminance instead of three of colour.
        noop_max (int): largest number of no-ops after a reset, which is drawn uniformly from 0.
    """

    def __init__(self, env: gym.Env, repeat: int, size: int, grayscale: bool, noop_max: int):
        super().__init__(env)
        self.repeat = repeat
        self.size = size
        self.grayscale = grayscale
        self.noop_max = noop_max
        channels = 1 if grayscale else 3
        pixels = spaces.Box(0, 255, (channels, size, size), np.uint8)
        self.observation_space = spaces.Dict(pixels=pixels)

    def _screen(self) -> np.ndarray:
        ale = self.env.unwrapped.ale
        return ale.getScreenGrayscale()[..., None] if self.grayscale else ale.getScreenRGB()

    def _observe(self, screen: np.ndarray) -> dict[str, np.ndarray]:
        return {"pixels": channels_first(area_resize(screen, self.size))}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        """Resets and takes a random number of no-ops."""
        _, info = self.env.reset(seed=seed, options=options)
        for _ in range(int(self.unwrapped.np_random.integers(self.noop_max + 1))):
            _, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                # Without a seed: with the same seed the episode would end in the same way again.
                _, info = self.env.reset(options=options)
        return self._observe(self._screen()), info

    def step(self, action: int) -> tuple:
        """One decision: up to ``repeat`` frames."""
        total, before = 0.0, None
        for frame in range(self.repeat):
            _, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                before = None
                break
            if frame == self.repeat - 2:
                before = self._screen()
        screen = self._screen()
        if before is not None:
            screen = np.maximum(screen, before)
        return self._observe(screen), total, terminated, truncated, info


class PixelObservation(gym.ObservationWrapper):
    """Replaces the observation by the rendered image, ``pixels`` uint8 ``[3, size, size]``."""

    def __init__(self, env: gym.Env, size: int):
        super().__init__(env)
        self.size = size
        pixels = spaces.Box(0, 255, (3, size, size), np.uint8)
        self.observation_space = spaces.Dict(pixels=pixels)

    def observation(self, observation: Any) -> dict[str, np.ndarray]:
        """Renders; the environment's own observation is dropped."""
        return {"pixels": channels_first(area_resize(self.env.render(), self.size))}


class TensorObservation(gym.ObservationWrapper):
    """Makes every leaf of the observation a float32 vector or a uint8 image ``[C, H, W]``.

    Discrete leaves become one-hot vectors, scalars become vectors of one number, arrays are flattened;
    uint8 arrays of two or three dimensions are images. Dictionaries keep their entries.

    Raises:
        TypeError: for a space without a tensor form; the message names the entry.

    Examples:
        >>> env = TensorObservation(gym.make("FrozenLake-v1"))
        >>> observation, _ = env.reset(seed=0)
        >>> observation.shape, observation.dtype
        ((16,), dtype('float32'))
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = _tensor_space(env.observation_space, "observation")

    def observation(self, observation: Any) -> Any:
        """Converts one observation."""
        return _to_arrays(self.env.observation_space, self.observation_space, observation)


class SeededEpisodes(gym.Wrapper):
    """Seeds every reset from (seed, index, episode) and logs the actions since (outermost wrapper).

    Args:
        env (gym.Env): the environment.
        seed (int): seed of the run.
        index (int): index of the environment in the batch.

    Examples:
        >>> env = SeededEpisodes(gym.make("CartPole-v1"), seed=0, index=0)
        >>> observation, _ = env.reset()
        >>> state = env.get_episode_state()
        >>> state["episode"], "actions" in state
        (1, False)
    """

    def __init__(self, env: gym.Env, seed: int, index: int):
        super().__init__(env)
        self.log = EpisodeLog(seed, index)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        """Starts the next episode; ``seed`` replaces the seed of the run."""
        if seed is not None:
            self.log = EpisodeLog(seed, self.log.index)
        _renew_world(self.unwrapped)
        observation, info = self.env.reset(seed=self.log.begin(), options=options)
        self.log.observe(observation)
        return observation, info

    def step(self, action: Any) -> tuple:
        """Steps and logs."""
        space = self.action_space
        plain = isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete)
        self.log.record(action if plain else spaces.flatten(space, action))
        if isinstance(space, spaces.Box):  # a scalar action arrives with shape [1]
            action = np.reshape(action, space.shape)
        result = self.env.step(action)
        self.log.observe(result[0], np.float64(result[1]))
        return result

    def get_episode_state(self) -> WorkerState:
        """The state of this environment, see :func:`torchrl_wm.envs.episode_state`."""
        return self.log.state()

    def set_episode_state(self, states: list[dict[str, torch.Tensor]]) -> str | None:
        """Replays the stored episode of this environment; returns the mismatch, if there is one."""
        state = states[self.log.index]
        actions = self.log.rewind(state)
        if not int(state["episode"]):
            return None
        self.reset()
        for action in actions:
            self.step(self._action(action))
        return self.log.verdict(state, str(self.spec.id if self.spec else self.unwrapped))

    def _action(self, logged: np.ndarray) -> Any:
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return int(logged)
        if isinstance(space, spaces.Box | spaces.MultiDiscrete):
            return logged
        return spaces.unflatten(space, logged)


def wrap_gymnasium(
    env: gym.Env, seed: int, index: int, repeat: int, image_size: int | None
) -> gym.Env:
    """Puts the wrappers around an environment; with an ``image_size`` it observes pixels.

    Raises:
        TypeError: for observations and actions without a tensor form.
        ValueError: for Box actions that are not bounded or not floats, and pixels that are not rendered.

    Examples:
        >>> wrap_gymnasium(gym.make("Pendulum-v1"), seed=0, index=0, repeat=2, image_size=None).action_space
        Box(-1.0, 1.0, (1,), float32)
    """
    if repeat > 1:
        env = RepeatAction(env, repeat)
    if image_size is None:
        env = TensorObservation(env)
    elif env.render_mode == "rgb_array":
        env = PixelObservation(env, image_size)
    else:
        raise ValueError(f"Pixels need render_mode='rgb_array', but it is {env.render_mode!r}.")
    env = _from_zero(env)
    space = env.action_space
    _check_actions(space, "action")
    if isinstance(space, spaces.Box):
        if not np.issubdtype(space.dtype, np.floating):
            raise ValueError(
                f"The actions {space} are whole numbers, which policies over [-1, 1] do not choose: make "
                "them Discrete or MultiDiscrete (gymnasium.wrappers.TransformAction), or a Box of floats."
            )
        if not space.is_bounded():
            raise ValueError(
                f"The actions {space} are not bounded and cannot be rescaled to [-1, 1]; bound "
                "them with gymnasium.wrappers.ClipAction and a Box of finite limits."
            )
        env = gym.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0))
    return SeededEpisodes(env, seed, index)


def _from_zero(env: gym.Env) -> gym.Env:
    """Shifts discrete actions that do not start at 0, since tensor specs count from 0."""
    space, start = env.action_space, np.asarray(getattr(env.action_space, "start", 0))
    if not start.any():
        return env
    if isinstance(space, spaces.Discrete):
        counted = spaces.Discrete(space.n, dtype=space.dtype)
    else:
        counted = spaces.MultiDiscrete(space.nvec, dtype=space.dtype)
    return gym.wrappers.TransformAction(env, lambda action: action + start, counted)


def _check_actions(space: spaces.Space, name: str) -> None:
    if isinstance(space, spaces.Dict):
        for key, sub in space.spaces.items():
            _check_actions(sub, f"{name}.{key}")
    elif not isinstance(space, spaces.Box | spaces.Discrete) and len(space.shape or ()) != 1:
        raise TypeError(
            f"The {name!r} is a space {space}, which has no tensor form; supported are Box, Discrete, "
            "MultiDiscrete and MultiBinary of one dimension, and Dict of these."
        )
    elif np.any(getattr(space, "start", 0)):
        raise TypeError(f"The {name!r} is a space {space}: inside a Dict, classes begin at 0.")


def _renew_world(env: gym.Env) -> None:
    """Gives a Box2D environment a new physics world: the order of contacts would survive a reset."""
    world = getattr(env, "world", None)
    if type(world).__name__ == "b2World" and hasattr(env, "_destroy"):
        env._destroy()
        env.world = type(world)(gravity=world.gravity)


def _is_image(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def _is_float_image(space: spaces.Space) -> bool:
    """Floats within 0 and 1 over at least 32 rows and columns; what is smaller is a vector."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        return False
    if not np.issubdtype(space.dtype, np.floating) or space.low.min() < 0 or space.high.max() > 1:
        return False
    return min(channels_first(np.empty(space.shape, np.bool_)).shape[1:]) >= 32


def _tensor_space(space: spaces.Space, name: str) -> spaces.Space:
    if isinstance(space, spaces.Dict):
        leaves = {key: _tensor_space(sub, f"{name}.{key}") for key, sub in space.spaces.items()}
        return spaces.Dict(leaves)
    if _is_image(space):
        shape = channels_first(np.zeros(space.shape, np.uint8)).shape
        return spaces.Box(0, 255, shape, np.uint8)
    if _is_float_image(space):
        low, high = (channels_first(bound).astype(np.float32) for bound in (space.low, space.high))
        return spaces.Box(low, high, dtype=np.float32)
    if isinstance(space, spaces.Box):
        low, high = (np.ravel(bound).astype(np.float32) for bound in (space.low, space.high))
        return spaces.Box(np.atleast_1d(low), np.atleast_1d(high), dtype=np.float32)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return spaces.Box(0.0, 1.0, (spaces.flatdim(space),), np.float32)
    raise TypeError(
        f"The observation {name!r} is a {type(space).__name__} space, which has no tensor form; "
        "supported are Box, Discrete, MultiDiscrete, MultiBinary and Dict of these. Wrap the "
        "environment (gymnasium.ObservationWrapper) to give one of them."
    )


def _to_arrays(space: spaces.Space, target: spaces.Space, value: Any) -> Any:
    """An observation of ``space`` in the form of ``target``, the tensor space made of it."""
    if isinstance(space, spaces.Dict):
        return {key: _to_arrays(sub, target[key], value[key]) for key, sub in space.spaces.items()}
    if len(target.shape) == 3:  # an image
        return channels_first(np.asarray(value)).astype(target.dtype, copy=False)
    if isinstance(space, spaces.Box):
        return np.asarray(value, np.float32).reshape(-1)
    return spaces.flatten(space, value).astype(np.float32)
