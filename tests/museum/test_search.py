"""Mistakes that tree searches made; one test for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tabular import TabularDynamics
from tensordict import TensorDict
from torch import nn
from torchrl.data import Composite, OneHot, Unbounded

from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.planners import (
    FixedBounds,
    GumbelRule,
    MuZeroRule,
    SearchPolicy,
    TreeWide,
    search,
)
from torchrl_wm.planners.tree_search import EXECUTORS
from torchrl_wm.planners.tree_search.normalization import (
    ParentAndSiblings,
    completed_q,
    mixed_value,
    normalized_q,
)
from torchrl_wm.planners.tree_search.tree import node_statistics
from torchrl_wm.world_models import make_muzero

executors = pytest.mark.parametrize("executor", list(EXECUTORS))
rules = pytest.mark.parametrize("rule", [MuZeroRule(), GumbelRule()], ids=["muzero", "gumbel"])
QUIET = {"dirichlet_fraction": 0.0, "temperature": 0.0}


def tables(states, actions, seed=0, discount=0.9):
    generator = torch.Generator().manual_seed(seed)
    return {
        "next_state": torch.randint(states, (states, actions), generator=generator),
        "reward": torch.randn(states, actions, generator=generator),
        "discount": torch.full((states, actions), discount),
        "prior_logits": torch.randn(states, actions, generator=generator),
        "value": torch.randn(states, generator=generator),
    }


def chain(length, *, rewards, discounts, leaf):
    """One action; the last state has the value ``leaf`` and leads to itself."""
    return {
        "next_state": torch.tensor([[min(i + 1, length)] for i in range(length + 1)]),
        "reward": torch.tensor([*rewards, 0.0]).unsqueeze(1),
        "discount": torch.tensor([*discounts, 0.0]).unsqueeze(1),
        "prior_logits": torch.zeros(length + 1, 1),
        "value": torch.tensor([0.0] * length + [leaf]),
    }


def run(model, state, rule, simulations, executor="numba", **options):
    state = torch.as_tensor(state)
    allowed = options.pop("allowed", None)
    root = model.roots(state, allowed)
    return search(model, root, rule, num_simulations=simulations, executor=executor, **options)


# -- What is backed up --------------------------------------------------------------------------


@executors
def test_turns_are_lost_in_the_backup(executor):
    """Three moves of alternating players: a good end for the player to move there is bad at the root."""
    model = TabularDynamics(chain(3, rewards=[0, 2.0, 0], discounts=[-1.0] * 3, leaf=1.0))
    tree = run(model, [0], MuZeroRule(**QUIET), 3, executor)
    # The simulations bring 0, then 0 - 2, then 0 - (2 - (0 - 1)).
    assert tree["node_values"][0, 0] == pytest.approx((0 + 0 - 2 - 3) / 4)


@executors
def test_value_leaks_over_the_end_of_an_episode(executor):
    model = TabularDynamics(chain(2, rewards=[0, 5.0], discounts=[1.0, 0.0], leaf=100.0))
    tree = run(model, [0], MuZeroRule(**QUIET), 4, executor)
    assert tree["q_values"][0, 1, 0] == 5.0 and tree["node_values"].max() <= 100.0
    assert tree["node_values"][0, 0] == pytest.approx((0 + 0 + 5 + 5 + 5) / 5)


@executors
def test_a_player_who_moves_twice_is_taken_for_the_opponent(executor):
    options = {"rewards": [0, 0], "leaf": 1.0}
    twice = TabularDynamics(chain(2, discounts=[1.0, -1.0], **options))
    turns = TabularDynamics(chain(2, discounts=[-1.0, -1.0], **options))
    values = [
        run(m, [0], MuZeroRule(**QUIET), 2, executor)["node_values"][0, 0] for m in (twice, turns)
    ]
    assert values[0] == pytest.approx(-1 / 3) and values[1] == pytest.approx(1 / 3)


@executors
def test_root_value_leaves_out_the_value_of_the_root(executor):
    model = TabularDynamics(tables(20, 3))
    tree = run(model, [4], MuZeroRule(**QUIET), 10, executor)
    backed_up = (tree["q_values"] * tree["children_visits"])[0, 0].sum()
    expected = (model.tables["value"][4] + backed_up) / 11
    assert tree["node_values"][0, 0] == pytest.approx(expected.item(), abs=1e-4)


# -- Selection ----------------------------------------------------------------------------------


@executors
def test_first_visit_of_a_fresh_node_ignores_the_priors(executor):
    model = TabularDynamics(tables(20, 5))
    tree = run(model, range(20), MuZeroRule(**QUIET), 1, executor)
    assert torch.equal(
        tree["action_from_parent"][:, 1].long(), model.tables["prior_logits"].argmax(-1)
    )


@pytest.mark.parametrize("where", [ParentAndSiblings(), TreeWide()], ids=["siblings", "tree"])
def test_unvisited_actions_are_better_than_bad_ones(where):
    """All values are negative: an unvisited action counts as the worst, not as zero."""
    data = tables(20, 4)
    data["value"] = -10 - data["value"].abs()
    data["reward"] = -data["reward"].abs()
    tree = run(TabularDynamics(data), [0, 1], MuZeroRule(**QUIET), 3, "reference")
    root = node_statistics(tree)
    values = normalized_q(root, where)
    assert (root.edge_visits == 0).any() and (values[root.edge_visits == 0] == 0).all()
    assert (values >= 0).all() and (values <= 1).all()


@executors
@pytest.mark.parametrize("where", [ParentAndSiblings(), TreeWide(), FixedBounds(0.0, 0.0)])
def test_equal_values_divide_by_zero(executor, where):
    data = tables(20, 4)
    data["value"], data["reward"] = torch.zeros(20), torch.zeros(20, 4)
    tree = run(
        TabularDynamics(data), [0, 1], MuZeroRule(**QUIET, normalization=where), 20, executor
    )
    assert tree["node_values"].isfinite().all() and (tree["node_values"] == 0).all()
    order = tree["priors"][:, 0].argsort(-1)
    assert (tree["children_visits"][:, 0].gather(1, order).diff(dim=-1) >= 0).all()


@executors
def test_scope_of_the_normalisation(executor):
    """With parent and siblings a distant node changes nothing; over the whole tree it does."""

    data = tables(20, 3, seed=3)
    data["next_state"][0] = torch.tensor([1, 2, 3])
    data["next_state"][1:4] = torch.tensor([4, 5, 6])
    data["value"][6] = 50.0
    rule = MuZeroRule(**QUIET, normalization=TreeWide())
    root = node_statistics(run(TabularDynamics(data), [0], rule, 30, executor))
    assert root.q_max[0] > 40
    inside = normalized_q(root, ParentAndSiblings())
    assert not torch.allclose(inside, normalized_q(root, TreeWide()))
    moved = root._replace(q_max=root.q_max + 100)
    assert torch.equal(inside, normalized_q(moved, ParentAndSiblings()))
    assert not torch.equal(normalized_q(root, TreeWide()), normalized_q(moved, TreeWide()))


# -- Masks and noise ----------------------------------------------------------------------------


@executors
@rules
def test_forbidden_root_actions_are_visited(executor, rule):
    model, allowed = TabularDynamics(tables(30, 6)), torch.ones(4, 6, dtype=torch.bool)
    allowed[:, 2] = False
    noise = rule.draw_noise(allowed)
    for simulations in (3, 40):
        tree = run(model, range(4), rule, simulations, executor, allowed=allowed, noise=noise)
        assert (tree["children_visits"][:, 0, 2] == 0).all()
        assert (rule.policy(tree)[:, 2] == 0).all() and (tree["priors"][:, 0, 2] == 0).all()
        assert (rule.action(tree, noise) != 2).all()
    assert (tree["children_visits"][:, 1:, 2] > 0).any(), "below the root the action is allowed"


@executors
@rules
def test_interior_mask_is_ignored(executor, rule):
    allowed = torch.rand(30, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    model = TabularDynamics(tables(30, 5), allowed)
    tree = run(model, range(8), rule, 30, executor, keep_latents=True)
    states = tree["latents", "state"]
    for row, node in (tree["node_visits"] > 0).nonzero().tolist():
        if node:
            assert not tree["children_visits"][row, node][~allowed[states[row, node]]].any()


@rules
def test_finished_environment_in_a_batch_is_an_error(rule):
    policy = SearchPolicy(Bandit(), rule=rule, num_simulations=4)
    td = TensorDict(hidden=torch.zeros(3, 2), batch_size=3)
    td["action_mask"] = torch.tensor([[True, True, False], [False] * 3, [True] * 3])
    td["done"] = torch.tensor([[False], [True], [False]])
    out = policy(td)
    assert out["visit_counts"].sum(-1).tolist() == [4, 0, 4]
    assert all(out[key].isfinite().all() for key in ("search_policy", "root_value"))
    td["done"][:] = True
    assert policy(td)["visit_counts"].sum() == 0


def test_noise_reaches_forbidden_actions():
    allowed = torch.tensor([[True, True, False, True], [False, True, False, False]])
    for alpha in (0.03, 0.3, 10.0):
        noise = MuZeroRule(dirichlet_alpha=alpha).draw_noise(allowed.repeat(50, 1))
        torch.testing.assert_close(noise.sum(-1), torch.ones(100))
        assert (noise[~allowed.repeat(50, 1)] == 0).all() and noise.isfinite().all()
        assert len(noise[::2].unique(dim=0)) > 10, "rows share their noise"
    logits = torch.zeros(2, 4).masked_fill(~allowed, -torch.inf)
    assert torch.equal(MuZeroRule(dirichlet_fraction=0.0).root_logits(logits, noise[:2]), logits)
    mixed = MuZeroRule().root_logits(logits, noise[:2]).softmax(-1)
    torch.testing.assert_close(mixed, 0.75 * logits.softmax(-1) + 0.25 * noise[:2])


def test_evaluation_is_noisy():
    policy = SearchPolicy(Bandit(), num_simulations=8, greedy=True)
    td = TensorDict(hidden=torch.randn(5, 2), batch_size=5)
    first, second = (policy(td.clone()) for _ in range(2))
    assert torch.equal(first["visit_counts"], second["visit_counts"])
    assert torch.equal(first["action"], second["action"])


# -- Temperature --------------------------------------------------------------------------------


def test_small_temperatures_overflow():
    tree = run(TabularDynamics(tables(20, 4)), [1, 2, 3], MuZeroRule(**QUIET), 200)
    best = tree["children_visits"][:, 0].argmax(-1)
    for temperature in (0.0, 1e-300, 1e-4, 0.01):
        assert torch.equal(MuZeroRule(temperature=temperature).action(tree, None), best)


def test_temperature_has_no_effect():
    tree = run(TabularDynamics(tables(20, 3)), [1], MuZeroRule(**QUIET), 60)
    visits = tree["children_visits"][0, 0].double()
    generator = torch.Generator().manual_seed(0)
    many = tree.expand(4000, *tree.shape[1:])
    for temperature in (0.5, 1.0):
        drawn = MuZeroRule(temperature=temperature).action(many, None, generator=generator)
        expected = visits ** (1 / temperature) / (visits ** (1 / temperature)).sum()
        found = torch.bincount(drawn, minlength=3) / len(drawn)
        torch.testing.assert_close(found.double(), expected, atol=0.03, rtol=0.0)


# -- Gumbel -------------------------------------------------------------------------------------


@executors
def test_single_allowed_action_shares_its_visits(executor):
    allowed = torch.tensor([[False, True, False, False]])
    tree = run(TabularDynamics(tables(20, 4)), [0], GumbelRule(), 7, executor, allowed=allowed)
    assert tree["children_visits"][0, 0].tolist() == [0, 7, 0, 0]


@executors
@pytest.mark.parametrize("simulations", [1, 3, 5, 7, 13])
def test_budget_that_the_phases_do_not_divide(executor, simulations):
    tree = run(TabularDynamics(tables(40, 12)), range(6), GumbelRule(), simulations, executor)
    assert (tree["children_visits"][:, 0].sum(-1) == simulations).all()


def test_gumbel_policy_contains_the_noise():
    model, rule = TabularDynamics(tables(30, 5)), GumbelRule()
    noise = 100 * torch.eye(5)[:3]
    tree = run(model, range(3), rule, 16, noise=noise)
    root = node_statistics(tree)
    expected = (root.logits + rule.transformed_q(root)).softmax(-1)
    torch.testing.assert_close(rule.policy(tree), expected)
    assert rule.action(tree, noise).tolist() == [0, 1, 2], "the action follows the noise"


def test_visited_action_without_a_prior_spoils_the_mixed_value():
    model = TabularDynamics(tables(20, 3))
    model.tables["prior_logits"][0] = torch.tensor([-300.0, 0.0, 0.0])
    root = node_statistics(run(model, [0], GumbelRule(), 3))
    assert root.edge_visits[0].tolist() == [1, 1, 1] and mixed_value(root).isfinite().all()
    fresh = root._replace(
        edge_visits=torch.zeros_like(root.edge_visits), q_values=torch.zeros(1, 3)
    )
    assert torch.equal(mixed_value(fresh), root.raw_value)


def test_rescaling_looks_at_visited_values_only():
    """The range is that of the completed values, unvisited ones included."""
    model = TabularDynamics(tables(20, 4))
    root = node_statistics(run(model, [0], GumbelRule(max_considered_actions=2), 2))
    options = {"value_scale": 1.0, "maxvisit_init": 0.0, "use_mixed_value": True}
    scaled = completed_q(root, rescale_values=True, **options)
    assert scaled.min() == 0 and scaled.max() == pytest.approx(1.0)


# -- Batches and modules ------------------------------------------------------------------------


@executors
@rules
def test_rows_influence_each_other(executor, rule):
    model, order = TabularDynamics(tables(40, 4)), torch.tensor([3, 0, 4, 1, 2])
    states = torch.arange(5) * 7
    noise = rule.draw_noise(torch.ones(5, 4, dtype=torch.bool))
    whole = run(model, states, rule, 25, executor, noise=noise)
    moved = run(model, states[order], rule, 25, executor, noise=noise[order])
    alone = run(model, states[2:3], rule, 25, executor, noise=noise[2:3])
    for name in ("children", "node_visits", "node_values"):
        assert torch.equal(whole[name][order], moved[name])
        assert torch.equal(whole[name][2:3], alone[name])


class Bandit(nn.Module):
    """A module on TensorDicts with three actions, batch norm and dropout."""

    latent_keys = ["hidden"]

    def __init__(self):
        super().__init__()
        self.action_encoding = ActionEncoding(OneHot(3))
        self.net = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
        )
        self.head = nn.Linear(2, 4)

    def step(self, td):
        joined = torch.cat([td["hidden"], td["action"].float()], -1)
        td["next", "hidden"] = self.net(joined)
        td["next", "reward"] = td["next", "hidden"][:, :1]
        return td

    def predict(self, td):
        out = self.head(td["hidden"])
        td["state_value"], td["policy_logits"] = out[..., :1], out[..., 1:]
        return td


def test_search_trains_batch_norm():
    model = Bandit()
    model.net[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    td = TensorDict(hidden=torch.randn(6, 2), batch_size=6)
    policy = SearchPolicy(model, num_simulations=5)
    out = policy(td)
    assert model.net.training and model.head.training and not model.net[1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(v.requires_grad for v in out.values(True, True))
    assert all(p.grad is None for p in model.parameters())


def test_recorded_model_forgets_that_it_learns():
    """The operations are recorded once; new weights are seen all the same."""
    torch.manual_seed(0)
    model = make_muzero(Composite(observation=Unbounded(3)), Composite(action=OneHot(3)))
    td = model.initial([4])
    traced, plain = (
        SearchPolicy(model, num_simulations=9, greedy=True, trace=t) for t in (True, False)
    )
    for _ in range(2):
        outs = [policy(td.clone()) for policy in (traced, plain)]
        assert torch.equal(outs[0]["visit_counts"], outs[1]["visit_counts"])
        torch.testing.assert_close(outs[0]["root_value"], outs[1]["root_value"])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert not np.isclose(outs[0]["root_value"].sum().item(), 0.0)
