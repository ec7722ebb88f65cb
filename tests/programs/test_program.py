"""A network as instructions: the numbers of torch, whatever it is made of; what it cannot express."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_dynamics import Plain, assert_equal_trees
from torch import nn
from torch.nn import functional as F
from torchrl.data import Composite, OneHot, Unbounded

from torchrl_wm.functional.one_hot import one_hot_of_largest
from torchrl_wm.modules.networks import block_product
from torchrl_wm.planners import GumbelRule, MuZeroRule, search
from torchrl_wm.planners.tree_search import (
    EXECUTORS,
    NodeEvaluator,
    Root,
)
from torchrl_wm.planners.tree_search.discrete import DiscreteDynamics
from torchrl_wm.planners.tree_search.models import TensorModel
from torchrl_wm.programs import program, translations
from torchrl_wm.programs.instructions import Code
from torchrl_wm.programs.program import Program, Untranslatable
from torchrl_wm.world_models import make_muzero

ROWS = (1, 3, 16, 37)  # of one tile and of several blocks, whole and broken
SIZE = 20
WEIGHT, BIAS, SCALE = (
    torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (100, 5, 20)
)
BLOCKS = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(4))
EXPRESSIONS = {
    "relu": F.relu,
    "elu": F.elu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "tanh_": lambda x: (x * 1).tanh_(),
    "sigmoid": torch.sigmoid,
    "sigmoid_": lambda x: (x * 1).sigmoid_(),
    "softplus": lambda x: F.softplus(x * torch.logspace(-3, 1.8, SIZE)),
    "softplus of a copy": lambda x: F.softplus((x * 2).clone()),
    "lerp": lambda x: torch.lerp(x, x.flip(-1), x.sigmoid()),
    "exp": torch.exp,
    "exp of large numbers": lambda x: (x * torch.logspace(-3, 1.5, SIZE)).exp(),
    "abs": torch.abs,
    "neg": torch.neg,
    "sqrt": lambda x: x.abs().sqrt(),
    "rsqrt": lambda x: (x.abs() + 0.1).rsqrt(),
    "sign": lambda x: (x - x[:, :1]).sign(),
    "square": lambda x: x**2,
    "add": lambda x: x + x.flip(-1),
    "add_": lambda x: (x * 1).add_(x),
    "sub": lambda x: x - x[:, 3:4],
    "sub from a column": lambda x: x[:, 3:4] - x,
    "rsub": lambda x: 1 - x,
    "mul": lambda x: x * SCALE,
    "mul_": lambda x: (x * 1).mul_(2.0),
    "div": lambda x: x / (x.amax(-1, keepdim=True) + 9),
    "div by a parameter": lambda x: SCALE / (x.abs() + 1),
    "maximum": lambda x: torch.maximum(x, x.flip(-1)),
    "minimum": lambda x: torch.minimum(x, x.flip(-1)),
    "clamp_min": lambda x: x.clamp_min(-0.3),
    "clamp_max": lambda x: x.clamp_max(0.3),
    "where": lambda x: torch.where(x < 0, 2.0, x * 3),
    "eq": lambda x: torch.where(x - x[:, :1] == 0, 1.0, 0.0),
    "to a number": lambda x: (x < 0.2).to(x.dtype) * x,
    "amin": lambda x: x.amin(-1, keepdim=True),
    "sum": lambda x: x.sum(-1, keepdim=True),
    "mean": lambda x: x.mean(-1, keepdim=True),
    "of each row": lambda x: (x.sum(-1) * 2).unsqueeze(-1),
    "softmax": lambda x: F.softmax(30 * x, -1),
    "layer_norm": lambda x: F.layer_norm(x, (SIZE,), SCALE, WEIGHT[:SIZE], 1e-3),
    "layer_norm alone": lambda x: F.layer_norm(x, (SIZE,)),
    "flip": lambda x: x.flip(-1),
    "slice": lambda x: x[:, 3:-2] * 1,
    "slice of everything": lambda x: x[:, 0:] * 1,
    "select": lambda x: x[:, -2].unsqueeze(-1) + 0,
    "split": lambda x: x.split([4, 16], -1)[1] * x.chunk(2, -1)[1].sum(-1, keepdim=True),
    "cat": lambda x: torch.cat([x[:, 7:9], x, x[:, :1]], -1),
    "linear": lambda x: F.linear(x, WEIGHT.view(5, SIZE), BIAS),
    "linear without a bias": lambda x: F.linear(x, WEIGHT.view(5, SIZE)),
    "linear of a parameter's function": lambda x: F.linear(x, 2 * WEIGHT.view(5, SIZE).flip(0), BIAS),
    "log": lambda x: (x.abs() + 0.1).log(),
    "log_softmax": lambda x: F.log_softmax(99 * x, -1),
    "softmax of fours": lambda x: F.softmax(30 * x.view(-1, 5, 4), -1).flatten(1),
    "softmax of fives": lambda x: F.softmax(30 * x.view(-1, 4, 5), -1).flatten(1),
    "one-hot": lambda x: one_hot_of_largest(x),
    "one-hot of fours": lambda x: one_hot_of_largest(x.view(-1, 5, 4)).flatten(1),
    "one-hot of fives": lambda x: one_hot_of_largest(x.view(-1, 4, 5)).flatten(1),
    "first of equals": lambda x: one_hot_of_largest(x.sign().view(-1, 5, 4)).flatten(1),
    "first of equal fives": lambda x: one_hot_of_largest(x.sign().view(-1, 4, 5)).flatten(1),
    "clamp": lambda x: x.clamp(-SCALE.abs(), SCALE.abs()),
    "less than a value": lambda x: (x < x.flip(-1)).to(x.dtype),
    "blocks": lambda x: block_product(x, BLOCKS),
    "blocks with a bias": lambda x: (
        torch.baddbmm(BLOCKS[:, :1], x.view(-1, 4, 5).transpose(0, 1), BLOCKS)
        .sigmoid().mul(2).transpose(0, 1).flatten(1)
    ),
    "narrow blocks before a value": lambda x: (
        lambda y: torch.cat([block_product(x, BLOCKS[:, :, :3]), y * y], -1)
    )(x.tanh()),
    "part of a softmax before a value": lambda x: (
        lambda y: torch.cat([x.softmax(-1)[:, :2], y], -1)
    )(x.tanh()),
    "part of a one-hot before a value": lambda x: (
        lambda y: torch.cat([one_hot_of_largest(x)[:, :2], y], -1)
    )(x.tanh()),
    "relu of blocks": lambda x: F.relu(
        torch.bmm(x.view(-1, 4, 5).transpose(0, 1), BLOCKS).transpose(0, 1)
    ).flatten(1),
    "blocks of a parameter's function": lambda x: block_product(x, 1 - BLOCKS.exp()),
    "ones_like": lambda x: x + torch.ones_like(x),
    "full_like": lambda x: x * torch.full_like(x, 3.0),
}  # fmt: skip
MODELS = {
    "relu": {},
    "layer": {"norm": "layer", "activation": "silu"},
    "rms": {"norm": "rms", "activation": "elu", "scaling": "none"},
    "tanh": {"activation": "tanh", "layers": 3, "head_layers": 2, "units": 33, "support": 10},
    "prefix": {"use_value_prefix": True, "hidden_size": 19},
}


def memory(rows, *sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(3 * rows, size, generator=generator) for size in sizes)


def check(function, rows, *sizes, rtol=1e-5, atol=2e-6):
    """Both ways from the first third of the memory to the last; recorded with fewer rows."""
    index = torch.randperm(2 * rows)[:rows]
    action = torch.randint(3, (rows,))
    few = memory(2, *sizes)
    program = Program(function, (index[:2] * 0, action[:2], *few, *(x[4:] for x in few)))
    ours, theirs = memory(rows, *sizes), memory(rows, *sizes)
    found = program(index, action, ours, 2 * rows)
    expected = function(index, action, *theirs, *(x[2 * rows :] for x in theirs))
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_operations(name):
    def function(index, action, latents, places):
        out = EXPRESSIONS[name](latents.index_select(0, index))
        places.copy_(latents.index_select(0, index))
        return out

    check(function, 19, SIZE)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", MODELS)
def test_models(name, rows):
    evaluator = NodeEvaluator(muzero(**MODELS[name]))
    model = evaluator.dynamics.model.model
    sizes = [19 if name == "prefix" else 64]
    if model.value_prefix is not None:
        sizes.append(model.value_prefix.size)
    with torch.no_grad():
        # A value is a difference of sums of 601 products, and then nearly squared.
        check(evaluator.forward, rows, *sizes, rtol=2e-4, atol=2e-5)


def muzero(std=0.2, **options):
    torch.manual_seed(0)
    spec = Composite(observation=Unbounded(4)), Composite(action=OneHot(3))
    model = make_muzero(*spec, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return DiscreteDynamics(TensorModel(model, 0.99), 0.99)


def test_the_gradient_of_relu_is_that_of_torch_for_every_number():
    x = torch.tensor([-1.0, 0.0, 2.0, torch.nan, -torch.inf, torch.inf])
    numbers = torch.tensor([1.0, -2.0, torch.inf, -torch.inf, torch.nan, 0.0])
    pairs = torch.cartesian_prod(x, numbers)

    def function(index, action, pairs, places):
        x, gradient = pairs.index_select(0, index).split(1, -1)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(F.relu(x), x, gradient)
        return found

    rows = torch.arange(len(pairs))
    found = Program(function, (rows, rows, pairs, pairs.clone()))(rows, rows, [pairs], 0)
    expected = function(rows, rows, pairs, pairs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_states_are_written_where_they_can_be():
    x, states = torch.randn(2, 3), torch.empty(4, 2, 3).transpose(0, 1)
    program = Program(lambda i, _, x, place: x.index_select(0, i), (torch.arange(2),) * 2 + (x, x))
    with pytest.raises(ValueError, match="contiguous"):
        program.unroll(x, states, states, states, 8)


def test_functions_of_parameters_follow_training():
    weight = torch.randn(SIZE, SIZE)

    def function(index, action, latents, places):
        x = latents.index_select(0, index)
        places.copy_(x)
        return x @ (2 * weight.t()).exp() + (weight.t() * 3)[0]

    index, few = torch.arange(3), memory(1, SIZE)
    program = Program(function, (index, index, *few, few[0].clone()))
    for _ in range(2):
        program.refresh()
        found = program(index, index, memory(2, SIZE), 3)
        expected = function(index, index, *memory(2, SIZE), torch.empty(3, SIZE))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        weight.mul_(-0.5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 20), st.booleans(), st.integers(0, 99))
def test_a_search_that_never_leaves_the_loop_makes_the_trees_of_the_reference(
    rows, actions, simulations, halving, seed
):
    torch.manual_seed(seed)
    model = Plain(actions)
    root = model.roots(rows, seed)
    root.logits[torch.rand_like(root.logits) < 0.3] = -torch.inf
    root.logits[:, seed % actions] = 1.0
    rule = GumbelRule(max_considered_actions=4) if halving else MuZeroRule()
    evaluator, noise = NodeEvaluator(model), rule.draw_noise(root.logits > -torch.inf)
    one, other = (
        search(
            evaluator,
            root,
            rule,
            num_simulations=simulations,
            noise=noise,
            executor=name,
            keep_latents=True,
        )
        for name in EXECUTORS
    )
    assert evaluator.program is not None
    assert_equal_trees(one, other)


@pytest.mark.parametrize("rule", [MuZeroRule(), GumbelRule()], ids=["muzero", "gumbel"])
def test_training_is_seen_by_the_next_search(rule):
    dynamics = muzero()
    root = Root((torch.rand(5, 64),), torch.zeros(5), torch.zeros(5, 3))
    recorded, plain = NodeEvaluator(dynamics), NodeEvaluator(dynamics, trace=False)
    for _ in range(2):
        trees = [search(e, root, rule, num_simulations=6) for e in (recorded, plain)]
        torch.testing.assert_close(*(tree["node_values"] for tree in trees), rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            for parameter in dynamics.parameters():
                parameter.mul_(-0.9)
    assert recorded.program is not None


@pytest.mark.parametrize("rule", [MuZeroRule(), GumbelRule()], ids=["muzero", "gumbel"])
@pytest.mark.parametrize("after", [F.relu, torch.tanh, F.elu, F.silu, lambda x: F.softmax(x, -1)])
def test_a_nan_is_named_and_not_swallowed_by_an_activation(rule, after):
    model = Plain(after=after)
    evaluator, root = NodeEvaluator(model), model.roots(20)
    search(evaluator, root, rule, num_simulations=3)
    with torch.no_grad():
        model.net.bias[2] = torch.nan  # of a latent: seen from the second step on
    with pytest.raises(FloatingPointError, match=r"node \d of row \d+, action \d of node [1-9]"):
        search(evaluator, root, rule, num_simulations=4)
    assert evaluator.program is not None


@pytest.mark.parametrize(
    "after, reason",
    [(torch.cumsum, "cumsum"), (lambda x: x[WEIGHT[: len(x)].argsort()], "alone"),
     (lambda x: x - x.mean(0), "dimension"), (lambda x: x @ x.T @ x, "permute"),
     (lambda x: x**4, "power"), (lambda x: x.reshape(2 * len(x), 4).view(-1, 8) * 1, "as"),
     (lambda x: x + WEIGHT[:8].clone().mul_(2), "mul_.Tensor of parameters alone"),
     (lambda x: x + WEIGHT[:8].sort()[0], "sort.default of parameters alone"),
     (lambda x: x.double().float(), "type"),
     (lambda x: ((x < 0.1) + (x.flip(-1) < 0.1)).float(), "truth values"),
     (lambda x: x * WEIGHT[0].item(), "alone"),
     (lambda x: (x.argmax(-1, keepdim=True) == torch.arange(99)).float()[:, :8] * 1, "all its indices"),
     (lambda x: x - torch.native_layer_norm(x, (8,), None, None, 1e-5)[1], "no instruction computes"),
     (lambda x: F.one_hot(x.argmax(-1), 8).float(), "keepdim"),
     (lambda x: (x.argmax(-1, keepdim=True) == torch.arange(8) + 1).float(), "all its indices"),
     (lambda x: x.view(-1, 2, 4).transpose(0, 1).softmax(-1).transpose(0, 1).flatten(1), "blocks before"),
     (lambda x: x.view(-1, 2, 4).mT.flatten(1), "rows and blocks"),
     (lambda x: x * x.view(-1, 2, 4).amax(-1).sum(-1, keepdim=True), "dimension")],
)  # fmt: skip
def test_what_it_cannot_express_is_traced(after, reason, caplog):
    function = (lambda x: x.cumsum(-1)) if after is torch.cumsum else after
    model = Plain(after=function)
    evaluator, root = NodeEvaluator(model), model.roots(6)
    with caplog.at_level(logging.INFO, "torchrl_wm"):
        tree = search(evaluator, root, MuZeroRule(), num_simulations=4)
    assert evaluator.program is None and reason in caplog.text
    plain = search(model, root, MuZeroRule(), num_simulations=4)
    torch.testing.assert_close(tree["node_values"], plain["node_values"])


def test_what_draws_anew_has_no_program():
    def function(index, action, latents, places):
        x = latents.index_select(0, index)
        places.copy_(x)
        return x + torch.rand(SIZE)

    with pytest.raises(Untranslatable, match="rand.default, which draws anew"):
        check(function, 40, SIZE)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: torch.zeros_like(x).add_(x),
        lambda x: torch.cat([torch.ones_like(x).mul_(x), x], -1),
        lambda x: torch.full_like(x, 2.0).tanh_() + x,
        lambda x: torch.ones_like(x)[:, 2:5].add_(1.0) + x[:, :3],
    ],
)
def test_a_constant_that_is_changed_in_place_has_no_program(change):
    def function(index, action, latents, places):
        x = latents.index_select(0, index)
        places.copy_(x)
        return change(x)

    with pytest.raises(Untranslatable, match="a constant that is changed in place"):
        check(function, 40, SIZE)


def test_a_wrong_program_is_not_used(caplog, monkeypatch):
    changed = program.TRANSLATIONS | {torch.ops.aten.tanh.default: translations._unary(Code.ABS)}
    monkeypatch.setattr(program, "TRANSLATIONS", changed)
    model = Plain()
    evaluator = NodeEvaluator(model)
    with caplog.at_level(logging.INFO, "torchrl_wm"):
        search(evaluator, model.roots(4), MuZeroRule(), num_simulations=2)
    assert evaluator.program is None and "other numbers" in caplog.text


def test_a_program_that_stores_nothing_is_not_used(monkeypatch):
    forgetful = {torch.ops.aten.copy_.default: lambda *_: None}
    monkeypatch.setattr(program, "TRANSLATIONS", program.TRANSLATIONS | forgetful)
    model = Plain()
    evaluator = NodeEvaluator(model)
    search(evaluator, model.roots(3), MuZeroRule(), num_simulations=3)
    assert evaluator.program is None


def test_latents_in_double_precision_are_not_recorded_as_a_program():
    model = Plain().double()
    root = model.roots(3)
    root = Root((root.latents[0].double(),), root.value.double(), root.logits.double())
    evaluator = NodeEvaluator(model)
    search(evaluator, root, MuZeroRule(), num_simulations=3)
    assert evaluator.program is None
    with pytest.raises(Untranslatable, match="single precision"):
        Program(
            lambda *x: x[2], (torch.zeros(1), torch.zeros(1), *[torch.zeros(1, 2).double()] * 2)
        )


def test_tensors_on_another_device_are_not_recorded_as_a_program(caplog):
    evaluator = NodeEvaluator(muzero().to("meta"))
    latents = torch.zeros(4, 64, device="meta")
    inputs = torch.zeros(4, dtype=torch.long, device="meta")
    with caplog.at_level(logging.INFO):
        made = program.recorded_program(
            evaluator.forward, (inputs, inputs, latents, latents.clone()), "model"
        )
    assert made is None and "another device than the CPU" in caplog.text


def test_what_is_large_is_left_to_torch(monkeypatch, caplog):
    model, trees = Plain(), []
    for largest in (10, 10**9):
        monkeypatch.setattr(program, "_LARGEST", largest)
        evaluator = NodeEvaluator(model)
        with caplog.at_level(logging.INFO):
            trees.append(search(evaluator, model.roots(5), MuZeroRule(), num_simulations=6))
        assert (evaluator.program is None) == (largest == 10)
    assert "weights are too many" in caplog.text
    torch.testing.assert_close(trees[1]["node_values"], trees[0]["node_values"])


def test_a_relu_of_blocks_is_one_of_all_blocks_where_their_weights_begin_at_zero():
    weight, index, few = torch.zeros(2, 8, 16), torch.arange(3), memory(1, 16)

    def function(index, action, latents, places):
        x = latents.index_select(0, index)
        places.copy_(x)
        return F.relu(torch.bmm(x.view(-1, 2, 8).transpose(0, 1), weight).transpose(0, 1)).flatten(
            1
        )

    program = Program(function, (index, index, *few, few[0].clone()))
    weight.normal_()
    program.refresh()
    found = program(index, index, memory(2, 16), 3)
    expected = function(index, index, *memory(2, 16), torch.empty(3, 16))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_bias_that_differs_from_row_to_row_has_no_program_even_for_one_row():
    weight = torch.randn(2, 8, 16)

    def function(index, action, latents, places):
        x = latents.index_select(0, index)
        places.copy_(x)
        x = x.view(-1, 2, 8).transpose(0, 1)
        return torch.baddbmm(torch.cat([x, x], -1), x, weight).transpose(0, 1).flatten(1)

    for rows in (1, 2):
        few = memory(rows, 16)
        index = torch.arange(rows)
        inputs = index, index, few[0][:rows].clone(), few[0][:rows].clone()
        assert program.recorded_program(function, inputs, "function") is None


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("largest", [True, False])
def test_extremes_of_nan_are_nan(largest, reduced):
    def function(index, action, latents, places):
        x = latents.index_select(0, index)
        places.copy_(x)
        if reduced:
            return x.amax(-1, keepdim=True) if largest else x.amin(-1, keepdim=True)
        return (torch.maximum if largest else torch.minimum)(x, x.flip(-1))

    index, few = torch.arange(2), memory(1, 5)
    recorded = Program(function, (index, index, few[0][:2].clone(), few[0][:2].clone()))
    x = torch.tensor([[0.0, 1, 2, 3, torch.nan], [torch.inf, -torch.inf, 0, 1, 2]])
    found = recorded(index, index, [torch.cat([x, x])], 2)
    expected = function(index, index, x, torch.empty(2, 5))
    torch.testing.assert_close(found, expected, equal_nan=True)
