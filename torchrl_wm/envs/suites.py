"""Factories: environments of the usual suites, ready for a world model.

Every result has the batch size ``[num_envs]`` (``[1]`` for a single one) and at its root the
observations (float32 vectors or ``pixels`` uint8 ``[C, H, W]``), ``is_init``, ``step_count``,
``previous_action`` and ``previous_reward``. Continuous actions lie in [-1, 1]; a time limit never sets
``terminated``.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from ctypes.util import find_library
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torchrl.envs import ObservationNorm, TransformedEnv

from torchrl_wm.envs import make_single
from torchrl_wm.envs.vectorize import assemble, check_common_options
from torchrl_wm.ranges import NUMBER, RATE


def gymnasium(
    id: str,
    *,
    num_envs: int = 1,
    vectorization: str = "serial",
    action_repeat: int = 1,
    from_pixels: bool = False,
    image_size: int = 64,
    seed: int = 0,
    max_episode_steps: int | None = None,
    categorical_actions: bool = False,
    observation_scale: Sequence[float] | None = None,
    **make_kwargs: Any,
) -> TransformedEnv:
    """Makes environments registered with gymnasium.

    Args:
        id (str): registered name, for example ``"CartPole-v1"``.
        num_envs (int, optional): number of environments side by side.
        vectorization (str, optional): ``"serial"`` (TorchRL, one process), ``"parallel"`` (TorchRL,
            one process per environment) or ``"gymnasium"`` (gymnasium's vector environment in one
            process, the fastest where steps are cheap).
        action_repeat (int, optional): steps per decision; rewards are summed, and the end of the episode
            stops it.
        from_pixels (bool, optional): observe the rendered image, ``pixels``, and nothing else.
        image_size (int, optional): height and width of ``pixels``.
        seed (int, optional): seeds each reset, with the environment's index and episode number.
        max_episode_steps (int, optional): time limit in steps of the environment (not decisions).
            Defaults to the registered one.
        categorical_actions (bool, optional): discrete actions as indices instead of one-hot.
        observation_scale (sequence of float, optional): factors, above 0, of the entries of
            ``observation``; a unit-variance likelihood needs them where entries are small, such as angles
            in radians.
        **make_kwargs: passed to ``gymnasium.make``.

    Raises:
        ValueError: for an unknown id (the message lists similar ones), or an option out of range.
        TypeError: for an id that is no str, an option that the environment does not take, and for an
            observation without a tensor form; the message names the entry.

    Examples:
        >>> env = gymnasium("Pendulum-v1", num_envs=2)
        >>> env.reset()["observation"].shape
        torch.Size([2, 3])
        >>> env = gymnasium("CartPole-v1", observation_scale=[1, 1, 10, 1])
        >>> round(env.observation_spec["observation"].space.high[0, 2].item(), 2)
        4.19
    """
    check_common_options(num_envs, vectorization, action_repeat, image_size, max_episode_steps)
    if from_pixels:
        _choose_renderer(False)
    _check_gymnasium_id(id)
    single = partial(
        make_single.make_gymnasium,
        id,
        seed=seed,
        action_repeat=action_repeat,
        image_size=image_size if from_pixels else None,
        make_kwargs=dict(make_kwargs, max_episode_steps=max_episode_steps),
    )
    env = make_single.assemble_gymnasium(
        single, num_envs, vectorization, action_repeat, categorical_actions
    )
    return env if observation_scale is None else _scaled(env, observation_scale)


def _scaled(env: TransformedEnv, factors: Sequence[float]) -> TransformedEnv:
    if isinstance(factors, str) or not isinstance(factors, Iterable):
        raise TypeError(
            f"observation_scale={factors!r} must be a list of numbers, one for each entry of the observation."
        )
    # A zero would hide an entry, a number below it swap the bounds of its spec.
    RATE.check(**{f"observation_scale[{i}]": factor for i, factor in enumerate(factors)})
    scale, spec = torch.tensor(list(factors), dtype=torch.float32), env.observation_spec
    observed = spec.get("observation", None)
    if observed is None or scale.shape != observed.shape[1:]:
        shapes = {str(key): list(leaf.shape[1:]) for key, leaf in spec.items(True, True)}
        raise ValueError(
            f"observation_scale of length {len(scale)} does not fit the entry 'observation'; "
            f"this environment has {shapes}."
        )
    return env.append_transform(ObservationNorm(0.0, scale, in_keys=["observation"]))


def atari(
    game: str,
    *,
    num_envs: int = 1,
    vectorization: str = "serial",
    action_repeat: int = 4,
    image_size: int = 64,
    grayscale: bool = False,
    sticky_actions: float = 0.0,
    noop_max: int = 30,
    full_action_set: bool = False,
    seed: int = 0,
    max_episode_steps: int = 108_000,
    categorical_actions: bool = False,
    **make_kwargs: Any,
) -> TransformedEnv:
    """Makes an Atari game of the Arcade Learning Environment.

    Losing a life does not end the episode. ``pixels`` is the maximum over the last two frames of a
    decision.

    Args:
        game (str): ``"Pong"``, ``"pong"``, ``"ms_pacman"`` or ``"ALE/MsPacman-v5"``.
        num_envs (int, optional): number of environments side by side.
        vectorization (str, optional): as in :func:`gymnasium`.
        action_repeat (int, optional): frames per decision.
        image_size (int, optional): height and width; 64 for the Dreamers, 96 for MuZero.
        grayscale (bool, optional): one channel instead of three.
        sticky_actions (float, optional): probability that a frame repeats the previous action; 0.25 in
            Machado et al., 2018.
        noop_max (int, optional): largest number of no-ops after a reset.
        full_action_set (bool, optional): all 18 actions instead of the game's own.
        seed (int, optional): as in :func:`gymnasium`.
        max_episode_steps (int, optional): time limit in frames.
        categorical_actions (bool, optional): actions as indices instead of one-hot.
        **make_kwargs: passed to ``gymnasium.make``, for example ``mode`` and ``difficulty``.

    Raises:
        ValueError: for an unknown game (the message lists similar ones), or an option out of range.
        TypeError: for a game that is no str, and an option that the environment does not take.

    Examples:
        >>> env = atari("pong")
        >>> env.reset()["pixels"].shape
        torch.Size([1, 3, 64, 64])
    """
    check_common_options(num_envs, vectorization, action_repeat, image_size, max_episode_steps)
    if not 0.0 <= sticky_actions < 1.0:
        raise ValueError(f"sticky_actions={sticky_actions} is not a probability in [0, 1).")
    NUMBER.check(noop_max=noop_max)
    single = partial(
        make_single.make_atari,
        _atari_id(game),
        seed=seed,
        frames={
            "repeat": action_repeat,
            "size": image_size,
            "grayscale": grayscale,
            "noop_max": noop_max,
        },
        make_kwargs=dict(
            make_kwargs,
            frameskip=1,
            repeat_action_probability=sticky_actions,
            full_action_space=full_action_set,
            max_num_frames_per_episode=max_episode_steps,
        ),
    )
    return make_single.assemble_gymnasium(
        single, num_envs, vectorization, action_repeat, categorical_actions
    )


def dm_control(
    domain: str,
    task: str,
    *,
    num_envs: int = 1,
    vectorization: str = "serial",
    action_repeat: int = 1,
    from_pixels: bool = False,
    image_size: int = 64,
    camera_id: int = 0,
    seed: int = 0,
    max_episode_steps: int | None = None,
    **task_kwargs: Any,
) -> TransformedEnv:
    """Makes a task of the DeepMind Control Suite.

    Rendering needs ``MUJOCO_GL``; where neither it nor a display is set, it becomes ``egl`` or
    ``osmesa``, whichever is installed, ``egl`` first with an NVIDIA GPU.

    Args:
        domain (str): for example ``"cartpole"``.
        task (str): for example ``"balance"``.
        num_envs (int, optional): number of environments side by side.
        vectorization (str, optional): ``"serial"`` or ``"parallel"``.
        action_repeat (int, optional): control steps per decision.
        from_pixels (bool, optional): observe the rendered image, ``pixels``, and nothing else.
        image_size (int, optional): height and width of ``pixels``.
        camera_id (int, optional): camera of ``pixels``.
        seed (int, optional): as in :func:`gymnasium`.
        max_episode_steps (int, optional): time limit in control steps (not decisions). Defaults to
            the task's, 1000 in most.
        **task_kwargs: passed to the task.

    Raises:
        ValueError: for an unknown domain or task; the message lists the valid ones.
        TypeError: for an option that the task does not take.
        RuntimeError: for pixels where no renderer is installed; the message says how to get one.

    Examples:
        >>> env = dm_control("cartpole", "balance", action_repeat=2)
        >>> sorted(env.reset().exclude("done", "terminated", "truncated").keys())
        ['is_init', 'position', 'previous_action', 'previous_reward', 'step_count', 'velocity']
    """
    check_common_options(num_envs, vectorization, action_repeat, image_size, max_episode_steps)
    if vectorization == "gymnasium":
        raise ValueError(
            "vectorization='gymnasium' needs a gymnasium environment; use 'serial' or 'parallel'."
        )
    _choose_renderer(from_pixels)
    _check_dm_control_task(domain, task)
    single = partial(
        make_single.make_dm_control,
        domain,
        task,
        seed=seed,
        max_episode_steps=max_episode_steps,
        task_kwargs=task_kwargs,
        wrapper_kwargs={
            "frame_skip": action_repeat,
            "from_pixels": from_pixels,
            "pixels_only": True,
            "camera_id": camera_id,
            "render_kwargs": {"height": image_size, "width": image_size} if from_pixels else None,
        },
    )
    return assemble(single, num_envs, vectorization, action_repeat)


def _import(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"This environment needs {error.name!r}, which is not installed: "
            "pip install 'torchrl_wm[envs]'.",
            name=error.name,
        ) from error


def _check_is_name(option: str, value: Any, example: str) -> None:
    if not isinstance(value, str):
        raise TypeError(
            f"{option}={value!r} must be the name of an environment, such as {example!r} "
            f"(env.{option}={example} on the command line)."
        )


def _check_gymnasium_id(id: str) -> None:
    gym = _import("gymnasium")
    _check_is_name("id", id, "CartPole-v1")
    name = id.split(":")[-1]
    if ":" in id or name in gym.registry:
        return
    close = difflib.get_close_matches(name, gym.registry, n=5)
    raise ValueError(
        f"Unknown gymnasium environment {id!r}. Close names: {close}. "
        f"Registered: {sorted(gym.registry)}. "
        "Environments of other packages need their import, as in 'package:Name-v0'."
    )


def _atari_id(game: str) -> str:
    gym, ale_py = _import("gymnasium"), _import("ale_py")
    _check_is_name("game", game, "pong")
    gym.register_envs(ale_py)
    games = {id[4:-3] for id in gym.registry if id.startswith("ALE/") and id.endswith("-v5")}
    games = {name.lower(): name for name in games if not name.endswith("-ram")}
    wanted = game.removeprefix("ALE/").removesuffix("-v5").replace("_", "").lower()
    if wanted not in games:
        raise ValueError(f"Unknown Atari game {game!r}; known are {sorted(games.values())}.")
    return f"ALE/{games[wanted]}-v5"


def _check_dm_control_task(domain: str, task: str) -> None:
    suite = _import("dm_control.suite")
    domains = sorted({name for name, _ in suite.ALL_TASKS})
    if domain not in domains:
        raise ValueError(f"Unknown dm_control domain {domain!r}; known are {domains}.")
    tasks = sorted(name for owner, name in suite.ALL_TASKS if owner == domain)
    if task not in tasks:
        raise ValueError(f"Unknown task {task!r} of the domain {domain!r}; known are {tasks}.")


def _choose_renderer(needed: bool) -> None:
    """Sets ``MUJOCO_GL`` to an installed renderer, unless it or a display is set."""
    if "MUJOCO_GL" in os.environ or "DISPLAY" in os.environ:
        return
    # dm_control binds its renderer on import, for the lifetime of the process.
    if needed and "dm_control" in sys.modules:
        raise RuntimeError(
            "dm_control was imported without a renderer, so it cannot draw pixels. Set the "
            "environment variable MUJOCO_GL to 'egl' (GPU) or 'osmesa' (CPU) before it is imported."
        )
    gpu = os.path.exists("/dev/nvidia0")
    libraries = {"egl": "EGL", "osmesa": "OSMesa"} if gpu else {"osmesa": "OSMesa", "egl": "EGL"}
    found = [name for name, library in libraries.items() if find_library(library)]
    if needed and not found:
        raise RuntimeError(
            "Drawing pixels needs a renderer, and neither OSMesa nor EGL is installed: "
            "apt-get install libosmesa6 (CPU) or libegl1 (GPU)."
        )
    os.environ["MUJOCO_GL"] = found[0] if found else "disable"
