"""The loss of MuZero: what it reads is named, and nothing is broadcast into a plausible number."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, OneHot, Unbounded

from torchrl_wm.objectives import MuZeroLoss
from torchrl_wm.world_models import make_muzero

SIZES = {"support": 20, "hidden_size": 8, "units": 8, "layers": 1}


def loss_of(action, name="joints", **options):
    torch.manual_seed(0)
    specs = Composite({name: Unbounded(6)}), Composite(action=action)
    return MuZeroLoss(make_muzero(*specs, **SIZES, **options), unroll_steps=2)


def records(size=2, edges=2, sampled=None):
    target = {key: torch.zeros(3, 3, 1) for key in ("value", "reward")}
    for key in ("value_mask", "reward_mask", "policy_mask", "observed_mask"):
        target[key] = torch.ones(3, 3, 1, dtype=torch.bool)
    target["action"] = torch.rand(3, 3, size)
    rows = TensorDict({"joints": torch.randn(3, 3, 6), "target": target}, [3, 3])
    rows["search_policy"] = torch.full((3, 3, edges), 1 / edges)
    if sampled is not None:
        rows["sampled_actions"] = torch.rand(3, 3, sampled, size)
    return rows


def test_every_entry_that_is_read_is_named_where_it_is_missing():
    for loss, rows in (
        (loss_of(OneHot(2), use_reconstruction=True, use_consistency=True), records()),
        (loss_of(Bounded(-1, 1, (2,))), records(edges=5, sampled=5)),
    ):
        assert all(out.isfinite().all() for out in loss(rows).values())
        assert loss(rows.select(*loss.in_keys))["loss_policy"] == loss(rows)["loss_policy"]
        for key in loss.in_keys:
            with pytest.raises(KeyError, match=str(key[-1] if isinstance(key, tuple) else key)):
                loss(rows.exclude(key))


@pytest.mark.parametrize("edges", [1, 2, 4])
def test_a_policy_over_samples_is_not_taken_for_an_action(edges):
    with pytest.raises(KeyError, match="sampled_actions.*extra_keys"):
        loss_of(Bounded(-1, 1, (2,)))(records(edges=edges))


@pytest.mark.parametrize("edges, sampled", [(1, None), (3, None), (1, 5), (5, 1)])
def test_a_policy_of_another_width_is_named(edges, sampled):
    with pytest.raises(ValueError, match="'search_policy' has . probabilities for . actions"):
        loss_of(OneHot(2))(records(edges=edges, sampled=sampled))


@pytest.mark.parametrize("name", ["value", "policy", "reward", "consistency"])
def test_observations_with_the_name_of_a_term_are_refused(name):
    with pytest.raises(ValueError, match=f"'loss_{name}': an observation .*RenameTransform"):
        loss_of(OneHot(2), name, use_reconstruction=True, use_consistency=True)
    loss_of(OneHot(2), name)  # where it is not decoded, it has no loss
