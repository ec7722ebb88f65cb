"""Acting: filter the observation into the latent, then ask the actor."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_wm.modules.exploration_type import wants_mode
from torchrl_wm.policies.filtering_policy import FilteringPolicy
from torchrl_wm.world_models import WorldModel


class FilteringActor(FilteringPolicy):
    """A policy for any TorchRL collector: filters with a world model, acts with an actor.

    Continuous actions are clipped to their bounds; see
    :class:`~torchrl_wm.policies.FilteringPolicy` for what is read and written.

    Args:
        world_model (WorldModel): filters the observations.
        actor (nn.Module): features to a distribution over encoded actions.

    Keyword Args:
        exploration (callable, optional): changes encoded actions ``[..., A]`` while exploring.
            Defaults to ``None``.
        greedy (bool, optional): take the mode instead of a sample. Under TorchRL's exploration types
            ``MODE``, ``MEAN`` and ``DETERMINISTIC`` the mode is taken in any case. Defaults to ``False``.

    Examples:
        >>> from torchrl_wm.envs import gymnasium, model_specs
        >>> from torchrl_wm.modules import actor_head
        >>> from torchrl_wm.world_models import make_rssm
        >>> env = gymnasium("CartPole-v1", num_envs=2)
        >>> specs = model_specs(env)
        >>> model = make_rssm(*specs, belief_size=16, hidden_size=16, units=16)
        >>> actor = actor_head(specs[1], model.feature_size, layers=1, units=16)
        >>> policy = FilteringActor(model, actor)
        >>> env = env.append_transform(policy.make_tensordict_primer())
        >>> env.rollout(3, policy)["action"].shape
        torch.Size([2, 3, 2])
    """

    def __init__(
        self, world_model: WorldModel, actor: nn.Module, *, exploration=None, greedy: bool = False
    ):
        super().__init__(world_model)
        self.actor, self.exploration, self.greedy = actor, exploration, greedy

    def _act(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = self._choose(self.world_model.features(tensordict))
        return self.world_model.action_encoding.decode(action, tensordict)

    def _choose(self, features: Tensor) -> Tensor:
        policy = self.actor(features)
        if self.greedy or wants_mode():
            return policy.mode
        action = policy.sample()
        return action if self.exploration is None else self.exploration(action)
