"""Imagined trajectories of an actor, step by step, without torch in between."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from torchrl_wm.planners.threads import in_threads
from torchrl_wm.planners.tree_search import instructions
from torchrl_wm.planners.tree_search.program import FEW, Program, recorded_program
from torchrl_wm.planners.watched import Watched
from torchrl_wm.world_models import WorldModel

_FEWEST = 2**9  # steps of all rows for which it is worth recording a program
_SHARE = 64  # rows that are worth a thread of their own


class Rollout:
    """What an actor does in a world model and what follows, as a program predicts it.

    A :class:`~torchrl_wm.planners.tree_search.program.Program` takes a few rows through all operations of
    a step before the next few, so that their numbers stay in the cache. It is recorded at the first call,
    and again when parameters are replaced or moved. There is none on other devices than the CPU, for
    models with more than two million weights, and for what no program can express.

    Args:
        world_model (WorldModel): the model.
        actor (Head): features to a distribution over encoded actions.
    """

    def __init__(self, world_model: WorldModel, actor: nn.Module):
        self.world_model, self.actor = world_model, actor
        self._program: Program | None = None
        self._watched = Watched(nn.ModuleList([world_model, actor]))

    def __call__(self, start: Tensor, noise: Tensor) -> tuple[Tensor, Tensor] | None:
        """Features ``[H + 1, N, F]`` and actions ``[H, N, A]`` without gradients, if there is a program.

        They are in single precision, under autocast too.

        Args:
            start (Tensor): features ``[N, F]``.
            noise (Tensor): of the model's draws, ``[H, N, noise size]``.
        """
        horizon, rows, _ = noise.shape
        fits = all(x.is_cpu and x.dtype == torch.float32 for x in (start, noise))
        draws = self._draws(start, horizon) if fits and horizon * rows >= _FEWEST else None
        if draws is None:
            return None
        if self._watched.changed():
            self._record(start, draws[0], noise[0])
        if self._program is None:
            return None
        self._program.refresh()
        # From numpy, which asks for large pages: touching small ones first would take a tenth of the time.
        features = np.empty((horizon + 1, *start.shape), np.float32)
        features[0] = start.numpy()
        actions = self._follow(features, draws, noise)
        return torch.from_numpy(features), torch.from_numpy(actions)

    def _draws(self, start: Tensor, horizon: int) -> Tensor | None:
        """Noise of the actor's draws ``[H, N, size]``, if its distributions can make it."""
        output = self.actor.output
        policy = output(start.new_zeros(len(start), output.size))
        return policy.noise((horizon,)) if hasattr(policy, "noise") else None

    def _follow(self, features: np.ndarray, draws: Tensor, noise: Tensor) -> np.ndarray:
        """Writes all features but the first; returns the actions ``[H, N, A]``."""
        network, (horizon, rows, _) = self._program.network, noise.shape
        inputs = (x.contiguous().numpy() for x in (draws, noise))
        memory = tuple(x.reshape(-1, x.shape[-1]) for x in (features, *inputs))
        index = np.arange(horizon * rows)
        actions = np.empty((horizon, rows, self._program.width), np.float32)

        def imagine(begin: int, end: int) -> None:
            instructions.unroll(network.copy(), index, begin, end, memory, actions)

        in_threads(imagine, rows, _SHARE)
        return actions

    def _record(self, *tensors: Tensor) -> None:
        few = [x[:FEW].clone(memory_format=torch.contiguous_format) for x in tensors]
        index = torch.arange(len(few[0]))
        inputs = (index, index, *few, *map(torch.clone, few))
        name = type(self.world_model).__name__
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            self._program = recorded_program(self._step, inputs, name)

    def _step(self, index: Tensor, _: Tensor, *tensors: Tensor) -> Tensor:
        """Features and noise to the action ``[N, A]``; writes the next features."""
        features, draw, noise = (x.index_select(0, index) for x in tensors[:3])
        action = self.actor.output(self.actor.raw(features)).rsample(noise=draw)
        tensors[3].copy_(self.world_model.predict_features(features, action, noise))
        return action

    def __getstate__(self) -> dict:
        return vars(Rollout(self.world_model, self.actor))
