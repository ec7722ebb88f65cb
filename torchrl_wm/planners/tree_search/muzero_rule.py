"""MuZero's rule: upper confidence bounds with priors, noise at the root, visits as the policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_wm.functional.noise import gumbel_noise
from torchrl_wm.planners.tree_search.normalization import (
    FixedBounds,
    Normalization,
    ParentAndSiblings,
    normalized_q,
)
from torchrl_wm.planners.tree_search.tree import NodeStatistics, node_statistics
from torchrl_wm.ranges import RATE, SHARE, WEIGHT


@dataclass
class MuZeroRule:
    """Selection by pUCT, action and policy by visit counts (https://arxiv.org/abs/1911.08265).

    An edge scores its normalised value plus ``prior * sqrt(n) / (1 + visits) * (c_init +
    log((n + c_base + 1) / c_base))`` with ``n`` the visits of the node, its own evaluation included,
    so that a fresh node tries its most probable action. Ties go to the lowest index.

    Args:
        c_init, c_base (float, optional): constants of the bound. Default to ``1.25`` and ``19652``.
        dirichlet_alpha (float, optional): of the noise on the root's priors. Defaults to ``0.3``.
        dirichlet_fraction (float, optional): its share; 0 for none. Defaults to ``0.25``.
        temperature (float, optional): actions are drawn from ``visits ** (1 / temperature)``; 0 takes
            the most visited one. It may change between searches. Defaults to ``1.0``.
        normalization (optional): of the values, see
            :mod:`~torchrl_wm.planners.tree_search.normalization`. Defaults to
            ``ParentAndSiblings()``; the paper's pseudocode is ``TreeWide()``.

    Raises:
        ValueError: for a number out of range.
        TypeError: for a normalization of the wrong type.

    Examples:
        >>> MuZeroRule(dirichlet_alpha=0.25, temperature=0.5).temperature
        0.5
    """

    c_init: float = 1.25
    c_base: float = 19652.0
    dirichlet_alpha: float = 0.3
    dirichlet_fraction: float = 0.25
    temperature: float = 1.0
    normalization: Normalization = field(default_factory=ParentAndSiblings)

    def __post_init__(self):
        SHARE.check(dirichlet_fraction=self.dirichlet_fraction)
        RATE.check(dirichlet_alpha=self.dirichlet_alpha, c_base=self.c_base)
        WEIGHT.check(c_init=self.c_init, temperature=self.temperature)
        if not isinstance(self.normalization, Normalization):
            raise TypeError(
                f"normalization={self.normalization!r} must be ParentAndSiblings(), TreeWide() or "
                "FixedBounds(low, high)."
            )
        if isinstance(self.normalization, FixedBounds):
            low, high = self.normalization[:2]
            if not low <= high:
                raise ValueError(f"FixedBounds needs low <= high; got {low} and {high}.")

    # -- the root ----------------------------------------------------------------------------------
    def draw_noise(self, allowed: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Dirichlet noise ``[B, A]`` over the allowed actions of each row: sums to 1, 0 elsewhere."""
        # The log of a gamma variable with a shape below 1, after Marsaglia and Tsang: otherwise small
        # alphas such as 0.03 underflow, and a row of zeros cannot be normalised.
        there = {"dtype": torch.float64, "device": "cpu"}  # as the generator is
        shape = torch.full(allowed.shape, self.dirichlet_alpha + 1, **there)
        boosted = torch._standard_gamma(shape, generator=generator).log()
        uniform = torch.rand(allowed.shape, generator=generator, **there)
        log_gamma = boosted + uniform.clamp_min(1e-300).log() / self.dirichlet_alpha
        log_gamma = log_gamma.masked_fill(~allowed.cpu(), -torch.inf)
        return log_gamma.softmax(-1).nan_to_num(0.0).float().to(allowed.device)

    def root_logits(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """Logits ``[B, A]`` of the root with the noise mixed into its probabilities."""
        if noise is None or not self.dirichlet_fraction:
            return logits
        forbidden = logits == -torch.inf
        share = self.dirichlet_fraction
        mixed = (1 - share) * logits.softmax(-1) + share * noise.to(logits)
        smallest = torch.finfo(logits.dtype).tiny
        return mixed.clamp_min(smallest).log().masked_fill(forbidden, -torch.inf)

    # -- selection -----------------------------------------------------------------------------------
    def bounds(self, num_simulations: int, dtype: torch.dtype, device=None) -> Tensor:
        """The factor of the prior for each number of visits of the node, ``[num_simulations + 2]``."""
        return _bounds(self.c_init, self.c_base, num_simulations).to(device, dtype)

    def scores(self, node: NodeStatistics, bounds: Tensor) -> Tensor:
        """Scores ``[B, A]`` of the edges of a node; the largest is followed."""
        explore = bounds[node.visits.long()].unsqueeze(-1) * node.priors
        return normalized_q(node, self.normalization) + explore / (1 + node.edge_visits)

    # -- the result ----------------------------------------------------------------------------------
    def policy(self, tree: TensorDictBase) -> Tensor:
        """Shares ``[B, A]`` of the visits of the root."""
        visits = tree["children_visits"][:, 0].to(tree["priors"].dtype)
        return visits / visits.sum(-1, keepdim=True).clamp_min(1)

    def action_logits(self, visits: Tensor) -> Tensor:
        """Logits ``[..., A]`` for drawing actions, from visits ``[..., A]``.

        Examples:
            >>> MuZeroRule(temperature=0.5).action_logits(torch.tensor([1, 3, 0])).softmax(-1)
            tensor([0.1000, 0.9000, 0.0000], dtype=torch.float64)
        """
        # In logs, since counts ** (1 / temperature) overflows for small temperatures.
        return visits.double().log() / max(self.temperature, math.ulp(1.0))

    def action(
        self,
        tree: TensorDictBase,
        noise: Tensor | None,
        *,
        greedy: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Index ``[B]`` of the action to take."""
        visits = node_statistics(tree).edge_visits
        if greedy or self.temperature == 0:
            return visits.argmax(-1)
        scores = self.action_logits(visits)
        gumbel = gumbel_noise(scores.shape, generator=generator)
        return (scores + gumbel.to(scores.device)).argmax(-1)


@lru_cache(maxsize=64)
def _bounds(c_init: float, c_base: float, num_simulations: int) -> Tensor:
    n = torch.arange(num_simulations + 2, dtype=torch.float64)
    return n.sqrt() * (c_init + ((n + c_base + 1) / c_base).log())
