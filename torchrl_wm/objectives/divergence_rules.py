"""The divergence of posterior and prior as a loss: the rules of PlaNet and the Dreamers.

A rule takes ``kl`` (a function of two sets of latent statistics, ``[...]`` nats), the statistics of the
posterior and the prior, and ``mean`` (the average over the steps that count), and returns named scalars.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import Tensor, nn

from torchrl_wm.modules.latents import Statistics
from torchrl_wm.ranges import WEIGHT

Divergence = Callable[[Statistics, Statistics], Tensor]
Mean = Callable[[Tensor], Tensor]


def _detached(statistics: Statistics) -> Statistics:
    return tuple(value.detach() for value in statistics)


class ExcessKL(nn.Module):
    """PlaNet (https://arxiv.org/abs/1811.04551): the excess over the free nats in each step, averaged.

    Args:
        free_nats (float, optional): nats of each step that cost nothing. Defaults to ``3.0``.
        scale (float, optional): weight of the term. Defaults to ``1.0``.
    """

    names = ("kl",)

    def __init__(self, free_nats: float = 3.0, scale: float = 1.0):
        super().__init__()
        WEIGHT.check(free_nats=free_nats, scale=scale)
        self.free_nats, self.scale = free_nats, scale

    def forward(
        self, kl: Divergence, posterior: Statistics, prior: Statistics, mean: Mean
    ) -> dict[str, Tensor]:
        """The loss ``kl``, a scalar."""
        excess = (kl(posterior, prior) - self.free_nats).clamp_min(0)
        return {"kl": self.scale * mean(excess)}


class ClippedKL(nn.Module):
    """Dreamer v1 (https://arxiv.org/abs/1912.01603): the average over batch and time, floored.

    Args:
        free_nats (float, optional): floor of the average. Defaults to ``3.0``.
        scale (float, optional): weight of the term. Defaults to ``1.0``.

    Examples:
        >>> import torch
        >>> kl = lambda posterior, prior: posterior[0]
        >>> ClippedKL(3.0)(kl, (torch.tensor([1.0, 9.0]),), (), torch.mean)["kl"]
        tensor(5.)
    """

    names = ("kl",)

    def __init__(self, free_nats: float = 3.0, scale: float = 1.0):
        super().__init__()
        WEIGHT.check(free_nats=free_nats, scale=scale)
        self.free_nats, self.scale = free_nats, scale

    def forward(
        self, kl: Divergence, posterior: Statistics, prior: Statistics, mean: Mean
    ) -> dict[str, Tensor]:
        """The loss ``kl``, a scalar."""
        return {"kl": self.scale * mean(kl(posterior, prior)).clamp_min(self.free_nats)}


class BalancedKL(nn.Module):
    """Dreamer v2 (https://arxiv.org/abs/2010.02193): the prior is trained faster than the posterior.

    Args:
        balance (float, optional): weight of the term that trains the prior; at ``0.5`` there is no
            balancing and the free nats apply to each step. Defaults to ``0.8``.
        free_nats (float, optional): floor of each term. Defaults to ``0.0``.
        free_average (bool, optional): the floor applies to the average instead of each step.
            Defaults to ``True``.
        forward_kl (bool, optional): use the KL of the prior from the posterior. Defaults to ``False``.
        scale (float, optional): weight of the loss. Defaults to ``1.0``.

    Raises:
        ValueError: for a balance outside [0, 1].

    Examples:
        >>> import torch
        >>> kl = lambda posterior, prior: posterior[0] - prior[0]
        >>> BalancedKL()(kl, (torch.tensor([3.0, 5.0]),), (torch.zeros(2),), torch.mean)["kl"]
        tensor(4.)
    """

    names = ("kl",)

    def __init__(
        self,
        balance: float = 0.8,
        free_nats: float = 0.0,
        *,
        free_average: bool = True,
        forward_kl: bool = False,
        scale: float = 1.0,
    ):
        super().__init__()
        if not 0 <= balance <= 1:
            raise ValueError(f"balance={balance} must lie between 0 and 1.")
        WEIGHT.check(free_nats=free_nats, scale=scale)
        self.balance, self.free_nats, self.scale = balance, free_nats, scale
        self.free_average, self.forward_kl = free_average, forward_kl

    def forward(
        self, kl: Divergence, posterior: Statistics, prior: Statistics, mean: Mean
    ) -> dict[str, Tensor]:
        """The loss ``kl``, a scalar."""
        left, right = (prior, posterior) if self.forward_kl else (posterior, prior)
        if self.balance == 0.5:
            return {"kl": self.scale * mean(kl(left, right).clamp_min(self.free_nats))}
        mix = self.balance if self.forward_kl else 1 - self.balance
        left_term = self._floor(kl(left, _detached(right)), mean)
        right_term = self._floor(kl(_detached(left), right), mean)
        return {"kl": self.scale * (mix * left_term + (1 - mix) * right_term)}

    def _floor(self, value: Tensor, mean: Mean) -> Tensor:
        if self.free_average:
            return mean(value).clamp_min(self.free_nats)
        return mean(value.clamp_min(self.free_nats))


class SeparateKL(nn.Module):
    """DreamerV3 (https://arxiv.org/abs/2301.04104): dynamics and representation, each floored per step.

    Args:
        free_nats (float, optional): floor of each step's divergence. Defaults to ``1.0``.
        dynamics_scale (float, optional): weight of the term that trains the prior. Defaults to ``1.0``.
        representation_scale (float, optional): weight of the term that trains the posterior.
            Defaults to ``0.1``.
    """

    names = ("dynamics", "representation")

    def __init__(
        self,
        free_nats: float = 1.0,
        dynamics_scale: float = 1.0,
        representation_scale: float = 0.1,
    ):
        super().__init__()
        WEIGHT.check(dynamics_scale=dynamics_scale, representation_scale=representation_scale)
        self.free_nats = free_nats
        self.dynamics_scale, self.representation_scale = dynamics_scale, representation_scale

    def terms(
        self, kl: Divergence, posterior: Statistics, prior: Statistics
    ) -> tuple[Tensor, Tensor]:
        """Unweighted dynamics and representation terms of every step, ``[...]`` each."""
        dynamics = kl(_detached(posterior), prior).clamp_min(self.free_nats)
        representation = kl(posterior, _detached(prior)).clamp_min(self.free_nats)
        return dynamics, representation

    def forward(
        self, kl: Divergence, posterior: Statistics, prior: Statistics, mean: Mean
    ) -> dict[str, Tensor]:
        """The losses ``dynamics`` and ``representation``, scalars."""
        dynamics, representation = self.terms(kl, posterior, prior)
        return {
            "dynamics": self.dynamics_scale * mean(dynamics),
            "representation": self.representation_scale * mean(representation),
        }


DivergenceRule = ExcessKL | ClippedKL | BalancedKL | SeparateKL

STRATEGIES = {
    "excess": ExcessKL,
    "clipped": ClippedKL,
    "balanced": BalancedKL,
    "separate": SeparateKL,
}


def make_divergence(strategy: str, *, free_bits: float, **options) -> DivergenceRule:
    """The rule called ``strategy``.

    Args:
        strategy (str): ``"excess"`` (PlaNet), ``"clipped"`` (v1), ``"balanced"`` (v2) or
            ``"separate"`` (v3).

    Keyword Args:
        free_bits (float): nats that cost nothing, as each rule defines it.
        **options: further arguments of the rule.

    Raises:
        ValueError: for an unknown strategy or option; the message lists the valid ones.

    Examples:
        >>> make_divergence("separate", free_bits=1.0)
        SeparateKL()
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"Unknown kl.strategy {strategy!r}; expected one of {sorted(STRATEGIES)}.")
    rule = STRATEGIES[strategy]
    known = inspect.signature(rule).parameters.keys() - {"free_nats"}
    for name in sorted(options.keys() - known):
        raise ValueError(
            f"kl.strategy={strategy} has no {name}; it has {sorted(known)}. Leave kl.{name} out, on a "
            f"command line with ~algorithm.kl.{name}."
        )
    return rule(free_nats=free_bits, **options)
