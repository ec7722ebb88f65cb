"""Gumbel MuZero's rule: sequential halving at the root, with guaranteed policy improvement."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_wm.functional.noise import gumbel_noise
from torchrl_wm.planners.tree_search.normalization import completed_q
from torchrl_wm.planners.tree_search.sequential_halving import considered_visits_table
from torchrl_wm.planners.tree_search.tree import NodeStatistics, node_statistics
from torchrl_wm.programs.exponential import softmax
from torchrl_wm.ranges import COUNT, WEIGHT

_LOWEST_SCORE = -1e9


@dataclass
class GumbelRule:
    """Planning with few simulations (https://openreview.net/forum?id=bERaNdoegnO).

    At the root, the ``max_considered_actions`` actions with the largest logits plus Gumbel noise are
    visited in rounds and halved; below it, visits follow the improved policy. There is neither Dirichlet
    noise nor a temperature; the Gumbel noise is drawn once per search. The action maximises noise plus
    logits plus transformed value among the most visited ones; the policy is ``softmax(logits +
    transformed values)`` without noise.

    Args:
        max_considered_actions (int, optional): actions of the first phase. Defaults to ``16``.
        gumbel_scale (float, optional): of the noise; 0 for none. Defaults to ``1.0``.
        value_scale, maxvisit_init (float, optional): of the transformed values. Default to ``0.1``
            and ``50``.
        rescale_values (bool, optional): bring values to [0, 1] first. Defaults to ``True``.
        use_mixed_value (bool, optional): complete the values of unvisited actions with the mixed value,
            otherwise with the raw one. Defaults to ``True``.

    Raises:
        ValueError: for a number out of range.

    Examples:
        >>> GumbelRule(max_considered_actions=4).schedule(4, 8)[4].tolist()
        [0, 0, 0, 0, 1, 1, 2, 2]
    """

    max_considered_actions: int = 16
    gumbel_scale: float = 1.0
    value_scale: float = 0.1
    maxvisit_init: float = 50.0
    rescale_values: bool = True
    use_mixed_value: bool = True

    def __post_init__(self):
        COUNT.check(max_considered_actions=self.max_considered_actions)
        WEIGHT.check(gumbel_scale=self.gumbel_scale)
        WEIGHT.check(value_scale=self.value_scale, maxvisit_init=self.maxvisit_init)

    # -- the root ----------------------------------------------------------------------------------
    def draw_noise(self, allowed: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Gumbel noise ``[B, A]``, already scaled."""
        gumbel = gumbel_noise(allowed.shape, generator=generator)
        return (self.gumbel_scale * gumbel).float().to(allowed.device)

    def root_logits(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """The unchanged logits: the noise does not affect the priors."""
        return logits

    # -- selection -----------------------------------------------------------------------------------
    def schedule(self, num_actions: int, num_simulations: int) -> Tensor:
        """Visit counts to consider, ``[m + 1, num_simulations]``, by number of actions considered."""
        most = min(self.max_considered_actions, num_actions)
        return torch.from_numpy(considered_visits_table(most, num_simulations))

    def num_considered(self, root: NodeStatistics) -> Tensor:
        """How many actions ``[B]`` the first phase tries."""
        return root.allowed.sum(-1).clamp_max(self.max_considered_actions)

    def transformed_q(self, node: NodeStatistics) -> Tensor:
        """The transformed values ``[B, A]`` that are added to the logits."""
        return completed_q(
            node,
            value_scale=self.value_scale,
            maxvisit_init=self.maxvisit_init,
            rescale_values=self.rescale_values,
            use_mixed_value=self.use_mixed_value,
        )

    def root_scores(self, node: NodeStatistics, considered: Tensor, noise: Tensor | None) -> Tensor:
        """Scores ``[B, A]`` at the root of the actions that were visited ``considered[b]`` times."""
        logits = node.logits - node.logits.amax(-1, keepdim=True)
        if noise is not None:
            logits = noise.to(logits) + logits
        scores = (logits + self.transformed_q(node)).clamp_min(_LOWEST_SCORE)
        # After the floor: actions that are not considered must lose against the floor, too.
        return scores.masked_fill(node.edge_visits != considered.unsqueeze(-1), -torch.inf)

    def scores(self, node: NodeStatistics) -> Tensor:
        """Scores ``[B, A]`` below the root: visits follow the improved policy."""
        improved = softmax(node.logits + self.transformed_q(node))
        share = node.edge_visits / (1 + node.edge_visits.sum(-1, keepdim=True)).to(improved.dtype)
        return improved - share

    # -- the result ----------------------------------------------------------------------------------
    def policy(self, tree: TensorDictBase) -> Tensor:
        """The improved policy ``[B, A]`` of the root, without noise."""
        root = node_statistics(tree)
        logits = root.logits + self.transformed_q(root)
        return torch.where(root.allowed, logits.softmax(-1), 0.0)

    def action(
        self,
        tree: TensorDictBase,
        noise: Tensor | None,
        *,
        greedy: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Index ``[B]`` of the action to take."""
        root = node_statistics(tree)
        scores = self.root_scores(root, root.edge_visits.amax(-1), None if greedy else noise)
        return scores.masked_fill(~root.allowed, -torch.inf).argmax(-1)
