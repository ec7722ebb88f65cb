"""Plans in a model's program equal those of its own operations, and follow training."""

import pickle

import pytest
import torch
from torchrl.data import Bounded, Composite, Unbounded

from torchrl_wm.planners import CEMPlanner, imagined_steps
from torchrl_wm.planners import simulators as simulators_module
from torchrl_wm.planners.simulators import ModelSimulator
from torchrl_wm.programs import bfloat16
from torchrl_wm.programs import program as program_module
from torchrl_wm.programs.program import Program
from torchrl_wm.world_models import make_identity, make_muzero, make_rssm

SPECS = Composite(observation=Unbounded(3)), Composite(action=Bounded(-1, 1, (2,)))
SMALL = {"belief_size": 12, "hidden_size": 10, "units": 14}
GAUSSIAN = {"latent": "gaussian", "state_size": 5, **SMALL}
MODELS = {
    "planet": lambda: make_rssm(*SPECS, style="planet", cell="reset_before", **GAUSSIAN),
    "v1": lambda: make_rssm(*SPECS, style="v1", cell="gru", use_continuation=False, **GAUSSIAN),
    "categorical": lambda: make_rssm(*SPECS, style="v3", latent="categorical", belief_size=16),
}
OTHERS = {
    "identity": lambda: make_identity(*SPECS, units=14),
    "ensemble": lambda: make_identity(*SPECS, units=14, members=3),
    "muzero": lambda: make_muzero(*SPECS),
}


def starts(model, rows=2):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(rows, n, generator=generator) for n in model.latent_sizes.values())


def returns(simulator, start, horizon=4, candidates=11):
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(len(start[0]), candidates, horizon, 2, generator=generator) * 2 - 1
    with torch.no_grad():
        return simulator.returns(start, actions, generator)


def simulators(model, **options):
    options = {"discount": 0.9, "terminal_value": lambda x: x.sum(-1, keepdim=True), **options}
    return [ModelSimulator(model, trace=trace, **options) for trace in (True, False)]


@pytest.mark.parametrize("discount", [0.9, 1.0])
@pytest.mark.parametrize("name", MODELS)
def test_returns_are_those_of_the_model(name, discount):
    model = MODELS[name]()
    fast, plain = simulators(model, discount=discount)
    for rows, horizon in ((2, 4), (1, 1), (5, 3)):
        start = starts(model, rows)
        kept = [x.clone() for x in start]
        found, expected = (returns(x, start, horizon) for x in (fast, plain))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(list(start), kept, rtol=0, atol=0)  # a plan changes no state
    assert fast.steps._followed.program is not None


@pytest.mark.parametrize("name", OTHERS)
def test_what_no_program_expresses_is_planned_in_as_before(name):
    fast, plain = simulators(OTHERS[name]())
    start = starts(fast.model)
    torch.testing.assert_close(returns(fast, start), returns(plain, start), rtol=1e-4, atol=1e-5)
    assert fast.steps._followed.program is None


def test_training_and_moved_parameters_are_seen():
    model = MODELS["planet"]()
    fast, plain = simulators(model)
    start = starts(model)
    before = returns(fast, start)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    trained = returns(fast, start)
    torch.testing.assert_close(trained, returns(plain, start), rtol=1e-4, atol=1e-5)
    assert (trained - before).abs().max() > 1e-2
    for parameter in model.parameters():
        parameter.data = parameter.data - 0.1  # as by a device and back
    torch.testing.assert_close(returns(fast, start), before, rtol=1e-3, atol=1e-4)


def test_parameters_are_read_once_for_each_plan(monkeypatch):
    torch.manual_seed(0)
    model, reads = MODELS["planet"](), []
    planners = [CEMPlanner(model, 3, 4, 8, 2, trace=trace) for trace in (True, False)]
    refresh = Program.refresh
    monkeypatch.setattr(Program, "refresh", lambda self: reads.append(1) or refresh(self))
    start = model.initial([5])
    draws = [torch.randn(5, 8, 3, 2) for _ in range(4)]
    plan = lambda planner: planner.plan(start, noise=draws)[0]
    for _ in range(3):
        for planner in planners:
            planner.generator = torch.Generator().manual_seed(0)
        reads.clear()
        found, expected = map(plan, planners)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
    assert len(reads) == 1


def test_parameters_are_read_when_the_plan_began_without_a_program():
    model = MODELS["planet"]()
    fast, _ = simulators(model)
    returns(fast, starts(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    steps = fast.steps
    actions, noise, latents = torch.rand(3, 4, 2), torch.rand(3, 4, 5), starts(model, 4)
    assert steps.program(actions.double(), noise, latents) is None
    program = steps.program(actions, noise, latents, unchanged=True)
    found, _, _ = steps(program, actions, noise, latents)
    expected = model.reward_head(torch.cat(model.unroll(latents, actions, noise), -1)).mean
    torch.testing.assert_close(found, expected.squeeze(-1), rtol=1e-4, atol=1e-5)


def test_autocast_rounds_products_where_the_processor_has_them():
    fast, _ = simulators(MODELS["planet"]())
    start, found = starts(fast.model), []
    for enabled in (False, True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(returns(fast, start))
    assert fast.steps._followed.program is not None
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0.05)
    assert torch.equal(found[0], found[1]) is not bfloat16.SUPPORTED


def test_double_precision_and_large_models_go_to_torch(monkeypatch):
    model = MODELS["v1"]()
    fast, _ = simulators(model)
    actions, noise, latents = torch.rand(3, 4, 2), torch.rand(3, 4, 5), starts(model, 4)
    assert fast.steps.program(actions, noise, latents) is not None
    assert fast.steps.program(actions.double(), noise, latents) is None
    monkeypatch.setattr(program_module, "_LARGEST", 10)
    fast, _ = simulators(model)
    assert fast.steps.program(actions, noise, latents) is None


def test_a_planner_is_pickled_without_its_program():
    planner = CEMPlanner(MODELS["v1"](), 3, 2, 8, 2, generator=torch.Generator().manual_seed(3))
    td = planner.simulator.model.initial([2])
    first = planner(td.clone())["action"]
    planner.generator.manual_seed(3)
    other = pickle.loads(pickle.dumps(planner))
    assert other.simulator.steps._followed.program is None
    other.generator = planner.generator
    torch.testing.assert_close(other(td.clone())["action"], first)


@pytest.mark.parametrize("name", ["planet", "identity", "ensemble"])
def test_blocks_of_rows_are_imagined_as_all_rows_at_once(name, monkeypatch):
    simulator = ModelSimulator((MODELS | OTHERS)[name](), discount=0.9, trace=False)
    start = starts(simulator.model)
    expected = returns(simulator, start, candidates=25)
    monkeypatch.setattr(simulators_module, "_BLOCK", 13)
    calls = []
    simulator.imagined = lambda *inputs: calls.append(inputs) or simulator._imagine(*inputs)
    torch.testing.assert_close(returns(simulator, start, candidates=25), expected)
    assert len(calls) > 3 and all(block[0].shape[1] <= 13 for block in calls)


def test_sequences_shared_out_to_threads_are_the_same(monkeypatch):
    model, before = MODELS["planet"](), torch.get_num_threads()
    fast, plain = simulators(model)
    start = starts(model, rows=7)
    expected = returns(fast, start, candidates=41)
    torch.testing.assert_close(expected, returns(plain, start, candidates=41), rtol=1e-4, atol=1e-5)
    shares, real = [], imagined_steps.in_threads
    monkeypatch.setattr(
        imagined_steps, "in_threads", lambda *x: shares.append(len(real(*x))) or shares[-1]
    )
    monkeypatch.setattr(imagined_steps, "_SHARE", 16)
    torch.set_num_threads(3)
    try:
        found = returns(fast, start, candidates=41)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert shares == [3]
