"""MuZero's categorical over a transformed scalar, against recorded codes and values."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional as F
from torchrl.modules.functional import signed_hyperbolic, signed_parabolic

from torchrl_wm.functional import two_hot
from torchrl_wm.modules import HyperbolicTwoHot, HyperbolicTwoHotHead, HyperbolicTwoHotOutput


def dense(value, atoms):
    lower, upper, weight = two_hot(value, atoms)
    codes = [F.one_hot(index, len(atoms)).to(atoms) for index in (lower, upper)]
    return codes[0] * (1 - weight[..., None]) + codes[1] * weight[..., None]


def counts(golden, name):
    """The numbers of atoms for which the file has ``name_<count>``."""
    found = [re.fullmatch(rf"{name}_(\d+)", entry) for entry in golden.entries]
    found = sorted(int(match[1]) for match in found if match)
    assert found
    return found


@pytest.mark.golden("value_transform*")
def test_the_transform_equals_the_recorded_one(golden):
    x, epsilon = golden["x"], float(golden["epsilon"])
    h = signed_hyperbolic(x, epsilon)
    golden.close(h, "h", 1e-9)
    # The recorded inverse is the textbook one, which cancels: 1e-9 of the largest number.
    golden.close(signed_parabolic(golden["h"], epsilon), "h_inv_of_h", 1e-9)
    inverse = signed_parabolic(x.clamp(-300, 300), epsilon)
    golden.close(inverse, "h_inv_of_x_clipped", 1e-9)


@pytest.mark.golden("value_transform*")
def test_codes_equal_the_recorded_ones(golden):
    for count in counts(golden, "twohot"):
        low, high = golden[f"twohot_{count}_range"].tolist()
        atoms = torch.linspace(low, high, count, dtype=torch.float64)
        golden.close(dense(golden["twohot_x"], atoms), f"twohot_{count}", 1e-9)


@pytest.mark.golden("value_transform*")
def test_targets_are_coded_after_the_transform(golden):
    for count in counts(golden, "value_two_hot"):
        output = HyperbolicTwoHotOutput((count - 1) // 2)
        x = golden["x"].float().unsqueeze(-1)
        # The gradient of a cross-entropy is the code less the prediction.
        logits = torch.zeros(len(x), count, requires_grad=True)
        (gradient,) = torch.autograd.grad(output(logits).log_prob(x).sum(), logits)
        code = gradient + 1 / count
        # In single precision near 300 an atom's share is known to 300 * 2 ** -23.
        expected = golden[f"value_two_hot_{count}"]
        torch.testing.assert_close(code.double(), expected, rtol=0, atol=4e-5)


@pytest.mark.golden("value_transform*")
def test_values_are_decoded_as_recorded(golden):
    for count in counts(golden, "logits"):
        output = HyperbolicTwoHotOutput((count - 1) // 2)
        code = golden[f"value_two_hot_{count}"].float()
        for logits, name in (
            (golden[f"logits_{count}"].float(), f"decoded_from_logits_{count}"),
            (code.clamp_min(1e-38).log(), f"value_decoded_{count}"),
        ):
            decoded = output(logits).mean.squeeze(-1).double()
            torch.testing.assert_close(decoded, golden[name], rtol=1e-4, atol=1e-3)


def test_an_untrained_head_predicts_exactly_zero():
    head = HyperbolicTwoHotHead(4, support=10, layers=1, units=8)
    assert (head(torch.randn(5, 4)).mean == 0).all()


def test_what_lies_beyond_the_support_is_told():
    head = HyperbolicTwoHot(torch.zeros(3, 21), HyperbolicTwoHotOutput(10).atoms)
    # h(110) = sqrt(111) - 1 + 0.11 = 9.65; h(130) = 10.58.
    assert head.beyond(torch.tensor([[110.0], [130.0], [-130.0]])).tolist() == [False, True, True]


def test_a_support_has_an_atom():
    with pytest.raises(ValueError, match="support=0 must be a whole number of at least 1"):
        HyperbolicTwoHotOutput(0)
