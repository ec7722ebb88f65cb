from __future__ import annotations

import golden_weights
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    Unbounded,
)

from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.modules.heads import (
    BernoulliHead,
    Head,
    NormalHead,
    SymlogHead,
    TwoHotHead,
    actor_head,
)
from torchrl_wm.modules.outputs import (
    BoundedNormalOutput,
    TanhNormalOutput,
    TruncatedNormalOutput,
)


def v3_network(golden):
    return {"layers": golden.cfg["layers"], "units": golden.cfg["units"]}


def v2_network(golden):
    norm = "layer" if golden.cfg["norm_layer"] else None
    return v3_network(golden) | {"activation": "elu", "norm": norm, "init": "glorot"}


def check_v3(golden, head, names, loss):
    """Loads the weights, evaluates ``loss(distribution)`` [...] and compares every gradient."""
    weights = golden_weights.v3_head(golden, head, *names)
    golden.load(weights)
    features = golden["in/x"].requires_grad_()
    distribution = head(features)
    loss(distribution).mean().backward()
    golden.gradients(weights)
    golden.close(features.grad, "grad/x")
    return distribution


def check_v2(golden, head, names, loss):
    weights = golden_weights.v2_head(golden, head, *names)
    golden.load(weights)
    distribution = head(golden["in/x"])
    total = loss(distribution).mean()
    golden.close(total, "out/loss")
    total.backward()
    golden.gradients(weights)
    return distribution


def policy_loss(action):
    return lambda policy: -policy.log_prob(action) - 0.3 * policy.entropy()


@pytest.mark.golden("v3_head_symexp_twohot")
def test_two_hot_head_equals_the_reference(golden):
    head = TwoHotHead(golden["in/x"].shape[-1], bins=golden.cfg["bins"], **v3_network(golden))
    target = golden["in/target"].unsqueeze(-1)
    prediction = check_v3(golden, head, ["logits"], lambda p: -p.log_prob(target))
    golden.close(prediction.logits, "out/logits")
    golden.close(-prediction.log_prob(target), "out/loss")
    golden.close(prediction.mean.squeeze(-1), "out/pred")


@pytest.mark.golden("v3_head_binary")
def test_bernoulli_head_equals_the_v3_reference(golden):
    head = BernoulliHead(golden["in/x"].shape[-1], **v3_network(golden))
    target = golden["in/target"].unsqueeze(-1)
    prediction = check_v3(golden, head, ["logit"], lambda p: -p.log_prob(target))
    golden.close(prediction.logits.squeeze(-1), "out/logit")
    golden.close(prediction.mean.squeeze(-1), "out/prob")
    golden.close(prediction.mode.squeeze(-1), "out/pred")
    golden.close(-prediction.log_prob(target), "out/loss")


@pytest.mark.golden("v3_head_symlog_mse")
def test_symlog_head_equals_the_reference(golden):
    target = golden["in/target"]
    head = SymlogHead(golden["in/x"].shape[-1], size=target.shape[-1], **v3_network(golden))
    prediction = check_v3(golden, head, ["pred"], lambda p: -p.log_prob(target))
    golden.close(prediction.squashed, "out/pred")
    golden.close(-prediction.log_prob(target), "out/loss")


@pytest.mark.golden("v3_head_categorical")
def test_discrete_policy_equals_the_v3_reference(golden):
    # The reference ignores its unimix option in this head.
    count = golden["param/head/logits/bias"].numel()
    head = actor_head(Categorical(count), golden["in/x"].shape[-1], **v3_network(golden))
    action = torch.nn.functional.one_hot(golden["in/action"].long(), count)
    policy = check_v3(golden, head, ["logits"], policy_loss(action))
    golden.close(policy.log_prob(action), "out/logp")
    golden.close(policy.entropy(), "out/entropy")
    golden.close(policy.mode.argmax(-1), "out/pred")


@pytest.mark.golden("v3_head_bounded_normal")
def test_bounded_normal_policy_equals_the_reference(golden):
    action, cfg = golden["in/action"], golden.cfg
    output = BoundedNormalOutput(action.shape[-1], min_std=cfg["minstd"], max_std=cfg["maxstd"])
    head = Head(golden["in/x"].shape[-1], output, **v3_network(golden))
    policy = check_v3(golden, head, ["mean", "stddev"], policy_loss(action))
    golden.close(policy.mean, "out/mean")
    golden.close(policy.mode, "out/pred")
    golden.close(policy.stddev, "out/stddev")
    golden.close(policy.log_prob(action), "out/logp")
    golden.close(policy.entropy(), "out/entropy")


@pytest.mark.golden("v2_head_mse")
def test_normal_head_equals_the_v2_reference(golden):
    head = NormalHead(golden["in/x"].shape[-1], **v2_network(golden))
    target = golden["in/y"].unsqueeze(-1)
    prediction = check_v2(golden, head, ["out"], lambda p: -p.log_prob(target))
    golden.close(prediction.log_prob(target), "out/logp")
    golden.close(prediction.mode.squeeze(-1), "out/mode")


@pytest.mark.golden("v2_head_binary")
def test_bernoulli_head_equals_the_v2_reference(golden):
    head = BernoulliHead(golden["in/x"].shape[-1], **v2_network(golden))
    target = golden["in/y"].unsqueeze(-1)
    prediction = check_v2(golden, head, ["out"], lambda p: -p.log_prob(target))
    golden.close(prediction.log_prob(target), "out/logp")
    golden.close(prediction.mean.squeeze(-1), "out/mean")
    golden.close(prediction.mode.squeeze(-1), "out/mode")


@pytest.mark.golden("v2_head_onehot")
def test_discrete_policy_equals_the_v2_reference(golden):
    action = golden["in/y"]
    spec = OneHot(action.shape[-1])
    head = actor_head(spec, golden["in/x"].shape[-1], **v2_network(golden))
    policy = check_v2(golden, head, ["out"], policy_loss(action))
    golden.close(policy.log_prob(action), "out/logp")
    golden.close(policy.entropy(), "out/entropy")
    golden.close(policy.mode, "out/mode")


@pytest.mark.golden("v2_head_trunc_normal")
def test_truncated_normal_policy_equals_the_reference(golden):
    action, cfg = golden["in/y"], golden.cfg
    options = {"init_std": cfg["init_std"], "min_std": cfg["min_std"]}
    output = TruncatedNormalOutput(action.shape[-1], **options)
    head = Head(golden["in/x"].shape[-1], output, **v2_network(golden))
    policy = check_v2(golden, head, ["out", "std"], policy_loss(action))
    golden.close(policy.loc, "out/loc")
    golden.close(policy.scale, "out/scale")
    golden.close(policy.log_prob(action), "out/logp")
    golden.close(policy.entropy(), "out/entropy")


@pytest.mark.golden("v1_actor")
def test_tanh_normal_policy_equals_the_reference(golden):
    cfg, features = golden.cfg, golden["in/x"]
    options = {name: cfg[name] for name in ("mean_scale", "init_std", "min_std")}
    output = TanhNormalOutput(golden["in/action"].shape[-1], **options)
    network = {"activation": "elu", "norm": None, "init": "glorot"} | v3_network(golden)
    head = Head(features.shape[-1], output, **network)
    weights = golden_weights.v1_head(golden, head)
    golden.load(weights)
    policy = head(features)
    golden.close(policy.loc, "out/base_mean")
    golden.close(policy.scale, "out/base_std")
    sample = policy.rsample(noise=golden["in/eps"])
    golden.close(sample, "out/sample")
    log_prob = policy.log_prob(golden["in/action"])
    golden.close(log_prob, "out/logp")
    (sample * golden["in/probe"]).sum().backward(retain_graph=True)
    golden.gradients(weights, "grad/sample")
    head.zero_grad()
    # The reference leaves out the first row, whose action lies on the border.
    log_prob[1:].mean().backward()
    golden.gradients(weights, "grad/logp")


NETWORK = {"layers": 1, "units": 8}
SPECS = {
    "one_hot": OneHot(4),
    "multi_one_hot": MultiOneHot([2, 3]),
    "categorical": Categorical(3),
    "multi_categorical": MultiCategorical([3, 2]),
    "binary": Binary(3),
    "bounded": Bounded(-1.0, 1.0, (3,)),
    "bounded_scalar": Bounded(-1.0, 1.0, ()),
    "bounded_matrix": Bounded(-1.0, 1.0, (2, 3)),
    "unbounded": Unbounded((2,)),
    "composite": Composite({"b": Categorical(3), "a": Composite(x=Bounded(-1, 1, (2,)))}),
}


@pytest.mark.parametrize("continuous", ["tanh_normal", "truncated_normal", "bounded_normal"])
@pytest.mark.parametrize("name", SPECS)
def test_a_sampled_action_fits_its_spec(name, continuous):
    spec = SPECS[name]
    wrapped = spec if isinstance(spec, Composite) else Composite(action=spec)
    encoding = ActionEncoding(spec)
    actor = actor_head(spec, 5, continuous=continuous, unimix=0.01, **NETWORK)
    policy = actor(torch.randn(2, 3, 5))
    for flat in (policy.sample(), policy.mode):
        assert flat.shape == (2, 3, encoding.size)
        assert policy.log_prob(flat).shape == policy.entropy().shape == (2, 3)
        action = encoding.decode(flat, TensorDict(batch_size=(2, 3)))
        assert wrapped.expand(2, 3).is_in(action)
        if continuous == "bounded_normal" and "unbounded" not in name:
            continue  # such samples may lie outside and are clipped
        torch.testing.assert_close(encoding(action), flat)


@pytest.mark.parametrize("name", SPECS)
def test_samples_follow_the_given_noise_and_carry_gradients(name):
    policy = actor_head(SPECS[name], 5, **NETWORK)(torch.randn(4, 5))
    noise = policy.noise()
    sample = policy.rsample(noise=noise)
    torch.testing.assert_close(sample, policy.rsample(noise=noise))
    assert sample.requires_grad and not policy.sample(noise=noise).requires_grad
    generator = torch.Generator().manual_seed(3)
    first = policy.noise(generator=generator)
    torch.testing.assert_close(first, policy.noise(generator=generator.manual_seed(3)))


def test_a_joint_policy_adds_its_parts_up():
    policy = actor_head(SPECS["composite"], 5, **NETWORK)(torch.randn(4, 5))
    arm, gear = policy.parts
    flat = policy.sample()
    expected = arm.log_prob(flat[:, :2]) + gear.log_prob(flat[:, 2:])
    torch.testing.assert_close(policy.log_prob(flat), expected)
    torch.testing.assert_close(policy.entropy(), arm.entropy() + gear.entropy())


def test_unimix_bounds_the_least_probability():
    actor = actor_head(OneHot(4), 5, unimix=0.2, **NETWORK)
    policy = actor(1e4 * torch.randn(6, 5))
    assert policy.probs.min().item() >= 0.05 - 1e-6
    torch.testing.assert_close(policy.probs.sum(-1), torch.ones(6))


def test_untrained_two_hot_head_predicts_zero():
    assert TwoHotHead(5, **NETWORK)(torch.randn(7, 5)).mean.abs().max() == 0


def test_out_scale_shrinks_the_first_policy():
    actor = actor_head(Bounded(-1, 1, (2,)), 5, out_scale=0.01, **NETWORK)
    assert actor(torch.randn(100, 5)).mean.abs().max() < 0.1


def test_means_and_deviations_of_v2_are_initialised_apart():
    torch.manual_seed(0)
    head = Head(30, TruncatedNormalOutput(30), layers=0, units=0, init="glorot")
    limit = (6 / 60) ** 0.5
    for part in head.out.parts:
        assert 0.95 * limit < part.weight.abs().max() <= limit


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match="Unknown policy 'normal'.*truncated_normal"):
        actor_head(Bounded(-1, 1, (2,)), 5, continuous="normal", **NETWORK)


def test_bounds_other_than_one_are_refused():
    spec = Composite(torque=Bounded(-2, 2, (1,)))
    with pytest.raises(ValueError, match="'torque' is bounded by -2 and 2.*Rescale"):
        actor_head(spec, 5, **NETWORK)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="'action' holds numbers of type torch.int64"):
        actor_head(Bounded(0, 5, (2,), dtype=torch.int64), 5, **NETWORK)


def test_an_output_maker_may_be_given():
    make = lambda size: TanhNormalOutput(size, min_std=0.5)
    actor = actor_head(Bounded(-1, 1, (2,)), 5, continuous=make, **NETWORK)
    assert actor(1e4 * torch.randn(50, 5)).stddev.min() >= 0.5
