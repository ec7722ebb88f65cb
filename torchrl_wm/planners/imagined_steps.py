"""Imagination of a small world model, step by step, without torch in between."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torchrl_wm.programs import instructions
from torchrl_wm.programs.followed_program import FollowedProgram
from torchrl_wm.programs.program import Program
from torchrl_wm.programs.threads import in_threads
from torchrl_wm.world_models import WorldModel

_SHARE = 2**20  # rows times weights that are worth a thread of their own
_FEWEST = 16  # rows that are


class ImaginedSteps:
    """Latents, rewards and continuations along action sequences, as a model's program predicts them.

    A :class:`~torchrl_wm.programs.program.Program` executes one step for a few rows at a time,
    which for networks with tens of units takes half the time of recorded operations, and for hundreds nine
    tenths.

    Args:
        model (WorldModel): with a reward head, and perhaps one for the continuation.
    """

    def __init__(self, model: WorldModel):
        self.model = model
        self._followed = FollowedProgram(self._step, model)

    def program(
        self, actions: Tensor, noise: Tensor, latents: tuple[Tensor, ...], unchanged: bool = False
    ) -> Program | None:
        """The program for sequences ``[H, N, ...]`` from latents ``[N, size]``, or ``None``.

        It reads the parameters, unless they are ``unchanged`` since the last call.
        """
        return self._followed(actions[0], noise[0], *latents, unchanged=unchanged)

    def __call__(
        self, program: Program, actions: Tensor, noise: Tensor, latents: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Rewards and, if there are any, continuations ``[H, N]``, and the last latents ``[N, size]``."""
        rows, state = actions.shape[1], [_own(x) for x in latents]
        index, found = np.arange(rows), np.empty((len(actions), rows, program.width), np.float32)
        inputs = actions.contiguous().numpy(), noise.contiguous().numpy()
        arrays = tuple(x.numpy() for x in state)

        def imagine(begin: int, end: int) -> None:
            network, share = program.network.copy(), index[begin:end]
            instructions.follow(network, share, *inputs, arrays, found[:, begin:end])

        in_threads(imagine, rows, max(_FEWEST, _SHARE // program.network.weights.size))
        columns = torch.from_numpy(found).unbind(-1)
        return columns[0], columns[1] if len(columns) > 1 else None, state

    def _step(self, index: Tensor, _: Tensor, *tensors: Tensor) -> Tensor:
        """Action, noise and latents to reward and continuation ``[N, 1 or 2]``; writes the next latents."""
        half, model = len(tensors) // 2, self.model
        action, noise, *latents = (x.index_select(0, index) for x in tensors[:half])
        following = model.predict_tensors(tuple(latents), action, noise)
        for place, value in zip(tensors[half + 2 :], following, strict=True):
            place.copy_(value)
        features = torch.cat(following, -1)
        heads = [head for head in (model.reward_head, model.continuation_head) if head is not None]
        return torch.cat([head(features).mean for head in heads], -1)


def _own(x: Tensor) -> Tensor:
    """A contiguous copy."""
    return x.clone(memory_format=torch.contiguous_format)
