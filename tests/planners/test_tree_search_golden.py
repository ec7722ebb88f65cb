"""Every executor makes the trees of the reference program, integer for integer."""

from __future__ import annotations

import pytest
import torch
from tabular import ChanceDynamics, TabularDynamics
from tested_device import DEVICE

from torchrl_wm.planners.tree_search import (
    CHANCE,
    EXECUTORS,
    FixedBounds,
    GumbelRule,
    MuZeroRule,
    search,
)
from torchrl_wm.planners.tree_search.sequential_halving import considered_visits_table
from torchrl_wm.planners.tree_search.tree import node_statistics

executors = pytest.mark.parametrize("executor", list(EXECUTORS))


def allowed_at_root(golden):
    return golden["invalid_actions"] == 0 if golden["has_invalid_actions"] else None


def depth(golden):
    return None if int(golden["max_depth"]) < 0 else int(golden["max_depth"])


def muzero_rule(golden) -> MuZeroRule:
    fraction = float(golden["dirichlet_fraction"])
    rule = MuZeroRule(
        c_init=float(golden["pb_c_init"]),
        c_base=float(golden["pb_c_base"]),
        dirichlet_fraction=fraction,
        temperature=float(golden["temperature"]),
    )
    if int(golden["qtransform"]) == 1:
        rule.normalization = FixedBounds(float(golden["q_min"]), float(golden["q_max"]))
    return rule


def gumbel_rule(golden) -> GumbelRule:
    return GumbelRule(
        max_considered_actions=int(golden["max_num_considered_actions"]),
        value_scale=float(golden["value_scale"]),
        maxvisit_init=float(golden["maxvisit_init"]),
        rescale_values=bool(golden["rescale_values"]),
        use_mixed_value=bool(golden["use_mixed_value"]),
    )


def noise_on_the_allowed(golden, root):
    """The noise over allowed actions that gives the file's root, whose noise was over all of them."""
    share, logits = float(golden["dirichlet_fraction"]), golden["prior_logits"]
    if not share:
        return None
    everywhere = logits[golden["root_state"].long()].double().softmax(-1)
    mixed = (1 - share) * everywhere + share * golden["dirichlet_noise"].double()
    mixed = mixed.masked_fill(root.logits == -torch.inf, 0.0)
    mixed = mixed / mixed.sum(-1, keepdim=True)
    return ((mixed - (1 - share) * root.logits.double().softmax(-1)) / share).float()


def check_tree(golden, tree):
    made = tree["node_visits"] > 0
    golden.close(tree["node_visits"], "tree_node_visits")
    golden.close(tree["parents"], "tree_parents")
    golden.close(tree["action_from_parent"], "tree_action_from_parent")
    golden.close(tree["children"], "tree_children_index")
    golden.close(tree["children_visits"], "tree_children_visits")
    golden.close(tree["raw_values"], "tree_raw_values")
    golden.close(tree["node_values"], "tree_node_values")
    child, exists = tree["children"].clamp_min(0).long().flatten(1), tree["children"] >= 0
    for name, entry in (("values", "node_values"), ("rewards",) * 2, ("discounts",) * 2):
        edges = tree[entry].gather(1, child).view_as(tree["q_values"])
        golden.close(torch.where(exists, edges, 0.0), f"tree_children_{name}")
    expected = golden["tree_children_prior_logits"].softmax(-1)
    torch.testing.assert_close(tree["priors"][made], expected[made], atol=1e-5, rtol=0.0)


def check_states(golden, tree, names=("tree_state",)):
    made = tree["node_visits"] > 0
    for name in names:
        expected = golden[name]
        here = made & (expected >= 0)
        assert torch.equal(tree["latents", "state"][here], expected[here].long())


def check_root(golden, tree):
    root = node_statistics(tree)
    golden.close(root.edge_visits, "visit_counts")
    golden.close(root.q_values, "root_qvalues")
    golden.close(root.value, "root_value")


def check_most_visited(golden, action):
    """Of equally many visits the reference draws an action, so only a unique maximum is one."""
    visits = golden["visit_counts"]
    unique = (visits == visits.amax(-1, keepdim=True)).sum(-1) == 1
    assert torch.equal(action[unique], golden["action"].long()[unique])
    assert torch.equal(visits.gather(1, action[:, None])[:, 0], visits.amax(-1))


@pytest.mark.golden("muzero_*")
@executors
def test_muzero(golden, executor):
    model, rule = TabularDynamics(golden), muzero_rule(golden)
    root = model.roots(golden["root_state"], allowed_at_root(golden))
    tree = search(
        model,
        root,
        rule,
        num_simulations=int(golden["num_simulations"]),
        noise=noise_on_the_allowed(golden, root),
        max_depth=depth(golden),
        executor=executor,
        keep_latents=True,
    ).to(DEVICE)
    check_tree(golden, tree)
    check_states(golden, tree)
    check_root(golden, tree)
    golden.close(rule.policy(tree), "action_weights")
    golden.close(rule.policy(tree), "visit_probs")
    check_most_visited(golden, rule.action(tree, None))


@pytest.mark.golden("gumbel_*")
@executors
def test_gumbel(golden, executor):
    model, rule = TabularDynamics(golden), gumbel_rule(golden)
    simulations, noise = int(golden["num_simulations"]), golden["gumbel"]
    tree = search(
        model,
        model.roots(golden["root_state"], allowed_at_root(golden)),
        rule,
        num_simulations=simulations,
        noise=noise,
        max_depth=depth(golden),
        executor=executor,
        keep_latents=True,
    ).to(DEVICE)
    check_tree(golden, tree)
    check_states(golden, tree)
    check_root(golden, tree)
    visits = golden["visit_counts"]
    golden.close(MuZeroRule().policy(tree), "visit_probs")
    golden.close(rule.transformed_q(node_statistics(tree)), "root_completed_qvalues")
    golden.close(rule.policy(tree), "action_weights")
    golden.close(rule.action(tree, noise), "action")
    # A row with a single action to consider has no rounds, and all rows wait for it.
    if executor == "numba" and (visits > 0).sum(-1).min() > 1:
        assert model.calls < simulations, "visits of a round are not evaluated together"


@pytest.mark.golden("stochastic_muzero*")
@executors
def test_chance_nodes(golden, executor):
    model = ChanceDynamics(golden)
    rule = MuZeroRule(
        c_init=float(golden["pb_c_init"]), c_base=float(golden["pb_c_base"]), dirichlet_fraction=0.0
    )
    tree = search(
        model,
        model.roots(golden["root_state"], golden["invalid_actions"] == 0),
        rule,
        num_simulations=int(golden["num_simulations"]),
        max_depth=depth(golden),
        executor=executor,
        keep_latents=True,
    ).to(DEVICE)
    made = tree["node_visits"] > 0
    for ours, theirs in (
        ("node_visits", "node_visits"),
        ("parents", "parents"),
        ("action_from_parent", "action_from_parent"),
        ("node_values", "node_values"),
        ("raw_values", "raw_values"),
    ):
        golden.close(tree[ours], f"tree_{theirs}")
    decision = golden["tree_is_decision"].bool()
    assert torch.equal((tree["kinds"] == CHANCE)[made], ~decision[made])
    check_states(golden, tree, ("tree_state", "tree_afterstate"))
    root = node_statistics(tree)
    golden.close(root.edge_visits[:, : model.choices], "visit_counts")
    golden.close(root.q_values[:, : model.choices], "root_qvalues")
    golden.close(root.value, "root_value")
    golden.close(rule.policy(tree)[:, : model.choices], "action_weights")
    check_most_visited(golden, rule.action(tree, None, greedy=True))


@pytest.mark.golden("seq_halving*")
def test_sequential_halving(golden):
    for considered, simulations in golden["pairs"].tolist():
        table = torch.from_numpy(considered_visits_table(considered, simulations))
        golden.close(table, f"table_m{considered}_n{simulations}")


@pytest.mark.golden("misc*")
def test_actions_are_drawn_from_visits(golden):
    names = [name for name in golden.entries if name.startswith("policy_T")]
    assert names
    for name in names:
        rule = MuZeroRule(temperature=float(name.removeprefix("policy_T")))
        golden.close(rule.action_logits(golden["visit_counts"]).softmax(-1), name, 1e-9)
