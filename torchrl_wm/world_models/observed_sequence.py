"""What a recurrent model makes of known observations, and its derivative, step by step without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchrl_wm.programs.followed_program import FollowedProgram
from torchrl_wm.programs.program import Program

_FEWEST = 2**9  # rows of all steps for which it is worth recording programs
_SHARE = 8  # rows that are worth a thread of their own
_MOST = 2**24  # rows of a thread times weights: with more, torch's steps are no slower


class ObservedSequence:
    """The steps of filtering a sequence as programs: one predicts them, one their derivative.

    A step with the few rows of a batch takes torch many times as long as its arithmetic. A
    :class:`~torchrl_wm.programs.Program` follows the sequence; what it finds is the input of all
    steps, which torch then does at once, for the gradients of the parameters. What a step owes to the next
    one, a second program adds on the way back: it was recorded from a step and its backward pass.

    Args:
        model (RSSM): the model whose ``_observe_step`` is followed.
    """

    def __init__(self, model):
        self.model, self._sizes = model, []
        self._ahead = FollowedProgram(self._step, model)
        self._back = FollowedProgram(self._derivative, model)

    def __call__(self, start: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """Beliefs, states and raw parameters of the posterior ``[N, T, ...]``, with their graph.

        ``None`` where there are no programs: for few rows, on another device than the CPU, for models that
        programs cannot express, and where torch takes no longer: with gradients, for many rows of large ones.

        Args:
            start (Tensor): features ``[N, F]`` before the first step.
            inputs (sequence of Tensor): what the steps read besides, ``[T, N, ...]``: whether an episode
                begins, projected actions and tokens, noise.
        """
        is_init, *others = inputs
        shape = is_init.shape[:2]
        if shape.numel() < _FEWEST or not start.is_cpu or start.dtype != torch.float32:
            return None
        if torch.is_grad_enabled() and self._is_large(len(start)):
            return None
        steps = torch.cat([x.float() for x in others], -1)
        self._sizes = [x.shape[-1] for x in others]
        learning = torch.is_grad_enabled()
        with torch.no_grad():
            found = self._followed(start.detach(), is_init.float(), steps.detach(), learning)
        if found is None:
            return None
        features, raw = found.features, found.raw
        if learning:
            rows = [x.flatten(0, 1) for x in (found.before, is_init, *steps.split(self._sizes, -1))]
            each = (x.unflatten(0, shape) for x in self.model._observe_rows(*rows))
            features, raw = _Recurrence.apply(*each, start, found)
        belief, state = features.split(list(self.model.latent_sizes.values()), -1)
        return tuple(x.transpose(0, 1).contiguous() for x in (belief, state, raw))

    def _followed(self, start, fresh, steps, learning: bool) -> _Found | None:
        """What the program finds, and if ``learning`` the program of the derivative."""
        # Recorded with numbers of all sizes, and none that is random: a run that goes on draws the same as
        # one that was never stopped.
        example = _numbers(start)
        ahead = self._ahead(example, fresh[0], steps[0])
        back = None
        if ahead is not None and learning:
            wanted = _numbers(start.new_empty(len(start), start.shape[1] + ahead.width))
            back = self._back(example, wanted, torch.cat([example, fresh[0], steps[0]], -1))
        if ahead is None or (learning and (back is None or self._is_large(len(start)))):
            return None
        every = start.new_empty(len(steps) + 1, *start.shape)
        every[0] = start
        raw = ahead.unroll(start, fresh, steps, every[1:], _SHARE)
        return _Found(every, raw, torch.cat([every[:-1], fresh, steps], -1), back)

    def _is_large(self, rows: int) -> bool:
        back = self._back.program
        return (
            back is not None and rows * back.network.weights.size > _MOST * torch.get_num_threads()
        )

    def _step(self, index: Tensor, _: Tensor, *tensors: Tensor) -> Tensor:
        """Features and inputs to raw parameters; writes the next features."""
        features, fresh, steps = (x.index_select(0, index) for x in tensors[:3])
        following, raw = self._observe(features, fresh, steps)
        tensors[3].copy_(following)
        return raw

    def _derivative(self, index: Tensor, _: Tensor, *tensors: Tensor) -> Tensor:
        """Gradients that are carried back, wanted ones, and what a step read; writes what is carried on."""
        carried, wanted, around = (x.index_select(0, index) for x in tensors[:3])
        size = carried.shape[1]
        features, fresh, steps = around.split([size, 1, around.shape[1] - size - 1], -1)
        with torch.enable_grad():
            features = features.detach().requires_grad_()
            found = self._observe(features, fresh, steps)
            gradients = carried + wanted[:, :size], wanted[:, size:]
            (carried,) = torch.autograd.grad(found, features, gradients)
        tensors[3].copy_(carried)
        return carried[:, :1]

    def _observe(self, features: Tensor, fresh: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model  # not what it compiled of the method
        inputs = fresh > 0.5, *steps.split(self._sizes, -1)
        return type(model)._observe_rows(model, features, *inputs)


class _Found(NamedTuple):
    """Features ``[T + 1, N, F]`` and raw parameters; what the steps read; the program of the derivative."""

    every: Tensor
    raw: Tensor
    around: Tensor
    derivative: Program | None

    @property
    def before(self) -> Tensor:
        """The features before each step."""
        return self.every[:-1]

    @property
    def features(self) -> Tensor:
        """Those after it."""
        return self.every[1:]


class _Recurrence(torch.autograd.Function):
    """What all steps found on their own, each from known features, becomes what they found in a row."""

    @staticmethod
    def forward(ctx, features: Tensor, raw: Tensor, start: Tensor, found: _Found):
        ctx.found = found
        return found.features.clone(), found.raw

    @staticmethod
    @once_differentiable
    def backward(ctx, features: Tensor, raw: Tensor):
        _, _, around, derivative = ctx.found
        wanted = torch.cat([features, raw], -1).flip(0)
        carried = torch.empty_like(features)
        nothing = torch.zeros_like(features[0])
        derivative.unroll(nothing, wanted, around.flip(0), carried, _SHARE)
        carried = carried.flip(0)  # for each step what the features before it are to be changed by
        total = features.clone()
        total[:-1] += carried[1:]
        return total, raw, carried[0], None


def _numbers(like: Tensor) -> Tensor:
    return torch.arange(like.numel(), dtype=like.dtype).sin().view(like.shape)
