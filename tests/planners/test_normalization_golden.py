"""The values of a node as selection reads them, against recorded ones, in torch and compiled."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tested_device import DEVICE

from torchrl_wm.planners.tree_search import FixedBounds, ParentAndSiblings, kernels, make_tree
from torchrl_wm.planners.tree_search.normalization import completed_q, mixed_value, normalized_q
from torchrl_wm.planners.tree_search.numba_executor import _normalization
from torchrl_wm.planners.tree_search.tree import masked_priors, node_statistics

ABSOLUTE = 1e-4


def roots(golden):
    """Trees of one node each, with the statistics of the file."""
    visits = golden["visits"]
    tree = make_tree(len(visits), 1, visits.shape[1])
    q_values = golden["reward"] + golden["discount"] * golden["child_value"]
    tree["q_values"][:, 0] = torch.where(visits > 0, q_values, 0.0)
    tree["children_visits"][:, 0] = visits
    tree["node_visits"][:, 0] = visits.sum(-1) + 1
    tree["node_values"][:, 0], tree["raw_values"][:, 0] = golden["node_value"], golden["raw_value"]
    tree["logits"][:, 0] = golden["prior_logits"]
    tree["priors"][:, 0] = masked_priors(golden["prior_logits"])
    return tree


def completions(golden):
    """Each recorded completion with its options, which the name tells where they are not the default."""
    default = {
        "value_scale": 0.1,
        "maxvisit_init": 50.0,
        "rescale_values": True,
        "use_mixed_value": True,
    }
    for name in sorted(golden.entries):
        if not name.startswith("out_completed_"):
            continue
        options = default | {
            "rescale_values": "norescale" not in name,
            "use_mixed_value": "rawvalue" not in name,
        }
        if found := re.search(r"_vs([\d.]+)_mi([\d.]+)", name):
            options |= {"value_scale": float(found[1]), "maxvisit_init": float(found[2])}
        yield name, options


def ranges(golden):
    bounds = FixedBounds(float(golden["min_value"]), float(golden["max_value"]))
    return {"out_by_parent_and_siblings": ParentAndSiblings(), "out_by_min_max": bounds}


def equal(actual, golden, name):
    expected = golden[name]
    actual = torch.as_tensor(actual)
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=ABSOLUTE, msg=lambda m: f"{name}: {m}"
    )


@pytest.mark.golden("qtransforms*")
def test_in_torch(golden):
    node = node_statistics(roots(golden))
    for name, normalization in ranges(golden).items():
        equal(normalized_q(node, normalization), golden, name)
    equal(mixed_value(node), golden, "out_mixed_value")
    names = [name for name, _ in completions(golden)]
    assert "out_completed_by_mix_value" in names
    for name, options in completions(golden):
        equal(completed_q(node, **options), golden, name)


@pytest.mark.golden("qtransforms*")
def test_compiled(golden):
    if DEVICE != "cpu":
        pytest.skip("compiled loops read the memory of the CPU")
    tree = roots(golden)
    firsts = "parents", "node_values", "children", "q_values", "q_min"
    arrays = kernels.TreeArrays(*(tree[name]._base.numpy() for name in firsts))
    rows = range(len(tree))
    visited = (golden["visits"] > 0).numpy()
    for name, normalization in ranges(golden).items():
        q_values, out = tree["q_values"][:, 0].numpy(), []
        for row in rows:
            chosen = _normalization(_Rule(normalization))
            low, high = kernels.value_range(arrays, row, 0, chosen)
            span = max(high - low, chosen[1])
            out.append(np.where(visited[row], (q_values[row] - low) / span, 0).astype(np.float32))
        equal(np.stack(out), golden, name)
    mixed = [kernels.mixed_value(arrays, row, 0) for row in rows]
    equal(np.array(mixed, np.float32), golden, "out_mixed_value")
    for name, options in completions(golden):
        out = np.empty(visited.shape, np.float32)
        for row in rows:
            kernels.transformed_q(arrays, row, 0, (*options.values(), 1e-8), out[row])
        equal(out, golden, name)


class _Rule:
    """A rule as far as its normalisation."""

    def __init__(self, normalization):
        self.normalization = normalization
