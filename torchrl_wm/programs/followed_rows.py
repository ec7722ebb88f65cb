"""Functions of many rows as programs: what they return, and the gradients of what they are to minimise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchrl_wm.programs.followed_program import FollowedProgram

_FEWEST = 2**9  # rows for which it is worth recording a program
_MOST = 2**20  # weights: with more, torch takes no longer for their gradients


class FollowedRows:
    """A function of rows, such as a head, whose layers a few rows pass through before the next few do.

    Args:
        function (callable): rows ``[N, F]`` to ``[N, C]``.
        *modules (nn.Module): all that it reads parameters of.

    Examples:
        >>> layer = nn.Linear(4, 2)
        >>> follow = FollowedRows(lambda rows: layer(rows).tanh(), layer)
        >>> follow(torch.zeros(3, 1024, 4)).shape
        torch.Size([3, 1024, 2])
    """

    def __init__(self, function: Callable[[Tensor], Tensor], *modules: nn.Module):
        self.function = function
        self._followed = FollowedProgram(self._rows, *modules)

    def __call__(self, rows: Tensor) -> Tensor | None:
        """Rows ``[..., F]`` to ``[..., C]`` without gradients, if there is a program for them."""
        flat = rows.detach().reshape(-1, rows.shape[-1])
        program = self._followed(flat) if len(flat) >= _FEWEST else None
        return program.add_up(flat)[0].view(*rows.shape[:-1], -1) if program else None

    def _rows(self, index: Tensor, _: Tensor, *tensors: Tensor) -> Tensor:
        return self.function(tensors[0].index_select(0, index))


class FollowedLoss:
    """The mean of a weighted loss of rows, and its gradients, in one pass over the rows.

    Args:
        function (callable): rows ``[N, F]`` and what is known of them ``[N, G]`` to their loss ``[N, 1]`` and
            a tensor of metrics ``[N, C]``.
        module (nn.Module): all that it reads parameters of; they are trained.

    Examples:
        >>> layer = nn.Linear(4, 1)
        >>> square = lambda rows, known: ((layer(rows) - known).square(), known)
        >>> follow = FollowedLoss(square, layer)
        >>> loss, metrics = follow(torch.randn(1024, 4), torch.ones(1024, 1), torch.ones(1024, 1))
        >>> loss.backward()
        >>> metrics.shape, layer.weight.grad.shape
        (torch.Size([1024, 1]), torch.Size([1, 4]))
    """

    def __init__(
        self, function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], module: nn.Module
    ):
        self.function, self.module = function, module
        self._followed = FollowedProgram(self._derivative, module, gradients=True)

    def __call__(self, rows: Tensor, known: Tensor, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """The mean over ``[...]`` of loss times weight, with its graph, and the metrics ``[..., C]``.

        ``None`` where there is no program, or where no gradients of all parameters are wanted.

        Args:
            rows (Tensor): ``[..., F]``; they get no gradient.
            known (Tensor): ``[..., G]``.
            weight (Tensor): ``[..., 1]``.
        """
        tensors = [x.detach().reshape(-1, x.shape[-1]) for x in (rows, known, weight)]
        trained = torch.is_grad_enabled() and all(p.requires_grad for p in self.module.parameters())
        if not trained or len(tensors[0]) < _FEWEST or self._is_large():
            return None
        program = self._followed(*tensors)
        if program is None or self._is_large():
            return None
        found, gradients = program.add_up(*tensors)
        loss = (found[:, :1] * tensors[2]).mean()
        gradients = [x / len(found) for x in gradients]
        loss = _Minimised.apply(loss, gradients, *self.module.parameters())
        return loss, found[:, 1:].view(*rows.shape[:-1], -1)

    def _is_large(self) -> bool:
        program = self._followed.program
        return program is not None and program.network.weights.size > _MOST

    def _derivative(
        self, index: Tensor, _: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        rows, known, weight = (x.index_select(0, index) for x in tensors[:3])
        with torch.enable_grad(), torch.autograd.set_detect_anomaly(False):
            loss, metrics = self.function(rows, known)
            gradients = torch.autograd.grad(loss, list(self.module.parameters()), weight)
        return torch.cat([loss, metrics], -1).detach(), list(gradients)


class _Minimised(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    def backward(ctx, factor: Tensor):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The gradient of a loss that a program predicted has no derivative (create_graph=True). Give "
                f"fewer than {_FEWEST} rows at a time: those go through the modules."
            )
        return None, None, *(factor * x for x in ctx.saved_tensors)
