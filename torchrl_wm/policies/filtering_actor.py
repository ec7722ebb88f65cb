"""Acting: filter the observation into the latent, then ask the actor."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs import TensorDictPrimer
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_wm.world_models import WorldModel


class FilteringActor(TensorDictModuleBase):
    """A policy for any TorchRL collector: filters with a world model, acts with an actor.

    Reads the observations, ``is_init``, ``previous_action`` and the latents of the step before;
    overwrites the latents by the posterior and writes the action entries in the environment's encoding,
    continuous ones clipped to their bounds.

    Args:
        world_model (WorldModel): what filters.
        actor (nn.Module): features to a distribution over encoded actions.

    Keyword Args:
        exploration (callable, optional): changes encoded actions ``[..., A]`` while exploring.
            Defaults to ``None``.
        greedy (bool, optional): take the mode instead of a sample. Under TorchRL's exploration types
            ``MODE``, ``MEAN`` and ``DETERMINISTIC`` the mode is taken in any case. Defaults to ``False``.

    Set ``random_actions = True`` for a warm-up: actions are drawn uniformly from the action spec while
    the latents go on being filtered, so what is stored is real.

    The collector carries the latents where ``make_tensordict_primer()`` is appended to the environment.
    """

    def __init__(
        self, world_model: WorldModel, actor: nn.Module, *, exploration=None, greedy: bool = False
    ):
        super().__init__()
        self.world_model, self.actor = world_model, actor
        self.exploration, self.greedy = exploration, greedy
        self.random_actions = False
        self.in_keys = list(world_model.in_keys)
        self.out_keys = [*world_model.out_keys, *world_model.action_encoding.in_keys]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that carries the latents."""
        return self.world_model.make_tensordict_primer()

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Filters and acts, in place, on any batch ``[...]``."""
        tensordict = self.world_model.filter(tensordict)
        encoding = self.world_model.action_encoding
        if self.random_actions:
            for key, spec in encoding.leaves.items():
                tensordict.set(key, spec.rand(tensordict.batch_size).to(tensordict.device))
            return tensordict
        return encoding.decode(self._act(self.world_model.features(tensordict)), tensordict)

    def _act(self, features: Tensor) -> Tensor:
        policy = self.actor(features)
        modes = (ExplorationType.MODE, ExplorationType.MEAN, ExplorationType.DETERMINISTIC)
        if self.greedy or exploration_type() in modes:
            return policy.mode
        action = policy.sample()
        return action if self.exploration is None else self.exploration(action)
