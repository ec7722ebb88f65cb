"""From a Hydra config to objects, with errors that list the valid options.

Needs ``hydra-core`` (the extra ``recipes``), as nothing else in the package does but the assembly of runs.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

ALIASES = {"c_puct": "c_init", "pb_c_init": "c_init", "pb_c_base": "c_base"}
"""What other codes call an option."""


class OptionError(ValueError):
    """An option that does not exist; the message lists the valid ones."""


def instantiate(node: DictConfig, *args: Any, **kwargs: Any) -> Any:
    """Builds what ``node._target_`` names from its options, ``args`` and ``kwargs``.

    With ``_partial_: true`` in the node the result is a callable that builds it later.

    Raises:
        OptionError: for an option that the target does not take, one that is true or false and given as
            a word, and one that both the node and ``kwargs`` give.

    Examples:
        >>> node = OmegaConf.create({"_target_": "torch.nn.Linear", "in_features": 2})
        >>> instantiate(node, out_features=3)
        Linear(in_features=2, out_features=3, bias=True)
        >>> instantiate(OmegaConf.create({"_target_": "torch.nn.Linear", "in_feature": 2}))
        Traceback (most recent call last):
        torchrl_wm.training.configuration.OptionError: ...did you mean 'in_features'?...
    """
    import hydra.utils

    _check_options(node)
    _check_set_elsewhere(node, kwargs)
    make = hydra.utils.instantiate(node, _partial_=True, _convert_="all")
    if node.get("_partial_", False):
        # Around Hydra's own partial it would hide what is set, which an algorithm's defaults would replace.
        return functools.partial(make.func, *make.args, *args, **{**make.keywords, **kwargs})
    _check_missing(node, len(args), kwargs)
    return make(*args, **kwargs)


def _check_set_elsewhere(node: DictConfig, given: Mapping[str, Any]) -> None:
    """Refuses options that the assembly of a run sets, which would be replaced without a word."""
    for name in given.keys() & {str(option) for option in node}:
        if OmegaConf.is_missing(node, name) or node[name] in (None, given[name]):
            continue
        root = node._get_root()
        instead = f" Give {name}=... instead." if name in root and root is not node else ""
        raise OptionError(
            f"{_path(node, name)}={node[name]} has no effect, since the run sets it itself: leave it "
            f"out.{instead}"
        )


def _path(node: DictConfig, option: str) -> str:
    return node._get_full_key(option)


def _check_missing(node: DictConfig, positional: int, given: Mapping[str, Any]) -> None:
    """Names options without a default that were not given."""
    import hydra.utils

    signature = inspect.signature(hydra.utils.get_object(node["_target_"]))
    options = {
        str(n) for n in node if not str(n).startswith("_") and not OmegaConf.is_missing(node, n)
    }
    options = dict.fromkeys(options) | dict(given)
    bound = signature.bind_partial(*[None] * positional, *node.get("_args_", ()), **options)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [
        p.name
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind not in variadic
    ]
    missing = [name for name in needed if name not in bound.arguments]
    if missing:
        group = node._key() or "GROUP"
        raise OptionError(f"{node['_target_']} needs {missing[0]}: give {group}.{missing[0]}=...")


def _check_options(node: Any) -> None:
    """Compares the options of every node with a ``_target_`` with the target's signature."""
    import hydra.utils

    if not isinstance(node, DictConfig):
        return
    for child in node:
        if not OmegaConf.is_missing(node, child):
            _check_options(node[child])
    if "_target_" not in node:
        return
    parameters = inspect.signature(hydra.utils.get_object(node["_target_"])).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in node:
        if option in parameters:
            _check_flag(node, option, parameters[option].default)
        elif not takes_any and not str(option).startswith("_"):
            target = node["_target_"]
            raise OptionError(unknown(str(option), parameters, f"option of {target}"))


def _check_flag(node: DictConfig, option: str, default: Any) -> None:
    """Refuses a word for what is true or false: every word would count as true."""
    is_word = not OmegaConf.is_missing(node, option) and isinstance(node[option], str)
    if is_word and isinstance(default, bool):
        raise OptionError(f"{_path(node, option)}={node[option]} must be true or false.")


def require_parameter(node: DictConfig, name: str) -> None:
    """Checks that the target of ``node`` has a parameter ``name``.

    Raises:
        OptionError: if it does not.

    Examples:
        >>> require_parameter(OmegaConf.create({"_target_": "torch.nn.Linear"}), "planner")
        Traceback (most recent call last):
        torchrl_wm.training.configuration.OptionError: ...
    """
    import hydra.utils

    if name not in inspect.signature(hydra.utils.get_object(node["_target_"])).parameters:
        raise OptionError(
            f"{node['_target_']} takes no {name}: leave {name}=... out, or choose an algorithm that "
            f"has one."
        )


def unknown(
    name: str, valid: Iterable[str], kind: str = "option", elsewhere: Sequence[str] = ()
) -> str:
    """The message for a name that does not exist; ``elsewhere`` are paths where it would.

    Examples:
        >>> unknown("free_bit", ["free_bits", "lr"])
        "Unknown option 'free_bit': did you mean 'free_bits'? Valid: free_bits, lr."
    """
    valid = sorted(map(str, valid))
    close = elsewhere[:1] or difflib.get_close_matches(name, valid, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    return f"Unknown {kind} {name!r}:{hint} Valid: {', '.join(valid)}."


def check_overrides(config_dir: str | Path, config_name: str, overrides: Sequence[str]) -> None:
    """Checks the options on a command line before Hydra does, for clearer messages.

    Of what is added (``+name=``, ``++name=``) only the part that it is added to has to exist, which then
    judges it; sweeps over groups are left to Hydra.

    Raises:
        OptionError: for an option or a member of a group that does not exist, or a word such as ``no``
            where an option is true or false (every word would count as true), a word where one is a
            number, or ``null`` where one is a name.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, MissingConfigException

    composed, values, additions = [], [], []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        name = override.key_or_group
        is_group = (Path(config_dir) / name.replace(".", "/")).is_dir()
        if name.partition("/")[0].partition(".")[0] == "hydra":
            continue
        if is_group and override.is_sweep_override():
            return  # options of several choices
        if is_group and override.value() is None and not override.is_delete():
            raise OptionError(
                f"{name}=null chooses nothing: give a name, leave it out, or take out what an algorithm "
                f"chooses with ~{name}."
            )
        is_addition = override.is_add() or override.is_force_add()
        is_choice = is_group or "@" in override.input_line
        if is_addition and not is_choice:
            additions.append(override)
        chosen = is_choice or is_addition or override.is_delete()
        (composed if chosen else values).append(override)
    with initialize_config_dir(str(Path(config_dir).resolve()), version_base="1.3"):
        lines = [o.input_line for o in composed if not o.is_sweep_override()]
        added = {o.input_line for o in additions}
        try:
            config = compose(config_name, lines, return_hydra_config=True)
            known = compose(config_name, [x for x in lines if x not in added]) if added else config
        except MissingConfigException as error:
            group, _, name = error.missing_cfg_file.rpartition("/")
            raise OptionError(unknown(name, error.options or (), group)) from None
        except HydraException:
            return  # such as an addition of what is there, which Hydra explains
    for override in additions:  # at the top, nothing would read them
        _check_path(known, override.key_or_group.partition(".")[0])
    for override in values:
        _check_path(config, override.key_or_group)
    for override in (*values, *additions):
        _check_kind(known, override.key_or_group, override.value())
    given = [override.key_or_group for override in values]
    for name in config:
        if name == "hydra" or OmegaConf.is_interpolation(config, name):
            continue
        if isinstance(config[name], DictConfig):
            _check_references(config[name], given, name)


def _check_references(node: DictConfig, given: Sequence[str], prefix: str) -> None:
    """Checks options that refer to those of another part, which must have them."""
    for name in node:
        path = f"{prefix}.{name}"
        if not OmegaConf.is_interpolation(node, name):
            if not OmegaConf.is_missing(node, name) and isinstance(node[name], DictConfig):
                _check_references(node[name], given, path)
        elif path not in given:
            _check_reference(node, name, path)


def _check_reference(node: DictConfig, name: str, path: str) -> None:
    try:
        node[name]
    except InterpolationKeyError:
        wanted = OmegaConf.to_container(node, resolve=False)[name]
        raise OptionError(
            f"{path} is {wanted}, which nothing chosen here has: choose another env, or set {path}=..."
        ) from None
    except OmegaConfBaseException:
        pass  # such as one without a default, which may still be set


def _check_path(config: DictConfig, path: str) -> None:
    parts, node = path.split("."), config
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth])
        kind = f"option of {where!r}" if where else "option"
        # Its keys: "in" would be False for an option without a default.
        valid = list(node) if isinstance(node, DictConfig) else []
        if part not in valid:
            names = [name for name in valid if not str(name).startswith("_") and name != "hydra"]
            raise OptionError(unknown(part, names, kind, _elsewhere(config, part)))
        node = node._get_node(part) if depth < len(parts) - 1 else None


def _check_kind(config: DictConfig, path: str, value: Any) -> None:
    """Checks that a value is of the kind of the default, unless either refers to another option."""
    from hydra.core.override_parser.types import QuotedString

    value = value.text if isinstance(value, QuotedString) else value
    default = OmegaConf.to_container(config, resolve=False)
    for part in path.split("."):
        default = default.get(part) if isinstance(default, dict) else None
    if any(isinstance(x, str) and "${" in x for x in (value, default)):
        return
    is_word = isinstance(value, str)
    if isinstance(default, bool) and is_word:
        raise OptionError(f"{path}={value} must be true or false.")
    is_endless = isinstance(value, float) and not math.isfinite(value)
    if isinstance(default, int | float) and (is_word or is_endless):
        raise OptionError(f"{path}={value} must be a number, such as {default}.")
    if isinstance(default, str) and value is None:
        example = "" if default == "???" else f", such as {default}"
        raise OptionError(f"{path}=null must be a name{example}.")


def _elsewhere(config: DictConfig, name: str) -> list[str]:
    """The paths of the options that are called so, or mean it."""
    wanted, paths = {name, ALIASES.get(name)}, []

    def search(node: Any, prefix: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            path = f"{prefix}{key}"
            if key in wanted:
                paths.append(path)
            search(value, f"{path}.")

    everything = OmegaConf.to_container(config, resolve=False)
    everything.pop("hydra", None)
    search(everything, "")
    return paths


def saved_config(
    text: str, overrides: Sequence[str] = (), allowed: Sequence[str] = ()
) -> DictConfig:
    """The config of a run folder, with the few options that may change when it is resumed.

    Args:
        text (str): YAML, as stored in the run folder.
        overrides (sequence of str): ``option=value``; ``resume`` itself is skipped.
        allowed (sequence of str): the options that may be changed.

    Raises:
        OptionError: for any other option.
    """
    try:
        config = OmegaConf.create(text)
    except Exception as error:  # of YAML, which OmegaConf does not wrap
        raise OptionError(f"The config.yaml of the run cannot be read: {error}") from error
    if not isinstance(config, DictConfig) or config.is_empty():
        raise OptionError("The config.yaml of the run is empty: copy that of a run like it.")
    for override in overrides:
        name, _, _ = override.partition("=")
        if name == "resume":
            continue
        if name not in allowed:
            raise OptionError(
                f"{override!r} cannot change in a resumed run: its config is the one in its "
                f"folder. What may change: {', '.join(allowed)}. For anything else start a new run."
            )
        config.merge_with_dotlist([override])
    return config


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is CUDA if available, otherwise the CPU.

    Raises:
        ValueError: for a name that is no device.
        RuntimeError: if a CUDA device is asked for and there is none.

    Examples:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"Unknown device={name}; expected auto, cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"device={name} was asked for, but this PyTorch ({torch.__version__}) finds no CUDA "
            "device. Install a CUDA build and driver, or give device=cpu."
        )
    return device


def default_threads() -> int:
    """The number of cores that this process may use, limited to what small models can keep busy.

    Examples:
        >>> 1 <= default_threads() <= 8
        True
    """
    return min(len(os.sched_getaffinity(0)), 8)
