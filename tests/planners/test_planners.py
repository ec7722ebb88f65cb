"""CEM, iCEM and MPPI in environments whose optimum is known.

The first part is a table of what TorchRL 0.14.1's planners fail at; each row is a test here.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
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
from torchrl.envs import (
    Compose,
    InitTracker,
    PendulumEnv,
    SerialEnv,
    StepCounter,
    TransformedEnv,
)
from torchrl.objectives.value import TDLambdaEstimator

from torchrl_wm.envs import LearnedEnv
from torchrl_wm.planners import CEMPlanner, ICEMPlanner, MPPIPlanner
from torchrl_wm.policies import FilteringPlanner
from torchrl_wm.world_models import make_identity, make_rssm

SIZES = {"planning_horizon": 3, "optim_steps": 8, "num_candidates": 64, "top_k": 8}
PLANNERS = {
    "cem": CEMPlanner,
    "icem": partial(ICEMPlanner, warm_start=False, noise_exponent=0.5),
    "mppi": partial(MPPIPlanner, temperature=5.0, min_std=0.05),
}
every_planner = pytest.mark.parametrize("name", PLANNERS)
UNIT = Bounded(-1, 1, (2,))


def make(name, env, **options):
    return PLANNERS[name](env, **{**SIZES, **options})


def act(planner, env, batch=()):
    start = env.reset(TensorDict(batch_size=batch))
    return planner(start)


# -- What TorchRL's planners fail at -----------------------------------------------------------


@every_planner
def test_an_optimum_at_the_bound_of_a_wide_range(name, reach, generator):
    env = reach(Bounded(0, 100, (1,)), 100.0)
    # From a deviation of half as much (iCEM's default) iCEM contracts before it has reached the bound, with
    # any number of iterations: 84 in the worst of 20 seeds. From a whole half range the worst is 98.7.
    action = act(make(name, env, init_std=1.0, generator=generator), env)["action"]
    assert 98.5 < action.item() <= 100


DISCRETE = {
    "one_hot": (OneHot(5), [0, 0, 0, 1, 0]),
    "index": (Categorical(5), 3),
    "multi_index": (MultiCategorical([2, 4]), [1, 2]),
    "multi_one_hot": (MultiOneHot([2, 3]), [0, 1, 0, 0, 1]),
    "binary": (Binary(3), [1, 0, 1]),
}


@every_planner
@pytest.mark.parametrize("kind", DISCRETE)
def test_discrete_actions(name, kind, reach, generator):
    spec, goal = DISCRETE[kind]
    env = reach(spec, goal)
    action = act(make(name, env, generator=generator), env)["action"]
    assert spec.is_in(action) and action.long().tolist() == goal


@every_planner
def test_actions_of_any_shape(name, reach, generator):
    goal = torch.linspace(-0.9, 0.9, 6).view(2, 3)
    env = reach(Bounded(-1, 1, (2, 3)), goal)
    planner = make(name, env, num_candidates=300, top_k=30, optim_steps=20, generator=generator)
    action = act(planner, env)["action"]
    torch.testing.assert_close(action, goal, atol=0.2, rtol=0)


@every_planner
def test_a_single_elite(name, reach, generator):
    env = reach(UNIT, 0.5)
    action = act(make(name, env, top_k=1, min_std=0.1, generator=generator), env)["action"]
    torch.testing.assert_close(action, torch.full((2,), 0.5), atol=0.3, rtol=0)


@every_planner
@pytest.mark.parametrize("action_key", ["act", ("agent", "action")])
def test_renamed_keys(name, action_key, reach, generator):
    env = reach(UNIT, 0.5, action_key=action_key, reward_key=("agent", "score"))
    for reward_key in (None, ("next", "agent", "score")):
        out = act(make(name, env, reward_key=reward_key, generator=generator), env)
        torch.testing.assert_close(out[action_key], torch.full((2,), 0.5), atol=0.2, rtol=0)
    written = act(make(name, env, action_key="plan_of_mine", generator=generator), env)
    assert written["plan_of_mine"].shape == (2,) and action_key not in written.keys(True)
    assert env.rollout(2, make(name, env))[action_key].shape == (2, 2)


@every_planner
@pytest.mark.parametrize("offset", [-250_000.0, 1e6])
def test_the_level_of_the_rewards_does_not_matter(name, offset, reach, generator):
    env = reach(UNIT, 0.5, offset=offset)
    action = act(make(name, env, generator=generator), env)["action"]
    torch.testing.assert_close(action, torch.full((2,), 0.5), atol=0.3, rtol=0)


@every_planner
@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_no_rows_in_a_world_model_are_an_answer_too(name, batch):
    specs = Composite(observation=Unbounded(3)), Composite(action=UNIT)
    model = make_identity(*specs, units=8)
    assert make(name, model)(model.initial(batch))["action"].shape == (*batch, 2)


@every_planner
@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_no_rows_of_an_environment_are_an_answer_too(name, batch):
    env = PendulumEnv()
    start = env.reset(env.gen_params(batch_size=[2]))[:0].reshape(batch)
    assert make(name, env)(start)["action"].shape == (*batch, 1)


class Normed(nn.Module):
    """A head behind a batch norm, whose result depends on the mode."""

    def __init__(self, head, features):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(features), head

    def forward(self, features):
        return self.head(self.norm(features.flatten(0, -2)).view_as(features))


@every_planner
@pytest.mark.parametrize("trace", [True, False])
def test_plans_are_those_of_evaluation_mode_and_leave_the_mode(name, trace):
    torch.manual_seed(0)
    specs = Composite(observation=Unbounded(3)), Composite(action=UNIT)
    model = make_rssm(*specs, belief_size=16, units=8, use_continuation=False)
    model.reward_head = Normed(model.reward_head, model.feature_size)
    model.reward_head.norm.running_mean.normal_()
    before = model.reward_head.norm.running_mean.clone()
    planner = make(name, model, trace=trace)
    found = []
    for mode in (model.train, model.eval):
        mode()
        planner.generator = torch.Generator().manual_seed(0)
        found.append(planner(model.initial([2]))["action"])
        assert model.reward_head.norm.training == (mode == model.train)
    assert torch.equal(*found)
    assert torch.equal(model.reward_head.norm.running_mean, before)


@every_planner
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_every_row_of_a_batch_has_its_own_plan(name, batch, reach, generator):
    env = reach(UNIT)
    start = env.reset(TensorDict(batch_size=batch))
    start["goal"] = torch.rand(*batch, 2, generator=generator) * 1.6 - 0.8
    action = make(name, env, generator=generator)(start.clone())["action"]
    torch.testing.assert_close(action, start["goal"], atol=0.2, rtol=0)


@every_planner
def test_no_graph_is_kept(name, reach):
    env = reach(UNIT)
    start = env.reset()
    start["goal"].requires_grad_()
    out = make(name, env)(start)
    assert not out["action"].requires_grad


@pytest.mark.parametrize("planner", [CEMPlanner, MPPIPlanner])
def test_positional_arguments_are_those_of_torchrl(planner, reach):
    env, sizes = reach(UNIT, 0.5), (3, 2, 16, 4, ("next", "reward"), "action")
    given = (env, *sizes) if planner is CEMPlanner else (env, None, 1.0, *sizes)
    assert env.rollout(2, planner(*given))["action"].shape == (2, 2)


# -- Optimality --------------------------------------------------------------------------------


@every_planner
def test_the_minimum_of_a_quadratic(name, reach, generator):
    goal = torch.tensor([0.3, -0.7])
    env = reach(UNIT, goal)
    planner = make(name, env, num_candidates=200, top_k=20, optim_steps=12, generator=generator)
    plan, _ = planner.plan(env.reset())
    # Worst of 20 seeds: 0.0004, 0.012 (the best of few samples, no mean) and 0.018 (min_std keeps it wide).
    allowed = {"cem": 0.001, "icem": 0.015, "mppi": 0.02}[name]
    torch.testing.assert_close(plan[0], goal.expand(3, 2), atol=allowed, rtol=0)


@every_planner
def test_plans_in_the_true_pendulum_are_as_good_as_the_best_of_a_grid(name, generator):
    env, horizon = PendulumEnv(), 3
    start = env.reset(env.gen_params(batch_size=[2]))
    start["th"], start["thdot"] = torch.tensor([2.5, 0.4]), torch.tensor([1.0, -2.0])
    # With SIZES iCEM, whose samples fall to 16, is up to 0.04 away in ten seeds; with these 0.002.
    sizes = {"num_candidates": 200, "top_k": 20, "optim_steps": 12}
    planner = make(name, env, planning_horizon=horizon, generator=generator, **sizes)
    values = torch.linspace(-1, 1, 21)
    grid = torch.cartesian_prod(*[values] * horizon).view(1, -1, horizon, 1).expand(2, -1, -1, -1)
    state = planner.simulator.start(start)
    best = planner.simulator.returns(state, planner.space.actions(grid)).amax(1)
    plan, _ = planner.plan(start)
    found = planner.simulator.returns(state, planner.space.actions(plan.unsqueeze(1)))[:, 0]
    assert (found > best - 0.005).all(), (found, best)


# -- Options -----------------------------------------------------------------------------------


@every_planner
def test_a_generator_determines_everything(name, reach):
    env = reach(UNIT, 0.5)
    plans = []
    for seed in (1, 1, 2):
        planner = make(name, env, generator=torch.Generator().manual_seed(seed))
        before = torch.get_rng_state()
        plans.append(planner.plan(env.reset())[0])
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(plans[0], plans[1]) and not torch.equal(plans[0], plans[2])


@every_planner
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_returns_that_are_not_finite_never_win(name, value, reach, generator):
    class Broken(reach):
        def _step(self, tensordict):
            out = super()._step(tensordict)
            left = tensordict["action"][..., :1] < 0
            return out.set("reward", torch.where(left, value, out["reward"]))

    env = Broken(UNIT, 0.5)
    action = act(make(name, env, generator=generator), env)["action"]
    torch.testing.assert_close(action, torch.full((2,), 0.5), atol=0.2, rtol=0)
    nowhere = reach(UNIT, torch.nan)
    with pytest.warns(UserWarning, match="no candidate has a finite return"):
        action = act(make(name, nowhere, generator=generator), nowhere)["action"]
    assert action.isfinite().all()


def test_numbers_without_bounds_and_bounds_that_only_clip(reach, generator):
    env = reach(Unbounded((1,)), 3.0)
    action = act(make("cem", env, init_std=3.0, optim_steps=15, generator=generator), env)["action"]
    assert abs(action.item() - 3) < 0.2
    infinite = reach(Bounded(-1.0, torch.inf, (1,)), 3.0)
    options = {"scale_by_bounds": False, "init_std": 3.0, "optim_steps": 15, "generator": generator}
    assert abs(act(make("cem", infinite, **options), infinite)["action"].item() - 3) < 0.2
    env = reach(Bounded(-1.0, 2.0, (1,)), 3.0)
    assert act(make("cem", env, **options), env)["action"].item() == pytest.approx(2, abs=0.1)


def test_a_compiled_plan_is_the_same_plan(reach):
    specs = Composite(observation=Unbounded(2)), Composite(action=UNIT)
    torch.manual_seed(0)
    model = make_identity(*specs, units=8)
    plans = []
    for compiled in (False, True):
        planner = CEMPlanner(model, **SIZES, generator=torch.Generator().manual_seed(1))
        if compiled:
            planner.compile_steps(backend="eager", fullgraph=True)
        plans.append(planner.plan(model.initial([2]))[0])
    torch.testing.assert_close(*plans)
    with pytest.raises(TypeError, match="steps of Reach cannot be compiled"):
        make("cem", reach(UNIT)).compile_steps()


def test_several_actions_of_different_kinds_are_planned_together(generator):
    spec = Composite(agent=Composite(arm=UNIT, gear=Categorical(3), button=Binary(1)))
    model = make_identity(Composite(observation=Unbounded(2)), spec, units=8)
    planner = CEMPlanner(model, **SIZES, generator=generator)
    out = planner(model.initial([4]))
    assert spec.expand(4).is_in(out.select("agent"))
    with pytest.raises(ValueError, match="action_key='action' names one entry.*gear"):
        CEMPlanner(model, **SIZES, action_key="action")


def test_rewards_after_the_end_of_an_episode_do_not_count(reach):
    env = reach(UNIT, 0.5, length=2)
    planner = make("cem", env, discount=0.5)
    start = planner.simulator.start(env.reset(TensorDict(batch_size=[1])))
    actions = torch.zeros(1, 1, 3, 2)
    assert planner.simulator.returns(start, actions).item() == pytest.approx(-0.5 - 0.25)


def test_a_reward_may_be_an_entry_without_a_dimension_of_its_own():
    planner = make("cem", PendulumEnv(), reward_key=("next", "th"))
    assert planner(PendulumEnv().reset())["action"].shape == (1,)


def test_a_counter_of_steps_is_planned_with(reach):
    env = TransformedEnv(reach(UNIT, 0.5), StepCounter(max_steps=2))
    planner = make("cem", env)
    assert {"goal", "steps", "step_count"} <= set(planner.in_keys)
    assert env.rollout(3, planner)["action"].shape == (2, 2)


def test_the_primer_may_be_appended_to_the_environment_that_is_planned_in(reach):
    env = TransformedEnv(reach(UNIT, 0.5), InitTracker())
    planner = make("cem", env, warm_start=True)
    env.append_transform(planner.make_tensordict_primer())
    assert env.rollout(3, planner)["plan"].shape == (3, 3, 2)


@pytest.mark.parametrize("what", ["reward", "state_value"])
def test_what_is_no_number_after_the_end_does_not_count(reach, what):
    class Broken(reach):
        def _step(self, tensordict):
            out = super()._step(tensordict)
            over = tensordict["steps"] >= self.length
            return out.set(
                "reward", out["reward"].masked_fill(over & (what == "reward"), torch.nan)
            )

    worth = lambda td: td.set("state_value", torch.full((*td.batch_size, 1), torch.nan))
    options = {"terminal_value": worth} if what == "state_value" else {}
    planner = make("cem", Broken(UNIT, 0.5, length=2), discount=0.5, **options)
    start = planner.simulator.start(planner.simulator.env.reset(TensorDict(batch_size=[1])))
    returns = planner.simulator.returns(start, torch.zeros(1, 1, 3, 2))
    assert returns.item() == pytest.approx(-0.5 - 0.25)


def test_terminal_value_counts_with_the_discount_and_not_after_the_end(reach):
    worth = lambda td: td.set("state_value", 10 * torch.ones(*td.batch_size, 1))
    for length, expected in ((2, -0.75), (1000, -0.5 - 0.25 - 0.125 + 0.125 * 10)):
        env = reach(UNIT, 0.5, length=length)
        planner = make("cem", env, discount=0.5, terminal_value=worth)
        start = planner.simulator.start(env.reset(TensorDict(batch_size=[1])))
        value = planner.simulator.returns(start, torch.zeros(1, 1, 3, 2)).item()
        assert value == pytest.approx(expected)


def test_an_advantage_module_judges_the_first_step(reach, generator):
    value = TensorDictModule(nn.Linear(1, 1), in_keys=["steps"], out_keys=["state_value"])
    nn.init.zeros_(value.module.weight), nn.init.zeros_(value.module.bias)
    module = TDLambdaEstimator(gamma=0.9, lmbda=1.0, value_network=value)
    env = reach(UNIT, 0.5)
    planner = make("mppi", env, advantage_module=module, generator=generator)
    action = act(planner, env)["action"]
    torch.testing.assert_close(action, torch.full((2,), 0.5), atol=0.2, rtol=0)


def test_proposals_are_candidates_of_every_iteration(reach, generator):
    goal = torch.tensor([0.77, -0.33])
    env = reach(UNIT, goal)
    policy = lambda td: td.set("action", goal.expand(*td.batch_size, 2))
    planner = make(
        "cem",
        env,
        proposal_policy=policy,
        num_proposals=1,
        num_candidates=8,
        top_k=2,
        optim_steps=1,
        select="best",
        generator=generator,
    )
    torch.testing.assert_close(act(planner, env)["action"], goal)


def test_momentum_and_limits_of_the_deviation(reach, generator):
    env = reach(UNIT, 0.5)
    spread = {}
    for name, options in {
        "free": {},
        "slow": {"momentum": 0.9},
        "floor": {"min_std": 0.7},
        "ceiling": {"max_std": 0.01},
    }.items():
        planner = make("cem", env, generator=generator, optim_steps=3, **options)
        refits, refit = [], planner._refit
        planner._refit = lambda *args, refit=refit, kept=refits: (
            kept.append(refit(*args)) or kept[-1]
        )
        planner.plan(env.reset())
        spread[name] = refits[-1][1]
    assert spread["free"].max() < 0.5 < spread["slow"].min()
    assert spread["floor"].min() >= 0.7 and spread["ceiling"].max() <= 0.01


def test_the_best_sequence_is_one_that_was_tried(reach, generator):
    env = reach(Categorical(3), 2)
    for select in ("mean", "best"):
        plan, _ = make("cem", env, select=select, optim_steps=1, generator=generator).plan(
            env.reset()
        )
        assert bool(((plan == 0) | (plan == 1)).all()) == (select == "best")


# -- Warm start --------------------------------------------------------------------------------


def carrying(planner, env):
    return TransformedEnv(env, Compose(InitTracker(), planner.make_tensordict_primer()))


@every_planner
def test_a_warm_start_goes_on_where_the_last_plan_ended(name, reach, generator):
    errors = {}
    for warm in (False, True):
        env = reach(UNIT, torch.tensor([0.9, -0.9]))
        options = {"optim_steps": 2, "momentum": 0.0, "init_std": 0.3}
        planner = make(name, env, warm_start=warm, generator=generator, **options)
        wrapped = carrying(planner, env) if warm else env
        rollout = wrapped.rollout(12, planner, break_when_any_done=False)
        errors[warm] = (rollout["action"] - rollout["goal"])[-5:].abs().mean()
    assert errors[True] < errors[False]


def test_a_plan_is_shifted_and_forgotten_where_an_episode_begins(reach):
    env = reach(UNIT, 0.5)
    planner = make("cem", env, warm_start=True)
    plan = torch.randn(3, 3, 2)
    rows = env.reset(TensorDict(batch_size=[3])).update({"plan": plan})
    rows["plan"][2] = 0  # a warm-up wrote none
    rows["is_init"] = torch.tensor([[False], [True], [False]])
    mean, _ = planner._begin(rows)
    assert torch.equal(mean[0], plan[0, [1, 2, 2]])
    assert torch.equal(mean[1:], torch.zeros(2, 3, 2))


def test_kept_elites_are_shifted_and_forgotten_where_an_episode_begins(reach, generator):
    env = reach(UNIT, 0.5)
    planner = make("icem", env, warm_start=True, generator=generator)
    assert planner.carried == {"plan": (3, 2), "plan_elites": (2, 3, 2)}
    elites = torch.full((2, 2, 3, 2), 5.0)
    rows = env.reset(TensorDict(batch_size=[2]))
    rows = rows.update({"plan": torch.ones(2, 3, 2), "plan_elites": elites})
    rows["is_init"] = torch.tensor([[False], [True]])
    mean, _ = planner._begin(rows)
    kept = planner._carried_elites(rows, mean)
    assert (kept[0, :, :2] == 5).all() and (kept[0, :, 2] != 5).all() and (kept[1] != 5).all()


def test_warm_starts_survive_resets_at_different_times(reach):
    planner = make("icem", reach(UNIT, 0.5), warm_start=True, optim_steps=2)
    env = SerialEnv(2, [partial(reach, UNIT, 0.5, length=n) for n in (3, 5)])
    rollout = carrying(planner, env).rollout(8, planner, break_when_any_done=False)
    fresh = rollout["is_init"].squeeze(-1)
    assert fresh.sum(1).tolist() == [3, 2]
    plans = planner.carried["plan"]
    assert rollout["plan"].shape == (2, 8, *plans) and (rollout["plan"] != 0).any()


def test_fewer_samples_in_later_iterations(reach):
    planner = make("icem", reach(UNIT), num_candidates=40, top_k=5, population_decay=1.25)
    assert [planner._samples(i) for i in range(8)] == [40, 32, 25, 20, 16, 13, 10, 10]


# -- Bad input ---------------------------------------------------------------------------------


WIDEST = Bounded(torch.finfo(torch.float32).min, torch.finfo(torch.float32).max, (1,))


def blind_to_reward():
    model = make_identity(Composite(observation=Unbounded(2)), Composite(action=UNIT), units=8)
    model.reward_head = None
    return model


@every_planner
def test_rewards_that_are_never_finite_are_named(name, reach):
    env = reach(UNIT, torch.nan)
    with pytest.warns(UserWarning, match=r"1 of 1 rows no candidate.*\('next', 'reward'\).*'goal'"):
        act(make(name, env), env)
    some = env.reset(TensorDict(batch_size=[3]))
    some["goal"][1:] = 0.0
    with pytest.warns(UserWarning, match="1 of 3 rows"):
        make(name, env)(some)


def test_bad_input_is_named(reach):
    env = reach(UNIT)
    locked = SerialEnv(1, lambda: reach(UNIT))
    cases = [
        (locked, {}, ValueError, "SerialEnv is batch-locked.*stateless"),
        (env, {"top_k": 65}, ValueError, "top_k=65 .*num_candidates=64"),
        (reach(Bounded(-1, 1, (0,))), {}, ValueError, "'action'.* is empty"),
        (reach(Bounded(0.0, torch.inf, (1,))), {}, ValueError, "infinite bounds.*scale_by_bounds"),
        (nn.Linear(1, 1), {}, TypeError, "environment or a world model, not Linear"),
        (reach(WIDEST), {}, ValueError, "infinite bounds.*scale_by_bounds"),
        (env, {"planning_horizon": 0}, ValueError, "planning_horizon=0 must be .* at least 1"),
        (env, {"optim_steps": 0}, ValueError, "optim_steps=0 must be .* at least 1"),
        (env, {"num_candidates": 0}, ValueError, "num_candidates=0 must be .* at least 1"),
        (env, {"num_candidates": 8.5}, ValueError, "num_candidates=8.5 must be a whole number"),
        (env, {"top_k": "3"}, ValueError, "top_k='3' must be a whole number"),
        (env, {"discount": 1.5}, ValueError, "discount=1.5 must lie between 0 and 1"),
        (env, {"reward_key": "reward"}, ValueError, r"'reward' is nothing.*\('next', 'reward'\)"),
        (env, {"reward_key": ("next", "agent", "score")}, ValueError, "score.*Reach writes"),
        (blind_to_reward(), {}, ValueError, "Identity has no reward head.*reward_head="),
        (env, {"select": "median"}, ValueError, "'median'.*'mean' or 'best'"),
        (env, {"momentum": 1.0}, ValueError, "momentum=1.0 must be at least 0 and below 1"),
        (env, {"min_std": 2.0, "max_std": 1.0}, ValueError, "min_std=2.0, max_std=1.0"),
        (env, {"num_proposals": 3}, ValueError, "proposal_policy and num_proposals"),
        (env, {"particles": 4}, ValueError, "particles and sample_latents"),
    ]
    for where, options, error, message in cases:
        with pytest.raises(error, match=message):
            make("cem", where, **options)
    with pytest.raises(ValueError, match="temperature=0 must be a number above 0"):
        make("mppi", env, temperature=0)
    bad = ({"population_decay": 0.5}, {"keep_elites": 2.0}, {"noise_exponent": -1.0})
    for option in (*bad, *({name: torch.nan} for one in bad for name in one)):
        with pytest.raises(ValueError, match=f"{next(iter(option))}=.* must"):
            make("icem", env, **option)


def test_an_environment_with_a_batch_size_is_refused_at_once():
    specs = Composite(observation=Unbounded(3)), Composite(action=UNIT)
    env = LearnedEnv(
        make_rssm(*specs, belief_size=16, units=8), batch_size=[5], terminate_below=0.5
    )
    with pytest.raises(ValueError, match=r"has the batch size \[5\]"):
        make("cem", env)


def test_missing_entries_are_named_with_what_to_do(reach):
    env = reach(UNIT)
    planner = make("cem", env, warm_start=True)
    start = env.reset()
    with pytest.raises(KeyError, match="'is_init'.*InitTracker"):
        planner(start)
    with pytest.raises(KeyError, match="'plan'.*make_tensordict_primer"):
        planner(start.set("is_init", torch.ones(1, dtype=torch.bool)))
    with pytest.raises(KeyError, match="'goal'"):
        make("cem", env)(TensorDict(steps=torch.zeros(1)))


@pytest.mark.filterwarnings("ignore")
def test_rewards_in_double_precision_leave_the_plan_what_a_collector_carries(reach):
    class Precise(reach):
        def __init__(self, *args):
            super().__init__(*args)
            self.full_reward_spec = Composite(reward=Unbounded((1,), dtype=torch.float64))

        def _step(self, tensordict):
            out = super()._step(tensordict)
            return out.set("reward", out["reward"].double())

    env = Precise(UNIT, 0.5)
    planner = MPPIPlanner(env, **SIZES, warm_start=True)
    collector = Collector(carrying(planner, env), planner, frames_per_batch=4, total_frames=4)
    assert next(iter(collector))["plan"].dtype == torch.float32
    collector.shutdown()


def test_a_planner_is_where_its_model_is():
    model = make_identity(Composite(x=Unbounded(3)), Composite(action=UNIT), units=8).to("meta")
    planner = CEMPlanner(model, **SIZES)
    assert {buffer.device.type for buffer in planner.space.buffers()} == {"meta"}


@pytest.mark.parametrize("make_env", [lambda model: model, LearnedEnv])
def test_the_most_probable_latents_are_followed_where_none_are_drawn(make_env):
    specs = Composite(x=Unbounded(3)), Composite(action=UNIT)
    model = make_rssm(
        *specs,
        belief_size=16,
        hidden_size=8,
        units=8,
        state_size=4,
        classes=5,
        use_continuation=False,
    )
    for parameter in model.parameters():  # heads of zeros tell nothing
        nn.init.normal_(parameter, std=0.5)
    planner = CEMPlanner(make_env(model), **SIZES, sample_latents=False)
    start, actions = planner.simulator.start(model.initial([2])), torch.rand(2, 4, 3, 2)
    latents = tuple(value.repeat_interleave(4, 0) for value in start)
    expected = 0
    for action in actions.flatten(0, 1).unbind(1):
        belief = model.cell(*latents, model.cell.project_action(action), model.cell.weights())
        logits = model.prior(belief).unflatten(-1, (4, 5))
        state = nn.functional.one_hot(logits.argmax(-1), 5).flatten(-2).float()
        latents = belief, state
        expected = expected + model.reward_head(torch.cat(latents, -1)).mean
    returns = planner.simulator.returns(start, actions)
    assert state.unflatten(-1, (4, 5)).argmax(-1).unique().numel() > 1
    torch.testing.assert_close(returns.flatten(), expected.flatten(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("terminate_below", [None, 0.5])
def test_an_environment_is_planned_in_from_its_state_alone(terminate_below):
    specs = Composite(x=Unbounded(3)), Composite(action=UNIT)
    model = make_rssm(*specs, belief_size=16, hidden_size=8, units=8)
    env = LearnedEnv(model, terminate_below=terminate_below)
    planner = CEMPlanner(env, **SIZES)
    assert set(planner.in_keys) == {"belief", "state"}
    filtered = model.initial([2]).update(
        {"x": torch.zeros(2, 3), "previous_action": torch.zeros(2, 2)}
    )
    filtered["is_init"] = torch.ones(2, 1, dtype=torch.bool)
    assert FilteringPlanner(model, planner)(filtered)["action"].shape == (2, 2)
