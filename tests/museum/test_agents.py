"""Mistakes that whole agents made, those verified in TorchRL 0.14.1 included; one test for each."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import Bounded, Composite, OneHot, Unbounded

from torchrl_wm.algorithms import DreamerV1, DreamerV2, DreamerV3
from torchrl_wm.data import step_records
from torchrl_wm.envs import gymnasium, model_specs
from torchrl_wm.functional.returns import lambda_return
from torchrl_wm.objectives import WorldModelLoss, make_divergence
from torchrl_wm.world_models import make_rssm

SIZES = {"belief_size": 8, "hidden_size": 8, "units": 8, "state_size": 4, "blocks": 2}
SMALL = {"units": 8, "actor_layers": 1, "critic_layers": 1, "imagination_horizon": 4}
OBSERVATIONS = Composite(observation=Unbounded((4,)))
DISCRETE = Composite(action=OneHot(3))


def make(algorithm, actions=DISCRETE, **options):
    torch.manual_seed(0)
    model = partial(make_rssm, vector_layers=1, **SIZES)
    return algorithm(OBSERVATIONS, actions, world_model=model, **SMALL, **options)


def sample(agent, batch=2, steps=5):
    shape = [batch, steps + 1]
    out = OBSERVATIONS.expand(shape).rand().update(agent.world_model.initial(shape))
    out["previous_action"] = torch.rand(*shape, agent.world_model.action_encoding.size)
    out["reward"] = torch.randn(*shape, 1)
    for key in ("is_init", "is_last", "terminated"):
        out[key] = torch.zeros(*shape, 1, dtype=torch.bool)
    return out


def starts(agent, rows=3):
    latents = agent.world_model.initial([rows])
    return latents.apply(lambda x: torch.randn_like(x))


# -- Time ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_first_action_and_first_observation_of_an_episode_are_lost_in_training():
    """TorchRL's transitions go to its RSSM one step askew; here training sees what acting saw."""
    torch.manual_seed(0)
    env = gymnasium("Pendulum-v1", num_envs=2, max_episode_steps=5)
    observations, actions = model_specs(env)
    agent = DreamerV1(observations, actions, world_model=partial(make_rssm, **SIZES), **SMALL)
    agent.world_model.noise = lambda batch, device=None: torch.zeros(*batch, 4)
    env.append_transform(agent.policy.make_tensordict_primer())
    collector = Collector(env, agent.policy, frames_per_batch=26, total_frames=26)
    (batch,) = list(collector)
    read = list(observations.keys(True, True))
    records = step_records(batch, observation_keys=read, policy_keys=["belief", "state"])
    for number in (0, 1):
        mine = records[records["environment"] == number]
        trained = agent.world_model.observe(mine[None])[0]
        acted = ~mine["is_last"][:, 0]
        assert acted.sum() == 13 and (~acted).sum() == 2
        torch.testing.assert_close(trained["belief"][acted], mine["belief"][acted])


def test_recurrence_is_lost_in_silence_under_other_keys():
    """Latents of other names are carried, and a missing one raises."""
    names = {"belief_key": ("latent", "h"), "state_key": ("latent", "z")}
    model = make_rssm(OBSERVATIONS, DISCRETE, **names, **SIZES)
    records = sample_records(model)
    noise = model.noise([2, 6])
    first = model.observe(records, noise=noise)["latent", "h"]
    records["previous_action"][:, 1] += 1
    second = model.observe(records, noise=noise)["latent", "h"]
    assert not torch.equal(first[:, 5], second[:, 5])
    with pytest.raises(KeyError, match="'latent', 'h'.*make_tensordict_primer"):
        model.filter(records[:, 0])


def sample_records(model):
    entries = {
        "observation": torch.randn(2, 6, 4),
        "previous_action": torch.rand(2, 6, 3),
        "is_init": torch.zeros(2, 6, 1, dtype=torch.bool),
    }
    return TensorDict(entries, [2, 6])


# -- Losses of the world model ------------------------------------------------------------------


def test_vector_loss_grows_with_the_batch():
    agent = make(DreamerV3)
    batch = sample(agent)
    noise = agent.world_model.noise(batch.batch_size)
    losses = []
    for copies in (1, 4):
        larger = torch.cat([batch.clone().set("noise", noise)] * copies)
        losses.append(agent.world_model_loss(larger).exclude("latents"))
    torch.testing.assert_close(losses[0].to_dict(), losses[1].to_dict())


def test_reward_at_a_reset_is_not_trained():
    agent = make(DreamerV1)
    batch = sample(agent)
    batch["is_init"][:, 2] = True
    batch["noise"] = agent.world_model.noise(batch.batch_size)
    first = agent.world_model_loss(batch)["loss_reward"]
    batch["reward"][:, 2] += 10
    assert agent.world_model_loss(batch)["loss_reward"] > first


def test_squashing_changes_the_stored_reward():
    agent = make(DreamerV2, squash_reward=True)
    batch = sample(agent)
    batch["reward"] *= 10
    stored, batch["noise"] = batch["reward"].clone(), agent.world_model.noise(batch.batch_size)
    squashed = agent.world_model_loss(batch)["loss_reward"]
    assert torch.equal(batch["reward"], stored)
    plain = WorldModelLoss(agent.world_model, make_divergence("balanced", free_bits=0.0))
    batch["reward"] = stored.tanh()
    torch.testing.assert_close(plain(batch)["loss_reward"], squashed)


def test_row_zero_is_trained_or_its_latent_is_not_the_carry():
    agent = make(DreamerV3)
    batch = sample(agent)
    batch["noise"] = agent.world_model.noise(batch.batch_size)
    losses = lambda: agent.world_model_loss(batch).exclude("latents")
    first = losses()
    for key in ("observation", "reward", "previous_action", "noise"):
        batch[key][:, 0] += 1
    torch.testing.assert_close(first.to_dict(), losses().to_dict())
    batch["belief"][:, 0] += 1
    assert losses()["loss_observation"] != first["loss_observation"]


# -- Behaviour ----------------------------------------------------------------------------------


def test_lambda_return_falls_back_to_one_step():
    """TorchRL's Dreamer losses take the trailing dimension for time."""
    one = torch.ones(3, 2, 1)
    returns = lambda_return(one, 0 * one, 0.5 * one, 1.0, time_dim=0)
    assert returns[:, 0, 0].tolist() == [1.75, 1.5, 1.0]


@pytest.mark.parametrize("algorithm", [DreamerV1, DreamerV2, DreamerV3])
def test_a_discrete_actor_gets_no_gradient(algorithm, gradients_of_actor):
    agent = make(algorithm, entropy=0.0)
    torch.nn.init.normal_(agent.world_model.reward_head.out.weight)
    found = gradients_of_actor(agent, sample(agent))
    assert all(gradient.abs().max() > 1e-8 for gradient in found)


@pytest.fixture
def gradients_of_actor():
    def find(agent, batch):
        found = []
        optimizer = agent.optimizers.get("actor", agent.optimizers.get("all"))
        mine = set(agent.actor.parameters())
        optimizer.register_step_pre_hook(
            lambda o, *_: found.extend(
                p.grad.clone() for g in o.param_groups for p in g["params"] if p in mine
            )
        )
        agent.update(batch)
        return found

    return find


def test_the_graph_goes_through_the_actors_input_or_stops_at_the_dynamics():
    agent = make(DreamerV1, Composite(action=Bounded(-1, 1, (2,))), exploration_noise=0.0)
    seen = []
    act = agent.actor.forward
    agent.actor.forward = lambda features: seen.append(features) or act(features)
    rows = agent.imagination(starts(agent))
    assert not any(features.requires_grad for features in seen)
    first_row = rows["features"][1]
    assert rows["action"].requires_grad and first_row.requires_grad
    # Values and rewards pass the gradient on, and keep no graph to their own weights.
    last = rows["state_value"][-1].sum() + rows["reward"][-1].sum()
    parameters = list(agent.actor.parameters())
    assert any(g is not None and g.any() for g in grads(last, parameters))
    frozen = [*agent.world_model.reward_head.parameters(), *agent.world_model.cell.parameters()]
    assert all(g is None for g in grads(last, frozen))


def grads(value, parameters):
    return torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)


def test_dreamer_v2_predicts_whether_the_start_goes_on():
    agent = make(DreamerV2, discount=0.9)
    latents = starts(agent)
    known = torch.tensor([[0.9], [0.0], [0.9]])
    rows = agent.imagination(latents, start_continuation=known)
    torch.testing.assert_close(rows["continuation"][0], known)
    predicted = agent.world_model.continuation_head(rows["features"][1:]).mean
    torch.testing.assert_close(rows["continuation"][1:], predicted)


def test_dreamer_v2_takes_targets_from_the_fast_critic():
    agent = make(DreamerV2)
    for parameter in agent.critic_loss.target_critic_params.values(True, True):
        parameter.data.zero_()
    agent.critic_loss.target_critic_params["out", "bias"].data.fill_(7.0)
    assert (agent.imagination(starts(agent))["state_value"] == 7.0).all()


def test_dreamer_v3_takes_targets_from_the_slow_critic():
    agent = make(DreamerV3)
    agent.critic_loss.target_critic_params["out", "bias"].data.uniform_(-9, 9)
    rows = agent.imagination(starts(agent))
    agent.critic_loss.evaluate(rows)
    assert (rows["state_value"] == 0).all()
    agent.critic.out.bias.data[-1] = 9.0
    agent.critic_loss.evaluate(rows)
    assert (rows["state_value"] > 0).all()


def test_dreamer_v3_bootstraps_replayed_states_from_the_critic():
    agent = make(DreamerV3)
    seen = []
    forward = agent.replay_critic_loss.forward
    agent.replay_critic_loss.forward = lambda rows: seen.append(rows) or forward(rows)
    batch = sample(agent)
    agent.update(batch)
    replayed = seen[0]
    assert replayed["features"].requires_grad
    # A head of zeros imagines returns of 0; the rewards are those of the replay, row 0 left out.
    assert torch.equal(replayed["bootstrap"], torch.zeros(2, 5, 1))
    assert torch.equal(replayed["reward"], batch["reward"][:, 1:])
    agent.world_model.reward_head.out.bias.data[-1] = 9.0
    agent.update(batch)
    assert (seen[1]["bootstrap"] > 0).all()
