"""Numbers that no algorithm can work with are refused by name."""

import inspect
import math
from functools import partial

import pytest
from torchrl.data import Bounded, Composite, OneHot, Unbounded

from torchrl_wm.algorithms import DreamerV1, DreamerV2, DreamerV3, MuZero, PlaNet
from torchrl_wm.algorithms.options import RANGES
from torchrl_wm.modules.cells import GRU
from torchrl_wm.objectives.divergence_rules import STRATEGIES, make_divergence
from torchrl_wm.planners import CEMPlanner, GumbelRule, SearchPolicy
from torchrl_wm.world_models import make_identity, make_muzero, make_rssm

ALGORITHMS = (DreamerV1, DreamerV2, DreamerV3, MuZero, PlaNet)
CHECKED_BY_THEIR_PARTS = {"bins", "image_bits"}


def numbers(algorithm):
    options = inspect.signature(algorithm).parameters.values()
    return [
        option.name
        for option in options
        if isinstance(option.default, int | float) and not isinstance(option.default, bool)
    ]


def make(algorithm, **options):
    action = OneHot(2) if algorithm is MuZero else Bounded(-1, 1, (2,))
    return algorithm(Composite(observation=Unbounded(3)), Composite(action=action), **options)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_number_has_a_range_that_holds_its_default(algorithm):
    defaults = inspect.signature(algorithm).parameters
    for name in set(numbers(algorithm)) - CHECKED_BY_THEIR_PARTS:
        assert defaults[name].default in RANGES[name], name


@pytest.mark.parametrize("value", [-1, math.nan, "fast"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_numbers_out_of_range_are_named(algorithm, value):
    for name in set(numbers(algorithm)) - CHECKED_BY_THEIR_PARTS:
        with pytest.raises(ValueError, match=f"{name}={value!r} must be a "):
            make(algorithm, **{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 99}, "discount=99 must be a number from 0 to 1"),
        ({"lr": 0}, "lr=0 must be a number above 0"),
        ({"imagination_horizon": 1.5}, "must be a whole number of at least 1"),
        ({"bins": 1}, "bins=1"),
    ],
)
def test_the_message_says_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        make(DreamerV3, **options)


def test_a_search_that_contradicts_the_agent_is_named():
    search = partial(SearchPolicy, num_simulations=2, discount=0.5)
    with pytest.raises(ValueError, match="discount=0.5 contradicts.*algorithm.discount"):
        make(MuZero, planner=search)
    search = partial(SearchPolicy, num_simulations=2, rule=GumbelRule())
    with pytest.raises(ValueError, match="temperature_decay=100.*GumbelRule"):
        make(MuZero, planner=search, temperature_decay=100)


def test_parts_of_other_algorithms_are_named():
    with pytest.raises(TypeError, match="SearchPolicy.*not a CEMPlanner"):
        make(MuZero, planner=partial(CEMPlanner, planning_horizon=2))
    with pytest.raises(TypeError, match="make_muzero.*RSSM"):
        make(MuZero, world_model=make_rssm)
    with pytest.raises(ValueError, match="balance=2"):
        make(DreamerV2, kl={"strategy": "balanced", "balance": 2})


@pytest.mark.parametrize("option", ["free_bits", "discount", "entropy", "lr"])
def test_nothing_is_no_number(option):
    specs = Composite(x=Unbounded(3)), Composite(action=OneHot(2))
    with pytest.raises(ValueError, match=f"{option}=None must be a number"):
        DreamerV3(*specs, **{option: None})


def test_keywords_within_partials_are_kept():
    inner = partial(make_rssm, cell="gru", belief_size=24)
    inner.__name__ = "mine"  # with attributes of its own python keeps it apart
    outer = partial(inner, state_size=8)
    specs = Composite(observation=Unbounded(3)), Composite(action=OneHot(2))
    model = DreamerV3(*specs, size="tiny", world_model=outer).world_model
    assert model.latent_sizes == {"belief": 24, "state": 8 * 4} and isinstance(model.cell.gru, GRU)
    search = partial(SearchPolicy, discount=0.5)
    search.__name__ = "search"
    with pytest.raises(ValueError, match="discount=0.5 contradicts"):
        MuZero(*specs, planner=partial(search, num_simulations=3))


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (make_rssm, {"unimix": 2}, "unimix=2"),
        (make_rssm, {"prior_layers": -1}, "layers=-1"),
        (make_rssm, {"reward_layers": -2}, "layers=-2"),
        (make_muzero, {"layers": -1}, "layers=-1"),
        (make_muzero, {"head_layers": -1}, "layers=-1"),
        (make_identity, {"dynamics_layers": -1}, "layers=-1"),
        (make_identity, {"units": 0}, "units=0"),
    ],
)
def test_sizes_out_of_range_are_named(factory, options, message):
    specs = Composite(observation=Unbounded(3)), Composite(action=OneHot(2))
    with pytest.raises(ValueError, match=f"{message} must be a"):
        factory(*specs, **options)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_of_a_divergence_are_no_rewards(strategy):
    name = "dynamics_scale" if strategy == "separate" else "scale"
    with pytest.raises(ValueError, match=f"{name}=-1 must be"):
        make_divergence(strategy, free_bits=1.0, **{name: -1})


def test_overshooting_needs_sequences_as_long():
    specs = Composite(observation=Unbounded(3)), Composite(action=Bounded(-1, 1, (2,)))
    assert PlaNet(*specs, size="small").shortest_sequence == 1
    assert PlaNet(*specs, size="small", overshooting_distance=5).shortest_sequence == 5
