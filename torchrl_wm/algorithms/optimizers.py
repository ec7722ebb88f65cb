"""Adam as TensorFlow computes it, the optimiser of PlaNet and Dreamer v1 and v2."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class TensorFlowAdam(torch.optim.AdamW):
    """Adam whose epsilon is added before the bias correction.

    TensorFlow divides by ``sqrt(v) + eps``, torch by ``sqrt(v / (1 - beta2^t)) + eps``: at the first step
    the same ``eps`` weighs 31 times as much in TensorFlow. Weight decay multiplies the weights by
    ``1 - weight_decay`` in every step, whatever the learning rate is, as Dreamer v2 does.

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
        super().__init__(parameters, lr=lr, eps=eps, weight_decay=weight_decay / lr)
        self.epsilon_hat, self.grad_clip = eps, grad_clip

    @torch.no_grad()
    def step(self) -> None:
        """One step; gradients are clipped by their global norm first."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if self.grad_clip is not None:
                nn.utils.clip_grad_norm_(parameters, self.grad_clip)
            state = self.state.get(parameters[0], {})
            count = int(state["step"]) + 1 if state else 1
            group["eps"] = self.epsilon_hat / (1 - group["betas"][1] ** count) ** 0.5
        super().step()
