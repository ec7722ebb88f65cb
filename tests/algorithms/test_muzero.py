"""MuZero and its relatives as a training loop sees them: collecting, targets, updates, writing back."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import StepCounter, TransformedEnv

from torchrl_wm import keys
from torchrl_wm.algorithms import MuZero
from torchrl_wm.data import StepReplay
from torchrl_wm.envs import TicTacToe, gymnasium, model_specs, recorded_keys, wrap
from torchrl_wm.planners import GumbelRule, MuZeroRule, SearchPolicy
from torchrl_wm.world_models import make_muzero

SMALL = {"hidden_size": 8, "units": 8, "layers": 1}
SEARCH = {"num_simulations": 4, "executor": "reference"}
VARIANTS = {
    "muzero": {},
    "gumbel": {"planner": {"rule": GumbelRule()}, "use_mcts_targets": False},
    "sampled": {"planner": {"num_sampled_actions": 3}, "env": "Pendulum-v1", "entropy": 1e-2},
    "efficientzero": {
        "reanalyze_ratio": 0.5,
        "priority_alpha": 0.6,
        "use_consistency": True,
        "use_value_prefix": True,
        "value_prefix_horizon": 1,
    },
    "reconstruction": {"use_reconstruction": True},
}


def build(variant="muzero", batch_size=4, **options):
    torch.manual_seed(0)
    chosen = {"unroll_steps": 2, "td_steps": 2, "support": 20, **VARIANTS[variant], **options}
    env = gymnasium(chosen.pop("env", "CartPole-v1"), num_envs=2, max_episode_steps=9)
    planner = partial(SearchPolicy, **SEARCH, **chosen.pop("planner", {}))
    specs = model_specs(env)
    agent = MuZero(*specs, world_model=partial(make_muzero, **SMALL), planner=planner, **chosen)
    env.append_transform(agent.policy.make_tensordict_primer())
    replay = StepReplay(
        200,
        num_envs=2,
        batch_size=batch_size,
        action_spec=specs[1],
        observation_keys=list(specs[0].keys(True, True)),
        seed=0,
        **agent.replay_options(),
    )
    collector = Collector(
        env,
        agent.policy,
        frames_per_batch=60,
        total_frames=-1,
        track_traj_ids=False,
        auto_register_policy_transforms=False,
    )
    replay.extend(next(iter(collector)))
    collector.shutdown()
    return agent, replay


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS)
def test_updates_train_every_weight(variant):
    agent, replay = build(variant)
    before = {k: p.detach().clone() for k, p in agent.world_model.named_parameters()}
    for _ in range(3):  # layers below heads of zeros have no gradient at first
        sample = replay.sample()
        # A search in an untrained model says what the untrained policy says.
        sample["search_policy"] = torch.rand_like(sample["search_policy"]).softmax(-1)
        metrics, notes = agent.update(sample)
        assert all(value.isfinite() for value in metrics.values(True, True))
        if notes is not None:
            assert replay.write_back(sample, notes) > 0
    still = [k for k, p in agent.world_model.named_parameters() if torch.equal(p, before[k])]
    assert still == []
    assert int(agent.updates) == 3


@pytest.mark.filterwarnings("ignore")
def test_acting_leaves_all_that_training_reads():
    agent, replay = build("sampled")
    sample = replay.sample()
    assert sample["sampled_actions"].shape == (4, 6, 3, 1)
    live = ~sample["is_last"][..., 0]
    total = sample["search_policy"].sum(-1)
    torch.testing.assert_close(total[live], torch.ones(int(live.sum())))
    assert (total[~live] == 0).all()
    assert sample["priority"][live].isinf().all() and (sample["search_version"] == 0).all()


@pytest.mark.filterwarnings("ignore")
def test_what_was_searched_again_and_the_priorities_come_into_the_replay():
    agent, replay = build("efficientzero", batch_size=8)
    for _ in range(2):
        sample = replay.sample()
        _, notes = agent.update(sample)
        replay.write_back(sample, notes)
    column = lambda key: replay.buffer.storage._storage[key][: len(replay), 0]
    assert (column("search_version") == 1).any()  # the second update searched with one behind it
    priority = column("priority")
    assert priority.isfinite().any() and priority.isinf().any()
    last = column("is_last")
    assert (column("search_version")[last] == 0).all() and (priority[last] == 0).all()


@pytest.mark.filterwarnings("ignore")
def test_returns_end_in_the_target_network_where_searches_are_not_wanted():
    for use, expected, auto in ((True, False, 0), (False, True, 0), (False, True, 1)):
        agent, replay = build(use_mcts_targets=use, auto_td_steps=auto)
        agent.loss.target_world_model_params["value_head", "out", "bias"].data[-1] = 9.0
        agent.updates.add_(9)
        sample = replay.sample()
        live = ~sample["is_last"]
        # No return ends in the root's record, or before two steps, but for those of old records.
        live[:, : 2 if auto else 3] = False
        assert bool((sample["bootstrap_value"][live] > 10).all()) == expected
        truncated = sample["is_last"] & ~sample["terminated"]
        assert (sample["bootstrap_value"][truncated] > 10).all()
        assert torch.equal(sample["bootstrap_value"][live], sample["root_value"][live]) != expected


@pytest.mark.filterwarnings("ignore")
def test_the_target_network_follows_in_steps():
    agent, replay = build(target_update_every=3, lr=1e-2)
    target = agent.loss.target_world_model_params["value_head", "out", "bias"]
    online = agent.world_model.value_head.out.bias
    equal = []
    for _ in range(5):
        agent.update(replay.sample())
        equal.append(torch.equal(target, online))
    assert equal == [True, False, False, True, False]


@pytest.mark.filterwarnings("ignore")
def test_the_temperature_falls_with_the_updates():
    agent, replay = build(temperature_decay=4)
    found = []
    for _ in range(4):
        found.append(agent.search.rule.temperature)
        agent.update(replay.sample())
    assert [*found, agent.search.rule.temperature] == [1.0, 1.0, 0.5, 0.25, 0.25]
    assert isinstance(agent.search.rule, MuZeroRule)


@pytest.mark.filterwarnings("ignore")
def test_a_loaded_agent_acts_at_the_temperature_of_its_updates():
    agent, replay = build(temperature_decay=4, planner={"rule": MuZeroRule(temperature=0.8)})
    assert agent.search.rule.temperature == 0.8
    for _ in range(3):
        agent.update(replay.sample())
    again, _ = build(temperature_decay=4, planner={"rule": MuZeroRule(temperature=0.8)})
    again.load_state_dict(agent.state_dict())
    assert again.search.rule.temperature == agent.search.rule.temperature == 0.2


@pytest.mark.filterwarnings("ignore")
def test_games_cut_short_are_worth_what_their_last_state_is_to_the_one_who_moves_there():
    agent, replay = play(three_moves, two_players=True, discount=1.0, td_steps=9)
    sample = replay.sample()
    truncated = (sample["is_last"] & ~sample["terminated"])[..., 0]
    assert truncated.any() and (sample["to_play"][truncated] == 1).all()  # after three moves
    sample["bootstrap_value"] = torch.where(truncated[..., None], 1.0, sample["bootstrap_value"])
    target = agent.targets(sample.reshape(-1))[keys.VALUE_TARGET].reshape(sample.shape)
    second = sample["to_play"][..., 0] == 1
    assert (target[:, 1][second[:, 1]] == 1).all() and (target[:, 1][~second[:, 1]] == -1).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"simulator": TicTacToe}])
def test_masks_of_one_player_hold_in_searches_of_old_records(options):
    agent, replay = play(reanalyze_ratio=1.0, **options)
    sample = replay.sample()
    assert (sample["search_policy"][~sample["action_mask"]] == 0).all()


def three_moves():
    return TransformedEnv(TicTacToe(), StepCounter(3))


def play(game=TicTacToe, **options):
    torch.manual_seed(0)
    env = wrap(game, num_envs=4)
    specs, planner = model_specs(env), partial(SearchPolicy, **SEARCH)
    network = {"world_model": partial(make_muzero, **SMALL), "unroll_steps": 1, "td_steps": 2}
    agent = MuZero(*specs, planner=planner, **network | options)
    env = env.append_transform(agent.policy.make_tensordict_primer())
    stored = {"action_spec": specs[1], "observation_keys": recorded_keys(env)}
    replay = StepReplay(400, num_envs=4, batch_size=16, **stored, **agent.replay_options())
    replay.extend(env.rollout(40, agent.policy, break_when_any_done=False))
    return agent, replay


@pytest.mark.filterwarnings("ignore")
def test_a_saved_agent_goes_on_as_if_nothing_had_happened():
    agent, replay = build("efficientzero")
    for _ in range(2):
        agent.update(replay.sample())
    state = copy.deepcopy((agent.state_dict(), agent.optimizers["all"].state_dict()))
    again, _ = build("efficientzero")
    again.load_state_dict(state[0])
    again.optimizers["all"].load_state_dict(state[1])
    sample = replay.sample()
    for one in (agent, again):
        one.update(sample.clone())
    first, second = agent.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.filterwarnings("ignore")
def test_evaluation_is_greedy_and_random_warm_up_searches_too():
    agent, _ = build("gumbel")
    td = agent.world_model.initial([5]).update({"observation": torch.randn(5, 4)})
    td["is_init"] = torch.ones(5, 1, dtype=torch.bool)
    td["previous_action"] = torch.zeros(5, 2)
    first, second = (agent.evaluation_policy(td.clone()) for _ in range(2))
    assert torch.equal(first["action"], second["action"])
    agent.policy.random_actions = True
    drawn = torch.stack([agent.policy(td.clone())["action"] for _ in range(20)])
    assert drawn.float().mean(0).std() < 0.3 and drawn.float().std(0).max() > 0
    assert (agent.policy(td.clone())["visit_counts"].sum(-1) == 4).all()
    over = td.clone().set("done", torch.ones(5, 1, dtype=torch.bool))
    over["action_mask"] = torch.zeros(
        5, 2, dtype=torch.bool
    )  # as an environment may say after an end
    assert agent.policy(over)["action"].tolist() == [[1, 0]] * 5
    masked = td[0].set("action_mask", torch.tensor([False, True]))
    assert agent.policy(masked)["action"].tolist() == [0, 1]  # a batch without dimensions


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reanalyze_ratio": 2.0}, "reanalyze_ratio=2.0"),
        ({"td_steps": 0}, "td_steps"),
        ({"support": 0}, "support=0"),
        (
            {"planner": {"rule": MuZeroRule(), "max_depth": None, "num_sampled_actions": 0}},
            "sampled",
        ),
        ({"target_update_every": 0}, "every=0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.filterwarnings("ignore")
def test_continuous_actions_need_samples():
    with pytest.raises(TypeError, match="num_sampled_actions"):
        build(env="Pendulum-v1")


@pytest.mark.filterwarnings("ignore")
def test_a_copy_of_an_agent_learns_as_the_agent_does():
    agent, replay = build()
    other = copy.deepcopy(agent)
    before = {k: p.detach().clone() for k, p in agent.named_parameters()}
    sample = replay.sample()
    for one in (agent, other):
        torch.manual_seed(0)
        one.update(sample.clone())
    expected, found = dict(agent.named_parameters()), dict(other.named_parameters())
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert any(not torch.equal(before[key], found[key]) for key in before)


@pytest.mark.filterwarnings("ignore")
def test_the_policy_may_be_compiled():
    agent, _ = build()
    td = agent.world_model.initial([5]).update({"observation": torch.randn(5, 4)})
    td["is_init"] = torch.ones(5, 1, dtype=torch.bool)
    td["previous_action"] = torch.zeros(5, 2)
    policy = torch.compile(agent.evaluation_policy, backend="eager")
    assert torch.equal(policy(td.clone())["action"], agent.evaluation_policy(td.clone())["action"])
