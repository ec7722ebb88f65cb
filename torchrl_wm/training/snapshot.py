"""Everything that a run needs to continue exactly, besides the parameters and the replay.

TorchRL's own checkpoint of a collector starts a new trajectory. Here the TensorDict that the
collector carries from batch to batch and the state of the running episodes are kept as well.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from torchrl_wm.envs import NotReproducibleError, episode_state, restore_episode_state

_PLAIN = (torch.Tensor, int, float, bool, str, type(None))


def experience_state(env: EnvBase, collector: Collector) -> dict[str, Any]:
    """The carried TensorDict and the running episodes as plain data.

    An environment that cannot store its episodes is named in a warning: there, a resumed run begins
    new episodes, which is correct but not bitwise equal.
    """
    try:
        episodes = episode_state(env)
    except NotReproducibleError as error:
        warnings.warn(f"{error} A resumed run will begin new episodes.", stacklevel=2)
        return {"carrier": None, "episodes": None}
    carrier: TensorDictBase = collector._carrier
    return {"carrier": carrier.detach().cpu().clone().to_dict(), "episodes": episodes}


def load_experience_state(env: EnvBase, collector: Collector, state: dict[str, Any]) -> bool:
    """Restores what :func:`experience_state` returned into a freshly built collector.

    Returns:
        bool: whether the episodes continue; otherwise new ones have begun.
    """
    if state["episodes"] is None:
        return False
    restore_episode_state(env, state["episodes"])
    fresh: TensorDictBase = collector._carrier
    carrier = TensorDict(state["carrier"], batch_size=fresh.batch_size, device=fresh.device)
    collector._carrier = carrier
    return True


def require_plain(state: Any, path: str = "state") -> None:
    """Checks that ``state`` is a nest of dicts, lists, tuples, numbers, strings and tensors.

    Raises:
        TypeError: names the first entry that is not; loading it could run code.

    Examples:
        >>> require_plain({"count": 3, "weights": [torch.zeros(2)]})
        >>> require_plain({"count": {3}})
        Traceback (most recent call last):
        TypeError: ...
    """
    if isinstance(state, dict):
        for key, value in state.items():
            require_plain(key, f"{path} (a key)")
            require_plain(value, f"{path}[{key!r}]")
    elif isinstance(state, list | tuple) and type(state) in (list, tuple):
        for index, value in enumerate(state):
            require_plain(value, f"{path}[{index}]")
    elif not isinstance(state, _PLAIN) or type(state).__module__ == "numpy":
        raise TypeError(
            f"{path} is a {type(state).__module__}.{type(state).__name__}, which a checkpoint does "
            "not take: use tensors, numbers, strings, lists and dicts."
        )
