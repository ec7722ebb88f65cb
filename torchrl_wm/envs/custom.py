"""Custom environments, treated like those of the suites."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torchrl.envs import EnvBase, TransformedEnv, check_env_specs

from torchrl_wm.envs.make_single import assemble_gymnasium
from torchrl_wm.envs.specs import model_specs
from torchrl_wm.envs.vectorize import assemble, check_common_options


def wrap(
    factory: Callable[..., Any] | str,
    *,
    num_envs: int = 1,
    vectorization: str = "serial",
    action_repeat: int = 1,
    seed: int = 0,
    categorical_actions: bool = False,
    **factory_kwargs: Any,
) -> TransformedEnv:
    """Makes environments from a custom function and checks them.

    One of them is tested first: its specs must hold and a world model must be able to read them.

    Args:
        factory (callable or str): returns one ``gymnasium.Env``, one dm_control ``Environment`` or
            one TorchRL ``EnvBase`` of batch size ``[]``; or its import path,
            ``"package.module:function"``. It must make a new environment in every call, and be picklable
            for ``"parallel"``.
        num_envs (int, optional): number of environments in the batch.
        vectorization (str, optional): ``"serial"``, ``"parallel"``, or ``"gymnasium"`` for a
            ``gymnasium.Env``.
        action_repeat (int, optional): steps per decision; 1 for an ``EnvBase``.
        seed (int, optional): seeds each reset, with the environment's index and episode number.
        categorical_actions (bool, optional): discrete actions of a ``gymnasium.Env`` as indices
            instead of one-hot.
        **factory_kwargs: passed to ``factory``.

    Raises:
        ImportError: when the import path leads nowhere.
        TypeError: when the factory returns anything else.
        ValueError: for wrong options, and for specs that a world model cannot read.

    Examples:
        >>> from torchrl.envs import PendulumEnv
        >>> wrap(PendulumEnv, num_envs=2).batch_size
        torch.Size([2])
    """
    check_common_options(num_envs, vectorization, action_repeat, 1, None)
    factory = resolve_factory(factory)
    options = {"factory": factory, "factory_kwargs": factory_kwargs, "seed": seed}
    options["action_repeat"] = action_repeat
    single = partial(_single, **options, categorical=categorical_actions)
    _check(single)
    if vectorization == "gymnasium":
        around = partial(_around, **options)
        return assemble_gymnasium(
            around, num_envs, vectorization, action_repeat, categorical_actions
        )
    return assemble(single, num_envs, vectorization, action_repeat)


def factory_of(options: Mapping[str, Any]) -> Callable[[], Any] | None:
    """What makes one environment, from the options of :func:`wrap`; ``None`` without a factory.

    Examples:
        >>> game = {"factory": "torchrl_wm.envs:LineGame", "num_envs": 4, "height": 3, "width": 3, "line": 3}
        >>> factory_of(game)().board_shape
        (3, 3)
    """
    if options.get("factory") is None:
        return None
    own = inspect.signature(wrap).parameters
    named = {k: v for k, v in options.items() if k not in own and not k.startswith("_")}
    return partial(resolve_factory(options["factory"]), **named)


def resolve_factory(factory: Callable[..., Any] | str) -> Callable[..., Any]:
    """The function itself, or the one that ``"package.module:function"`` names.

    The current folder is searched last.

    Raises:
        ImportError: when the import path leads nowhere.
        TypeError, ValueError: for anything else.

    Examples:
        >>> resolve_factory("torchrl_wm.envs:TicTacToe").__name__
        'TicTacToe'
    """
    if callable(factory):
        return factory
    if not isinstance(factory, str):
        raise TypeError(
            f"wrap takes a function that makes an environment, or its import path, but got "
            f"{type(factory).__name__}; give a function (lambda: env) that makes a new one."
        )
    module, _, name = factory.partition(":")
    if not name:
        raise ValueError(f"{factory!r} is no import path; write 'package.module:function'.")
    if (
        os.getcwd() not in sys.path
    ):  # a script has its own folder there, not the one it is called in
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # by what the module imports
        raise ImportError(
            f"There is no module {error.name!r} for {factory!r}: run in the folder that holds it, or install "
            "its package."
        ) from None
    except AttributeError:
        raise ImportError(f"The module {module!r} has no {name!r}.") from None


def _around(
    *, factory: Callable[..., Any], factory_kwargs: dict, seed: int, index: int, action_repeat: int
) -> Any:
    import gymnasium as gym

    from torchrl_wm.envs.gymnasium_wrappers import wrap_gymnasium

    env = factory(**factory_kwargs)
    if not isinstance(env, gym.Env):
        raise ValueError(
            f"vectorization='gymnasium' needs a gymnasium.Env, but the factory returned a "
            f"{type(env).__name__}; use 'serial' or 'parallel'."
        )
    return wrap_gymnasium(env, seed, index, action_repeat, None)


def _single(
    *,
    factory: Callable[..., Any],
    factory_kwargs: dict,
    seed: int,
    index: int,
    action_repeat: int,
    categorical: bool,
) -> EnvBase:
    env = factory(**factory_kwargs)
    if isinstance(env, EnvBase):
        from torchrl_wm.envs.torchrl_wrappers import SeededTorchRL

        if action_repeat != 1:
            raise ValueError("action_repeat must be 1 for a TorchRL environment; repeat inside it.")
        return SeededTorchRL(env, seed, index)
    if hasattr(env, "observation_space"):
        from torchrl.envs import GymWrapper

        from torchrl_wm.envs.gymnasium_wrappers import wrap_gymnasium

        return GymWrapper(
            wrap_gymnasium(env, seed, index, action_repeat, None),
            categorical_action_encoding=categorical,
        )
    if hasattr(env, "physics"):
        from torchrl_wm.envs.dm_control_wrappers import SeededDMControl

        return SeededDMControl(env, seed=seed, index=index, frame_skip=action_repeat)
    raise TypeError(
        f"The factory returned a {type(env).__name__}; supported are gymnasium.Env, dm_control "
        "Environment and TorchRL EnvBase."
    )


def _check(single: Callable[..., EnvBase]) -> None:
    env = single(index=0)
    with torch.random.fork_rng(devices=[]):
        check_env_specs(env)
    model_specs(env)
    env.close()
