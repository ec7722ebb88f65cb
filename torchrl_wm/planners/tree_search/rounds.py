"""Gumbel's rule with the visits of a round evaluated in one call of the model.

The subtrees below different actions of the root are independent, so the evaluation of the next leaf below
an action stays valid until that action is visited again. Before each call, the actions that the rest of
the round will visit are guessed, each with its leaf; then the sequential rule decides, visit by visit,
and uses the evaluations that are ready. Where it selects an action that was not guessed, the row waits
for the next call. The trees are those of one call per visit, node numbers included.
"""

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
from torchrl_wm.programs.threads import in_threads


class RoundsExecutor(Executor):
    """See the module, and :class:`~torchrl_wm.planners.tree_search.executor.Executor`."""

    def __init__(self, value, logits, rule: GumbelRule, num_simulations, max_depth, noise):
        rows, num_actions = logits.shape
        self.most = min(rule.max_considered_actions, num_actions)
        # Besides the nodes, one guess may be pending below every action of the root: with scores that
        # tie after rounding, the guesses of a phase can differ from its visits.
        self.evaluations = num_simulations + num_actions
        self.capacity = rows * (1 + self.evaluations)
        self.roots = kernels.Roots.of(value, logits)
        self.tree, self.arrays = kernels.new_tree(rows, num_simulations, num_actions)
        self.progress = kernels.Progress.new(rows, num_simulations, num_actions)
        self.ready = self.priors = np.empty((0, 0), np.float32)
        self.constant = 0.0
        self.schedules = rule.schedule(num_actions, num_simulations).numpy()
        self.noise = kernels.array_of(torch.zeros(rows, num_actions) if noise is None else noise)
        switches = rule.rescale_values, rule.use_mixed_value
        self.transform = (rule.value_scale, rule.maxvisit_init, *switches, 1e-8)
        self.max_depth = -1 if max_depth is None else max_depth
        self.memory: tuple[tuple[np.ndarray, ...], ...] | None = None
        self.used, self.asked = rows, 0

    @property
    def states(self) -> torch.Tensor:
        """``[B, N]`` int64: where the latents of each node are stored."""
        return torch.from_numpy(self.progress.states)

    def run(self, evaluator: NodeEvaluator, store: LatentStore) -> None:
        """Searches, without leaving the compiled loop if the model is a program."""
        program = evaluator.program
        if program is None:
            return super().run(evaluator, store)
        self.ready, self.priors = store.results(program.width, self.noise.shape[1])
        self.constant = evaluator.constant
        latents = tuple(x.numpy() for x in store.buffers)
        rows = len(self.noise)

        def search(begin: int, end: int) -> tuple[int, int]:
            requests, scores = self._working_memory(end - begin)
            used = rows + begin * self.evaluations
            memory = requests, used, scores
            network = program.network.copy()
            share, arguments = (begin, end), (network, latents, self.noise, *self._arguments)
            return kernels.search_gumbel(share, self.roots, *arguments, *memory)

        for used, bad in in_threads(search, rows, SHARE):
            self.used = used
            self._check(bad)

    def select(self) -> Leaves | None:
        """The leaves that the rest of the round of each row needs."""
        rows = 0, len(self.noise)
        if self.memory is None:
            self.memory = self._working_memory(rows[1])
            self.priors = np.empty((self.capacity, self.noise.shape[1]), np.float32)
            state = self.arrays, self.progress, self.priors, self.roots
            most = len(self.schedules) - 1
            self._check(kernels.begin_rounds(*state, rows, self.noise, most))
        requests, scores = self.memory
        memory = requests, self.used, scores
        arrays, progress, ready, priors, *rule = self._arguments
        self.asked = kernels.advance(arrays, progress, ready, priors, rows, *rule, *memory)
        if not self.asked:
            return None
        return Leaves(*(torch.from_numpy(x[: self.asked]) for x in requests))

    def update(self, evaluation: PackedStep) -> None:
        """Keeps the evaluations until the rule needs them."""
        found, self.constant = kernels.array_of(evaluation.packed), evaluation.constant
        if not self.ready.size:
            self.ready = np.empty((self.capacity, found.shape[1]), np.float32)
        places = slice(self.used, self.used + self.asked)
        self.ready[places] = found
        self._check(kernels.weigh(found, self.priors[places]))
        self.used += self.asked

    def _working_memory(self, rows: int) -> tuple[tuple[np.ndarray, ...], ...]:
        """Requests of so many rows, states and actions, and the scores of two nodes."""
        requests = np.empty((2, rows * self.most), np.int64)
        return tuple(requests), tuple(np.empty((2, self.noise.shape[1]), np.float32))

    @property
    def _arguments(self) -> tuple:
        return (
            self.arrays,
            self.progress,
            self.ready,
            self.priors,
            self.schedules,
            self.transform,
            self.max_depth,
            self.constant,
        )

    def _check(self, bad: int) -> None:
        if bad >= 0:
            check_roots(*map(torch.from_numpy, self.roots))
            # The first: rows that the search did not come to hold anything, but all of them come later.
            row, action = np.argwhere(self.progress.slots == self.used + bad)[0]
            parent, edge = self.progress.parents[row, action], self.progress.edges[row, action]
            simulation = int(self.progress.simulations[row])
            raise not_finite(int(row), simulation + 1, int(parent), int(edge), simulation)
