"""Products of numbers rounded to bfloat16: those of torch's rounded numbers, and only where asked for."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchrl_wm.modules.networks import block_product
from torchrl_wm.programs import bfloat16
from torchrl_wm.programs import program as program_module
from torchrl_wm.programs.followed_program import FollowedProgram
from torchrl_wm.programs.instructions import Code
from torchrl_wm.programs.program import Program

needs_products = pytest.mark.skipif(
    not bfloat16.SUPPORTED,
    reason="this processor has no products of bfloat16: its programs stay in single precision",
)
pytestmark = needs_products


def rounded(x):
    return x.bfloat16().float()


def weights(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def recorded(function, x):
    """The program of a function of rows, which stores them as they are."""

    def step(index, _, x, place):
        x = x.index_select(0, index)
        place.copy_(x)
        return function(x)

    rows = torch.arange(len(x))
    return Program(step, (rows, rows, x, x.clone()))


def values(program, x):
    rows = torch.arange(len(x))
    return program(rows, rows, [torch.cat([x, x])], len(x))


def names(program):
    return [Code(line[0]).name for line in program.network.code]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [torch.relu, torch.tanh])
@pytest.mark.parametrize("rows", [1, 16, 37, 70])
@pytest.mark.parametrize(
    ("depth", "width"), [(16, 1), (18, 16), (64, 17), (66, 33), (40, 48), (256, 100)]
)
def test_products_are_those_of_rounded_numbers(depth, width, rows, activation, bias):
    weight, x = weights(width, depth), weights(rows, depth, seed=1)
    shift = weights(width, seed=2) if bias else None
    program = recorded(lambda x: activation(F.linear(x, weight, shift)), x).rounded()
    expected = activation(F.linear(rounded(x), rounded(weight), shift))
    assert names(program).count("LINEAR_OF_PAIRS") == 1
    torch.testing.assert_close(values(program, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 14, 15, 17, 65])
def test_sums_of_few_or_an_odd_number_of_numbers_are_not_rounded(depth):
    weight, x = weights(5, depth), weights(20, depth, seed=1)
    program = recorded(lambda x: F.linear(x, weight), x).rounded()
    assert "LINEAR" in names(program) and "ROUND_PAIRS" not in names(program)
    torch.testing.assert_close(values(program, x), F.linear(x, weight), rtol=1e-5, atol=1e-5)


def test_halves_go_to_the_even_number_and_what_is_not_finite_stays():
    x = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, torch.inf, torch.nan, -torch.inf, 3e38, 1e-3, 0.0])
    program = recorded(lambda x: x @ torch.eye(16), x.repeat(4, 2)).rounded()
    found = values(program, x.repeat(4, 2))
    assert found.isnan().all()  # as 0 times infinity is
    finite = torch.where(x.isfinite(), x, 0).repeat(4, 2)
    torch.testing.assert_close(values(program, finite), rounded(finite), rtol=0, atol=0)
    weight = torch.eye(16) * x[0]
    program = recorded(lambda x: x @ weight, finite).rounded()
    torch.testing.assert_close(values(program, finite), rounded(finite), rtol=0, atol=0)


NANS = [0x7FC00000, 0x7FFFFFFF, -1, 0x7F800001, -0x7FFFFF]  # of processors, and of GPUs


@pytest.mark.parametrize("bits", NANS)
def test_every_kind_of_nan_stays_one(bits):
    nan = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    weight, x = weights(16, 32), weights(4, 32, seed=1)
    weight[3, 5] = nan
    found = values(recorded(lambda x: x @ weight.t(), x).rounded(), x)
    assert found.isnan().sum(0).tolist() == [4 * (i == 3) for i in range(16)]
    x[2, 7] = nan
    states = torch.empty(1, 4, 32, dtype=torch.bfloat16)
    empty = torch.zeros(1, 4, 1)
    program = Program(keep, (torch.arange(4),) * 2 + (x, empty[0], empty[0]) * 2)
    program.unroll(x, empty, empty, states, 8)
    assert torch.equal(states[0].isnan(), x.isnan())
    torch.testing.assert_close(states[0], x.bfloat16(), rtol=0, atol=0, equal_nan=True)


def keep(index, _, state, draws, noise, place, *others):
    state = state.index_select(0, index)
    place.copy_(state)
    return state[:, :1] + draws.index_select(0, index) + noise.index_select(0, index)


def test_other_processors_have_no_such_programs(monkeypatch):
    program = recorded(lambda x: x @ torch.eye(16), weights(4, 16))
    monkeypatch.setattr(program_module, "SUPPORTED", False)
    with pytest.raises(RuntimeError, match="no products of bfloat16"):
        program.rounded()


def test_blocks_that_read_the_same_columns_round_them_once():
    blocks, other, x = weights(3, 32, 16), weights(3, 32, 7, seed=1), weights(40, 96, seed=2)
    program = recorded(
        lambda x: torch.cat([block_product(x, blocks), block_product(x, other)], -1), x
    ).rounded()
    expected = [block_product(rounded(x), rounded(each)) for each in (blocks, other)]
    torch.testing.assert_close(values(program, x), torch.cat(expected, -1), rtol=1e-5, atol=1e-5)
    assert (names(program).count("ROUND_PAIRS"), names(program).count("LINEAR_OF_PAIRS")) == (3, 6)


def test_columns_that_are_changed_between_two_products_are_rounded_again():
    weight, x = weights(16, 16), weights(33, 16, seed=1)

    def function(x, change=lambda x: x):
        hidden = F.linear(change(x), change(weight))
        before = F.linear(change(hidden), change(weight))
        return before + F.linear(change(hidden.tanh_()), change(weight))

    program = recorded(function, x).rounded()
    assert names(program).count("ROUND_PAIRS") == 3
    expected = function(x, rounded)
    torch.testing.assert_close(values(program, x), expected, rtol=1e-4, atol=1e-4)


def test_autocast_asks_for_it_and_training_is_seen():
    layer, x = nn.Linear(32, 8), weights(50, 32)

    def step(index, _, x, place):
        return layer(x.index_select(0, index))

    followed, rows = FollowedProgram(step, layer), torch.arange(50)

    def found(enabled, dtype=torch.bfloat16, **options):
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=enabled):
            return followed(x, **options)(rows, rows, [x], 0)

    def expected(change):
        return F.linear(change(x), change(layer.weight), layer.bias).detach()

    for _ in range(2):
        torch.testing.assert_close(found(True), expected(rounded), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found(False), expected(torch.clone), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found(True, torch.float16), found(False), rtol=0, atol=0)
        single = followed.program
        with torch.no_grad():
            layer.weight.mul_(-2)
    assert followed.program is single  # nothing was recorded again
    # The other program has not read these parameters, whatever the first call has.
    torch.testing.assert_close(found(False), expected(torch.clone), rtol=1e-5, atol=1e-5)
    again = found(True, unchanged=True)
    torch.testing.assert_close(again, expected(rounded), rtol=1e-5, atol=1e-5)
    layer.weight = nn.Parameter(weights(8, 32, seed=3))
    torch.testing.assert_close(found(True), expected(rounded), rtol=1e-5, atol=1e-5)
