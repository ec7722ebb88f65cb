"""The readable executor: eager torch, all rows in lock-step, any device and precision."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_wm.planners.tree_search.evaluation import PackedStep
from torchrl_wm.planners.tree_search.executor import Executor, Leaves, check_roots, not_finite
from torchrl_wm.planners.tree_search.gumbel_rule import GumbelRule
from torchrl_wm.planners.tree_search.tree import (
    CHANCE,
    NO_CHILD,
    TERMINAL,
    NodeStatistics,
    make_tree,
    masked_priors,
    node_statistics,
)


class ReferenceExecutor(Executor):
    """One visit of every row at a time; see :class:`~torchrl_wm.planners.tree_search.executor.Executor`."""

    def __init__(self, value: Tensor, logits: Tensor, rule, num_simulations, max_depth, noise):
        check_roots(value, logits)
        # In half precision the mean of many visits would stand still.
        dtype = torch.promote_types(value.dtype, torch.float32)
        value, logits = value.to(dtype), logits.to(dtype)
        tree = make_tree(
            len(logits), num_simulations, logits.shape[-1], dtype=dtype, device=value.device
        )
        tree["node_visits"][:, 0] = 1
        tree["node_values"][:, 0] = value
        tree["raw_values"][:, 0] = value
        tree["logits"][:, 0] = logits
        tree["priors"][:, 0] = masked_priors(logits)
        self.tree, self.rule, self.max_depth = tree, rule, max_depth
        self.noise = None if noise is None else noise.to(dtype)
        self.simulation, self.num_simulations = 0, num_simulations
        self.rows = torch.arange(tree.shape[0], device=tree["priors"].device)
        self.capacity = tree.shape[0] * (num_simulations + 1)
        self.parent = self.action = self.rows
        device = self.rows.device
        root = node_statistics(tree)
        if isinstance(rule, GumbelRule):
            self.schedule = rule.schedule(root.priors.shape[-1], num_simulations).to(device)
            self.considered = rule.num_considered(root)
        else:
            self.bounds = rule.bounds(num_simulations, dtype, device)

    @property
    def states(self) -> Tensor:
        """``[B, N]`` int64: where the latents of each node are stored."""
        nodes = torch.arange(self.num_simulations + 1, device=self.rows.device)
        return nodes * len(self.rows) + self.rows.unsqueeze(1)

    # -- descending --------------------------------------------------------------------------------
    def select(self) -> Leaves | None:
        """The next leaf of every row."""
        if self.simulation == self.num_simulations:
            return None
        tree, rows = self.tree, self.rows
        node, depth = torch.zeros_like(rows), 0
        going = torch.ones_like(rows, dtype=torch.bool)
        while going.any() and depth != self.max_depth:
            choice = self._choose(node, depth == 0)
            self.parent = torch.where(going, node, self.parent)
            self.action = torch.where(going, choice, self.action)
            child = tree["children"][rows, self.parent, self.action].long()
            going = going & (child != NO_CHILD)
            going &= tree["kinds"][rows, child.clamp_min(0)] != TERMINAL
            node = torch.where(going, child, node)
            depth += 1
        return Leaves(self.parent * len(rows) + rows, self.action)

    def _choose(self, node: Tensor, at_root: bool) -> Tensor:
        statistics = node_statistics(self.tree, node)
        chance = (self.tree["kinds"][self.rows, node] == CHANCE).unsqueeze(-1)
        # A deterministic quota: each outcome is visited in proportion to its probability.
        quota = statistics.priors / (statistics.edge_visits + 1)
        scores = torch.where(chance, quota, self._scores(statistics, at_root))
        return scores.masked_fill(~statistics.allowed, -torch.inf).argmax(-1)

    def _scores(self, node: NodeStatistics, at_root: bool) -> Tensor:
        if not isinstance(self.rule, GumbelRule):
            return self.rule.scores(node, self.bounds)
        if at_root:
            visits = self.schedule[self.considered, self.simulation]
            return self.rule.root_scores(node, visits, self.noise)
        return self.rule.scores(node)

    # -- growing and backing up --------------------------------------------------------------------
    def update(self, evaluation: PackedStep) -> None:
        """Adds the leaves to the trees and backs their values up."""
        tree, rows = self.tree, self.rows
        device, dtype = rows.device, tree["priors"].dtype
        found = evaluation._replace(packed=evaluation.packed.to(device, dtype))
        existing = tree["children"][rows, self.parent, self.action].long()
        fresh = existing == NO_CHILD
        node = torch.where(fresh, self.simulation + 1, existing)
        self._check(found, fresh)
        self._expand(found, rows[fresh], node[fresh], fresh)
        value = torch.where(fresh, found.value, tree["raw_values"][rows, node])
        tree["node_visits"][rows, node] += 1
        self._back_up(node, value)
        self.simulation += 1

    def _expand(self, found: PackedStep, rows: Tensor, node: Tensor, fresh: Tensor) -> None:
        tree, parent, action = self.tree, self.parent[fresh], self.action[fresh]
        closed = (found.logits == -torch.inf).all(-1)
        entries = {
            "parents": parent,
            "action_from_parent": action,
            "node_values": found.value[fresh],
            "raw_values": found.value[fresh],
            "rewards": found.reward[fresh],
            "discounts": found.discount[fresh],
            "kinds": torch.where(closed, TERMINAL, found.kind)[fresh],
            "logits": found.logits[fresh],
            "priors": masked_priors(found.logits[fresh]),
        }
        for name, value in entries.items():
            tree[name][rows, node] = value.to(tree[name].dtype)
        tree["children"][rows, parent, action] = node.int()

    def _back_up(self, node: Tensor, value: Tensor) -> None:
        tree, rows = self.tree, self.rows
        while True:
            parent = tree["parents"][rows, node].long()
            going = parent != NO_CHILD
            if not going.any():
                return
            rows, node, parent, value = rows[going], node[going], parent[going], value[going]
            action = tree["action_from_parent"][rows, node].long()
            reward, discount = tree["rewards"][rows, node], tree["discounts"][rows, node]
            value = reward + discount * value
            visits = tree["node_visits"][rows, parent]
            total = tree["node_values"][rows, parent] * visits + value
            tree["node_values"][rows, parent] = total / (visits + 1)
            tree["node_visits"][rows, parent] = visits + 1
            q_value = reward + discount * tree["node_values"][rows, node]
            tree["q_values"][rows, parent, action] = q_value
            tree["children_visits"][rows, parent, action] += 1
            tree["q_min"][rows] = torch.minimum(tree["q_min"][rows], q_value)
            tree["q_max"][rows] = torch.maximum(tree["q_max"][rows], q_value)
            node = parent

    def _check(self, found: PackedStep, fresh: Tensor) -> None:
        numbers = found.reward + found.value + found.discount
        bad = ~numbers.isfinite() | (found.logits.isnan() | (found.logits == torch.inf)).any(-1)
        bad &= fresh
        if bad.any():
            row = int(bad.nonzero()[0])
            where = (int(self.parent[row]), int(self.action[row]))
            raise not_finite(row, self.simulation + 1, *where, self.simulation)
