"""MuZero's categorical over a transformed scalar, against recorded codes and values."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from torchrl_wm.functional import two_hot
from torchrl_wm.modules import HyperbolicTwoHot, HyperbolicTwoHotHead, HyperbolicTwoHotOutput


def dense(value, atoms):
    lower, upper, weight = two_hot(value, atoms)
    codes = [F.one_hot(index, len(atoms)).to(atoms) for index in (lower, upper)]
    return codes[0] * (1 - weight[..., None]) + codes[1] * weight[..., None]


@pytest.mark.golden("value_transform*")
@pytest.mark.parametrize("count", [601, 51, 21, 101])
def test_codes_equal_the_recorded_ones(golden, count):
    low, high = golden[f"twohot_{count}_range"].tolist()
    atoms = torch.linspace(low, high, count, dtype=torch.float64)
    golden.close(dense(golden["twohot_x"], atoms), f"twohot_{count}", 1e-9)


@pytest.mark.golden("value_transform*")
def test_targets_are_coded_after_the_transform(golden):
    atoms = HyperbolicTwoHotOutput(300).atoms
    code = golden["value_two_hot_601"].double()
    # With a uniform prediction but for one atom, the likelihood reads that atom's share of the code.
    x = golden["x"].float().unsqueeze(-1)
    uniform = torch.zeros(len(x), 601)
    base = HyperbolicTwoHot(uniform, atoms).log_prob(x)
    for atom in (300, 301, 290, 600):
        bumped = uniform.clone()
        bumped[:, atom] = 1.0
        # log_prob = sum(code * logits) - logsumexp(logits)
        change = HyperbolicTwoHot(bumped, atoms).log_prob(x) - base
        shift = bumped.logsumexp(-1) - uniform.logsumexp(-1)
        torch.testing.assert_close((change + shift).double(), code[:, atom], rtol=0, atol=2e-5)


@pytest.mark.golden("value_transform*")
def test_values_are_decoded_as_recorded(golden):
    logits, atoms = golden["logits_601"].float(), HyperbolicTwoHotOutput(300).atoms
    decoded = HyperbolicTwoHot(logits, atoms).mean.squeeze(-1)
    expected = golden["decoded_from_logits_601"]
    torch.testing.assert_close(decoded.double(), expected, rtol=1e-4, atol=1e-3)


def test_an_untrained_head_predicts_exactly_zero():
    head = HyperbolicTwoHotHead(4, support=10, layers=1, units=8)
    assert (head(torch.randn(5, 4)).mean == 0).all()


def test_what_lies_beyond_the_support_is_told():
    head = HyperbolicTwoHot(torch.zeros(3, 21), HyperbolicTwoHotOutput(10).atoms)
    # h(110) = sqrt(111) - 1 + 0.11 = 9.65; h(130) = 10.58.
    assert head.beyond(torch.tensor([[110.0], [130.0], [-130.0]])).tolist() == [False, True, True]


def test_a_support_has_an_atom():
    with pytest.raises(ValueError, match="support=0 must be at least 1"):
        HyperbolicTwoHotOutput(0)
