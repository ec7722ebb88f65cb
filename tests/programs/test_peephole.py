"""Simplified instructions give the same numbers, whatever else reads the values they are about."""

from __future__ import annotations

from collections import Counter
from functools import partial
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from torchrl_wm.programs import program
from torchrl_wm.programs.instructions import Code
from torchrl_wm.programs.program import Program

ROWS, SIZE = 6, 20
WIDTHS = (3, 16, 20, 32)
WEIGHTS = {
    (i, o): torch.randn(o, i, generator=torch.Generator().manual_seed(100 * i + o)) / i**0.5
    for i in (*WIDTHS, *(a + b for a in WIDTHS for b in WIDTHS))
    for o in WIDTHS
}


def recorded(function, simplified: bool = True) -> Program:
    inputs = torch.arange(ROWS), torch.arange(ROWS) % 2, torch.ones(ROWS, SIZE)
    same = lambda code, first, width: (code, first)
    with mock.patch.object(program, "simplify", program.simplify if simplified else same):
        return Program(function, (*inputs, torch.empty(ROWS, SIZE)))


def numbers(recording: Program) -> list[torch.Tensor]:
    memory = torch.randn(2 * ROWS, SIZE, generator=torch.Generator().manual_seed(0))
    index = torch.arange(ROWS).flip(0)
    return [recording(index, index % 2, [memory], ROWS), memory]


def counts(recording: Program) -> Counter:
    return Counter(Code(kind).name for kind in recording.network.code[:, 0].tolist())


def check(function, rtol: float = 0.0) -> tuple[Counter, Counter]:
    """Instructions before and after."""
    plain, simple = recorded(function, simplified=False), recorded(function)
    torch.testing.assert_close(numbers(simple), numbers(plain), rtol=rtol, atol=0, equal_nan=True)
    return counts(plain), counts(simple)


def network(build):
    def function(index, action, latents, places):
        x = latents.index_select(0, index)
        out = build(x)
        places.copy_(x if out.shape[1] != SIZE else out)
        return out

    return function


def linear(x, width):
    return F.linear(x, WEIGHTS[x.shape[1], width], WEIGHTS[3, width][:, 0])


def test_a_product_applies_the_relu_that_follows_it():
    before, after = check(network(lambda x: linear(F.relu(linear(x, 20)), 3)))
    assert before["RELU"] == 1 and not after["RELU"] and after["LINEAR"] == 2


def residual(x):
    product = linear(x, 32)
    return product + F.relu(product)


def slice_and_whole(x):
    product = linear(x, 20)
    return torch.cat([F.relu(product[:, :16]), product], -1)


def slice_and_rest(x):
    product = linear(x, 20)
    return torch.cat([F.relu(product[:, :3]), product[:, 3:]], -1)


def part_of_a_wider_one(x):
    return torch.cat([F.relu(linear(x, 20)[:, :3]), x * 2], -1)


def no_product(x):
    return F.relu(x) + linear(x, 20)


RESIDUALS = (residual, slice_and_whole, slice_and_rest, part_of_a_wider_one, no_product)


@pytest.mark.parametrize("build", RESIDUALS)
def test_a_relu_of_what_has_another_use_stays(build):
    before, after = check(network(build))
    assert before["RELU"] == after["RELU"] == 1


def test_a_value_is_written_into_the_concatenation_that_it_is_read_from():
    build = lambda x: linear(torch.cat([x, F.relu(linear(x, 16))], -1), 3)
    before, after = check(network(build))
    assert before["COPY"] == 2 and not after["COPY"]


SCALE = torch.linspace(-1, 2, SIZE)


def rms_norm(x, used=None, width=SIZE):
    """By its operations, one of whose results has another use."""
    y = torch.tanh(x)
    square = y * y
    mean = square[:, :width].mean(-1, keepdim=True)
    root = (mean + 1e-3).rsqrt()
    divided = y * root
    results = {"square": square, "mean": mean, "root": root, "divided": divided}
    return divided * SCALE + (results[used] if used else 0)


def within(x, kept):
    """The scale, or what is added to the mean, is itself made on the way."""
    y = torch.tanh(x)
    square = y * y
    mean = square.mean(-1, keepdim=True)
    more = {"doubled": mean, "shifted": square[:, :1]}.get(kept, 1e-3)
    divided = y * (mean + more).rsqrt()
    return divided * {"scaled": divided, "squared": square}.get(kept, SCALE)


def test_a_normalisation_is_one_instruction():
    for build in (rms_norm, lambda x: F.rms_norm(torch.tanh(x), (SIZE,), SCALE, 1e-3)):
        before, after = check(network(build), rtol=1e-6)  # the factors are multiplied first
        assert before["RMS_NORM"] == 0 and before["RSQRT"] == 1
        assert after["RMS_NORM"] == 1 and after["RSQRT"] == after["MEAN"] == 0


@pytest.mark.parametrize(
    "build",
    [
        *(partial(rms_norm, used=name) for name in ("square", "mean", "root", "divided")),
        *(partial(within, kept=name) for name in ("scaled", "squared", "doubled", "shifted")),
        partial(rms_norm, width=SIZE - 4),
        lambda x: x * (x * x).mean(-1, keepdim=True).add(1e-3).rsqrt() * x.tanh(),
        lambda x: x.tanh() * (x * x).mean(-1, keepdim=True).add(1e-3).rsqrt() * SCALE,
        lambda x: x * (x * SCALE).mean(-1, keepdim=True).add(1e-3).rsqrt() * SCALE,
        lambda x: x * (x * x).mean(-1, keepdim=True).add(1e-3).rsqrt() * 2,
    ],
)
def test_what_is_almost_a_normalisation_stays_what_it_is(build):
    before, after = check(network(build))
    assert before["RSQRT"] == after["RSQRT"] + after["RMS_NORM"] == 1


def twice(x):
    return torch.cat([x, x], -1)


def slice_of_a_value(x):
    return torch.cat([torch.tanh(x)[:, 2:5], x], -1)


def changed_there(x):
    return torch.cat([x], -1).tanh_() + x


def nested(x):
    inner = torch.cat([x * 2, x.abs()], -1)
    return torch.cat([inner, inner[:, :4]], -1)


@pytest.mark.parametrize("build", [twice, slice_of_a_value, changed_there, nested])
def test_what_is_not_its_own_is_copied(build):
    before, after = check(network(build))
    assert 0 < after["COPY"] <= before["COPY"]


def test_what_is_changed_after_the_copy_is_copied():
    def build(x):
        y = x * 1
        z = torch.cat([x, y], -1)
        return torch.cat([y.tanh_(), z], -1)

    check(network(build))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=9
    )
)
def test_any_network(steps):
    def build(x):
        values = [x]
        for kind, one, other in steps:
            x, y = values[one % len(values)], values[other % len(values)]
            width = WIDTHS[other % len(WIDTHS)]
            if kind < 2 and x.shape[1] in {i for i, _ in WEIGHTS}:
                x = linear(x, width)
                x = F.relu(x) if kind else x
            elif kind < 4:
                x = F.relu(x) if kind == 2 else torch.tanh(x)
            elif kind < 6:
                x = torch.cat([x, y], -1) if x.shape[1] + y.shape[1] < 70 else x * 2
            elif kind == 6:
                x = x[:, other % x.shape[1] :]
            else:
                x = (x * 1).tanh_() if x.shape != y.shape else x - y
            values.append(x)
        return torch.cat([values[-1], values[len(values) // 2], values[0]], -1)

    check(network(build))
