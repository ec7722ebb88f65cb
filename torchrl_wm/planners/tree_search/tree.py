"""The search tree of a whole batch: a struct of arrays in one TensorDict."""

from __future__ import annotations

from typing import NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_wm.programs.exponential import softmax

NO_CHILD = -1
DECISION, CHANCE, TERMINAL = 0, 1, 2
"""Kinds of nodes: the player chooses, chance chooses, the episode has ended."""


def make_tree(
    rows: int,
    num_simulations: int,
    num_actions: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> TensorDict:
    """An empty tree for each of ``B`` rows, with room for ``N = num_simulations + 1`` nodes.

    The root is node 0 and the node made in simulation ``s`` (counted from 0) is node ``s + 1``. Per
    node, ``[B, N]``: ``parents`` and ``action_from_parent`` (-1 at the root), ``node_visits``,
    ``node_values`` (mean of all values backed up through the node, its own included), ``raw_values``
    (its own), ``rewards`` and ``discounts`` of the edge that leads to it, and its kind in ``kinds``.
    Per edge, ``[B, N, A]``: ``children`` (-1 where there is none), ``children_visits``, ``q_values``
    (reward plus discounted value, 0 where unvisited), ``logits`` (minus infinity where the action is
    forbidden) and ``priors`` (their softmax; exactly 0 marks a forbidden action, and no other).
    ``q_min`` and ``q_max``, ``[B]``, are the range of all values in the tree.

    Args:
        rows (int): ``B``.
        num_simulations (int): simulations that there is room for.
        num_actions (int): ``A``.

    Keyword Args:
        dtype (torch.dtype, optional): of the statistics. Defaults to ``torch.float32``.
        device (torch.device, optional): of the tree. Defaults to the default device.

    Returns:
        TensorDict: with batch size ``[B]``.

    Examples:
        >>> tree = make_tree(2, num_simulations=8, num_actions=3)
        >>> tree["children"].shape, tree["node_visits"].dtype
        (torch.Size([2, 9, 3]), torch.int32)
    """
    shape, like = (rows, num_simulations + 1), {"device": device}
    node_links = torch.full((*shape, 4), NO_CHILD, dtype=torch.int32, **like)
    node_links[..., 2:] = 0  # visits and kind
    edge_links = torch.zeros((*shape, 2, num_actions), dtype=torch.int32, **like)
    edge_links[..., 0, :] = NO_CHILD
    node_numbers = torch.zeros((*shape, 4), dtype=dtype, **like)
    edge_numbers = torch.zeros((*shape, 3, num_actions), dtype=dtype, **like)
    bounds = torch.full((2, rows), torch.inf, dtype=dtype, **like)
    bounds[1] = -torch.inf
    return tree_of(node_links, node_numbers, edge_links, edge_numbers, bounds)


_ENTRIES = (
    *("parents", "action_from_parent", "node_visits", "kinds"),
    *("node_values", "raw_values", "rewards", "discounts"),
    *("children", "children_visits"),
    *("q_values", "priors", "logits"),
    *("q_min", "q_max"),
)


def tree_of(
    node_links: Tensor,
    node_numbers: Tensor,
    edge_links: Tensor,
    edge_numbers: Tensor,
    bounds: Tensor,
) -> TensorDict:
    """The tree whose entries are views of its memory: entries that are read together are adjacent.

    Integers and floats of nodes, ``[B, N, 4]`` each, integers and floats of edges, ``[B, N, 2, A]`` and
    ``[B, N, 3, A]``, and the ranges ``[2, B]``.
    """
    parts = (
        *node_links.unbind(-1),
        *node_numbers.unbind(-1),
        *edge_links.unbind(-2),
        *edge_numbers.unbind(-2),
        *bounds.unbind(0),
    )
    entries = dict(zip(_ENTRIES, parts, strict=True))
    return TensorDict(entries, [len(node_links)], device=node_links.device)


class NodeStatistics(NamedTuple):
    """The statistics that a selection rule reads, of one node per row: ``[B]``, of edges ``[B, A]``."""

    visits: Tensor
    value: Tensor
    raw_value: Tensor
    edge_visits: Tensor
    q_values: Tensor
    logits: Tensor
    priors: Tensor
    q_min: Tensor
    q_max: Tensor

    @property
    def allowed(self) -> Tensor:
        """``[B, A]`` bool: the actions that may be chosen."""
        return self.priors > 0


def node_statistics(tree: TensorDictBase, node: Tensor | int = 0) -> NodeStatistics:
    """The statistics of node ``node[b]`` of each row, the root's by default.

    Examples:
        >>> node_statistics(make_tree(2, 8, 3)).q_values.shape
        torch.Size([2, 3])
    """
    rows = torch.arange(tree.shape[0], device=tree["node_visits"].device)
    names = (
        "node_visits",
        "node_values",
        "raw_values",
        "children_visits",
        "q_values",
        "logits",
        "priors",
    )
    return NodeStatistics(*(tree[name][rows, node] for name in names), tree["q_min"], tree["q_max"])


def masked_priors(logits: Tensor) -> Tensor:
    """Probabilities ``[..., A]`` of logits; forbidden actions (minus infinity) get exactly 0.

    An allowed action keeps at least the smallest normal number, so that 0 has one meaning.

    Examples:
        >>> masked_priors(torch.tensor([0.0, 0.0, -torch.inf]))
        tensor([0.5000, 0.5000, 0.0000])
    """
    probabilities = softmax(logits).clamp_min(torch.finfo(logits.dtype).tiny)
    return torch.where(logits > -torch.inf, probabilities, 0.0)
