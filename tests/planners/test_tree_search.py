"""Tree search: executors agree, options work, bad input is named."""

from __future__ import annotations

import copy
import pickle
import shutil
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tabular import ChanceDynamics, TabularDynamics
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiOneHot, OneHot, Unbounded
from torchrl.envs import EnvBase, set_exploration_type
from torchrl.envs.custom import TicTacToeEnv
from torchrl.envs.utils import ExplorationType

from torchrl_wm.envs import LearnedEnv, TicTacToe, gymnasium, model_specs
from torchrl_wm.modules import ActionEncoding
from torchrl_wm.planners import (
    EnvModel,
    FixedBounds,
    GumbelRule,
    MuZeroRule,
    ParentAndSiblings,
    SearchPolicy,
    TreeWide,
    draw_tree,
    search,
    to_torchrl_tree,
    tree_to_dot,
)
from torchrl_wm.planners.tree_search import EXECUTORS, Root
from torchrl_wm.policies import FilteringSearch
from torchrl_wm.programs.exponential import exp
from torchrl_wm.world_models import make_muzero, make_rssm

executors = pytest.mark.parametrize("executor", list(EXECUTORS))
rules = pytest.mark.parametrize("rule", [MuZeroRule(dirichlet_fraction=0.0), GumbelRule()])
OBSERVATION = Composite(observation=Unbounded(4))


def tables(generator, states, actions):
    def draw(*shape):  # eighths: equal values, and ties, occur
        return torch.randint(-16, 17, shape, generator=generator) / 8

    choice = torch.randint(4, (states, actions), generator=generator)
    return {
        "next_state": torch.randint(states, (states, actions), generator=generator),
        "reward": draw(states, actions),
        "discount": torch.tensor([0.997, -0.997, 1.0, 0.0])[choice],
        "prior_logits": 2 * draw(states, actions),
        "value": draw(states),
    }


@st.composite
def searches(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**30)))
    actions, states = draw(st.integers(1, 9)), 40
    data, rows = tables(generator, states, actions), draw(st.integers(1, 5))
    allowed = torch.rand(rows, actions, generator=generator) < 0.7
    allowed[torch.arange(rows), torch.randint(actions, (rows,), generator=generator)] = True
    below = torch.rand(states, actions, generator=generator) < draw(
        st.sampled_from([0.3, 0.8, 1.1])
    )
    if draw(st.booleans()):
        where = draw(st.sampled_from([ParentAndSiblings(), TreeWide(0.01), FixedBounds(-3.0, 3.0)]))
        rule = MuZeroRule(
            normalization=where, dirichlet_fraction=draw(st.sampled_from([0.0, 0.25]))
        )
    else:
        rule = GumbelRule(
            max_considered_actions=draw(st.integers(1, 12)),
            rescale_values=draw(st.booleans()),
            use_mixed_value=draw(st.booleans()),
        )
    model = TabularDynamics(data, below)
    root = model.roots(torch.randint(states, (rows,), generator=generator), allowed)
    options = {
        "num_simulations": draw(st.integers(1, 20)),
        "max_depth": draw(st.sampled_from([None, 1, 2, 5])),
        "noise": rule.draw_noise(allowed, generator),
    }
    return model, root, rule, options


@settings(max_examples=25, deadline=None)
@given(searches())
def test_executors_make_equal_trees(case):
    model, root, rule, options = case
    trees = [search(model, root, rule, executor=name, **options) for name in EXECUTORS]
    for name in trees[0].keys():
        assert torch.equal(trees[0][name], trees[1][name]), name
    visits = trees[0]["children_visits"]
    assert (visits[:, 0].sum(-1) == options["num_simulations"]).all()
    assert (visits[trees[0]["logits"] == -torch.inf] == 0).all()


@executors
def test_double_precision_agrees(executor):
    generator = torch.Generator().manual_seed(0)
    data = tables(generator, 40, 5)
    data["value"] += torch.randn(40, generator=generator)
    wide = {k: v.double() if v.is_floating_point() else v for k, v in data.items()}
    options = {"num_simulations": 25, "executor": "reference"}
    rule, state = MuZeroRule(dirichlet_fraction=0.0), torch.arange(6)
    model = TabularDynamics(wide)
    exact = search(model, model.roots(state), rule, **options)
    model = TabularDynamics(data)
    tree = search(model, model.roots(state), rule, num_simulations=25, executor=executor)
    assert exact["node_values"].dtype == torch.float64
    assert torch.equal(exact["children"], tree["children"])
    torch.testing.assert_close(exact["node_values"].float(), tree["node_values"])


@executors
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_roots_may_require_gradients_or_be_inference_tensors(executor, mode):
    model = small()
    root = model.roots(torch.arange(3))
    with mode():
        value, logits = (x.clone().requires_grad_(mode is torch.enable_grad) for x in root[1:])
        root = Root(root.latents, value * 1, logits * 1)
        rule = MuZeroRule(dirichlet_fraction=0.0)
        tree = search(model, root, rule, num_simulations=3, executor=executor)
    assert not tree["node_values"].requires_grad and (tree["node_visits"][:, 0] == 4).all()


def test_the_exponential():
    x = torch.linspace(-87, 0, 1001)
    torch.testing.assert_close(exp(x), x.double().exp().float(), rtol=2e-7, atol=0.0)


# -- The policy ---------------------------------------------------------------------------------


@executors
@pytest.mark.parametrize("rule", [MuZeroRule(), GumbelRule()], ids=["muzero", "gumbel"])
@pytest.mark.parametrize(
    "spec, samples",
    [(OneHot(3), None), (Categorical(3), None), (Bounded(-1, 1, (2,)), 6), (Categorical(5), 4)],
)
def test_policy_writes_what_it_promises(executor, rule, spec, samples):
    torch.manual_seed(0)
    model = make_muzero(OBSERVATION, Composite(action=spec))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    names = {"search_policy_key": ("search", "policy"), "root_value_key": "value"}
    policy = SearchPolicy(
        model,
        rule=rule,
        num_simulations=9,
        num_sampled_actions=samples,
        executor=executor,
        generator=torch.Generator().manual_seed(1),
        **names,
    )
    td = model.initial([2, 3])
    td["hidden"] = torch.rand(2, 3, 64)
    out = policy(td)
    assert set(policy.out_keys) <= set(out.keys(True, True)) and spec.expand(
        2, 3, *spec.shape
    ).is_in(out["action"])
    torch.testing.assert_close(out["search", "policy"].sum(-1), torch.ones(2, 3))
    assert (out["visit_counts"].sum(-1) == 9).all() and out["value"].shape == (2, 3, 1)
    if samples:
        flat, drawn = model.action_encoding(out), out["sampled_actions"]
        assert (drawn == flat.unsqueeze(-2)).all(-1).any(-1).all(), (
            "the action is one of the samples"
        )


def test_samples_that_coincide_are_merged():
    model = make_muzero(OBSERVATION, Composite(action=OneHot(2)))
    policy = SearchPolicy(model, num_simulations=12, num_sampled_actions=8, greedy=True)
    out = policy(model.initial([4]))
    assert ((out["visit_counts"] > 0).sum(-1) <= 2).all()
    model = make_muzero(OBSERVATION, Composite(action=Bounded(-1, 1, (1,))))
    for bias in (p for p in model.policy_head.out.parameters() if p.ndim == 1):
        torch.nn.init.constant_(bias, 3.0)  # most draws lie beyond a bound
    policy = SearchPolicy(model, num_simulations=12, num_sampled_actions=8, greedy=True)
    out = policy(model.initial([20]))
    different = [len(samples.unique(dim=0)) for samples in out["sampled_actions"]]
    assert sum(different) < 7 * 20
    for number, visits in zip(different, out["visit_counts"], strict=True):
        assert (visits > 0).sum() <= number


def test_samples_of_many_equal_roots_do_not_repeat_with_a_period():
    model = make_muzero(OBSERVATION, Composite(action=Bounded(-1, 1, (2,))))
    policy = SearchPolicy(model, num_simulations=1, num_sampled_actions=4)
    samples = policy(model.initial([600]))["sampled_actions"]
    for period in range(1, 600):
        same = (samples[period:] == samples[:-period]).flatten(1).all(1)
        assert same.sum() < max(3, 0.05 * len(same)), period


def test_exploration_type_silences_the_noise():
    model = make_muzero(OBSERVATION, Composite(action=OneHot(4)))
    policy, td = SearchPolicy(model, num_simulations=6), model.initial([20])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        outs = [policy(td.clone())["action"] for _ in range(2)]
    assert torch.equal(*outs) and len(policy(td.clone())["action"].unique(dim=0)) > 1


def test_policy_can_be_copied_and_stores_nothing_twice():
    model = make_muzero(OBSERVATION, Composite(action=OneHot(2)))
    policy, td = SearchPolicy(model, num_simulations=3, greedy=True), model.initial([2])
    names, expected = set(policy.state_dict()), policy(td.clone())["visit_counts"]
    assert set(policy.state_dict()) == names
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert torch.equal(twin(td.clone())["visit_counts"], expected)


# -- True dynamics ------------------------------------------------------------------------------


def judge():
    def even(board):
        return torch.zeros(*board.shape[:-2], 1), torch.zeros(*board.shape[:-2], 9)

    return TensorDictModule(even, ["board"], ["state_value", "policy_logits"])


@executors
def test_tictactoe_wins_and_defends(executor):
    model = EnvModel(TicTacToeEnv(), judge(), turn_key="turn", mask_key="mask")
    policy = SearchPolicy(model, num_simulations=80, greedy=True, executor=executor)
    td = model.env.reset(TensorDict(batch_size=[2]))
    boards = [[[1, 1, -1], [0, 0, -1], [-1, -1, -1]], [[1, -1, -1], [0, 0, -1], [-1, -1, -1]]]
    td["board"] = torch.tensor(boards, dtype=torch.int32)
    td["mask"] = td["board"].flatten(1) == -1
    out = policy(td)
    assert out["action"].tolist() == [2, 5] and out["root_value"][0] > 0.5
    assert (out["visit_counts"][~td["mask"]] == 0).all()


def test_a_finished_game_in_a_batch_costs_nothing():
    model = EnvModel(TicTacToeEnv(), judge(), turn_key="turn", mask_key="mask")
    td = model.env.reset(TensorDict(batch_size=[2]))
    td["done"], td["mask"] = torch.tensor([[True], [False]]), torch.ones(2, 9, dtype=torch.bool)
    td["mask"][0] = False
    out = SearchPolicy(model, num_simulations=5)(td)
    assert out["visit_counts"].sum(-1).tolist() == [0, 5]


# -- Looking at trees ---------------------------------------------------------------------------


def test_trees_are_drawn_and_exported(tmp_path):
    model = make_muzero(OBSERVATION, Composite(action=OneHot(3)))
    trees = SearchPolicy(model, num_simulations=12).trees(model.initial([2]))
    text = tree_to_dot(trees, 1, action_names=["left", "stay", "right"])
    assert text.count("->") == 12 and "stay" in text
    vertices = to_torchrl_tree(trees, 1)
    assert vertices.num_vertices() == 13 and len(vertices.edges()) == 12
    assert float(vertices.count) == 13 and vertices.node_data["hidden"].shape == (64,)
    assert draw_tree(trees, tmp_path / "tree.dot").read_text().startswith("digraph")
    with pytest.raises(ValueError, match="suffix"):
        draw_tree(trees, tmp_path / "tree.jpg")
    with pytest.raises(IndexError, match="row=2"):
        tree_to_dot(trees, 2)


@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
def test_trees_are_drawn_as_pictures(tmp_path):
    model = make_muzero(OBSERVATION, Composite(action=OneHot(3)))
    trees = SearchPolicy(model, num_simulations=4).trees(model.initial([1]))
    assert draw_tree(trees, tmp_path / "tree.png").read_bytes().startswith(b"\x89PNG")


# -- Bad input ----------------------------------------------------------------------------------


def small(**broken):
    data = tables(torch.Generator().manual_seed(0), 12, 3)
    for name, (index, value) in broken.items():
        data[name][index] = value
    return TabularDynamics(data)


@executors
@rules
@pytest.mark.parametrize("entry", ["value", "reward", "prior_logits", "discount"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_named_with_their_node(executor, rule, entry, bad):
    data = small().tables
    data[entry] = data[entry].clone()
    data[entry][:] = bad
    model = TabularDynamics(data)
    root = Root((torch.arange(2),), torch.zeros(2), torch.zeros(2, 3))
    with pytest.raises(FloatingPointError, match=r"node 1 of row 0, action \d of node 0"):
        search(model, root, rule, num_simulations=4, executor=executor)


def test_bad_roots_and_options_are_named():
    model, rule = small(), MuZeroRule()
    allowed = torch.tensor([[True] * 3, [False] * 3])
    with pytest.raises(ValueError, match=r"No action is allowed in the rows \[1\]"):
        search(model, model.roots(torch.arange(2), allowed), rule, num_simulations=2)
    root = model.roots(torch.arange(2))
    with pytest.raises(FloatingPointError, match=r"node 0, of rows \[0, 1\]"):
        search(model, root._replace(value=root.value * torch.nan), rule, num_simulations=2)
    with pytest.raises(ValueError, match="num_simulations=0"):
        search(model, root, rule, num_simulations=0)
    with pytest.raises(ValueError, match="max_depth=0"):
        search(model, root, rule, num_simulations=1, max_depth=0)
    with pytest.raises(ValueError, match="numba"):
        search(model, root, rule, num_simulations=1, executor="cuda")
    with pytest.raises(ValueError, match=r"values \[B\], logits \[B, A\].*; got \[2, 1\], "):
        search(model, root._replace(value=root.value[:, None]), rule, num_simulations=2)
    with pytest.raises(ValueError, match=r"latents \[B, ...\]; got .* and \[\[1\]\]"):
        search(model, root._replace(latents=(torch.arange(1),)), rule, num_simulations=2)
    with pytest.raises(ValueError, match=r"\[2, 3\], as rule.draw_noise gives it; got \[1, 3\]"):
        search(model, root, GumbelRule(), num_simulations=2, noise=torch.zeros(1, 3))
    for wrong in (
        {"dirichlet_fraction": 2.0},
        {"dirichlet_alpha": 0.0},
        {"temperature": -1.0},
        {"c_base": 0.0},
        {"c_init": -1.0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MuZeroRule(**wrong)
    with pytest.raises(ValueError, match="max_considered_actions"):
        GumbelRule(max_considered_actions=0)
    for wrong in ({"value_scale": -1.0}, {"maxvisit_init": -1.0}, {"gumbel_scale": torch.nan}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GumbelRule(**wrong)
    with pytest.raises(TypeError, match="normalization='tree'"):
        MuZeroRule(normalization="tree")
    with pytest.raises(ValueError, match="low <= high"):
        MuZeroRule(normalization=FixedBounds(1, -1))


@pytest.mark.parametrize(
    "spec", [Bounded(-1, 1, (2,)), MultiOneHot([2, 3]), Composite(a=OneHot(2), b=OneHot(2))]
)
def test_actions_that_cannot_be_enumerated_are_refused(spec):
    spec = spec if isinstance(spec, Composite) else Composite(action=spec)
    with pytest.raises(TypeError, match="num_sampled_actions"):
        SearchPolicy(make_muzero(OBSERVATION, spec))


def test_missing_entries_are_named():
    model = make_muzero(OBSERVATION, Composite(action=OneHot(2)))
    with pytest.raises(KeyError, match="hidden"):
        SearchPolicy(model)(TensorDict(batch_size=[2]))
    with pytest.raises(TypeError, match="latent_keys"):
        SearchPolicy(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="num_simulations=0"):
        SearchPolicy(model, num_simulations=0)
    start = model.initial([2]).set("action_mask", torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"action mask is \[2, 3\].*\[2, 2\]"):
        SearchPolicy(model)(start)
    with pytest.raises(ValueError, match="max_depth=0"):
        SearchPolicy(model, max_depth=0)
    with pytest.raises(ValueError, match="discount=2"):
        SearchPolicy(model, discount=2)
    with pytest.raises(TypeError, match="rule='gumbel'.*GumbelRule"):
        SearchPolicy(model, rule="gumbel")
    with pytest.raises(ValueError, match="num_sampled_actions=0"):
        SearchPolicy(model, num_sampled_actions=0)
    wordless = EnvModel(
        TicTacToeEnv(), TensorDictModule(lambda b: b, ["board"], ["x"]), turn_key="turn"
    )
    with pytest.raises(KeyError, match="state_value"):
        SearchPolicy(wordless)(wordless.env.reset(TensorDict(batch_size=[1])))
    with pytest.raises(ValueError, match="turn_key"):
        EnvModel(TicTacToeEnv(), judge())


def test_chance_outcomes_are_visited_by_their_probability():
    generator = torch.Generator().manual_seed(0)
    data = tables(generator, 10, 3)
    data |= {
        "afterstate": torch.randint(8, (10, 2), generator=generator),
        "afterstate_value": torch.zeros(8),
        "chance_logits": torch.log(torch.tensor([0.5, 0.3, 0.2])).expand(8, 3),
        "prior_logits": torch.zeros(10, 2),
    }
    data["next_state"] = torch.randint(10, (8, 3), generator=generator)
    model = ChanceDynamics(data)
    root = model.roots(torch.arange(1), torch.ones(1, 2, dtype=torch.bool))
    rule = MuZeroRule(dirichlet_fraction=0.0)
    trees = [search(model, root, rule, num_simulations=100, executor=name) for name in EXECUTORS]
    assert torch.equal(trees[0]["children"], trees[1]["children"])
    child = int(trees[0]["children"][0, 0, :2].amax())
    quota = trees[0]["children_visits"][0, child, 2:].float()
    expected = torch.tensor([0.5, 0.3, 0.2])
    torch.testing.assert_close(quota / quota.sum(), expected, atol=0.08, rtol=0.0)


def test_scores_that_tie_after_rounding_have_room_for_their_guesses():
    # Among logits this close the actions guessed for a phase are not those it visits, so that more
    # guesses wait for their turn than a phase considers.
    generator, rule = torch.Generator().manual_seed(0), GumbelRule(max_considered_actions=16)
    made = {"next_state": torch.randint(500, (500, 64), generator=generator)}
    made |= {name: torch.zeros(500, 64) for name in ("reward", "prior_logits")}
    made |= {"discount": torch.full((500, 64), 0.99)}
    made |= {"value": torch.randn(500, generator=generator)}
    model = TabularDynamics(made)
    root = Root((torch.arange(40),), torch.zeros(40), torch.arange(64) * torch.full((40, 1), 1e-9))
    for row in range(40):
        alone = Root((root.latents[0][row : row + 1],), root.value[:1], root.logits[:1])
        tree = search(model, alone, rule, num_simulations=32)
        assert tree["children_visits"][0, 0].sum() == 32


def test_a_rule_of_ones_own_is_not_mistaken_for_a_compiled_one():
    class First(MuZeroRule):
        def scores(self, node, bounds):
            return -torch.arange(node.priors.shape[-1]).expand(node.priors.shape).to(node.priors)

    model = small()
    root = model.roots(torch.arange(2))
    with pytest.raises(TypeError, match="First.*executor='reference'"):
        search(model, root, First(), num_simulations=3)
    tree = search(model, root, First(), num_simulations=3, executor="reference")
    assert (tree["children_visits"][:, 0, 0] == 3).all()


def test_options_that_contradict_the_searched_model_are_refused():
    game = EnvModel(TicTacToeEnv(), judge(), turn_key="turn", mask_key="mask")
    with pytest.raises(ValueError, match="discount=-1.0 contradicts .* 1.0"):
        SearchPolicy(game, discount=-1.0)
    assert (
        SearchPolicy(game).dynamics.discount == SearchPolicy(game, discount=1.0).dynamics.discount
    )
    with pytest.raises(ValueError, match="num_sampled_actions=3 has no effect"):
        SearchPolicy(small(), num_sampled_actions=3)


def test_a_rule_belongs_to_one_policy():
    model, rule = make_muzero(OBSERVATION, Composite(action=OneHot(2))), MuZeroRule()
    first, second = SearchPolicy(model, rule=rule), SearchPolicy(model, rule=rule)
    first.rule.temperature = 0.25
    assert rule.temperature == second.rule.temperature == 1.0


@executors
def test_no_rows_are_an_answer_too(executor):
    model = make_muzero(OBSERVATION, Composite(action=OneHot(2)))
    policy = SearchPolicy(model, num_simulations=3, executor=executor)
    td = model.initial([0]).set("action_mask", torch.ones(0, 2).bool())
    assert policy(td.set("done", torch.zeros(0, 1).bool()))["search_policy"].shape == (0, 2)
    assert policy(model.initial([3, 0]))["action"].shape == (3, 0, 2)


class Judging(TensorDictModuleBase):
    """A module that steps and judges in one call."""

    in_keys, out_keys, latent_keys = ["h", "action"], ["next"], ["h"]

    def __init__(self):
        super().__init__()
        self.action_encoding = ActionEncoding(Composite(action=OneHot(3)))
        self.net = torch.nn.Linear(7, 8)

    def judged(self, h):
        value, logits = self.net(torch.cat([h, h[..., :3]], -1))[..., 4:].split([1, 3], -1)
        return TensorDict(h=h, state_value=value, policy_logits=logits, batch_size=h.shape[:-1])

    def forward(self, td):
        h = self.net(torch.cat([td["h"], td["action"].float()], -1))[..., :4]
        return td.set("next", self.judged(h).set("reward", h[..., :1]))


@executors
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_without_predict_the_root_holds_what_is_said_of_it(executor, batch):
    module = Judging()
    policy = SearchPolicy(module, num_simulations=6, executor=executor)
    root = module.judged(torch.randn(*batch, 4))
    assert set(policy.in_keys) == set(root.keys())
    assert (policy(root)["visit_counts"].sum(-1) == 6).all()
    with pytest.raises(KeyError, match="state_value"):
        policy(root.exclude("state_value"))


def test_games_that_are_over_are_rolled_out_no_further():
    game = TicTacToe()
    model = EnvModel(game, judge_board(), turn_key="to_play", mask_key="action_mask")
    policy = SearchPolicy(model, num_simulations=3)
    start = game.reset(TensorDict(batch_size=[3]))
    ends = {"break_when_all_done": True, "break_when_any_done": False}
    games = game.rollout(9, policy, auto_reset=False, tensordict=start, **ends)
    assert games["next", "done"].any(1).all()


def judge_board():
    def even(board):
        batch = board.shape[:-3]
        return torch.zeros(*batch, 1), torch.zeros(*batch, 9)

    return TensorDictModule(even, ["board"], ["state_value", "policy_logits"])


def rooted(action_spec, rows):
    model = make_muzero(OBSERVATION, Composite(action=action_spec), units=8, hidden_size=8)
    return model, model.roots(TensorDict({"observation": torch.randn(rows, 4)}, [rows]))


@executors
def test_a_mask_without_a_valid_action_is_named_with_sampled_actions_too(executor):
    model, rows = rooted(Categorical(4), 3)
    policy = SearchPolicy(model, num_simulations=4, num_sampled_actions=3, executor=executor)
    rows["action_mask"] = torch.tensor([[True] * 4, [False] * 4, [True, False, False, False]])
    with pytest.raises(ValueError, match=r"No action is allowed in the rows \[1\]"):
        policy(rows.clone())
    assert (policy(rows[2:])["action"] == 0).all()
    model, rows = rooted(MultiOneHot([2, 2]), 2)
    policy = SearchPolicy(model, num_simulations=4, num_sampled_actions=3, executor=executor)
    with pytest.raises(ValueError, match="where the policy is one choice"):
        policy(rows.set("action_mask", torch.ones(2, 4, dtype=torch.bool)))


def test_rows_are_told_as_counted_where_others_are_finished():
    model, rows = rooted(Categorical(4), 4)
    rows["done"] = torch.tensor([[True], [True], [False], [False]])
    rows["action_mask"] = torch.tensor([[True] * 4] * 3 + [[False] * 4])
    with pytest.raises(ValueError, match=r"rows \[1\].*counted among those.*searched: \[2, 3\]"):
        SearchPolicy(model, num_simulations=4)(rows)


def test_trees_of_another_batch_are_refused():
    model, rows = rooted(Categorical(4), 4)
    with pytest.raises(ValueError, match=r"rows \[B\].*\[2, 2\]"):
        SearchPolicy(model, num_simulations=4).trees(rows.reshape(2, 2))


@pytest.mark.filterwarnings("ignore")
def test_a_filtering_search_writes_the_keys_of_its_search():
    env = gymnasium("CartPole-v1", num_envs=2)
    model = make_muzero(*model_specs(env), units=8, hidden_size=8)
    names = {"root_value_key": ("found", "v"), "visit_counts_key": ("found", "n")}
    names |= {"search_policy_key": ("found", "pi"), "action_mask_key": "legal"}
    policy = FilteringSearch(model, SearchPolicy(model, num_simulations=4, **names))
    rollout = env.append_transform(policy.make_tensordict_primer()).rollout(3, policy)
    assert set(rollout["found"].keys()) == {"v", "n", "pi"}
    assert {("found", "v"), ("found", "pi")} <= set(policy.note_keys)
    assert ("found", "n") not in policy.note_keys
    policy.random_actions = True
    rows = rollout[:, 0].clone().set("legal", torch.tensor([[False, True]] * 2))
    assert all(policy(rows)["action"].argmax(-1).eq(1).all() for _ in range(10))


class Corridor(EnvBase):
    """Two steps to the right earn 1 and end the episode; a step reads the observation, and no state."""

    batch_locked = False

    def __init__(self, done_key="done"):
        super().__init__(batch_size=[])
        self.action_spec, self.reward_spec = OneHot(2), Unbounded((1,))
        self.observation_spec = Composite(place=Unbounded((1,)), mask=Unbounded((2,)))
        ends = {"done": Binary(1, dtype=torch.bool), "terminated": Binary(1, dtype=torch.bool)}
        self.full_done_spec = Composite(agent=ends) if done_key == "agent" else Composite(ends)
        self.nested = done_key == "agent"

    def _reset(self, tensordict):
        batch = () if tensordict is None else tensordict.batch_size
        return self._row(torch.zeros(*batch, 1), batch)

    def _row(self, place, batch):
        done = (place >= 2).bool()
        ends = TensorDict(done=done, terminated=done.clone(), batch_size=batch)
        out = TensorDict(place=place, mask=torch.ones(*batch, 2), batch_size=batch)
        return out.set("agent", ends) if self.nested else out.update(ends)

    def _step(self, tensordict):
        place = tensordict["place"] + tensordict["action"][..., 1:].float()
        return self._row(place, tensordict.batch_size).set("reward", (place >= 2).float())

    def _set_seed(self, seed):
        return seed


@executors
@pytest.mark.parametrize("done_key", ["done", "agent"])
def test_environments_are_searched_that_step_from_observations_and_end_in_nested_entries(
    executor, done_key
):
    env = Corridor(done_key)
    even = TensorDictModule(
        lambda mask: (0 * mask[..., :1], 0 * mask), ["mask"], ["state_value", "policy_logits"]
    )
    model = EnvModel(env, even, discount=0.9, mask_key="mask")  # a mask of numbers
    policy = SearchPolicy(model, num_simulations=30, greedy=True, executor=executor)
    out = policy(env._reset(TensorDict(batch_size=[3])))  # reset() needs the nested entries
    assert (out["action"][:, 1] == 1).all()
    assert (out["root_value"] < 0.9).all()  # nothing is earned after the end
    assert (out["root_value"] > 0.3).all()


def test_an_environment_with_a_batch_size_is_not_searched():
    model = make_rssm(OBSERVATION, Composite(action=OneHot(2)), belief_size=16, units=8)
    with pytest.raises(ValueError, match=r"has the batch size \[5\]"):
        EnvModel(LearnedEnv(model, batch_size=[5]), judge())


@rules
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_reference_keeps_the_statistics_of_half_precision_in_single(rule, dtype):
    generator = torch.Generator().manual_seed(0)
    data = {
        k: v.to(dtype) if v.is_floating_point() else v for k, v in tables(generator, 30, 4).items()
    }
    wide = {k: v.float() if v.is_floating_point() else v for k, v in data.items()}
    trees = []
    for numbers in (data, wide):
        model = TabularDynamics(numbers)
        root = model.roots(torch.arange(3))
        options = {"num_simulations": 60, "executor": "reference"}
        trees.append(search(model, root, rule, **options))
    half, single = trees
    assert half["node_values"].dtype == torch.float32
    assert torch.equal(half["children_visits"], single["children_visits"])
    torch.testing.assert_close(half["node_values"], single["node_values"])


@executors
def test_a_policy_that_is_no_number_is_no_end_of_an_episode(executor):
    model, policy = rooted(Bounded(-1, 1, (2,)), 2)
    policy = SearchPolicy(model, num_simulations=8, num_sampled_actions=4, executor=executor)
    for parameter in model.policy_head.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises((ValueError, FloatingPointError), match=r"(?i)nan|not finite"):
        policy(model.initial([2]))


def test_a_first_search_under_autocast_does_not_stay_slow():
    model = make_muzero(OBSERVATION, Composite(action=OneHot(3)))
    policy = SearchPolicy(model, num_simulations=4)
    td = model.initial([2])
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        policy(td.clone())
    policy(td.clone())
    assert policy.evaluator.program is not None


def program_policy(rows: int, **options):
    """A search whose model is a program, and that many states to search from."""
    torch.manual_seed(0)
    model = make_muzero(OBSERVATION, Composite(action=OneHot(3)), hidden_size=16, units=8)
    policy = SearchPolicy(model, num_simulations=8, **options)
    return policy, model.initial([rows]).apply(torch.rand_like)


@rules
@pytest.mark.parametrize("options", [{}, {"trace": False}, {"executor": "reference"}])
def test_bad_roots_are_named_wherever_they_are(rule, options):
    """In several blocks and threads, by whatever plants them."""
    options, executor = dict(options), options.get("executor", "numba")
    options.pop("executor", None)
    policy, td = program_policy(70, **options)
    root = policy.dynamics.root(td)

    def searched(root: Root):
        return search(policy.evaluator, root, rule, num_simulations=3, executor=executor)

    for entry, row, number in (("value", 66, torch.nan), ("logits", 40, torch.inf)):
        bad = getattr(root, entry).clone()
        bad[row] = number
        with pytest.raises(FloatingPointError, match=rf"node 0, of rows \[{row}\]"):
            searched(root._replace(**{entry: bad}))
    logits = root.logits.clone()
    logits[[5, 69]] = -torch.inf
    with pytest.raises(ValueError, match=r"No action is allowed in the rows \[5, 69\]"):
        searched(root._replace(logits=logits))
    logits[[5, 69], 1] = 0.0
    assert (searched(root._replace(logits=logits))["node_visits"][:, 0] == 4).all()
    assert (policy.evaluator.program is not None) == (not options)


@rules
def test_a_first_search_from_what_is_no_number_does_not_stay_slow(rule):
    policy, td = program_policy(3, rule=rule)
    with pytest.raises(FloatingPointError, match=r"node 0, of rows \[0, 1, 2\]"):
        policy(td.apply(lambda x: torch.full_like(x, torch.nan)))
    policy(td)
    assert policy.evaluator.program is not None


@rules
def test_memory_that_is_used_again_holds_nothing_of_the_search_before(rule):
    policy, td = program_policy(40, rule=rule, greedy=True)
    with torch.inference_mode():
        first = policy.trees(td)
    kept, memory = first.clone(), policy.evaluator._spare.buffers[0].data_ptr()
    for rows in (td[:7], td.flip(0), torch.cat([td, td])):  # fewer, as many, and more than fit
        fresh = program_policy(40, rule=rule, greedy=True)[0].trees(rows)
        assert (policy.trees(rows) == fresh).all()
        assert (policy.evaluator._spare.buffers[0].data_ptr() == memory) == (len(rows) <= 40)
    assert (first == kept).all()
    assert copy.deepcopy(policy).evaluator._spare is None
    search(
        policy.evaluator, policy.dynamics.root(td), rule, num_simulations=8, executor="reference"
    )
    assert (policy.trees(td) == kept).all()
