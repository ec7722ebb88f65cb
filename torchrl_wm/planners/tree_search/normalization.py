"""Normalising the values of a node to [0, 1], so that they can be balanced against the priors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchrl_wm.planners.tree_search.tree import NodeStatistics


class ParentAndSiblings(NamedTuple):
    """Range of the node's own value and its visited edges, independent of all other nodes (mctx).

    Args:
        epsilon (float, optional): smallest range. Defaults to ``1e-8``.
    """

    epsilon: float = 1e-8

    def range(self, node: NodeStatistics) -> tuple[Tensor, Tensor]:
        """Smallest and largest value ``[B]``."""
        value = node.value.unsqueeze(-1)
        seen = torch.where(node.edge_visits > 0, node.q_values, value)
        return (
            torch.minimum(node.value, seen.amin(-1)),
            torch.maximum(node.value, seen.amax(-1)),
        )


class TreeWide(NamedTuple):
    """Range of all edges that were backed up in the tree so far (the paper's pseudocode).

    Args:
        epsilon (float, optional): smallest range; 0.01 is the soft range of EfficientZero. Defaults
            to ``1e-8``.
    """

    epsilon: float = 1e-8

    def range(self, node: NodeStatistics) -> tuple[Tensor, Tensor]:
        """Smallest and largest value ``[B]``."""
        seen = node.q_min <= node.q_max
        return torch.where(seen, node.q_min, 0.0), torch.where(seen, node.q_max, 0.0)


class FixedBounds(NamedTuple):
    """Known bounds of the values, such as -1 and 1 in board games.

    Args:
        low, high (float): the bounds.
    """

    low: float
    high: float
    epsilon: float = 1e-8

    def range(self, node: NodeStatistics) -> tuple[Tensor, Tensor]:
        """The bounds ``[B]``."""
        return torch.full_like(node.value, self.low), torch.full_like(node.value, self.high)


Normalization = ParentAndSiblings | TreeWide | FixedBounds


def normalized_q(node: NodeStatistics, normalization: Normalization) -> Tensor:
    """Values of the edges ``[B, A]``, relative to the range; unvisited ones are exactly 0, the worst.

    Args:
        node (NodeStatistics): of one node in each row.
        normalization: gives the range. A range of zero gives zeros, not NaN.
    """
    low, high = normalization.range(node)
    span = (high - low).clamp_min(normalization.epsilon).unsqueeze(-1)
    return torch.where(node.edge_visits > 0, (node.q_values - low.unsqueeze(-1)) / span, 0.0)


def mixed_value(node: NodeStatistics) -> Tensor:
    """The value ``[B]`` assumed for unvisited actions (Gumbel MuZero, appendix D).

    A mean of the network's value, weighted by 1, and of the prior-weighted mean of the visited edges,
    weighted by their number of visits.
    """
    visited = node.edge_visits > 0
    priors = torch.where(visited, node.priors, 0.0).clamp_min(torch.finfo(node.priors.dtype).tiny)
    weights = torch.where(visited, priors, 0.0).double()
    total = weights.sum(-1)
    weighted = (weights * node.q_values.double()).sum(-1) / torch.where(total > 0, total, 1.0)
    visits = node.edge_visits.sum(-1)
    return ((node.raw_value.double() + visits * weighted) / (visits + 1)).to(node.value.dtype)


def completed_q(
    node: NodeStatistics,
    *,
    value_scale: float,
    maxvisit_init: float,
    rescale_values: bool,
    use_mixed_value: bool,
    epsilon: float = 1e-8,
) -> Tensor:
    """The transformed values ``[B, A]`` that Gumbel MuZero adds to logits.

    Args:
        node (NodeStatistics): of one node in each row.

    Keyword Args:
        value_scale, maxvisit_init (float): the factor is ``(maxvisit_init + most visits) * value_scale``.
        rescale_values (bool): first rescale the completed values to [0, 1].
        use_mixed_value (bool): complete with :func:`mixed_value`, otherwise with the raw value.
        epsilon (float, optional): smallest range. Defaults to ``1e-8``.
    """
    filler = mixed_value(node) if use_mixed_value else node.raw_value
    completed = torch.where(node.edge_visits > 0, node.q_values, filler.unsqueeze(-1))
    if rescale_values:
        low, high = completed.amin(-1, keepdim=True), completed.amax(-1, keepdim=True)
        completed = (completed - low) / (high - low).clamp_min(epsilon)
    most = node.edge_visits.amax(-1, keepdim=True).to(completed.dtype)
    return (most + maxvisit_init) * value_scale * completed
