"""Mistakes that ports of the Dreamers made in their outputs; each test is named after one."""

from __future__ import annotations

import math

import pytest
import torch
from torchrl.data import Bounded, Composite, Unbounded

from torchrl_wm.functional.images import centre_image, quantize_image
from torchrl_wm.functional.transforms import (
    symexp,
    symexp_bins,
    symlog,
    two_hot_log_prob,
    two_hot_mean,
)
from torchrl_wm.modules.action_distributions import OneHotCategorical, TanhNormal
from torchrl_wm.modules.decoders import make_decoder
from torchrl_wm.modules.encoders import make_encoder
from torchrl_wm.modules.heads import actor_head
from torchrl_wm.modules.normalizers import ReturnNormalizer
from torchrl_wm.modules.outputs import TanhNormalOutput

IMAGE = Composite(image=Unbounded((3, 64, 64), dtype=torch.uint8))
VECTOR = Composite(vector=Unbounded((2,)))


def test_dreamer_v1_policy_starts_without_the_offset_of_its_deviation():
    policy = TanhNormalOutput(3)(torch.zeros(1, 6))
    torch.testing.assert_close(policy.loc, torch.zeros(1, 3))
    torch.testing.assert_close(policy.scale, torch.full((1, 3), 5.0001))


def test_dreamer_v1_deviation_is_bounded_above():
    raw = torch.cat([torch.zeros(1, 1), torch.full((1, 1), 100.0)], -1)
    assert TanhNormalOutput(1)(raw).scale.item() > 100


@pytest.mark.parametrize("action", [-1.0, 1.0])
def test_tanh_log_prob_is_infinite_on_the_border(action):
    loc = torch.zeros(1, 1, requires_grad=True)
    log_prob = TanhNormal(loc, torch.ones(1, 1)).log_prob(torch.tensor([[action]]))
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and loc.grad.isfinite().all()
    inner = math.atanh(1 - 2**-24)  # the float32 next to 1
    slope = math.log1p(-(math.tanh(inner) ** 2))
    expected = -0.5 * inner**2 - 0.5 * math.log(2 * math.pi) - slope
    assert log_prob.item() == pytest.approx(expected, rel=1e-3)


def test_planet_noise_is_centred_on_the_quantized_value():
    black = torch.zeros(50000, dtype=torch.uint8)
    assert centre_image(quantize_image(black)).mean().item() == pytest.approx(
        -0.5 + 1 / 64, abs=1e-3
    )


def test_unimix_is_left_out_of_the_entropy_or_of_the_straight_through_gradient():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    policy = OneHotCategorical(logits, unimix=0.01)
    probs = torch.tensor([[0.995, 0.005]])
    torch.testing.assert_close(policy.probs, probs)
    torch.testing.assert_close(policy.entropy(), -(probs * probs.log()).sum(-1))
    torch.testing.assert_close(policy.log_prob(torch.tensor([[0.0, 1.0]])).exp(), probs[:, 1])
    # Half of the softmax's slope of 1/4: the mixed probabilities carry the gradient.
    leaf = torch.zeros(1, 2, requires_grad=True)
    OneHotCategorical(leaf, unimix=0.5).rsample()[0, 0].backward()
    torch.testing.assert_close(leaf.grad, torch.tensor([[0.125, -0.125]]))


def test_return_scale_uses_the_statistics_of_the_batch_before():
    normalizer = ReturnNormalizer(rate=0.5)
    assert normalizer.scale() == 1
    normalizer.update(torch.linspace(0, 100, 101))
    assert normalizer.scale().item() == pytest.approx(45)


def test_small_returns_are_scaled_up():
    normalizer = ReturnNormalizer(rate=1.0)
    normalizer.update(torch.linspace(0, 0.1, 101))
    assert normalizer.scale() == 1


def test_offset_changes_when_the_statistics_go_on():
    normalizer = ReturnNormalizer(rate=1.0)
    normalizer.update(torch.ones(5))
    offset = normalizer.offset()
    normalizer.update(torch.zeros(5))
    assert offset == 1


def test_two_hot_interpolates_in_symlog_space():
    bins = symexp_bins(5, limit=2.0)
    middle = (bins[3] + bins[4]) / 2
    logits = torch.tensor([[0.0, 0.0, 0.0, 1.0, 3.0]])
    log_probs = logits.log_softmax(-1)
    expected = (log_probs[:, 3] + log_probs[:, 4]) / 2
    torch.testing.assert_close(two_hot_log_prob(logits, middle.view(1), bins), expected)


def test_two_hot_mean_is_taken_in_symlog_space():
    bins = symexp_bins(5, limit=2.0)
    logits = torch.full((1, 5), -50.0)
    logits[0, 3:] = 0
    mean = two_hot_mean(logits, bins)
    torch.testing.assert_close(mean, (bins[3:].sum() / 2).view(1))
    assert not torch.isclose(mean, symexp(symlog(bins[3:]).mean()))


def test_equal_logits_of_255_bins_predict_thousands_by_rounding():
    assert two_hot_mean(torch.randn(50, 1).expand(50, 255), symexp_bins()).abs().max() == 0


def test_vector_encoder_forgets_symlog():
    encoder = make_encoder(VECTOR, "v3", layers=0, units=1)
    value = torch.tensor([-50.0, 3.0])
    torch.testing.assert_close(encoder({"vector": value}), symlog(value))


def test_vector_decoder_compares_with_the_raw_target_or_halves_the_error():
    decoder = make_decoder(VECTOR, 4, 3, "v3", units=8)
    features, value = torch.randn(5, 7), 10 * torch.randn(5, 2)
    prediction = decoder(features)["vector"]
    expected = -(symlog(prediction.mean) - symlog(value)).square().sum(-1)
    torch.testing.assert_close(prediction.log_prob(value), expected)


def test_picture_loss_is_averaged_over_pixels():
    image = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    decoder = make_decoder(IMAGE, 16, 4, "v3", depth=2, units=4)
    prediction = decoder(torch.randn(1, 20))["image"]
    assert prediction.mean.min() > 0 and prediction.mean.max() < 1
    expected = -(1 - prediction.mean).square().sum((1, 2, 3))
    torch.testing.assert_close(prediction.log_prob(image), expected)


def test_decoder_pictures_are_half_too_dark():
    decoder = make_decoder(IMAGE, 16, 4, "v1", depth=1)
    prediction = decoder(torch.randn(1, 20))["image"]
    torch.testing.assert_close(prediction.mean, prediction.loc + 0.5)


@pytest.mark.parametrize("style", ["v2", "v3"])
def test_vector_decoder_reads_belief_before_state(style):
    decoder = make_decoder(VECTOR, 2, 3, style, units=8, layers=1)
    features = torch.tensor([1.0, 2, 3, 4, 5])
    seen = []
    decoder.vector.mlp.linears[0].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    decoder(features)
    assert seen[0].tolist() == [3.0, 4.0, 5.0, 1.0, 2.0]


def test_picture_features_are_flattened_channel_first():
    encoder = make_encoder(IMAGE, "v1", depth=1)
    image = IMAGE.rand()["image"]
    maps = encoder.image.convolve(centre_image(image)[None])
    torch.testing.assert_close(encoder({"image": image}), maps[0].movedim(0, -1).flatten())


def test_log_prob_is_that_of_the_clipped_action():
    torch.manual_seed(0)
    policy = actor_head(Bounded(-1, 1, (1,)), 2, layers=1, units=4)(torch.randn(1, 2))
    outside = torch.tensor([[1.7]])
    assert policy.log_prob(outside) != policy.log_prob(outside.clamp(-1, 1))
    expected = torch.distributions.Normal(policy.mean, policy.stddev).log_prob(outside).sum(-1)
    torch.testing.assert_close(policy.log_prob(outside), expected)
