import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object

from torchrl_wm.envs import model_specs
from torchrl_wm.objectives.divergence_rules import STRATEGIES
from torchrl_wm.planners import Planner
from torchrl_wm.training.assembly import build_algorithm
from torchrl_wm.training.configuration import (
    OptionError,
    check_overrides,
    instantiate,
    resolve_device,
    saved_config,
)

CONFIG = Path(__file__).resolve().parents[2] / "recipes" / "config"


def _compose(*overrides):
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose("train", list(overrides))


def _names(group):
    return sorted(path.stem for path in (CONFIG / group).glob("*.yaml"))


@pytest.mark.parametrize("algorithm", _names("algorithm"))
@pytest.mark.parametrize("world_model", _names("world_model"))
def test_every_combination_composes_and_the_command_line_wins(algorithm, world_model):
    config = _compose(f"world_model={world_model}", f"algorithm={algorithm}")
    assert config.world_model == _compose(f"world_model={world_model}").world_model
    cadences = ("train_ratio", "every", "every_episodes")
    assert sum(config.training[name] is not None for name in cadences) == 1


# These differ from the constructors, whose defaults are those of the papers, or of MuZero itself.
_SMALL = ("dreamer_v1", "dreamer_v2", "dreamer_v3", "muzero", "pets", "planet_small")
_RELATIVES = ("alphazero", "efficientzero", "gumbel_muzero", "muzero_atari", "sampled_muzero")


@pytest.mark.parametrize("algorithm", _names("algorithm"))
def test_config_and_constructor_agree(algorithm):
    node = _compose(f"algorithm={algorithm}").algorithm
    parameters = inspect.signature(get_object(node["_target_"])).parameters
    expected = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty
        and name not in ("world_model", "planner", "device")
    }
    given = {name: value for name, value in node.items() if name != "_target_"}
    assert set(given) == set(expected)
    if algorithm in (*_SMALL, *_RELATIVES):
        return
    for name, value in given.items():
        if name == "kl":
            assert value.strategy == expected[name]["strategy"]
        else:
            assert value == pytest.approx(expected[name]), name


@pytest.mark.parametrize("planner", ["cem", "icem", "mppi"])
def test_planner_config_and_constructor_agree(planner):
    node = _compose("algorithm=planet", f"planner={planner}").planner
    signature = inspect.signature(get_object(node["_target_"])).parameters
    shared = inspect.signature(Planner).parameters
    sizes = ("planning_horizon",) if planner == "mppi" else ()  # without a terminal value: longer
    differ = {"min_std", "max_std", "temperature", "warm_start"} if planner == "mppi" else set()
    for name, value in node.items():
        if name.startswith("_") or name in differ or name in sizes:
            continue
        default = signature[name] if name in signature else shared[name]
        if default.default is not inspect.Parameter.empty:
            assert value == default.default, name


def test_algorithms_choose_their_world_model():
    assert _compose("algorithm=dreamer_v1").world_model.latent == "gaussian"
    assert _compose("algorithm=dreamer_v2").world_model.latent == "categorical"
    config = _compose("algorithm=dreamer_v3", "world_model=rssm_gaussian")
    assert config.world_model.latent == "gaussian"


_SKIPPED = ("gymnasium", "dm_control", "atari", "factory")  # need the name of an environment


@pytest.mark.parametrize("name", [n for n in _names("env") if "_pixels" not in n])
def test_environments_can_be_made(name):
    if name in _SKIPPED:
        pytest.skip("a template")
    config = _compose(f"env={name}").env
    env = instantiate(config, seed=1)
    assert env.batch_size == (config.num_envs,)
    observation_spec, action_spec = model_specs(env)
    assert len(observation_spec) and len(action_spec)


def test_pixel_environments_differ_only_in_pixels():
    for name in _names("env"):
        if name.endswith("_pixels"):
            pixels = dict(_compose(f"env={name}").env)
            plain = dict(_compose(f"env={name.removesuffix('_pixels')}").env)
            changes = {"from_pixels": True}
            if "observation_scale" in plain:  # of the vector, which pixels replace
                changes["observation_scale"] = None
            assert pixels == plain | changes


def test_options_are_checked_below_groups():
    check_overrides(
        CONFIG, "train", ["algorithm=dreamer_v1", "algorithm.actor_lr=1", "env.num_envs=2"]
    )
    with pytest.raises(
        OptionError, match="'actor_lr'.*option of 'algorithm'|option of 'algorithm'"
    ):
        check_overrides(CONFIG, "train", ["algorithm=dreamer_v3", "algorithm.actor_lr=1"])


_README = (CONFIG.parents[1] / "README.md").read_text().replace("\\\n", " ")
_COMMANDS = re.findall(r"recipes/train\.py ((?:-m )?\w+=[^#`\n]*)", _README)


@pytest.mark.parametrize(
    "command",
    [
        *_COMMANDS,
        "env=dm_control env.domain=cartpole env.task=balance",
        "env=atari env.game=ms_pacman",
        "env=factory env.factory=package.module:function",
        "++world_model.belief_size=320",
        "+world_model.belief_size=320",
    ],
)
def test_commands_of_the_documentation_pass_the_check(command):
    check_overrides(CONFIG, "train", shlex.split(command.removeprefix("-m ")))


def test_options_without_a_default_are_named_beside_the_wrong_one():
    with pytest.raises(OptionError, match="'ids'.*did you mean 'id'"):
        check_overrides(CONFIG, "train", ["env=gymnasium", "env.ids=CartPole-v1"])


def test_options_that_another_part_lacks_are_named():
    with pytest.raises(OptionError, match="algorithm.simulator is .*env.factory.*another env"):
        check_overrides(CONFIG, "train", ["algorithm=alphazero", "env=cartpole"])
    made = "algorithm.simulator=torchrl_wm.envs:ConnectFour"
    check_overrides(CONFIG, "train", ["algorithm=alphazero", "env=cartpole", made])


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm=muzero,gumbel_muzero", "algorithm.td_steps=3"],
        ["algorithm=dreamer_v1,dreamer_v2", "algorithm.actor_lr=1e-4,3e-4"],
        ["+planner=cem", "planner.top_k=10"],
        ["+env.foo=1", "env.foo=2"],
        ["hydra.job.chdir=true", "seed=1,2"],
        ["~planner", "algorithm=planet"],
    ],
)
def test_what_is_swept_or_added_is_not_refused(overrides):
    check_overrides(CONFIG, "train", overrides)


@pytest.mark.parametrize(
    "overrides, message",
    [(["+total_step=9"], "'total_step': did you mean 'total_steps'"),
     (["++foo=1", "seed=2"], "'foo': Valid: algorithm"),
     (["algorithm=planet", "+plannner.top_k=3"], "'plannner': did you mean 'planner'")],
)  # fmt: skip
def test_what_is_added_to_nothing_is_refused(overrides, message):
    with pytest.raises(OptionError, match=message):
        check_overrides(CONFIG, "train", overrides)
    check_overrides(CONFIG, "train", ["algorithm=planet", "+planner.top_j=3"])


@pytest.mark.parametrize("algorithm", _names("algorithm"))
def test_every_algorithm_passes_the_check(algorithm):
    check_overrides(CONFIG, "train", [f"algorithm={algorithm}"])


def test_saved_config_takes_only_what_may_change():
    config = saved_config("seed: 1\ntotal_steps: 5", ["total_steps=9", "resume=x"], ["total_steps"])
    assert (config.seed, config.total_steps) == (1, 9)
    with pytest.raises(OptionError, match="'seed=2'.*total_steps"):
        saved_config("seed: 1", ["seed=2"], ["total_steps"])


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.progress=off"],
        ["algorithm=dreamer_v3", "algorithm.use_ema_critic='false'"],
        ["algorithm=dreamer_v3", "++algorithm.compile=no"],
    ],
)
def test_words_do_not_count_as_true(overrides):
    with pytest.raises(OptionError, match=r"=(off|false|no) must be true or false"):
        check_overrides(CONFIG, "train", overrides)
    check_overrides(CONFIG, "train", [re.sub("'false'|off|no$", "false", o) for o in overrides])


def test_a_name_without_a_default_has_no_example():
    with pytest.raises(OptionError, match="env.id=null must be a name.$"):
        check_overrides(CONFIG, "train", ["env=gymnasium", "env.id=null"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.train_ratio=abc", "train_ratio=abc must be a number, such as 64"),
        ("algorithm.lr='1e-3x'", "lr=1e-3x must be a number"),
        ("algorithm.lr=nan", "lr=nan must be a number"),
        ("env.id=null", "env.id=null must be a name, such as CartPole-v1"),
    ],
)
def test_values_of_another_kind_are_named(override, message):
    with pytest.raises(OptionError, match=message):
        check_overrides(CONFIG, "train", [override])


def test_values_may_refer_to_others():
    check_overrides(CONFIG, "train", ["algorithm.lr=${algorithm.entropy}", "run_dir=5"])


def _build(*overrides):
    config = _compose(*overrides)
    env = instantiate(config.env, seed=config.seed)
    return build_algorithm(config, env, torch.device("cpu"))


@pytest.mark.parametrize(
    "override",
    [
        "++world_model.use_continuation=no",
        "algorithm.use_symlog=off",
        "++world_model.absolute='yes'",
    ],
)
def test_words_do_not_count_as_true_wherever_they_come_from(override):
    """Sweeps, additions and other config folders are not checked before the parts are built."""
    with pytest.raises(OptionError, match=r"\.\w+=(no|off|yes) must be true or false"):
        _build("algorithm=dreamer_v3", "env=cartpole", override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "++algorithm.device=meta",
            "algorithm.device=meta has no effect.* Give device=... instead",
        ),
        (
            "++algorithm.world_model.belief_size=7",
            "world_model={.*7} has no effect.* world_model=...",
        ),
        ("++env.seed=7", "env.seed=7 has no effect.* Give seed=... instead"),
    ],
)
def test_options_that_the_run_sets_are_refused(override, message):
    with pytest.raises(OptionError, match=message):
        _build("algorithm=dreamer_v3", "env=cartpole", override)


@pytest.mark.parametrize("algorithm", ["dreamer_v1", "dreamer_v2", "dreamer_v3", "planet_small"])
def test_strategies_say_which_options_they_have(algorithm):
    given = _compose(f"algorithm={algorithm}").algorithm.kl
    for strategy, rule in STRATEGIES.items():
        surplus = [
            k for k in given if k != "strategy" and k not in inspect.signature(rule).parameters
        ]
        override = f"algorithm.kl.strategy={strategy}"
        if surplus:
            with pytest.raises(ValueError, match=f"~algorithm.kl.{sorted(surplus)[0]}"):
                _build(f"algorithm={algorithm}", "env=pendulum", override)
        without = [f"~algorithm.kl.{name}" for name in surplus]
        built = _build(f"algorithm={algorithm}", "env=pendulum", override, *without)
        assert isinstance(built.world_model_loss.divergence, rule)


def test_the_simulator_is_the_game_that_is_played():
    overrides = ["algorithm=alphazero", "env=factory", "env.factory=torchrl_wm.envs:LineGame"]
    size = ["++env.height=3", "++env.width=4", "++env.line=3"]
    built = _build(*overrides, *size)
    assert built.search.dynamics.model.env.board_shape == (3, 4)
