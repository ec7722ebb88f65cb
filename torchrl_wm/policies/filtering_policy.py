"""The base of all policies on latents: filter the observation, then act."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import TensorDictPrimer

from torchrl_wm.world_models import WorldModel


class FilteringPolicy(TensorDictModuleBase):
    """Base of the policies for any TorchRL collector that filter with a world model and then act.

    Reads the observations, ``is_init``, ``previous_action`` and the latents of the step before;
    overwrites the latents by the posterior and writes the action entries in the environment's
    encoding.

    Args:
        world_model (WorldModel): filters the observations.

    Set ``random_actions = True`` for a warm-up: actions are drawn uniformly from the action spec while
    the observations are still filtered, so the stored latents are real.

    Append ``make_tensordict_primer()`` to the environment for the collector to carry the latents.
    """

    def __init__(self, world_model: WorldModel):
        super().__init__()
        self.world_model = world_model
        # A buffer, which reaches the workers of a collector with the weights.
        self.register_buffer("_random_actions", torch.tensor(False), persistent=False)
        self.in_keys = list(world_model.in_keys)
        self.out_keys = [*world_model.out_keys, *world_model.action_encoding.in_keys]

    @property
    def random_actions(self) -> bool:
        """Whether actions are drawn uniformly."""
        flag = self._random_actions
        if flag.is_cuda and torch.cuda.is_current_stream_capturing():
            return False  # a CUDA graph is captured of the policy itself, and cannot ask
        return bool(flag)

    @random_actions.setter
    def random_actions(self, value: bool) -> None:
        self._random_actions.fill_(value)

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that carries the latents."""
        return self.world_model.make_tensordict_primer()

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Filters and acts, in place, on any batch ``[...]``."""
        tensordict = self._filter(tensordict)
        if not self.random_actions:
            return self._act(tensordict)
        device = tensordict.get(next(iter(self.world_model.latent_keys))).device
        for key, spec in self.world_model.action_encoding.leaves.items():
            tensordict.set(key, spec.rand(tensordict.batch_size).to(device))
        return tensordict

    def _filter(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self.world_model.filter(tensordict)

    def _act(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the actions, given fresh latents."""
        raise NotImplementedError
