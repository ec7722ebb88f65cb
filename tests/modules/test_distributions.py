from __future__ import annotations

import pytest
import torch
from torch import distributions as D

from torchrl_wm.functional.transforms import symexp_bins, symlog
from torchrl_wm.modules.action_distributions import (
    DiagonalNormal,
    Joint,
    OneHotCategorical,
    TanhNormal,
    TruncatedNormal,
)
from torchrl_wm.modules.distributions import (
    Bernoulli,
    ImageNormal,
    ImageSquaredError,
    SymlogSquaredError,
    TwoHot,
    UnitNormal,
)

close = torch.testing.assert_close


def test_unit_normal_agrees_with_torch():
    mean, value = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    ours, theirs = UnitNormal(mean, 2), D.Independent(D.Normal(mean, 1.0), 2)
    close(ours.log_prob(value), theirs.log_prob(value))
    close(ours.entropy(), theirs.entropy())
    assert ours.batch_shape == (4,) and ours.event_shape == (2, 3)


def test_a_unit_normal_may_have_scalar_events():
    mean = torch.randn(4)
    close(UnitNormal(mean, 0).log_prob(mean), D.Normal(mean, 1.0).log_prob(mean))


def test_bernoulli_agrees_with_torch_and_takes_soft_targets():
    logits = torch.randn(4, 3)
    theirs = D.Independent(D.Bernoulli(logits=logits), 1)
    value = theirs.sample()
    close(Bernoulli(logits).log_prob(value.bool()), theirs.log_prob(value))
    close(Bernoulli(logits).entropy(), theirs.entropy())
    soft = 0.9 * Bernoulli(logits).log_prob(torch.ones(4, 3))
    soft += 0.1 * Bernoulli(logits).log_prob(torch.zeros(4, 3))
    close(Bernoulli(logits).log_prob(torch.full((4, 3), 0.9)), soft)


def test_an_undecided_bernoulli_has_a_mode():
    assert Bernoulli(torch.zeros(2, 1)).mode.tolist() == [[0.0], [0.0]]


def test_diagonal_normal_agrees_with_torch():
    mean, std, value = torch.randn(4, 3), torch.rand(4, 3) + 0.1, torch.randn(4, 3)
    ours, theirs = DiagonalNormal(mean, std), D.Independent(D.Normal(mean, std), 1)
    close(ours.log_prob(value), theirs.log_prob(value))
    close(ours.entropy(), theirs.entropy())


def test_one_hot_agrees_with_torch():
    logits = torch.randn(4, 3)
    ours, theirs = OneHotCategorical(logits), D.OneHotCategorical(logits=logits)
    value = theirs.sample()
    for target in (value, value.bool(), value.long()):
        close(ours.log_prob(target), theirs.log_prob(value))
    close(ours.entropy(), theirs.entropy())
    close(ours.mode, theirs.mode)


def test_one_hot_samples_follow_the_probabilities():
    torch.manual_seed(0)
    policy = OneHotCategorical(torch.tensor([0.5, -1.0, 2.0]), unimix=0.1)
    close(policy.sample((20000,)).mean(0), policy.probs, atol=0.02, rtol=0)


def test_one_hot_gradient_is_that_of_the_probabilities():
    logits = torch.randn(2, 4, requires_grad=True)
    policy, probe = OneHotCategorical(logits, unimix=0.01), torch.randn(2, 4)
    sample = policy.rsample()
    assert set(sample.detach().round(decimals=5).unique().tolist()) == {0.0, 1.0}
    (through,) = torch.autograd.grad((sample * probe).sum(), logits, retain_graph=True)
    (direct,) = torch.autograd.grad((policy.probs * probe).sum(), logits)
    close(through, direct)


def test_tanh_normal_density_integrates_to_one():
    policy = TanhNormal(torch.tensor([[0.3]]), torch.tensor([[0.8]]))
    grid = torch.linspace(-0.99999, 0.99999, 200001)
    density = policy.log_prob(grid[:, None, None]).exp().squeeze()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-3)


def test_tanh_normal_entropy_is_estimated():
    torch.manual_seed(0)
    policy = TanhNormal(torch.full((500, 1), 0.3), torch.full((500, 1), 0.8))
    expected = -policy.log_prob(policy.sample((500,))).mean()
    close(policy.entropy().mean(), expected, atol=0.02, rtol=0)


def test_truncated_normal_density_integrates_to_one_and_has_its_moments():
    loc, scale = torch.tensor([[0.7]]), torch.tensor([[0.4]])
    policy = TruncatedNormal(loc, scale)
    grid = torch.linspace(-1, 1, 100001)
    log_density = policy.log_prob(grid[:, None, None]).squeeze()
    density = log_density.exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-4)
    close(torch.trapezoid(density * grid, grid), policy.mean.squeeze(), rtol=1e-3, atol=0)
    entropy = -torch.trapezoid(density * log_density, grid)
    close(entropy, policy.entropy().squeeze(), rtol=1e-3, atol=0)


def test_truncated_normal_samples_follow_the_density():
    torch.manual_seed(0)
    policy = TruncatedNormal(torch.tensor([0.7]), torch.tensor([0.4]))
    samples = policy.sample((40000,))
    assert samples.abs().max() <= 1
    close(samples.mean(0), policy.mean, atol=0.01, rtol=0)


@pytest.mark.parametrize("loc", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_truncated_normal_is_finite_at_the_ends(loc, noise):
    loc = torch.tensor([loc], requires_grad=True)
    scale = torch.tensor([0.1], requires_grad=True)
    sample = TruncatedNormal(loc, scale).rsample(noise=torch.tensor([noise]))
    sample.sum().backward()
    assert -1 < sample.item() < 1
    assert loc.grad.isfinite().all() and scale.grad.isfinite().all()


def test_two_hot_and_symlog_predict_in_raw_space():
    target = torch.tensor([[30.0]])
    close(SymlogSquaredError(symlog(target)).mean, target)
    bins = symexp_bins(255)
    logits = torch.full((1, 255), -100.0)
    logits[0, 200] = 100.0
    close(TwoHot(logits, bins).mean, bins[200].view(1, 1))


def test_pictures_are_seen_in_0_to_1_by_both_losses():
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    scaled = image.float() / 255
    normal, squared = ImageNormal(scaled - 0.5), ImageSquaredError(scaled)
    close(normal.mean, scaled)
    close(squared.mean, scaled)
    assert squared.log_prob(image).abs().max() < 1e-6
    close(normal.log_prob(image), UnitNormal(scaled, 3).log_prob(scaled))


def test_joint_noise_and_samples_are_split_alike():
    parts = [OneHotCategorical(torch.zeros(5, 3)), DiagonalNormal(*torch.ones(2, 5, 2))]
    joint = Joint(parts)
    noise = joint.noise((7,))
    sample = joint.sample((7,), noise=noise)
    assert sample.shape == (7, 5, 5)
    close(sample[..., 3:], 1 + noise[..., 3:])


@pytest.mark.parametrize("make", [Bernoulli, OneHotCategorical])
def test_several_samples_of_one_distribution_are_scored_at_once(make):
    distribution = make(torch.randn(4, 3))
    samples = distribution.sample((5,))
    expected = torch.stack([distribution.log_prob(sample) for sample in samples])
    torch.testing.assert_close(distribution.log_prob(samples), expected)
