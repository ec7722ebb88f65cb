"""Optimisers of the reference codes that neither torch nor TorchRL has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torchrl.trainers.algorithms import DreamerV3Optimizer


class TensorFlowAdam(torch.optim.AdamW):
    """Adam whose epsilon is added before the bias correction (PlaNet, Dreamer v1 and v2).

    TensorFlow divides by ``sqrt(v) + eps``, torch by ``sqrt(v / (1 - beta2^t)) + eps``: in the first step
    the same ``eps`` counts 31 times as much in TensorFlow. Weight decay multiplies the weights by
    ``1 - weight_decay`` in every step, independent of the learning rate, as in Dreamer v2.

    Args:
        parameters (iterable): parameters to optimise.
        lr (float): learning rate.

    Keyword Args:
        eps (float): TensorFlow's epsilon.
        weight_decay (float, optional): share of the weights lost in each step. Defaults to ``0.0``.
        grad_clip (float, optional): largest global norm of the gradients; none where ``None``.

    Examples:
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> weight.grad = torch.tensor([1e-6])
        >>> TensorFlowAdam([weight], lr=1.0, eps=1e-4).step()
        >>> weight.item()  # torch.optim.Adam moves by -0.0099
        -0.000316...
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        eps: float,
        weight_decay: float = 0.0,
        grad_clip: float | None = None,
    ):
        super().__init__(parameters, lr=lr, eps=eps)
        self.epsilon_hat, self.decay, self.grad_clip = eps, weight_decay, grad_clip

    def __getstate__(self) -> dict[str, Any]:
        own = {"epsilon_hat": self.epsilon_hat, "decay": self.decay, "grad_clip": self.grad_clip}
        return super().__getstate__() | own

    @torch.no_grad()
    def step(self) -> None:
        """One step; gradients are clipped by their global norm first."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            if self.grad_clip is not None:
                nn.utils.clip_grad_norm_(parameters, self.grad_clip)
            steps = (self.state[p]["step"] for p in parameters if p in self.state)
            count = int(max(steps, default=0)) + 1
            group["eps"] = self.epsilon_hat / (1 - group["betas"][1] ** count) ** 0.5
            # AdamW multiplies the weights by 1 - lr * weight_decay.
            group["weight_decay"] = self.decay / group["lr"] if group["lr"] else 0.0
        super().step()


class DecayingDreamerV3Optimizer(DreamerV3Optimizer):
    """TorchRL's optimiser of DreamerV3, with the decoupled weight decay of the reference code.

    Each step also subtracts ``lr * weight_decay`` times the weights before the step, with the learning
    rate of that step of the warm-up. Vectors (biases, scales of norms) do not decay. Steps are counted for
    each group, for the warm-up and the correction of the averages; a group without any gradient makes none.

    Args:
        parameters (iterable): parameters to optimise, or groups of them.

    Keyword Args:
        weight_decay (float, optional): see above. Defaults to ``0.0``.
        **options: those of :class:`torchrl.trainers.algorithms.DreamerV3Optimizer`.

    Examples:
        >>> weight = torch.ones(1, 1, requires_grad=True)
        >>> weight.grad = torch.zeros(1, 1)
        >>> DecayingDreamerV3Optimizer([weight], lr=0.1, warmup_steps=0, weight_decay=0.5).step()
        >>> weight.item()
        0.94999...
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, weight_decay: float = 0.0, **options):
        super().__init__(parameters, **options)
        self.weight_decay = weight_decay

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"weight_decay": self.weight_decay}

    @torch.no_grad()
    def step(self) -> None:
        """One step. The decay is that of the weights at which the gradient was taken."""
        decayed = []
        for group in self.param_groups if self.weight_decay else ():
            warmup = (
                min(1.0, group["step"] / group["warmup_steps"]) if group["warmup_steps"] else 1.0
            )
            share = group["lr"] * warmup * self.weight_decay
            matrices = [p for p in group["params"] if p.ndim > 1 and p.grad is not None]
            decayed.append((matrices, torch._foreach_mul(matrices, share)))
        idle = [g for g in self.param_groups if all(p.grad is None for p in g["params"])]
        super().step()
        for group in idle:
            group["step"] -= 1
        for matrices, decay in decayed:
            torch._foreach_sub_(matrices, decay)
