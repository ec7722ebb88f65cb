"""Acting by planning: filter the observation into the latent, then plan from there."""

from __future__ import annotations

from collections.abc import Callable

from tensordict import TensorDictBase
from torchrl.envs import TensorDictPrimer

from torchrl_wm.modules.exploration_type import wants_mode
from torchrl_wm.planners import Planner
from torchrl_wm.policies.filtering_policy import FilteringPolicy
from torchrl_wm.world_models import WorldModel


class FilteringPlanner(FilteringPolicy):
    """A policy for any TorchRL collector: filters with a world model, plans in every step.

    Args:
        world_model (WorldModel): filters the observations.
        planner (Planner): plans in that world model; its carried entries are carried with the latents.

    Keyword Args:
        exploration (callable, optional): changes the planner's normalised actions ``[..., A]`` (bounded
            ones are within -1 and 1), unless TorchRL's exploration type asks for the mode. Defaults to
            ``None``.
        preprocess (callable, optional): maps a TensorDict to one with the observations that the world
            model filters; those that the collector keeps are unchanged. Defaults to ``None``.

    Examples:
        >>> from torchrl.collectors import Collector
        >>> from torchrl_wm.envs import gymnasium, model_specs
        >>> from torchrl_wm.planners import CEMPlanner
        >>> from torchrl_wm.world_models import make_identity
        >>> env = gymnasium("Pendulum-v1", num_envs=2)
        >>> model = make_identity(*model_specs(env))
        >>> policy = FilteringPlanner(model, CEMPlanner(model, 3, 2, num_candidates=8, top_k=2))
        >>> env = env.append_transform(policy.make_tensordict_primer())
        >>> env.rollout(4, policy)["action"].shape
        torch.Size([2, 4, 1])
    """

    def __init__(
        self,
        world_model: WorldModel,
        planner: Planner,
        *,
        exploration: Callable | None = None,
        preprocess: Callable[[TensorDictBase], TensorDictBase] | None = None,
    ):
        super().__init__(world_model)
        self.planner, self.exploration, self.preprocess = planner, exploration, preprocess
        self.in_keys += list(planner.carried)
        self.out_keys += list(planner.carried)

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that carries the latents and the plan."""
        spec = self.world_model.latent_spec.update(self.planner.carried_spec)
        return TensorDictPrimer(spec, default_value=0.0, expand_specs=True)

    def _filter(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self.preprocess is None:
            return super()._filter(tensordict)
        filtered = super()._filter(self.preprocess(tensordict))
        return tensordict.update(filtered.select(*self.world_model.latent_keys))

    def _act(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict = self.planner(tensordict)
        if self.exploration is None or wants_mode():
            return tensordict
        encoding, space = self.world_model.action_encoding, self.planner.space
        action = self.exploration(space.normalise(encoding(tensordict)))
        return encoding.decode(space.actions(action), tensordict)
