"""Acting by search: represent the observation, search, write the action and the search statistics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import TensorDictPrimer

from torchrl_wm import keys
from torchrl_wm.modules.frame_stack import FrameStack
from torchrl_wm.planners import SearchPolicy
from torchrl_wm.policies.filtering_policy import FilteringPolicy
from torchrl_wm.world_models import WorldModel


class FilteringSearch(FilteringPolicy):
    """A policy for any TorchRL collector: filters with a world model, acts by searching in it.

    Writes the action, the search statistics, ``policy_version``, ``search_version`` and ``priority``
    (infinite: not yet trained on). It also searches during a warm-up with random actions, so that the
    statistics are real; with an ``action_mask``, random actions are drawn from the allowed ones.

    Args:
        world_model (WorldModel): filters the observations.
        search (SearchPolicy): from root latents to actions and search statistics.

    Keyword Args:
        frames (FrameStack, optional): stacks the frames that the model sees. Defaults to none.
        version (callable, optional): the number of updates so far; in a worker process of a collector it
            stays what it was when the worker began. Defaults to a constant 0.

    Examples:
        >>> from torchrl_wm.envs import gymnasium, model_specs
        >>> from torchrl_wm.planners import SearchPolicy
        >>> from torchrl_wm.world_models import make_muzero
        >>> env = gymnasium("CartPole-v1", num_envs=2)
        >>> model = make_muzero(*model_specs(env))
        >>> search = SearchPolicy(model, num_simulations=4, executor="reference")
        >>> policy = FilteringSearch(model, search)
        >>> env = env.append_transform(policy.make_tensordict_primer())
        >>> env.rollout(3, policy)["search_policy"].shape
        torch.Size([2, 3, 2])
    """

    def __init__(
        self,
        world_model: WorldModel,
        search: SearchPolicy,
        *,
        frames: FrameStack | None = None,
        version: Callable[[], int] = int,
    ):
        super().__init__(world_model)
        self.search, self.frames, self.version = search, frames, version
        notes = [key for key in search.out_keys if key not in self.out_keys]
        notes += [keys.POLICY_VERSION, keys.SEARCH_VERSION, keys.PRIORITY]
        self.note_keys = [key for key in notes if key != search.visit_counts_key]
        """The entries besides latents and actions that training reads and a replay has to store."""
        self.out_keys += notes
        self.in_keys += [key for key in search.in_keys if key not in self.in_keys]
        if frames is not None:
            self.in_keys += list(frames.carried.values())
            self.out_keys += list(frames.carried.values())

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that carries the latents and the frames."""
        if self.frames is None:
            return super().make_tensordict_primer()
        spec = self.world_model.latent_spec.update(self.frames.carried_spec)
        return TensorDictPrimer(spec, default_value=0, expand_specs=True)

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Filters, searches and acts, in place, on any batch ``[...]``."""
        tensordict = super().forward(tensordict)
        mask = tensordict.get(self.search.action_mask_key, None)
        if mask is None or not self.random_actions:
            return tensordict
        mask = mask.clone()
        mask[..., 0] |= ~mask.any(-1)  # the first action of what is over, as a search has it
        index = mask.reshape(-1, mask.shape[-1]).float().multinomial(1).reshape(mask.shape[:-1])
        encoded = nn.functional.one_hot(index, mask.shape[-1]).float()
        return self.world_model.action_encoding.decode(encoded, tensordict)

    def _filter(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict = self.search(self._represent(tensordict))
        device = tensordict.get(self.search.written[0]).device
        full = partial(torch.full, (*tensordict.batch_size, 1), device=device)
        version = full(fill_value=self.version(), dtype=torch.int64)
        tensordict.set(keys.POLICY_VERSION, version).set(keys.SEARCH_VERSION, version.clone())
        return tensordict.set(keys.PRIORITY, full(fill_value=torch.inf))

    def _represent(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the latents; the collector keeps the observed frame, not the stack."""
        if self.frames is None:
            return super()._filter(tensordict)
        seen = super()._filter(self.frames(tensordict))
        carried = self.frames.carried.values()
        return tensordict.update(seen.select(*self.world_model.latent_keys, *carried))

    def _act(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict  # the search has written the actions
