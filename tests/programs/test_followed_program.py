"""A program that follows training is recorded once, and when tensors are replaced."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchrl_wm.programs import program as program_module
from torchrl_wm.programs.followed_program import FollowedProgram


class Doubler:
    """A holder of a module, whose method is the function."""

    def __init__(self):
        self.layer = nn.Linear(3, 2)
        self.followed = FollowedProgram(self.step, self.layer)

    def step(self, index, _, x, place):
        return 2 * self.layer(x.index_select(0, index))

    def __call__(self, x, **options):
        program, index = self.followed(x, **options), torch.arange(len(x))
        return program(index, index, [x], 0)


def expected(holder, x):
    return holder.step(torch.arange(len(x)), None, x, None).detach()


def test_it_is_recorded_once_and_again_for_other_tensors():
    holder, x = Doubler(), torch.randn(40, 3)
    torch.testing.assert_close(holder(x), expected(holder, x))
    first = holder.followed.program
    with torch.no_grad():
        holder.layer.weight.mul_(-3)
    torch.testing.assert_close(holder(x), expected(holder, x))
    assert holder.followed.program is first
    holder.layer.weight = nn.Parameter(torch.randn(2, 3))
    torch.testing.assert_close(holder(x), expected(holder, x))
    assert holder.followed.program is not first


def test_numbers_that_are_none_do_not_leave_it_to_torch_for_ever():
    holder, x = Doubler(), torch.randn(40, 3)
    assert holder.followed(torch.full_like(x, torch.nan)) is None
    torch.testing.assert_close(holder(x), expected(holder, x))
    first = holder.followed.program
    holder(torch.full_like(x, torch.nan))
    assert holder.followed.program is first  # recorded already


def test_unchanged_parameters_are_not_read():
    holder, x = Doubler(), torch.randn(4, 3)
    before = holder(x)
    with torch.no_grad():
        holder.layer.weight.mul_(-3)
    torch.testing.assert_close(holder(x, unchanged=True), before)
    assert holder.followed(x.double()) is None  # after which nothing is known
    torch.testing.assert_close(holder(x, unchanged=True), expected(holder, x))


def test_a_draw_between_equals_is_tried_again(monkeypatch):
    calls, check = [], program_module._check

    def once_different(*inputs):
        calls.append(inputs)
        if len(calls) == 1:
            raise program_module.Untranslatable("other numbers")
        check(*inputs)

    monkeypatch.setattr(program_module, "_check", once_different)
    holder, x = Doubler(), torch.randn(40, 3)
    torch.testing.assert_close(holder(x), expected(holder, x))
    assert len(calls) == 2 and not torch.equal(calls[0][4], calls[1][4])
    calls.clear()
    assert Doubler().followed(x[:7]) is None and len(calls) == 1  # of few rows there are no others


@pytest.mark.parametrize("mode", ["counter", "hooks", "transformation"])
def test_what_is_to_see_the_operations_sees_those_of_the_modules(mode):
    holder, x = Doubler(), torch.randn(4, 3)
    if mode == "transformation":
        seen = []
        torch.func.vmap(lambda y: seen.append(holder.followed(x)) or y)(torch.zeros(2))
        assert seen == [None]
    else:
        counter, hooks = FlopCounterMode(display=False), torch.autograd.graph.save_on_cpu()
        with counter if mode == "counter" else hooks:
            assert holder.followed(x) is None
    torch.testing.assert_close(holder(x), expected(holder, x))  # and is not remembered


def test_copies_record_their_own():
    holder, x = Doubler(), torch.randn(4, 3)
    holder(x)
    for other in (copy.deepcopy(holder), pickle.loads(pickle.dumps(holder))):
        assert other.followed.program is None and other.followed.modules[0] is other.layer
        nn.init.zeros_(other.layer.weight)
        torch.testing.assert_close(other(x), expected(other, x))
