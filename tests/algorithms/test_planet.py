"""PlaNet and the PETS-style agent as a training loop sees them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_wm.algorithms import PlaNet
from torchrl_wm.planners import CEMPlanner, ICEMPlanner, MPPIPlanner, SearchPolicy
from torchrl_wm.training.configuration import instantiate
from torchrl_wm.world_models import make_autoencoder, make_identity, make_muzero, make_rssm

SIZES = {"planning_horizon": 3, "optim_steps": 2, "num_candidates": 8, "top_k": 2}
PLANNERS = {
    name: partial(planner, **SIZES)
    for name, planner in (("cem", CEMPlanner), ("icem", ICEMPlanner), ("mppi", MPPIPlanner))
}
TINY = {"units": 8, "reward_layers": 1, "continuation_layers": 1}
RSSM = {"belief_size": 8, "hidden_size": 8, "state_size": 4, "vector_layers": 1, "depth": 2}
MODELS = {
    "rssm": partial(make_rssm, **TINY, **RSSM),
    "identity": partial(make_identity, **TINY, members=2),
    "autoencoder": partial(make_autoencoder, **TINY, members=2, state_size=4, depth=2),
}
VECTOR = Composite(observation=Unbounded((4,)))
IMAGE = Composite(pixels=Unbounded((3, 64, 64), dtype=torch.uint8))
ACTION = Composite(action=Bounded(-1, 1, (2,)))


def make(model="rssm", planner="cem", observations=VECTOR, actions=ACTION, **options):
    parts = {"world_model": MODELS[model], "planner": PLANNERS[planner]}
    return PlaNet(observations, actions, **{**parts, "free_bits": 0.0, **options})


def sample(agent, observations=VECTOR, batch=2, steps=5):
    shape = [batch, steps + 1]
    out = observations.expand(shape).rand().update(agent.world_model.initial(shape))
    spec = Composite(dict(agent.world_model.action_encoding.leaves))
    out["previous_action"] = agent.world_model.action_encoding(spec.expand(shape).rand())
    out["reward"] = torch.randn(*shape, 1)
    for key in ("is_init", "is_last", "terminated"):
        out[key] = torch.zeros(*shape, 1, dtype=torch.bool)
    out["is_init"][0, 3] = out["is_last"][0, 2] = out["terminated"][0, 2] = True
    return out


def observed(agent, observations, batch):
    """What a policy reads in the first step of an episode."""
    out = observations.expand(batch).rand().update(agent.world_model.initial([batch]))
    out["previous_action"] = torch.zeros(batch, agent.world_model.action_encoding.size)
    out["is_init"] = torch.ones(batch, 1, dtype=torch.bool)
    for key, shape in agent.policy.planner.carried.items():
        out[key] = torch.zeros(batch, *shape)
    return out


@pytest.mark.parametrize(
    ("model", "planner", "actions"),
    [
        ("rssm", "cem", ACTION),
        ("rssm", "icem", Composite(action=OneHot(3))),
        ("identity", "icem", ACTION),
        ("identity", "mppi", Composite(action=OneHot(3))),
        ("autoencoder", "mppi", Composite(a=Categorical(3))),
    ],
)
def test_models_and_planners_combine(model, planner, actions):
    torch.manual_seed(0)
    agent = make(model, planner, actions=actions, use_continuation=True)
    metrics, latents = agent.update(sample(agent))
    assert all(value.isfinite().all() for value in metrics.values(True, True))
    assert latents.batch_size == (2, 5)
    for policy in (agent.policy, agent.evaluation_policy):
        out = policy(observed(agent, VECTOR, 3))
        assert actions.expand(3).is_in(out.select(*actions.keys(True, True)))
    agent.policy.random_actions = True
    out = agent.policy(observed(agent, VECTOR, 3))
    assert actions.expand(3).is_in(out.select(*actions.keys(True, True)))


def test_an_update_moves_what_the_planner_plans_with():
    torch.manual_seed(0)
    agent = make(world_model_lr=0.1)
    start = observed(agent, VECTOR, 1)
    simulator = agent.policy.planner.simulator
    actions = torch.rand(1, 4, 3, 2)
    generator = lambda: torch.Generator().manual_seed(0)
    ask = lambda: simulator.returns(simulator.start(start), actions, generator())
    with torch.no_grad():
        before, again = ask(), ask()
    agent.update(sample(agent))
    with torch.no_grad():
        after, plain = ask(), None
        simulator.imagined = simulator._imagine
        plain = ask()
    assert torch.equal(before, again) and not torch.allclose(before, after, atol=1e-4)
    torch.testing.assert_close(after, plain)


def test_pictures_are_seen_in_five_bits_and_kept_as_they_are():
    agent = make(observations=IMAGE, actions=ACTION)
    start = observed(agent, IMAGE, 2)
    out = agent.policy(start.clone())
    assert torch.equal(out["pixels"], start["pixels"]) and (out["state"] != 0).any()
    seen = agent.quantize(start)["pixels"]
    levels = (start["pixels"] // 8).float() / 32
    assert ((seen - levels >= 0) & (seen - levels < 1 / 32)).all()
    metrics, _ = agent.update(sample(agent, IMAGE))
    assert metrics["loss_pixels"].isfinite()


def test_noise_while_collecting_only():
    agent = make(exploration_noise=0.3)
    agent.policy.planner.forward = lambda td: td.set("action", torch.zeros(*td.batch_size, 2))
    start = observed(agent, VECTOR, 500)
    assert agent.policy(start.clone())["action"].std() == pytest.approx(0.3, rel=0.1)
    assert not agent.evaluation_policy(start.clone())["action"].any()
    with set_exploration_type(ExplorationType.MODE):
        assert not agent.policy(start.clone())["action"].any()


def test_overshooting_does_not_cross_the_beginning_of_an_episode():
    torch.manual_seed(0)
    agent = make(overshooting_distance=3)
    losses = []
    for garbage in (1.0, 50.0):
        records = sample(agent, batch=1, steps=4)
        records["is_init"][0, 3] = True
        records["observation"] = torch.ones_like(records["observation"])
        records["previous_action"] = torch.zeros_like(records["previous_action"])
        records["previous_action"][0, 3] = garbage  # replaced by zeros at the beginning
        records["noise"] = torch.zeros(1, 5, 4)
        torch.manual_seed(1)
        losses.append(agent.world_model_loss(records)["loss_overshooting"])
    assert losses[0].isfinite() and torch.equal(*losses)
    with pytest.raises(ValueError, match="distance=1.*at least 2"):
        make(overshooting_distance=1)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="'large'.*planet.*small"):
        make(size="large")
    with pytest.raises(ValueError, match="image_bits=9"):
        make(image_bits=9)
    with pytest.raises(ValueError, match="'mean'.*balanced.*excess"):
        make(kl={"strategy": "mean"})


@pytest.mark.parametrize(("low", "high"), [(0.0, 100.0), (-2.0, 2.0)])
def test_noise_has_the_range_of_the_action(low, high):
    torch.manual_seed(0)
    agent = make(actions=Composite(action=Bounded(low, high, (1,))), exploration_noise=0.5)
    start = observed(agent, VECTOR, 200)
    noisy = agent.policy(start.clone())["action"]
    assert low <= noisy.min() < low + 0.2 * (high - low)
    assert high >= noisy.max() > high - 0.2 * (high - low)


def test_numbers_without_bounds_are_not_clipped_by_noise():
    torch.manual_seed(0)
    agent = make(actions=Composite(action=Unbounded(1)), exploration_noise=3.0)
    assert agent.policy(observed(agent, VECTOR, 200))["action"].abs().max() > 3


def test_a_search_is_no_planner():
    choice = Composite(action=OneHot(3))
    with pytest.raises(TypeError, match="planner=cem, icem or mppi.*SearchPolicy"):
        PlaNet(VECTOR, choice, planner=lambda _: SearchPolicy(make_muzero(VECTOR, choice)))


def test_a_world_model_keeps_what_its_yaml_sets():
    chosen = {"latent": "gaussian", "cell": "gru"}  # PlaNet's own cell is another
    target = {"_target_": "torchrl_wm.world_models.make_rssm", "_partial_": True}
    read = instantiate(OmegaConf.create({**target, **chosen}))
    factories = read, partial(make_rssm, **chosen)
    sizes = []
    for factory in factories:
        agent = make(world_model=factory)
        sizes.append({name: x.shape for name, x in agent.world_model.named_parameters()})
    assert sizes[0] == sizes[1]
