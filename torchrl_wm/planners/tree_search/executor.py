"""The base of the executors of a search: the order of the work, and the checks of a model's outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_wm.planners.tree_search.evaluation import (
    LatentStore,
    NodeEvaluator,
    PackedStep,
    no_action_allowed,
)

SHARE = 16
"""Roots that are worth a thread of their own, where the model is a program."""


class Leaves(NamedTuple):
    """States to evaluate: where their parents' latents are stored, and which action follows, ``[R]``."""

    index: Tensor
    action: Tensor


class Executor:
    """Descends to leaves and backs up their values; made for one search.

    Args:
        value (Tensor): of the roots, ``[B]``.
        logits (Tensor): ``[B, A]``, including any noise that the rule adds to them.
        rule: how edges are chosen.
        num_simulations (int): visits of each root.
        max_depth (int, optional): longest path from a root.
        noise (Tensor, optional): ``[B, A]``, that of the rule.
    """

    tree: TensorDictBase
    """The trees so far, see :func:`~torchrl_wm.planners.tree_search.make_tree`."""
    capacity: int
    """States that may be evaluated, the roots included."""
    states: Tensor
    """``[B, N]`` int64: where the latents of each node are stored."""

    def run(self, evaluator: NodeEvaluator, store: LatentStore) -> None:
        """Searches until every root has had its visits."""
        with torch.inference_mode():
            while (leaves := self.select()) is not None:
                self.update(evaluator(store, leaves.index, leaves.action))

    def select(self) -> Leaves | None:
        """The leaves to evaluate next; ``None`` when the search is over."""
        raise NotImplementedError

    def update(self, evaluation: PackedStep) -> None:
        """Adds the evaluated leaves to the trees."""
        raise NotImplementedError


def check_roots(value: Tensor, logits: Tensor) -> None:
    """Raises an error that names the rows of roots ``[B]`` and ``[B, A]`` which cannot be searched."""
    largest = logits.amax(-1)
    closed = largest == -torch.inf
    if closed.any():
        raise no_action_allowed(closed)
    rows = (~(value.isfinite() & largest.isfinite())).nonzero().flatten().tolist()
    if rows:
        raise FloatingPointError(
            f"The model returned NaN or infinity (value or logits) for the root, node 0, of rows {rows}."
        )


def not_finite(
    row: int, node: int, parent: int, action: int, simulation: int
) -> FloatingPointError:
    """The error for a model that returns NaN or infinity."""
    return FloatingPointError(
        f"The model returned NaN or infinity (reward, value, discount or logits) for node {node} of row "
        f"{row}, action {action} of node {parent}, in simulation {simulation}."
    )
