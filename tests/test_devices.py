"""What lives on a GPU beside what stays on the CPU: models, planners, searches, replay, checkpoints."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.data import Bounded, Composite, OneHot, Unbounded
from torchrl.envs import check_env_specs

from torchrl_wm.algorithms import DreamerV1, DreamerV2, DreamerV3, MuZero
from torchrl_wm.envs import LearnedEnv, TicTacToe, gymnasium, model_specs
from torchrl_wm.planners import (
    CEMPlanner,
    EnvModel,
    GumbelRule,
    ICEMPlanner,
    MPPIPlanner,
    MuZeroRule,
    SearchPolicy,
)
from torchrl_wm.policies import FilteringPlanner
from torchrl_wm.training import with_latents
from torchrl_wm.training.loop import _check_device as check_device
from torchrl_wm.world_models import make_autoencoder, make_identity, make_muzero, make_rssm

pytestmark = pytest.mark.usefixtures("cuda")
REAL = torch.cuda.is_available()

VECTOR = Composite(observation=Unbounded(4))
PIXELS = Composite(pixels=Unbounded((3, 64, 64), dtype=torch.uint8))
CONTINUOUS = Composite(action=Bounded(-1, 1, (2,)))
DISCRETE = Composite(action=OneHot(3))
SMALL = {"belief_size": 16, "hidden_size": 8, "units": 8, "state_size": 4}

MODELS = {
    "gaussian": lambda: make_rssm(
        VECTOR, CONTINUOUS, latent="gaussian", cell="gru", style="v1", **SMALL
    ),
    "categorical": lambda: make_rssm(VECTOR, DISCRETE, **SMALL),
    "pixels": lambda: make_rssm(PIXELS, CONTINUOUS, **SMALL, depth=2),
    "identity": lambda: make_identity(VECTOR, CONTINUOUS, units=8, members=2),
    "autoencoder": lambda: make_autoencoder(VECTOR, CONTINUOUS, units=8),
    "muzero": lambda: make_muzero(VECTOR, DISCRETE, units=8),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_are_environments_there(name):
    env = LearnedEnv(MODELS[name]().cuda(), batch_size=[3])
    check_env_specs(env)
    assert env.rollout(2).device.type == "cuda"


@pytest.mark.parametrize("name", ["gaussian", "muzero"])
def test_an_environment_whose_model_was_moved_says_how_to_follow(name):
    model = MODELS[name]()
    env = LearnedEnv(model, batch_size=[3])
    started = env.rand_action(env.reset())
    model.cuda()
    for act in (env.reset, lambda: env.step(started)):
        with pytest.raises(RuntimeError, match=r"is on cuda:0.*made on cpu.*env.to\('cuda:0'\)"):
            act()
    env = env.to("cuda")  # what the message advises
    check_env_specs(env)
    assert env.rollout(2).device.type == "cuda"
    env = env.to("cpu")
    assert env.rollout(2).device.type == "cpu"


def records(model, batch, steps):
    spec = PIXELS if "pixels" in model.in_keys else VECTOR
    td = spec.expand(batch, steps).rand()
    td["previous_action"] = torch.rand(batch, steps, model.action_encoding.size)
    td["is_init"] = torch.zeros(batch, steps, 1, dtype=torch.bool)
    td["is_init"][:, 2] = True
    return td


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["gaussian", "categorical", "pixels", "autoencoder"])
def test_observing_gives_the_same_there(name, compiled):
    if compiled and not REAL:
        pytest.skip("an emulated device has no compiler")
    model = MODELS[name]()
    td = records(model, 2, 9)
    noise = model.noise((2, 9))
    with torch.no_grad():
        expected = model.observe(td.clone(), noise=noise)
        model = model.cuda()
        if compiled:
            model.compile_steps(dynamic=False)
        found = model.observe(td.cuda(), noise=noise.cuda())
    for key, value in expected.items(True, True):
        assert found[key].device.type == "cuda"
        torch.testing.assert_close(found[key].cpu(), value, rtol=1e-4, atol=1e-4)


def agent_and_sample(spec, batch=4, **options):
    torch.manual_seed(0)
    options |= {"imagination_horizon": 3, "lr": 1e-2, "lr_warmup": 2}
    model = partial(make_rssm, **SMALL, depth=2)
    agent = DreamerV3(spec, DISCRETE, world_model=model, **options)
    sample = records(agent.world_model, batch, 9).update(agent.world_model.initial((batch, 9)))
    sample["reward"] = torch.randn(batch, 9, 1)
    sample["is_last"] = sample["terminated"] = torch.zeros(batch, 9, 1, dtype=torch.bool)
    return agent.cuda(), sample.to("cuda")


@pytest.mark.parametrize("spec", [VECTOR, PIXELS], ids=["vectors", "pixels"])
def test_captured_updates_learn_the_same(spec):
    if not REAL:
        pytest.skip("an emulated device has no graphs")
    weights, metrics = [], []
    for captured in (False, True):
        agent, sample = agent_and_sample(spec, cuda_graph=captured)
        torch.manual_seed(0)
        for _ in range(8):
            found, latents = agent.update(sample)
        assert latents.batch_size == (4, 8)
        weights.append(dict(agent.named_parameters()))
        metrics.append({key: float(value) for key, value in found.items(True, True)})
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-2, abs=1e-3)
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-2, atol=1e-3, msg=key)


def test_a_batch_that_differs_from_the_captured_one_is_named():
    agent, sample = agent_and_sample(VECTOR, cuda_graph=True)
    if REAL:
        for _ in range(4):
            agent.update(sample)
    else:
        agent._captured = sample.empty().update_  # refuses what it does not hold, as a replay does
    with pytest.raises(RuntimeError, match=r"batch \[2, 9\] differs .* Without cuda_graph=True"):
        agent.update(sample[:2])


@pytest.mark.parametrize("planner", [CEMPlanner, ICEMPlanner, MPPIPlanner])
@pytest.mark.parametrize("name", ["gaussian", "categorical", "identity"])
def test_planners_plan_there(name, planner):
    model = MODELS[name]().cuda()
    planner = planner(model, planning_horizon=3, optim_steps=2, num_candidates=8, top_k=2)
    policy = FilteringPlanner(model, planner)
    td = TensorDict(observation=torch.rand(5, 4), is_init=torch.ones(5, 1, dtype=torch.bool))
    td["previous_action"] = torch.zeros(5, model.action_encoding.size)
    td = td.auto_batch_size_(1).update(policy.make_tensordict_primer().primers.zero([5]))
    td = td.to("cuda")
    for _ in range(3):
        td = policy(td)
        assert td["action"].device.type == "cuda" and td["action"].isfinite().all()
        td["is_init"] = torch.zeros(5, 1, dtype=torch.bool, device="cuda")


@pytest.mark.parametrize("planner", [CEMPlanner, ICEMPlanner, MPPIPlanner])
def test_planners_follow_a_model_that_is_moved(planner):
    model = MODELS["gaussian"]()
    options = {"planning_horizon": 3, "optim_steps": 2, "num_candidates": 8, "top_k": 2}
    planner = planner(model, warm_start=False, trace=False, **options)
    found = planner(model.cuda().initial([3], "cuda"))
    assert found["action"].device.type == "cuda"


POLICIES = {
    "dreamer_v1": lambda obs, act: DreamerV1(obs, act, device="cuda", exploration_noise=0.3),
    "dreamer_v2": lambda obs, act: DreamerV2(obs, act, device="cuda"),
    "dreamer_v3": lambda obs, act: DreamerV3(obs, act, size="tiny", device="cuda"),
    "muzero": lambda obs, act: MuZero(obs, act, device="cuda", temperature_decay=10),
}


CONTINUOUS_POLICIES = [name for name in POLICIES if name != "muzero"]  # it would sample actions


@pytest.mark.parametrize(
    ("name", "env_id"),
    [(name, "CartPole-v1") for name in POLICIES]
    + [(name, "Pendulum-v1") for name in CONTINUOUS_POLICIES],
)
def test_a_collector_acts_with_the_policy_itself(name, env_id):
    env = gymnasium(env_id)
    agent = POLICIES[name](*model_specs(env))
    collector = Collector(
        with_latents(env, agent.policy),
        agent.policy,
        frames_per_batch=4,
        total_frames=-1,
        policy_device="cuda",
        env_device="cpu",
        storing_device="cpu",
        auto_register_policy_transforms=False,
    )
    assert collector.policy is agent.policy  # with a copy a warm-up would not be random
    assert next(iter(collector)).device.type == "cpu"
    collector.shutdown()


def test_a_policy_that_is_elsewhere_is_named():
    agent = POLICIES["dreamer_v3"](VECTOR, DISCRETE)
    agent.policy.to("cpu")
    with pytest.raises(ValueError, match="device=cuda, but .* a copy, which no warm-up reaches"):
        check_device(agent.policy, torch.device("cuda"))


def test_padded_batches_are_not_captured():
    agent = DreamerV3(VECTOR, DISCRETE, size="tiny", cuda_graph=True, device="cuda")
    sample = agent_and_sample(VECTOR)[1].update(agent.world_model.initial((4, 9), "cuda"))
    sample["collector", "mask"] = torch.ones(4, 9, dtype=torch.bool, device="cuda")
    agent.update(sample)
    assert agent._captured is None


@pytest.mark.parametrize("executor", ["reference", "numba"])
@pytest.mark.parametrize("rule", [MuZeroRule, GumbelRule])
@pytest.mark.parametrize("samples", [None, 3])
def test_searches_make_the_same_trees_there(executor, rule, samples):
    model = make_muzero(VECTOR, CONTINUOUS if samples else DISCRETE, units=8).double()
    found = []
    for device in ("cpu", "cuda"):
        policy = SearchPolicy(
            model.to(device),
            rule=rule(),
            executor=executor,
            num_simulations=12,
            num_sampled_actions=samples,
            generator=torch.Generator().manual_seed(0),
        )
        root = model.initial([5], device).double()
        root["hidden"] += torch.linspace(0, 1, 5, device=device)[:, None]
        found.append(policy(root))
        assert found[-1]["action"].device.type == device
    torch.testing.assert_close(found[1]["visit_counts"].cpu(), found[0]["visit_counts"])


def test_rules_are_searched_there():
    env = TicTacToe(device="cuda")

    def even(board):
        rows = board.shape[:-3]
        return torch.zeros(*rows, 9, device=board.device), torch.zeros(
            *rows, 1, device=board.device
        )

    judge = TensorDictModule(even, in_keys=["board"], out_keys=["policy_logits", "state_value"])
    policy = SearchPolicy(EnvModel(env, judge), num_simulations=16)
    found = policy(env.reset(TensorDict(batch_size=[3], device="cuda")))
    assert found["action"].device.type == "cuda"
