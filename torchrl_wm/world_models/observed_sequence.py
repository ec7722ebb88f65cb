"""What a recurrent model makes of known observations, and its derivative, step by step without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchrl_wm.programs.followed_program import FollowedProgram
from torchrl_wm.programs.program import Program

_FEWEST = 2**9  # rows of all steps for which it is worth recording programs
_SHARE = 8  # rows that are worth a thread of their own
_MOST = 2**24  # rows of a thread times weights: with more, torch's steps are no slower


class ObservedSequence:
    """The steps of filtering a sequence as programs: one predicts them, one their derivative.

    A step with the few rows of a batch takes torch many times as long as its arithmetic. A
    :class:`~torchrl_wm.programs.program.Program` follows the sequence. A second one, recorded from a step
    and its backward pass, follows it back, and adds up the gradients of the parameters meanwhile.

    Args:
        model (RSSM): the model whose ``_observe_step`` is followed.
    """

    def __init__(self, model):
        self.model, self._sizes = model, []
        self._trained, self._used = [], []  # parameters, and places of those that steps read
        self._ahead = FollowedProgram(self._step, model)
        self._back = FollowedProgram(self._derivative, model, gradients=True)

    def __call__(self, start: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """Beliefs, states and raw parameters of the posterior ``[N, T, ...]``, with their graph.

        ``None`` where there are no programs: for few rows, on another device than the CPU, in double
        precision, for models that programs cannot express, and within transformations of functions; and
        where torch takes no longer: with gradients, for many rows of large models.

        Args:
            start (Tensor): features ``[N, F]`` before the first step.
            inputs (sequence of Tensor): what the steps read besides, ``[T, N, ...]``: whether an episode
                begins, projected actions and tokens, noise.
        """
        is_init, *others = inputs
        shape, learning = is_init.shape[:2], torch.is_grad_enabled()
        if shape.numel() < _FEWEST or shape[0] == 1 or start.dtype != torch.float32:
            return None
        if not start.is_cpu or (learning and self._is_large(len(start))):
            return None
        self._sizes = [x.shape[-1] for x in others]
        with torch.no_grad():
            ahead, back = self._programs(start, learning)
        if ahead is None:
            return None
        fresh, steps = is_init.float(), torch.cat([x.float() for x in others], -1)
        every = start.new_empty(len(steps) + 1, *start.shape)
        every[0] = start.detach()
        raw, _ = ahead.unroll(start, fresh, steps, every[1:], _SHARE)
        features = every[1:]
        if learning:
            around = torch.cat([every[:-1], fresh, steps.detach()], -1)
            found = _Found(features, raw, around, back)
            parameters = [self._trained[i] for i in self._used]
            features, raw = _Recurrence.apply(found, start, torch.cat(others[:-1], -1), *parameters)
        belief, state = features.split(list(self.model.latent_sizes.values()), -1)
        return tuple(x.transpose(0, 1).contiguous() for x in (belief, state, raw))

    def _programs(self, start: Tensor, learning: bool) -> tuple[Program | None, Program | None]:
        """Those of the steps and, if ``learning``, of their derivative; without the second neither."""
        # Recorded with made-up numbers: no batch decides whether there are programs, and none is drawn.
        rows, noise = min(len(start), 32), self._sizes[-1]
        count = lambda size: torch.arange(rows * size, device=start.device).view(rows, size)
        numbers = lambda size: count(size).sin()
        features, fresh = numbers(start.shape[1]), (count(1) % 2).float()
        steps = torch.cat([numbers(sum(self._sizes) - noise), numbers(noise).abs() + 0.1], -1)
        ahead, back = self._ahead(features, fresh, steps), None
        if learning:
            self._notice_what_is_trained()
            wanted = numbers(start.shape[1] + self.model.latent.raw_size)
            back = self._back(features, wanted, torch.cat([features, fresh, steps], -1))
            if back is None or self._is_large(len(start)):
                return None, None
        return ahead, back

    def _notice_what_is_trained(self) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        same = len(trained) == len(self._trained)
        if not (same and all(a is b for a, b in zip(trained, self._trained, strict=True))):
            self._trained = trained
            self._back = FollowedProgram(self._derivative, self.model, gradients=True)

    def _is_large(self, rows: int) -> bool:
        back = self._back.program
        return (
            back is not None and rows * back.network.weights.size > _MOST * torch.get_num_threads()
        )

    def _step(self, index: Tensor, _: Tensor, *tensors: Tensor) -> Tensor:
        """Features and inputs to raw parameters; writes the next features."""
        features, fresh, steps = (x.index_select(0, index) for x in tensors[:3])
        following, raw = self._observe(features, fresh, *steps.split(self._sizes, -1))
        tensors[3].copy_(following)
        return raw

    def _derivative(
        self, index: Tensor, _: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Carried and wanted gradients, and what a step read, to the gradients of inputs and parameters.

        Writes what is carried on.
        """
        carried, wanted, around = (x.index_select(0, index) for x in tensors[:3])
        size = carried.shape[1]
        features, fresh, steps = around.split([size, 1, around.shape[1] - size - 1], -1)
        with torch.enable_grad(), torch.autograd.set_detect_anomaly(False):
            features = features.detach().requires_grad_()
            *inputs, noise = steps.split(self._sizes, -1)
            inputs = [x.detach().requires_grad_() for x in inputs]
            found = self._observe(features, fresh, *inputs, noise)
            gradients = carried + wanted[:, :size], wanted[:, size:]
            wanted = [features, *inputs, *self._trained]
            carried, *found = torch.autograd.grad(found, wanted, gradients, allow_unused=True)
        tensors[3].copy_(carried)
        inputs, sums = found[: len(inputs)], found[len(inputs) :]
        self._used = [i for i, total in enumerate(sums) if total is not None]
        return torch.cat(inputs, -1), [sums[i] for i in self._used]

    def _observe(self, features: Tensor, fresh: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.model._observe_rows(features, fresh > 0.5, *inputs)


class _Found(NamedTuple):
    """Features ``[T, N, F]`` and raw parameters; what the steps read; the program of the derivative."""

    features: Tensor
    raw: Tensor
    around: Tensor
    derivative: Program


class _Recurrence(torch.autograd.Function):
    """What programs found, of what it depends on.

    Programs have no derivatives themselves, so there is no second one.
    """

    @staticmethod
    def forward(ctx, found: _Found, start: Tensor, inputs: Tensor, *parameters: Tensor):
        ctx.derivative = found.derivative
        ctx.save_for_backward(found.around)
        return found.features, found.raw

    @staticmethod
    def backward(ctx, features: Tensor, raw: Tensor):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The gradient of a sequence that programs observed has no derivative (create_graph=True). "
                f"Observe fewer than {_FEWEST} rows and steps at a time: those go through the modules."
            )
        (around,) = ctx.saved_tensors
        wanted = torch.cat([features, raw], -1).flip(0)
        carried = features.new_empty(features.shape)
        nothing = features.new_zeros(features.shape[1:])
        inputs, sums = ctx.derivative.unroll(nothing, wanted, around.flip(0), carried, _SHARE)
        return None, carried[-1], inputs.flip(0), *sums
