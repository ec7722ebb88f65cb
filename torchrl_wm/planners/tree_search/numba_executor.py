"""The fast executor: compiled loops over zero-copy views of the trees."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import TensorDictBase

from torchrl_wm.planners.tree_search import kernels
from torchrl_wm.planners.tree_search.evaluation import Evaluation
from torchrl_wm.planners.tree_search.executor import Leaves, not_finite
from torchrl_wm.planners.tree_search.gumbel_rule import GumbelRule
from torchrl_wm.planners.tree_search.muzero_rule import MuZeroRule
from torchrl_wm.planners.tree_search.normalization import FixedBounds, ParentAndSiblings, TreeWide
from torchrl_wm.planners.tree_search.rounds import RoundsExecutor

_RANGES = {
    ParentAndSiblings: kernels.PARENT_AND_SIBLINGS,
    TreeWide: kernels.TREE_WIDE,
    FixedBounds: kernels.FIXED_BOUNDS,
}


def numba_executor(tree: TensorDictBase, rule, num_simulations, max_depth=None, noise=None):
    """The compiled executor of a rule; see :class:`~torchrl_wm.planners.tree_search.executor.Executor`."""
    kind = RoundsExecutor if isinstance(rule, GumbelRule) else StepwiseExecutor
    return kind(tree, rule, num_simulations, max_depth, noise)


class StepwiseExecutor:
    """MuZero's rule: one visit of every row at a time."""

    def __init__(self, tree: TensorDictBase, rule: MuZeroRule, num_simulations, max_depth, noise):
        rows, num_actions = tree.shape[0], tree["priors"].shape[-1]
        self.capacity = rows * (num_simulations + 1)
        self.simulation, self.num_simulations = 0, num_simulations
        self.max_depth = -1 if max_depth is None else max_depth
        self.arrays = kernels.tree_arrays(tree)
        self.bounds = rule.bounds(num_simulations, torch.float32).numpy()
        self.normalization = _normalization(rule)
        self.parents, self.actions = np.empty((2, rows), np.int64)
        self.index = np.empty(rows, np.int64)
        self.leaves = Leaves(torch.from_numpy(self.index), torch.from_numpy(self.actions))
        self.scores = np.empty(num_actions, np.float32)

    @property
    def states(self) -> torch.Tensor:
        """``[B, N]`` int64: where the latents of each node are stored."""
        rows = torch.arange(len(self.index))
        return torch.arange(self.num_simulations + 1) * len(rows) + rows.unsqueeze(1)

    def select(self) -> Leaves | None:
        """The next leaf of every row."""
        if self.simulation == self.num_simulations:
            return None
        kernels.select_muzero(
            self.arrays,
            self.parents,
            self.actions,
            self.index,
            self.bounds,
            self.normalization,
            self.max_depth,
            self.scores,
        )
        return self.leaves

    def update(self, evaluation: Evaluation) -> None:
        """Adds the leaves to the trees and backs their values up."""
        found = kernels.evaluation_arrays(evaluation)
        self.simulation += 1
        bad = kernels.update(self.arrays, self.parents, self.actions, found, self.simulation)
        if bad >= 0:
            where = int(self.parents[bad]), int(self.actions[bad])
            raise not_finite(bad, self.simulation, *where, self.simulation - 1)


def _normalization(rule: MuZeroRule) -> tuple[int, float, float, float]:
    chosen = rule.normalization
    low, high = (chosen.low, chosen.high) if isinstance(chosen, FixedBounds) else (0.0, 0.0)
    return _RANGES[type(chosen)], chosen.epsilon, low, high
