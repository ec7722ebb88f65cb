"""Weights of one agent in another."""

from __future__ import annotations

import pytest
import torch
from torchrl.data import Composite, OneHot, Unbounded

from torchrl_wm.algorithms import DreamerV3, MuZero

SPECS = Composite(observation=Unbounded(4)), Composite(action=OneHot(2))


@pytest.mark.parametrize(
    "make, options", [(DreamerV3, {"size": "tiny"}), (MuZero, {"support": 20})]
)
def test_weights_of_other_shapes_are_named_and_none_is_loaded(make, options):
    agent, same, other = make(*SPECS, **options), make(*SPECS, **options), make(*SPECS)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"size mismatch of \d+ .*is \[.*\], not \[") as raised:
        other.load_state_dict(agent.state_dict())
    assert len(str(raised.value)) < 500
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    same.load_state_dict(agent.state_dict())
    loaded = same.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in agent.state_dict().items())
