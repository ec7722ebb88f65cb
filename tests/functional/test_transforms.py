from __future__ import annotations

import pytest
import torch

from torchrl_wm.functional.transforms import (
    symexp,
    symexp_bins,
    symlog,
    two_hot,
    two_hot_log_prob,
    two_hot_mean,
)


@pytest.mark.golden("v3_symlog")
def test_symlog_and_symexp_equal_the_reference(golden):
    golden.close(symlog(golden["in/x"]), "out/symlog_x")
    golden.close(symexp(golden["in/y"]), "out/symexp_y")


@pytest.mark.golden("v3_twohot")
def test_two_hot_equals_the_reference(golden):
    bins = symexp_bins(golden.cfg["bins"])
    logits = golden["in/logits"].requires_grad_()
    golden.close(bins, "out/bins")
    prediction = two_hot_mean(logits, bins)
    golden.close(prediction, "out/pred")
    loss = -two_hot_log_prob(logits, golden["in/target"], bins)
    golden.close(loss, "out/loss")
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    golden.close(gradient, "grad/logits")
    golden.close(torch.softmax(logits, -1) - gradient, "out/target_probs")


@pytest.mark.golden("misc*")
def test_codes_of_td_mpc2_equal_the_recorded_ones(golden):
    squashed = symlog(golden["tdmpc2_x"])
    golden.close(squashed, "tdmpc2_symlog", 1e-9)
    bins = torch.linspace(-10, 10, golden["tdmpc2_twohot"].shape[-1], dtype=torch.float64)
    lower, upper, weight = two_hot(squashed, bins)
    code = torch.zeros_like(golden["tdmpc2_twohot"])
    code.scatter_add_(-1, lower.unsqueeze(-1), (1 - weight).unsqueeze(-1))
    code.scatter_add_(-1, upper.unsqueeze(-1), weight.unsqueeze(-1))
    golden.close(code, "tdmpc2_twohot", 1e-9)


@pytest.mark.parametrize("count", [2, 3, 4, 41, 254, 255])
def test_equal_logits_predict_exactly_zero(count):
    bins = symexp_bins(count)
    assert torch.equal(bins, -bins.flip(0))
    assert two_hot_mean(torch.full((5, count), 0.7), bins).abs().max() == 0


def test_even_counts_hold_zero_twice():
    assert symexp_bins(6).eq(0).sum() == 2
    lower, upper, weight = two_hot(torch.zeros(1), symexp_bins(6))
    assert (lower.item(), upper.item(), weight.item()) == (3, 4, 0.0)


@pytest.mark.parametrize("count", [4, 5, 255])
def test_encoding_then_mean_gives_the_value_back(count):
    bins = symexp_bins(count, limit=5.0)
    target = torch.tensor([-1e9, -147.0, -3.0, -0.01, 0.0, 0.5, 20.0, 1e9])
    lower, upper, weight = two_hot(target, bins)
    probs = torch.zeros(len(target), count)
    probs.scatter_add_(1, lower[:, None], 1 - weight[:, None])
    probs.scatter_add_(1, upper[:, None], weight[:, None])
    expected = target.clamp(bins[0], bins[-1])
    torch.testing.assert_close(two_hot_mean(probs.log(), bins), expected, rtol=1e-4, atol=1e-4)


def test_no_gradient_flows_into_the_target():
    target = torch.tensor([1.5], requires_grad=True)
    logits = torch.zeros(1, 7, requires_grad=True)
    two_hot_log_prob(logits, target, symexp_bins(7)).sum().backward()
    assert target.grad is None and logits.grad is not None


def test_prediction_stays_float32_under_autocast():
    bins = symexp_bins(255)
    logits = torch.randn(3, 255)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = two_hot_mean(logits, bins)
    assert prediction.dtype == torch.float32
    torch.testing.assert_close(prediction, two_hot_mean(logits, bins))


def test_one_bin_is_refused():
    with pytest.raises(ValueError, match="bins=1"):
        symexp_bins(1)
