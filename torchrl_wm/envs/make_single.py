"""Functions that make one environment of each suite, called inside the workers."""

from __future__ import annotations

from functools import partial
from typing import Any

from torchrl.envs import EnvBase, GymWrapper, TransformedEnv

from torchrl_wm.envs.vectorize import assemble


def make_gymnasium(
    id: str, *, seed: int, index: int, action_repeat: int, image_size: int | None, make_kwargs: dict
) -> Any:
    """One gymnasium environment with its wrappers; with an ``image_size`` it observes pixels."""
    import gymnasium as gym

    from torchrl_wm.envs.gymnasium_wrappers import wrap_gymnasium

    if image_size is not None:
        make_kwargs = dict(make_kwargs, render_mode="rgb_array")
    return wrap_gymnasium(gym.make(id, **make_kwargs), seed, index, action_repeat, image_size)


def make_atari(id: str, *, seed: int, index: int, frames: dict, make_kwargs: dict) -> Any:
    """One Atari game with its wrappers; ``frames`` goes to AtariFrames."""
    import ale_py
    import gymnasium as gym

    from torchrl_wm.envs.gymnasium_wrappers import AtariFrames, SeededEpisodes

    gym.register_envs(ale_py)
    return SeededEpisodes(AtariFrames(gym.make(id, **make_kwargs), **frames), seed, index)


def make_dm_control(
    domain: str,
    task: str,
    *,
    seed: int,
    index: int,
    max_episode_steps: int | None,
    task_kwargs: dict,
    wrapper_kwargs: dict,
) -> EnvBase:
    """One task of the DeepMind Control Suite; ``wrapper_kwargs`` goes to SeededDMControl."""
    from dm_control import suite

    from torchrl_wm.envs.dm_control_wrappers import SeededDMControl

    # A few tasks randomise their model on construction; the same seed gives the same model.
    task_kwargs = dict(task_kwargs, random=seed)
    env = suite.load(domain, task, task_kwargs=task_kwargs)
    if max_episode_steps is not None:
        # The suite's limit is in seconds; half a step less keeps rounding from adding a step.
        task_kwargs["time_limit"] = (max_episode_steps - 0.5) * env.control_timestep()
        env = suite.load(domain, task, task_kwargs=task_kwargs)
    return SeededDMControl(env, seed=seed, index=index, **wrapper_kwargs)


def _wrapped_gymnasium(single: Any, *, index: int, categorical: bool) -> EnvBase:
    return GymWrapper(single(index=index), categorical_action_encoding=categorical)


def assemble_gymnasium(
    single: Any, num_envs: int, vectorization: str, action_repeat: int, categorical: bool
) -> TransformedEnv:
    """Several gymnasium environments as one; ``single`` makes one from ``index=``."""
    wrapped = partial(_wrapped_gymnasium, single, categorical=categorical)
    base = None
    if vectorization == "gymnasium":
        from gymnasium import spaces
        from gymnasium.vector import AutoresetMode, SyncVectorEnv

        singles = [partial(single, index=index) for index in range(num_envs)]
        # TorchRL resets by mask; an automatic reset would hide the final observation.
        vector = SyncVectorEnv(singles, autoreset_mode=AutoresetMode.DISABLED)
        actions = vector.single_action_space
        if not isinstance(actions, spaces.Box | spaces.Discrete):
            vector.close()
            raise ValueError(
                f"vectorization='gymnasium' supports Box and Discrete actions, not {actions}, "
                "whose structure is lost in a batch; use 'serial' or 'parallel'."
            )
        base = GymWrapper(vector, categorical_action_encoding=categorical)
    return assemble(wrapped, num_envs, vectorization, action_repeat, base=base)
