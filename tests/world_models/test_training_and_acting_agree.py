"""On replayed experience a world model computes the latents with which it acted."""

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import Composite, OneHot, Unbounded
from torchrl.envs import Compose, GymEnv, InitTracker, SerialEnv, StepCounter, TransformedEnv

from torchrl_wm.data import StepReplay
from torchrl_wm.envs import PreviousStep, model_specs
from torchrl_wm.modules.heads import actor_head
from torchrl_wm.policies import FilteringActor
from torchrl_wm.world_models import RSSM, make_autoencoder, make_rssm

LIMITS = (1, 5, 30)
SIZES = {"belief_size": 16, "hidden_size": 16, "state_size": 4, "units": 16}
MODELS = {
    "gaussian": partial(make_rssm, latent="gaussian", cell="gru", style="v1", **SIZES),
    "categorical": partial(make_rssm, **SIZES),
    "nested_keys": partial(make_rssm, belief_key=("wm", "h"), state_key=("wm", "z"), **SIZES),
    "autoencoder": partial(make_autoencoder, units=16, members=2),
}


class RecordingActor(FilteringActor):
    """Notes the noise of every latent that it draws."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.out_keys = [*self.out_keys, "noise"]

    def forward(self, tensordict):
        noise = type(self.world_model).noise(self.world_model, tensordict.batch_size)
        self.world_model.noise = lambda *_: noise
        try:
            return super().forward(tensordict).set("noise", noise)
        finally:
            del self.world_model.noise


def limited(limit):
    return TransformedEnv(GymEnv("CartPole-v1"), StepCounter(limit))


def collect(make_model):
    """A replay of three environments that reset at different times, and its model."""
    torch.manual_seed(0)
    serial = SerialEnv(3, [partial(limited, limit) for limit in LIMITS])
    env = TransformedEnv(serial, Compose(InitTracker(), PreviousStep()))
    observations, actions = model_specs(env)
    model = make_model(observations, actions)
    for parameter in model.parameters():  # zero biases would hide that something is added twice
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    actor = actor_head(actions, model.feature_size, layers=1, units=16)
    policy = RecordingActor(model, actor)
    env = env.append_transform(policy.make_tensordict_primer())
    replay = StepReplay(
        600,
        num_envs=3,
        batch_size=64,
        slice_length=12,
        action_spec=actions,
        observation_keys=list(observations.keys(True, True)),
        latents=dict.fromkeys(model.latent_keys, torch.float32),
        extra_keys=["noise"],
        seed=0,
    )
    policy.random_actions = True  # a warm-up: real latents, random actions
    for batch in Collector(env, policy, frames_per_batch=3 * 17, total_frames=3 * 17 * 6):
        replay.extend(batch)
        policy.random_actions = False
    return replay, model


@pytest.mark.parametrize("name", MODELS)
def test_observing_replayed_records_gives_the_latents_of_acting(name):
    replay, model = collect(MODELS[name])
    compared, resets, started_in_mid_episode = 0, 0, 0
    for _ in range(5):
        sample = replay.sample()
        records, carry = sample[:, 1:], sample[:, 0]
        with torch.no_grad():
            observed = model.observe(records, carry, noise=records["noise"])
        acted = ~records["is_last"].squeeze(-1)  # no policy runs on the final record of an episode
        assert (model.features(records[acted]) != 0).any(-1).all()
        for key in model.latent_keys:
            actual, expected = observed[key][acted], records[key][acted]
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        led = ~records["is_init"].squeeze(-1)  # by the action of the row before
        taken = model.action_encoding(sample[:, :-1])
        assert torch.equal(records["previous_action"][led], taken[led])
        assert (records["previous_action"][~led] == 0).all()
        compared += int(acted.sum())
        resets += int(records["is_init"][:, 1:].sum())
        started_in_mid_episode += int((~records["is_init"][:, 0] & ~carry["is_last"]).sum())
    assert compared > 1000
    assert resets > 100
    assert started_in_mid_episode > 50


def test_the_stored_carry_matters():
    replay, model = collect(MODELS["gaussian"])
    assert isinstance(model, RSSM)
    sample = replay.sample()
    records, going_on = sample[:, 1:], ~sample[:, 1]["is_init"].squeeze(-1)
    with torch.no_grad():
        from_zero = model.observe(records, noise=records["noise"])
    wrong = (from_zero["belief"][:, 0] - records["belief"][:, 0]).abs().amax(-1) > 1e-3
    assert torch.equal(wrong, going_on)


def test_the_warm_up_reaches_workers_with_the_weights():
    specs = Composite(x=Unbounded(3)), Composite(action=OneHot(2))
    policies = []
    for _ in range(2):
        model = make_rssm(*specs, belief_size=16, hidden_size=8, units=8)
        actor = actor_head(specs[1], model.feature_size, layers=1, units=8)
        policies.append(FilteringActor(model, actor))
    learner, worker = policies
    learner.random_actions = True
    TensorDict.from_module(worker).data.update_(TensorDict.from_module(learner).data)
    assert worker.random_actions
    assert not any("random_actions" in key for key in learner.state_dict())
