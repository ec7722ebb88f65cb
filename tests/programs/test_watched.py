"""Recordings of planners and searches follow a model whose parameters are replaced."""

import copy
import pickle

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Composite, OneHot, Unbounded

from torchrl_wm.planners import CEMPlanner, SearchPolicy
from torchrl_wm.programs.watched import Watched
from torchrl_wm.world_models import make_muzero, make_rssm


def searched(units=8):
    torch.manual_seed(0)
    specs = Composite(observation=Unbounded(3)), Composite(action=OneHot(2))
    model = make_muzero(*specs, hidden_size=8, units=units)
    act = lambda: SearchPolicy(model, num_simulations=8, greedy=True)
    root = model.filter(
        model.initial([2]).update(
            {
                "observation": torch.ones(2, 3),
                "is_init": torch.ones(2, 1, dtype=torch.bool),
                "previous_action": torch.zeros(2, 2),
            }
        )
    )
    return model, act, lambda policy: policy(root.clone())["root_value"]


def planned(units=8):
    torch.manual_seed(0)
    specs = Composite(observation=Unbounded(3)), Composite(action=Bounded(-1, 1, (2,)))
    sizes = {"belief_size": units, "hidden_size": units, "units": units}
    model = make_rssm(*specs, style="planet", **sizes, state_size=4, use_reconstruction=False)
    act = lambda: CEMPlanner(model, 3, 2, 16, 4, generator=torch.Generator())

    def plan(planner):
        planner.generator.manual_seed(0)
        return planner(model.initial([2]))["action"]

    return model, act, plan


def others(model):
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    return other


def assign(model):
    model.load_state_dict(others(model).state_dict(), assign=True)


def to_module(model):
    TensorDict.from_module(others(model)).to_module(model)


def new_head(model):
    model.reward_head = others(model).reward_head


def elsewhere(model):
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)


def trained(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()


# 8 units are carried out by a program, 400 are recorded by torch.jit.trace.
@pytest.mark.parametrize("units", [8, 400])
@pytest.mark.parametrize("make", [searched, planned])
@pytest.mark.parametrize("replace", [assign, to_module, new_head, elsewhere, trained])
def test_new_parameters_are_seen(make, replace, units):
    model, act, result = make(units)
    old = act()
    before = result(old)
    replace(model)
    torch.testing.assert_close(result(old), result(act()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, result(old))


def test_copies_watch_their_own_module():
    layer = nn.Linear(1, 1)
    watched = Watched(layer)
    watched.changed()
    for twin in (copy.deepcopy(watched), pickle.loads(pickle.dumps(watched))):
        assert twin.module is not layer and twin.changed() and not twin.changed()
