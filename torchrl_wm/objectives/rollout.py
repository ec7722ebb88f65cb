"""Imagined trajectories of an actor, step by step, without torch in between."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from torchrl_wm.modules.distributions import Prediction
from torchrl_wm.modules.outputs import Output
from torchrl_wm.programs.followed_program import FollowedProgram
from torchrl_wm.world_models import RSSM, WorldModel

_FEWEST = 2**9  # rows of all steps for which it is worth recording a program
_SHARE = 64  # rows that are worth a thread of their own


class Rollout:
    """What an actor does in a world model and what follows, as a program predicts it.

    A :class:`~torchrl_wm.programs.program.Program` takes a few rows through all operations of
    a step before the next few, so that their numbers stay in the cache.

    Args:
        world_model (WorldModel): the model.
        actor (Head): features to a distribution over encoded actions.
    """

    def __init__(self, world_model: WorldModel, actor: nn.Module):
        self.world_model, self.actor = world_model, actor
        self._followed = FollowedProgram(self._step, world_model, actor)

    def __call__(
        self, start: Tensor, noise: Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor] | None:
        """Features ``[H + 1, N, F]`` and actions ``[H, N, A]`` without gradients, if there is a program.

        Args:
            start (Tensor): features ``[N, F]``.
            noise (Tensor): of the model's draws, ``[H, N, noise size]``.
            dtype (torch.dtype, optional): of the features that are returned: the steps keep theirs in
                single precision. Defaults to ``torch.float32``.
        """
        horizon, rows, _ = noise.shape
        policy = self._policy(start) if horizon * rows >= _FEWEST else None
        program = policy and self._followed(start, policy.noise(), noise[0])
        if not program:
            return None
        features = _empty((horizon + 1, *start.shape), dtype)
        features[0] = start
        actions, _ = program.unroll(start, policy.noise((horizon,)), noise, features[1:], _SHARE)
        return features.to(dtype), actions

    def _policy(self, start: Tensor) -> Prediction | None:
        """A distribution that makes noise of the actor's draws, if it and the model can be expressed."""
        output = self.actor.output
        if not (start.is_cpu and isinstance(output, Output) and _is_stepwise(self.world_model)):
            return None
        policy = output(start.new_zeros(len(start), output.size))
        return policy if isinstance(policy, Prediction) and hasattr(policy, "noise") else None

    def _step(self, index: Tensor, _: Tensor, *tensors: Tensor) -> Tensor:
        """Features and noise to the action ``[N, A]``; writes the next features."""
        features, draw, noise = (x.index_select(0, index) for x in tensors[:3])
        action = self.actor.output(self.actor.raw(features)).rsample(noise=draw)
        tensors[3].copy_(self.world_model.predict_features(features, action, noise))
        return action


def _is_stepwise(model: WorldModel) -> bool:
    """Whether it imagines by nothing but ``predict_features``, again and again."""
    kind = type(model)
    known = (WorldModel._imagine_tensors, RSSM._imagine_tensors)
    return kind.imagine is WorldModel.imagine and kind._imagine_tensors in known


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype == torch.bfloat16:
        return torch.empty(shape, dtype=dtype)
    # From numpy, which asks for large pages: touching small ones first would take a tenth of the time.
    return torch.from_numpy(np.empty(shape, np.float32))
