"""What no recording can hold is computed operation by operation, with a warning that names it."""

from __future__ import annotations

import logging

import pytest
import torch
from plain_dynamics import Plain
from torch import nn

from torchrl_wm.planners import MuZeroRule, search
from torchrl_wm.planners.recording import Recording
from torchrl_wm.planners.tree_search import NodeEvaluator


def depends_on_the_number_of_rows(x):
    return x[: len(x.tolist())] * len(x.tolist())


def depends_on_a_value(x):
    return x.cumsum(-1) if x.sum() > float(x.sum()) - 1 and x.shape[0] < 7 else x * 2


@pytest.mark.parametrize("after", [depends_on_the_number_of_rows, depends_on_a_value])
def test_a_search_calls_it_and_says_so(after, caplog):
    model = Plain(after=after)
    evaluator, root = NodeEvaluator(model), model.roots(4)
    tree = search(evaluator, root, MuZeroRule(), num_simulations=4)
    assert (
        "The operations of Plain cannot be recorded" in caplog.text and "trace=False" in caplog.text
    )
    expected = search(model, root, MuZeroRule(), num_simulations=4)
    torch.testing.assert_close(tree["node_values"], expected["node_values"])
    caplog.clear()
    search(evaluator, root, MuZeroRule(), num_simulations=4)
    assert not caplog.records  # once, not at every search


def test_a_function_with_its_own_draws_is_not_recorded(caplog):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    recorded = Recording(Noisy().forward)
    with caplog.at_level(logging.WARNING):
        first, second = recorded(torch.zeros(3)), recorded(torch.zeros(3))
    assert not torch.equal(first, second)
    assert [x.getMessage().split(" (")[0] for x in caplog.records] == [
        "The operations of Noisy cannot be recorded"
    ]
