"""Imagination in a program equals that of the modules, and follows training."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiOneHot,
    OneHot,
    Unbounded,
)

from torchrl_wm.modules import TwoHotHead, actor_head
from torchrl_wm.modules.action_distributions import DiagonalNormal
from torchrl_wm.modules.outputs import Output, TanhNormalOutput
from torchrl_wm.objectives import (
    ActorLoss,
    CriticLoss,
    Imagination,
    Reinforce,
    align_v3,
    imagination,
)
from torchrl_wm.programs import bfloat16
from torchrl_wm.world_models import RSSM, make_identity, make_rssm

OBSERVATIONS = Composite(observation=Unbounded(3))
ACTIONS = {
    "continuous": Bounded(-1, 1, (2,)),
    "one-hot": OneHot(3),
    "index": Categorical(5),
    "two choices": MultiOneHot([3, 4]),
    "binary": Binary(4),
    "several": Composite(arm=Bounded(-1, 1, (2,)), gear=Categorical(3)),
}
MODELS = {
    "v3": {"style": "v3", "belief_size": 128, "units": 24, "hidden_size": 20, "classes": 4},
    "v3 with narrow blocks": {"style": "v3", "belief_size": 24, "units": 9, "classes": 5},
    "v2": {"style": "v2", "cell": "layer_norm", "state_size": 5, "classes": 8, "belief_size": 30},
    "v1": {"style": "v1", "cell": "gru", "latent": "gaussian", "belief_size": 30},
    "planet": {"style": "planet", "latent": "gaussian", "belief_size": 30, "cell": "reset_before"},
}
HORIZON, ROWS = 12, 67


def make(action="continuous", model="v3", **options):
    torch.manual_seed(0)
    spec = ACTIONS[action]
    spec = spec if isinstance(spec, Composite) else Composite(action=spec)
    made = make_rssm(OBSERVATIONS, spec, **MODELS[model])
    actor = actor_head(spec, made.feature_size, layers=2, units=24, norm="rms")
    for parameter in actor.parameters():
        nn.init.normal_(parameter, std=0.3)  # actions beyond the bounds, and far from uniform
    return Imagination(made, actor, None, HORIZON, discount=0.99, **options)


def inputs(imagine, rows=ROWS):
    latents = imagine.world_model.initial([rows])
    latents.apply_(lambda x: x.uniform_(-1, 1))
    return latents, imagine.world_model.noise((rows, HORIZON))


def in_steps(imagine, latents, noise, draws):
    """The same in the modules, from the same draws of the actor."""
    draws = iter(draws)
    act = lambda features: imagine.actor(features).rsample(noise=next(draws))
    with torch.no_grad():
        return imagine.world_model.imagine(latents, act, HORIZON, noise=noise).transpose(0, 1)


def assert_equals_the_modules(imagine):
    latents, noise = inputs(imagine)
    torch.manual_seed(1)
    found = imagine(latents, noise=noise)
    assert imagine._rollout._followed.program is not None
    torch.manual_seed(1)
    policy = imagine._rollout._policy(imagine.world_model.features(latents))
    policy.noise()  # of which the program may be recorded
    draws = policy.noise((HORIZON,))
    expected = in_steps(imagine, latents, noise, draws)
    for key in ("features", "action"):
        torch.testing.assert_close(found[key], expected[key].float(), rtol=1e-4, atol=1e-5)
    assert found["features"].std(0).mean() > 0.05 and "raw_policy" not in found.keys()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_features_and_actions_are_those_of_the_modules(model, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_equals_the_modules(make(model=model))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("action", ACTIONS)
def test_every_kind_of_action(action):
    assert_equals_the_modules(make(action))


def test_training_is_seen():
    imagine = make()
    assert_equals_the_modules(imagine)
    program = imagine._rollout._followed.program
    with torch.no_grad():
        for parameter in imagine.parameters():
            parameter.mul_(0.8).add_(0.01)
    assert_equals_the_modules(imagine)
    assert imagine._rollout._followed.program is program


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_replaced_parameters(copied):
    imagine = make("one-hot")
    assert_equals_the_modules(imagine)
    other = copied(imagine)
    assert other._rollout._followed.program is None and other._rollout.actor is other.actor
    other.actor.out = copy.deepcopy(other.actor.out)
    nn.init.normal_(other.actor.out.weight)
    for module in (other, imagine):
        assert_equals_the_modules(module)


def test_feed_forward_models_imagine_as_before():
    spec = Composite(action=Bounded(-1, 1, (2,)))
    model = make_identity(OBSERVATIONS, spec, units=14)
    actor = actor_head(spec, model.feature_size, layers=1, units=8)
    imagine = Imagination(model, actor, None, HORIZON, discount=0.99)
    found = imagine(inputs(imagine)[0])
    assert found.shape == (HORIZON + 1, ROWS)


class Cumulative(nn.Module):
    """An actor with an operation that no program has."""

    def __init__(self, head):
        super().__init__()
        self.head, self.output = head, head.output

    def raw(self, features):
        return self.head.raw(features.cumsum(-1) / 9)

    def forward(self, features):
        return self.output(self.raw(features))


def test_where_there_is_no_program_the_modules_run():
    imagine = make()
    latents, _ = inputs(imagine)
    small = imagine(latents[:3])
    assert imagine._rollout._followed.program is None and "raw_policy" in small.keys()
    odd = Imagination(imagine.world_model, Cumulative(imagine.actor), None, HORIZON, discount=0.99)
    assert odd(latents)["raw_policy"].requires_grad and odd._rollout._followed.program is None
    double = make().double()
    assert "raw_policy" in double(latents.double()).keys()


def test_trained_through_the_dynamics_nothing_is_detached():
    imagine = make(through_dynamics=True)
    found = imagine(inputs(imagine)[0])
    assert found["features"].requires_grad and imagine._rollout._followed.program is None


@pytest.mark.parametrize("action", ["continuous", "one-hot"])
def test_the_actor_learns_the_same(action):
    """Its loss has the graph from the modules, or makes it from the features of the program."""
    imagine = make(action)
    latents, noise = inputs(imagine)
    trajectory = imagine(latents, noise=noise)
    trajectory["state_value"] = trajectory["features"][..., :1].sin()
    rows, _ = align_v3(trajectory, 0.95, 1.0)
    with_graph = rows.clone().set("raw_policy", imagine.actor.raw(rows["features"]))
    loss, gradients = ActorLoss(imagine.actor, Reinforce(), entropy_scale=0.1), []
    for each in (rows, with_graph):
        imagine.actor.zero_grad()
        loss(each)["loss_actor"].backward()
        gradients.append([p.grad.clone() for p in imagine.actor.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert max(x.abs().max() for x in gradients[0]) > 1e-4


def test_autocast_rounds_products_where_the_processor_has_them():
    imagine = make(model="planet")  # classes that are about as likely would be drawn differently
    (latents, noise), results = inputs(imagine), []
    for enabled in (False, True, False):
        torch.manual_seed(1)  # of the actor's draws
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(imagine(latents, noise=noise)["features"])
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=0)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0.05)
    assert torch.equal(results[0], results[1]) is not bfloat16.SUPPORTED


@pytest.mark.parametrize("rows", [5, ROWS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_are_rounded_under_autocast_where_that_is_asked_for(dtype, rows):
    imagine, rounding = make(), make(rounded_features=True)
    latents, noise = inputs(imagine, rows)
    for enabled in (True, False):
        found = []
        for each in (imagine, rounding):
            torch.manual_seed(1)
            with torch.autocast("cpu", dtype, enabled=enabled):
                found.append(each(latents, noise=noise)["features"])
        assert found[0].dtype == torch.float32
        assert found[1].dtype == (dtype if enabled else torch.float32)
        torch.testing.assert_close(found[0].to(found[1].dtype), found[1], rtol=0, atol=0)


def test_values_of_a_critic_are_those_of_the_features():
    imagine = make()
    critic = TwoHotHead(imagine.world_model.feature_size, layers=1, units=8, out_scale=1.0)
    imagine.critic = critic
    found = imagine(inputs(imagine)[0])
    # Values are differences of shares of bins as large as 5e8.
    expected = critic(found["features"]).mean
    torch.testing.assert_close(found["state_value"], expected, rtol=1e-4, atol=30.0)
    assert not found["action"][-1].any()


def judged(imagine, features) -> dict:
    model = imagine.world_model
    found = {
        "reward": model.reward_head(features).mean,
        "state_value": imagine.critic(features).mean,
    }
    if model.continuation_head is not None:
        found["continuation"] = model.continuation_head(features).mean
    return found


def assert_judged(imagine):
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagination, "in_pieces", None)  # a program judges
        found = imagine(inputs(imagine)[0])
        for key, value in judged(imagine, found["features"]).items():
            scale = max(1.0, value.abs().max().item())  # of two-hot codes, whose bins reach 5e8
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4 * scale)


def test_heads_and_a_slow_critic_are_followed_and_replaced():
    imagine = make()
    model, size = imagine.world_model, imagine.world_model.feature_size
    make_critic = lambda: TwoHotHead(size, layers=1, units=8, out_scale=0.1)
    loss = CriticLoss(make_critic())
    imagine.critic = loss.slow
    assert_judged(imagine)
    assert imagine._judging._followed.program is not None
    with torch.no_grad():  # as a target update does
        for value in loss.target_critic_params.values(True, True):
            value.mul_(0.5)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert_judged(imagine)
    model.reward_head = TwoHotHead(size, layers=2, units=9, out_scale=0.1)
    assert_judged(imagine)
    for slow in (True, False):
        imagine.critic = CriticLoss(make_critic(), use_ema_critic=slow).slow
        assert_judged(imagine)
    assert imagine._judging._followed.program is not None


def test_a_discount_that_is_not_predicted_may_change():
    imagine = make()
    imagine.world_model.continuation_head = None
    for discount in (0.9, 0.8):
        imagine.discount = discount
        found = imagine(inputs(imagine)[0])["continuation"]
        assert (found == torch.tensor(discount)).all()


@pytest.mark.parametrize("shape", [(80, HORIZON), (50, HORIZON)])
def test_noise_of_other_rows_is_an_error_of_torch(shape):
    imagine = make()
    latents, noise = inputs(imagine)
    imagine(latents, noise=noise)
    with pytest.raises(RuntimeError):
        imagine(latents, noise=imagine.world_model.noise(shape))
    with pytest.raises(RuntimeError):
        imagine(latents, noise=noise[..., :-4])


@pytest.mark.parametrize("part", ["actor", "world_model"])
def test_replaced_parts_are_used(part):
    imagine, other = make(), make()
    assert_equals_the_modules(imagine)
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.2)
    setattr(imagine, part, getattr(other, part))
    assert_equals_the_modules(imagine)


def test_an_output_without_parameters_is_replaced_too():
    imagine = make()
    assert_equals_the_modules(imagine)
    imagine.actor.output = BoundedElsewhere(2)
    assert_equals_the_modules(imagine)


class BoundedElsewhere(Output):
    """Actions around 0.5."""

    def __init__(self, size):
        super().__init__(size, size)

    def forward(self, raw):
        mean, std = raw.chunk(2, -1)
        return DiagonalNormal(0.5 + 0.1 * torch.tanh(mean), torch.sigmoid(std))


class Odd(nn.Module):
    """An actor around another one."""

    def __init__(self, head):
        super().__init__()
        self.head, self.output = head, head.output
        self.register_buffer("scale", torch.tensor(0.5))

    def raw(self, features):
        return self.head.raw(features)

    def forward(self, features):
        return self.output(self.raw(features))


class ReadsANumber(Odd):
    def raw(self, features):
        return self.head.raw(features) * self.scale.item()


class DropsOut(Odd):
    def raw(self, features):
        return nn.functional.dropout(self.head.raw(features), 0.5, self.training)


class TorchOutput(nn.Module):
    def forward(self, raw):
        mean, std = raw.chunk(2, -1)
        return torch.distributions.Independent(torch.distributions.Normal(mean, std.exp()), 1)


class NoiseOfAnotherKind(Output):
    def forward(self, raw):
        policy = TorchOutput()(raw)
        policy.noise = 0.3
        return policy


class WithoutNoise(DiagonalNormal):
    def rsample(self, sample_shape=()):
        return super().rsample(sample_shape)


class OutputWithoutNoise(Output):
    def forward(self, raw):
        return WithoutNoise(*raw.chunk(2, -1))


@pytest.mark.parametrize("actor", [ReadsANumber, DropsOut])
def test_actors_that_no_program_expresses_act_in_torch(actor):
    imagine = make()
    imagine.actor = actor(imagine.actor)
    found = imagine(inputs(imagine)[0])
    assert imagine._rollout._followed.program is None and found["raw_policy"].requires_grad


@pytest.mark.parametrize(
    "output", [TorchOutput(), NoiseOfAnotherKind(2, 2), OutputWithoutNoise(2, 2)]
)
def test_distributions_of_other_kinds_act_in_torch(output):
    imagine = make()
    imagine.actor.output = output
    assert "raw_policy" in imagine(inputs(imagine)[0]).keys()


def test_an_actor_that_begins_to_train_is_seen():
    imagine = make()
    imagine.actor = DropsOut(imagine.actor).eval()
    assert "raw_policy" not in imagine(inputs(imagine)[0]).keys()
    imagine.actor.train()
    assert "raw_policy" in imagine(inputs(imagine)[0]).keys()


def test_models_that_imagine_in_another_way_do():
    class Clamped(RSSM):
        def _imagine_tensors(self, *inputs):
            features, actions = super()._imagine_tensors(*inputs)
            return [x.clamp(-0.01, 0.01) for x in features], actions

    imagine = make()
    imagine.world_model.__class__ = Clamped
    assert imagine(inputs(imagine)[0])["features"].abs().max() <= 0.01


def test_inference_mode_does_not_matter():
    imagine = make()
    latents, noise = inputs(imagine)
    with torch.inference_mode():
        torch.manual_seed(1)
        inside = imagine(latents, noise=noise)["features"]
    torch.manual_seed(1)
    torch.testing.assert_close(imagine(latents, noise=noise)["features"], inside)
    assert imagine._rollout._followed.program is not None


def test_tanh_policies_have_programs_too():
    imagine = make()
    imagine.actor.output = TanhNormalOutput(2)
    assert_equals_the_modules(imagine)


def test_on_another_device_nothing_is_drawn_for_a_program():
    imagine = make()
    assert imagine._rollout._policy(torch.empty(ROWS, 160, device="meta")) is None
