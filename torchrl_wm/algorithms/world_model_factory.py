"""The world model of an algorithm: a factory, with the algorithm's defaults for what it leaves open."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torchrl.data import Composite

from torchrl_wm.algorithms.options import set_keywords
from torchrl_wm.world_models import WorldModel, make_rssm

WorldModelFactory = Callable[..., WorldModel]


def build_world_model(
    factory: WorldModelFactory | None,
    observation_spec: Composite,
    action_spec: Composite,
    defaults: Mapping[str, Any],
) -> WorldModel:
    """Calls a world model's factory with an algorithm's defaults for the parameters that it names.

    Arguments already set by a ``functools.partial`` are kept; without a factory an RSSM is made.

    Raises:
        TypeError: for a factory with ``**options`` that names none of the defaults.
    """
    factory = make_rssm if factory is None else factory
    chosen = set_keywords(factory)
    known = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    if takes_any and not known.keys() & defaults.keys():
        raise TypeError(
            f"{getattr(factory, '__name__', factory)} takes **options, but an algorithm only sets what a "
            f"world model's factory names: name those of {sorted(defaults)} that it is to set, or give "
            "functools.partial(make_rssm, ...)."
        )
    offered = {k: v for k, v in defaults.items() if k in known and k not in chosen}
    return factory(observation_spec, action_spec, **offered)
