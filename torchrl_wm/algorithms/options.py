"""The valid values of the options of the algorithms."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torchrl_wm.ranges import COUNT, NUMBER, RATE, SHARE, WEIGHT, Range

Sizes = TypeVar("Sizes")

RANGES: dict[str, Range] = {
    **dict.fromkeys(["lambda_", "mix", "return_rate"], SHARE),
    "discount": Range(0, 1, excluded=(0,)),
    "critic_ema_decay": Range(0, 1, excluded=(1,)),
    **dict.fromkeys(["reanalyze_ratio", "priority_alpha", "priority_beta"], SHARE),
    **dict.fromkeys(["entropy", "free_bits", "weight_decay", "exploration_noise"], WEIGHT),
    **dict.fromkeys(["reconstruction_scale", "reward_scale", "continuation_scale"], WEIGHT),
    **dict.fromkeys(["policy_scale", "value_scale", "consistency_scale"], WEIGHT),
    **dict.fromkeys(
        ["overshooting_scale", "replay_critic_scale", "actor_scale", "critic_scale"], WEIGHT
    ),
    **dict.fromkeys(["lr", "world_model_lr", "actor_lr", "critic_lr"], RATE),
    **dict.fromkeys(["grad_clip"], RATE),
    **dict.fromkeys(["agc"], WEIGHT),
    **dict.fromkeys(["imagination_starts", "actor_layers", "critic_layers"], NUMBER),
    **dict.fromkeys(["lr_warmup", "overshooting_distance", "temperature_decay"], NUMBER),
    **dict.fromkeys(["unroll_steps", "auto_td_steps"], NUMBER),
    **dict.fromkeys(["imagination_horizon", "critic_update_every", "units"], COUNT),
    **dict.fromkeys(["td_steps", "target_update_every", "value_prefix_horizon"], COUNT),
    **dict.fromkeys(["support", "frame_stack"], COUNT),
}


def checks_options(init: Callable[..., None]) -> Callable[..., None]:
    """Decorates the constructor of an algorithm to refuse numbers out of range before anything is built.

    ``None`` is passed on where it is the default.

    Raises:
        ValueError: names the option, its value and the valid range.

    Examples:
        >>> class Algorithm:
        ...     @checks_options
        ...     def __init__(self, *, discount=0.99):
        ...         self.discount = discount
        >>> Algorithm(discount=99)
        Traceback (most recent call last):
        ValueError: discount=99 must be a number from 0 to 1, but not 0.
    """

    parameters = inspect.signature(init).parameters
    optional = {name for name, parameter in parameters.items() if parameter.default is None}

    @functools.wraps(init)
    def checked(self, *args, **options) -> None:
        for name in RANGES.keys() & options.keys():
            if options[name] is not None or name not in optional:
                RANGES[name].check(**{name: options[name]})
        init(self, *args, **options)

    return checked


def set_keywords(factory: Callable) -> dict[str, Any]:
    """The keywords that a ``functools.partial`` sets, and those within it.

    Examples:
        >>> inner = functools.partial(dict, size=1, units=2)
        >>> inner.__name__ = "inner"
        >>> set_keywords(functools.partial(inner, units=3))
        {'size': 1, 'units': 3}
    """
    if not isinstance(factory, functools.partial):
        return {}
    return {**set_keywords(factory.func), **factory.keywords}


def preset(sizes: Mapping[str, Sizes], name: str) -> Sizes:
    """The sizes of that name.

    Raises:
        ValueError: for an unknown name; the message lists the valid ones.
    """
    if name not in sizes:
        raise ValueError(f"Unknown size {name!r}; expected one of {list(sizes)}.")
    return sizes[name]
