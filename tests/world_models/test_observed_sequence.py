"""Observed sequences in programs equal those of the modules, step by step, and so do their gradients."""

from __future__ import annotations

import copy
import pickle
import warnings
from contextlib import nullcontext

import pytest
import torch
from tensordict import TensorDict
from torch.utils.flop_counter import FlopCounterMode
from torchrl.data import Bounded, Composite, OneHot, Unbounded

from torchrl_wm.world_models import RSSM, make_rssm, observed_sequence

OBSERVATIONS = Composite(observation=Unbounded(5))
V3 = {"style": "v3", "belief_size": 64, "units": 24, "hidden_size": 16, "classes": 4}
MODELS = {
    "v3": V3,
    "narrow blocks": {**V3, "belief_size": 24, "units": 9, "hidden_size": 10, "classes": 5},
    "more layers": {**V3, "posterior_layers": 2},
    "without unimix": {**V3, "unimix": 0.0},
    "Gaussian": {"style": "v3", "latent": "gaussian", "belief_size": 32, "state_size": 6},
    "other deviation": {"style": "v3", "latent": "gaussian", "belief_size": 32, "std": "sigmoid2"},
    "v1": {"style": "v1", "cell": "gru", "latent": "gaussian", "belief_size": 30},
    "planet": {"style": "planet", "latent": "gaussian", "belief_size": 30, "cell": "reset_before"},
    "v2": {"style": "v2", "cell": "layer_norm", "belief_size": 30},
    "tanh": {**V3, "activation": "tanh", "cell": "gru"},
}
STEPS, ROWS = 40, 13


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(observed_sequence, "_FEWEST", 2 * STEPS)


def make(name="v3", action=None, **options) -> RSSM:
    torch.manual_seed(0)
    spec = Composite(action=Bounded(-1, 1, (2,)) if action is None else action)
    model = make_rssm(OBSERVATIONS, spec, **MODELS[name], **options)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # scales that are not 1
    return model


def records(model, rows=ROWS, steps=STEPS) -> TensorDict:
    shape, generator = (rows, steps), torch.Generator().manual_seed(1)
    draw = lambda *size: torch.rand(*shape, *size, generator=generator)
    return TensorDict(
        {
            "observation": 2 * draw(5) - 1,
            "previous_action": 2 * draw(model.action_encoding.size) - 1,
            "is_init": draw(1) < 0.15,
        },
        shape,
    )


def observed(model, sample, carry=None, noise=None, **options) -> tuple[dict, dict]:
    """All results, and the gradients of a sum of them with fixed weights."""
    generator = torch.Generator().manual_seed(2)
    noise = model.noise(sample.shape, generator=generator) if noise is None else noise
    model.zero_grad()
    out = model.observe(sample, carry, noise=noise, **options)
    found = {str(key): value for key, value in out.items(True, True)}
    weigh = lambda x: (x * torch.randn(x.shape, generator=generator)).sum()
    sum(weigh(found[key]) for key in sorted(found)).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found, gradients


def in_turn(model, *inputs, **options) -> tuple[dict, dict]:
    """The same by the modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observed_sequence, "_FEWEST", 2**60)
        return observed(model, *inputs, **options)


def assert_same(found, expected, tolerance=2e-5):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            scale = value.abs().max().item()
            torch.testing.assert_close(ours[key], value, rtol=0, atol=tolerance * max(scale, 1e-3))


def used(model) -> bool:
    sequence = model._sequence
    return None not in (sequence._ahead.program, sequence._back.program)


@pytest.mark.parametrize("rows", [2, ROWS])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_the_modules(name, rows):
    model = make(name)
    sample, carry = records(model, rows), model.initial([rows]).apply_(lambda x: x.uniform_(-1, 1))
    for entry in carry.values():
        entry.requires_grad_()
    found = observed(model, sample, carry)
    ours = {key: entry.grad.clone() for key, entry in carry.items()}
    carry.apply_(lambda x: setattr(x, "grad", None) or x)
    expected = in_turn(model, sample, carry)
    theirs = {key: entry.grad for key, entry in carry.items()}
    assert used(model)
    assert_same((*found, ours), (*expected, theirs))
    assert len(found[1]) > 10 and all(x.abs().max() > 1e-6 for x in found[1].values())


def test_one_hot_actions_and_no_carry():
    model = make(action=OneHot(3))
    sample = records(model)
    assert_same(observed(model, sample), in_turn(model, sample))
    assert used(model)


def test_training_is_followed_and_replaced_parts_are_noticed():
    model = make()
    sample = records(model)
    for _ in range(2):
        found = observed(model, sample)
        assert_same(found, in_turn(model, sample))
        with torch.no_grad():
            for name, gradient in found[1].items():
                model.get_parameter(name).sub_(0.01 * gradient / gradient.abs().max())
    before = model._sequence._back.program
    model.cell = copy.deepcopy(model.cell)
    with torch.no_grad():
        model.cell.hidden.mul_(-1)
    assert_same(observed(model, sample), in_turn(model, sample))
    assert model._sequence._back.program is not before


def test_hooks_of_gradients_are_called_once_a_backward_pass():
    model, calls = make(), []
    sample = records(model)
    handle = model.cell.hidden.register_hook(lambda gradient: calls.append(1))
    noise = model.noise(sample.shape)
    first = observed(model, sample, noise=noise)
    assert len(calls) == 1
    handle.remove()
    assert_same(observed(model, sample, noise=noise), first)
    assert len(calls) == 1 and used(model)


def test_parameters_may_be_frozen_and_trained_again():
    model = make()
    sample = records(model)
    for trained in (True, False, True):
        model.cell.requires_grad_(trained)
        found = observed(model, sample)
        assert_same(found, in_turn(model, sample))
        assert any(name.startswith("cell.") for name in found[1]) == trained
    assert used(model)


def test_without_gradients_nothing_is_differentiated():
    model = make()
    sample, noise = records(model), model.noise((ROWS, STEPS))
    with torch.no_grad():
        found = model.observe(sample, noise=noise)
    assert model._sequence._back.program is None and model._sequence._ahead.program is not None
    expected = model.observe(sample, noise=noise)
    torch.testing.assert_close(found["belief"], expected["belief"], rtol=0, atol=0)
    assert expected["belief"].requires_grad and not found["belief"].requires_grad


def test_what_has_no_program_of_its_derivative_goes_through_the_modules(caplog):
    model = make("tanh")
    model.cell.activation = torch.nn.functional.softsign
    sample = records(model)
    assert_same(observed(model, sample), in_turn(model, sample), tolerance=0)
    assert not used(model)


def test_few_rows_go_through_the_modules():
    model = make()
    observed(model, records(model, rows=1))
    assert model._sequence._ahead.program is None


def test_gradients_of_many_rows_of_large_models_go_through_the_modules(monkeypatch):
    model = make()
    sample = records(model)
    expected = observed(model, sample)
    size = model._sequence._back.program.network.weights.size
    monkeypatch.setattr(observed_sequence, "_MOST", ROWS * size // torch.get_num_threads() - 1)
    found = observed(model, sample)
    assert_same(found, expected)
    assert_same(found, in_turn(model, sample), tolerance=0)
    with torch.no_grad():
        model.observe(sample)
    with monkeypatch.context() as patch:
        patch.setattr(
            observed_sequence.Program, "unroll", None
        )  # would be called without gradients only
        observed(model, sample)
        with torch.no_grad(), pytest.raises(TypeError):
            model.observe(sample)


def test_a_reset_ends_what_is_not_finite():
    model = make()
    sample = records(model)
    sample["is_init"] = torch.zeros(ROWS, STEPS, 1, dtype=torch.bool)
    sample["is_init"][3, 20] = True
    sample["previous_action"][3, 10] = torch.nan
    found = model.observe(sample)["belief"].isnan().flatten(-1).any(-1)
    expected = torch.zeros(ROWS, STEPS, dtype=torch.bool)
    expected[3, 10:20] = True
    assert torch.equal(found, expected) and model._sequence._ahead.program is not None


def test_a_graph_can_be_gone_through_twice_and_parts_can_be_left_out():
    model = make()
    sample = records(model)
    belief = model.observe(sample)["belief"]
    first = torch.autograd.grad(belief.sum(), model.cell.hidden, retain_graph=True)
    assert torch.equal(*first, *torch.autograd.grad(belief.sum(), model.cell.hidden))


def test_there_is_no_second_derivative():
    model = make()
    sample = records(model)
    observation = sample["observation"].requires_grad_()
    sample["observation"] = observation
    for loss in (torch.sum, lambda x: x.square().sum()):
        belief = model.observe(sample)["belief"]
        with pytest.raises(RuntimeError, match="has no derivative.*fewer than"):
            torch.autograd.grad(loss(belief), observation, create_graph=True)


@pytest.mark.parametrize("first", ["resets", "nan", "counter", "hooks", "anomaly"])
def test_what_is_odd_about_the_first_call_does_not_decide_about_the_next(first):
    model = make()
    sample, odd = records(model), records(model)
    context = {
        "counter": FlopCounterMode(display=False),
        "hooks": torch.autograd.graph.save_on_cpu(),
        "anomaly": torch.autograd.detect_anomaly(check_nan=False),
    }
    if first == "resets":
        odd["is_init"] = torch.ones_like(odd["is_init"])
    elif first == "nan":
        odd["observation"] = torch.full_like(odd["observation"], torch.nan)
    with context.get(first, nullcontext()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observed(model, odd)
    assert_same(observed(model, sample), in_turn(model, sample))
    assert used(model)


def test_transformations_of_functions_go_through_the_modules():
    model = make()
    sample, noise = records(model), model.noise((ROWS, STEPS))

    def loss(bias):
        return torch.func.functional_call(
            model, {"cell.hidden_bias": bias}, (sample,), {"noise": noise}
        )

    model.forward = lambda sample, noise: model.observe(sample, noise=noise)["belief"].sum()
    gradient = torch.func.grad(loss)(model.cell.hidden_bias.detach())
    (expected,) = torch.autograd.grad(model.forward(sample, noise), model.cell.hidden_bias)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-3)


def test_what_draws_in_a_step_is_not_drawn_once_more():
    found = []
    for few in (2 * STEPS, 2**60):
        model = make()
        model.posterior.output = torch.nn.Sequential(torch.nn.Dropout(0.5), model.posterior.output)
        sample, noise = records(model), model.noise((ROWS, STEPS))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(observed_sequence, "_FEWEST", few)
            torch.manual_seed(3)
            found.append([model.observe(sample, noise=noise)["belief"].detach(), torch.rand(3)])
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_compiled_steps_give_the_same():
    model = make()
    sample = records(model)
    expected = observed(model, sample)
    model.compile_steps(backend="aot_eager")
    assert_same(observed(model, sample), expected)


def test_autocast_does_not_round_observed_steps():
    model = make()
    sample, noise = records(model), model.noise((ROWS, STEPS))
    with torch.autocast("cpu", torch.bfloat16):
        found = model.observe(sample, noise=noise)["belief"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(observed_sequence, "_FEWEST", 2**60)
            expected = model.observe(sample, noise=noise)["belief"]
    assert found.dtype == torch.float32 and used(model)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_copies_record_their_own():
    model = make()
    sample = records(model)
    expected = observed(model, sample)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other._sequence.model is other and other._sequence._ahead.program is None
        assert_same(observed(other, sample), expected, tolerance=0)
