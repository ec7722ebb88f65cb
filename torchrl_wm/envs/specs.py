"""The entries of an environment that a world model models."""

from __future__ import annotations

import torch
from tensordict.utils import NestedKey
from torchrl.data import Composite, OneHot, TensorSpec
from torchrl.data.tensor_specs import NonTensor
from torchrl.envs import Compose, EnvBase, TransformedEnv
from torchrl.envs.transforms import TensorDictPrimer

from torchrl_wm import keys
from torchrl_wm.modules.actions import ActionEncoding

_SUPPORTED = "float vectors [D] and images [C, H, W] (uint8 or float)"


def model_specs(env: EnvBase) -> tuple[Composite, Composite]:
    """The specs of one observation and one action, as the constructors of models take them.

    They leave out the environment's batch dimensions, bookkeeping entries
    (:data:`torchrl_wm.keys.BOOKKEEPING`) and the entries of a :class:`~torchrl.envs.TensorDictPrimer`.

    Args:
        env (EnvBase): any TorchRL environment.

    Returns:
        ``(observation_spec, action_spec)``, two Composites of batch size ``[]``.

    Raises:
        TypeError: for an entry that is not a tensor of numbers or has no encoding.
        ValueError: for an entry of an unsupported shape, or when nothing is observed. Both messages name
            the entry and list what is supported.

    Examples:
        >>> from torchrl_wm.envs import gymnasium
        >>> observation_spec, action_spec = model_specs(gymnasium("CartPole-v1", num_envs=2))
        >>> observation_spec["observation"].shape, action_spec["action"].shape
        (torch.Size([4]), torch.Size([2]))
    """
    primed = _primed(env)
    observation_spec = Composite()
    for key, spec in env.full_observation_spec_unbatched.items(True, True):
        leaf = key if isinstance(key, str) else key[-1]
        if leaf in keys.BOOKKEEPING or key in primed:
            continue
        _check_observation(key, spec)
        observation_spec[key] = spec.clone()
    if observation_spec.is_empty():
        raise ValueError(f"The environment observes nothing; supported are {_SUPPORTED}.")
    action_spec = env.full_action_spec_unbatched.clone()
    ActionEncoding(action_spec)
    return observation_spec, action_spec


def recorded_keys(env: EnvBase) -> list[NestedKey]:
    """The entries of an environment that a replay stores: the observations, and the rules of a game.

    The rules are ``to_play`` and ``action_mask``, where the environment has them. They apply to the final
    state of an episode too, so they are stored as observations are.

    Args:
        env (EnvBase): any TorchRL environment.

    Raises:
        TypeError, ValueError: as :func:`model_specs` does.

    Examples:
        >>> from torchrl_wm.envs import TicTacToe
        >>> recorded_keys(TicTacToe())
        ['board', 'to_play', 'action_mask']
    """
    rules = env.full_observation_spec.keys(True, True)
    modelled = model_specs(env)[0].keys(True, True)
    return [*modelled, *(key for key in (keys.TO_PLAY, keys.ACTION_MASK) if key in rules)]


def _primed(env: EnvBase) -> set[NestedKey]:
    primed = set()
    while isinstance(env, TransformedEnv):
        chain = env.transform if isinstance(env.transform, Compose) else [env.transform]
        for transform in chain:
            if isinstance(transform, TensorDictPrimer):
                primed.update(transform.primers.keys(True, True))
        env = env.base_env
    return primed


def _check_observation(key: NestedKey, spec: TensorSpec) -> None:
    if isinstance(spec, NonTensor) or not isinstance(spec.dtype, torch.dtype):
        raise TypeError(
            f"The observation {key!r} is no tensor ({type(spec).__name__}); supported are "
            f"{_SUPPORTED}."
        )
    if spec.ndim not in (1, 3):
        raise ValueError(
            f"The observation {key!r} has the shape {tuple(spec.shape)}; supported are "
            f"{_SUPPORTED}. Flatten or stack it with a transform."
        )
    if spec.ndim == 1 and not spec.dtype.is_floating_point and not isinstance(spec, OneHot):
        raise TypeError(
            f"The observation {key!r} has the dtype {spec.dtype}; supported are {_SUPPORTED}. "
            "Cast it with torchrl.envs.DTypeCastTransform."
        )
