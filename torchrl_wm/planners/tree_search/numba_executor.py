"""The fast executor: compiled loops over zero-copy views of the trees."""

from __future__ import annotations

import numpy as np
import torch

from torchrl_wm.planners.tree_search import kernels
from torchrl_wm.planners.tree_search.evaluation import LatentStore, NodeEvaluator, PackedStep
from torchrl_wm.planners.tree_search.executor import (
    SHARE,
    Executor,
    Leaves,
    check_roots,
    not_finite,
)
from torchrl_wm.planners.tree_search.gumbel_rule import GumbelRule
from torchrl_wm.planners.tree_search.muzero_rule import MuZeroRule
from torchrl_wm.planners.tree_search.normalization import FixedBounds, ParentAndSiblings, TreeWide
from torchrl_wm.planners.tree_search.rounds import RoundsExecutor
from torchrl_wm.programs.threads import in_threads

_RANGES = {
    ParentAndSiblings: kernels.PARENT_AND_SIBLINGS,
    TreeWide: kernels.TREE_WIDE,
    FixedBounds: kernels.FIXED_BOUNDS,
}


def numba_executor(value: torch.Tensor, logits: torch.Tensor, rule, *options):
    """The compiled executor of a rule; see :class:`~torchrl_wm.planners.tree_search.executor.Executor`."""
    if type(rule) not in (MuZeroRule, GumbelRule):
        raise TypeError(
            f"executor='numba' has MuZeroRule and GumbelRule compiled, and would not see what a "
            f"{type(rule).__name__} does otherwise: use executor='reference'."
        )
    kind = RoundsExecutor if isinstance(rule, GumbelRule) else StepwiseExecutor
    return kind(value, logits, rule, *options)


class StepwiseExecutor(Executor):
    """MuZero's rule: one visit of every row at a time."""

    def __init__(self, value, logits, rule: MuZeroRule, num_simulations, max_depth, noise):
        rows, self.num_actions = logits.shape
        self.capacity = rows * (num_simulations + 1)
        self.simulation, self.num_simulations = 0, num_simulations
        self.max_depth = -1 if max_depth is None else max_depth
        self.roots = kernels.Roots.of(value, logits)
        self.tree, self.arrays = kernels.new_tree(rows, num_simulations, self.num_actions)
        self.bounds = rule.bounds(num_simulations, torch.float32, "cpu").numpy()
        self.normalization = _normalization(rule)
        self.places = np.empty((3, rows), np.int64)
        self.priors = np.empty((rows, self.num_actions), np.float32)

    @property
    def states(self) -> torch.Tensor:
        """``[B, N]`` int64: where the latents of each node are stored."""
        rows = torch.arange(self.places.shape[1])
        return torch.arange(self.num_simulations + 1) * len(rows) + rows.unsqueeze(1)

    def run(self, evaluator: NodeEvaluator, store: LatentStore) -> None:
        """Searches, without leaving the compiled loop if the model is a program."""
        program = evaluator.program
        if program is None:
            return super().run(evaluator, store)
        latents = tuple(x.numpy() for x in store.buffers)

        def search(begin: int, end: int) -> tuple[int, int]:
            return kernels.search_muzero(
                (begin, end),
                self.roots,
                self.arrays,
                self.places,
                program.network.copy(),
                latents,
                np.empty((kernels.BLOCK, program.width), np.float32),
                evaluator.constant,
                np.empty((kernels.BLOCK, self.num_actions), np.float32),
                *self._rule,
            )

        for simulation, bad in in_threads(search, self.places.shape[1], SHARE):
            self.simulation = simulation
            self._check(bad)

    def select(self) -> Leaves | None:
        """The next leaf of every row."""
        if self.simulation == self.num_simulations:
            return None
        if not self.simulation:
            rows = 0, self.places.shape[1]
            self._check(kernels.plant(self.arrays, self.roots, rows, self.priors))
            self._grow(np.empty((0, 0), np.float32), 0.0)
        _, actions, index = torch.from_numpy(self.places)
        return Leaves(index, actions)

    def update(self, evaluation: PackedStep) -> None:
        """Adds the leaves to the trees, backs up their values, and finds the next leaves."""
        self.simulation += 1
        found = kernels.array_of(evaluation.packed)
        self._check(self._grow(found, evaluation.constant))

    def _check(self, bad: int) -> None:
        if bad >= 0:
            check_roots(*map(torch.from_numpy, self.roots))
            parent, action = self.places[:2, bad].tolist()
            raise not_finite(bad, self.simulation, parent, action, self.simulation - 1)

    def _grow(self, found: np.ndarray, constant: float) -> int:
        rows = 0, self.places.shape[1]
        step = found, rows, constant, self.simulation, self.priors
        return kernels.grow_muzero(self.arrays, self.places, *step, *self._rule)

    @property
    def _rule(self) -> tuple:
        scores = np.empty(self.num_actions, np.float32)
        return self.bounds, self.normalization, self.max_depth, scores


def _normalization(rule: MuZeroRule) -> tuple[int, float, float, float]:
    chosen = rule.normalization
    low, high = (chosen.low, chosen.high) if isinstance(chosen, FixedBounds) else (0.0, 0.0)
    return _RANGES[type(chosen)], chosen.epsilon, low, high
