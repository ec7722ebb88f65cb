"""PlaNet (https://arxiv.org/abs/1811.04551): a world model and a planner, no actor and no critic.

With a feed-forward ensemble and iCEM instead of these it is a PETS-style agent
(https://arxiv.org/abs/1805.12114).

Differs from the reference code: sequences start from the latents in the replay instead of zeros, and
are drawn uniformly from all of it instead of half from the newest episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Composite

from torchrl_wm.algorithms.algorithm import Algorithm, results, total
from torchrl_wm.algorithms.optimizers import TensorFlowAdam
from torchrl_wm.algorithms.options import checks_options, preset
from torchrl_wm.algorithms.world_model_factory import WorldModelFactory, build_world_model
from torchrl_wm.modules.quantization import QuantizeImages
from torchrl_wm.objectives import LatentOvershooting, WorldModelLoss, make_divergence
from torchrl_wm.planners import CEMPlanner, Planner
from torchrl_wm.policies import FilteringPlanner, make_exploration
from torchrl_wm.world_models import WorldModel

WORLD_MODEL = {
    "style": "planet",
    "latent": "gaussian",
    "cell": "reset_before",
    "prior_layers": 1,
    "members": 5,
}
"""Defaults of the world model for every size; ``members`` applies to feed-forward ones."""

SIZES = {
    "planet": {
        "belief_size": 200,
        "hidden_size": 200,
        "state_size": 30,
        "units": 300,
        "depth": 32,
        "vector_layers": 3,
        "reward_layers": 3,
        "continuation_layers": 3,
    },
    "small": {  # for vectors on one CPU core
        "belief_size": 64,
        "hidden_size": 64,
        "state_size": 16,
        "units": 64,
        "depth": 16,
        "vector_layers": 1,
        "reward_layers": 2,
        "continuation_layers": 1,
    },
}
"""Presets of the sizes."""

PLANNER = {"planning_horizon": 12, "optim_steps": 10, "num_candidates": 1000, "top_k": 100}
"""Sizes of PlaNet's own planner."""


class PlaNet(Algorithm):
    """A world model trained on the replay, and a planner that acts by planning in it.

    Args:
        observation_spec, action_spec (Composite): unbatched specs.

    Keyword Args:
        world_model (callable, optional): makes the world model from the specs; parameters that it names
            and does not set are those of PlaNet. Defaults to
            :func:`~torchrl_wm.world_models.make_rssm`.
        size (str, optional): preset of all sizes, ``"planet"`` or ``"small"``.
        planner (callable, optional): makes the planner from the world model. Defaults to
            :class:`~torchrl_wm.planners.CEMPlanner` with PlaNet's sizes.
        free_bits (float, optional): free nats of the divergence in each step. Defaults to ``3.0``.
        kl (dict, optional): options of :func:`~torchrl_wm.objectives.make_divergence`.
        reconstruction_scale (float, optional): weight of the observations; above 1 for vectors that are
            small compared with the unit variance of their likelihood. Defaults to ``1.0``.
        reward_scale (float, optional): weight of the rewards. Defaults to ``10.0``.
        use_continuation (bool, optional): learn when episodes end, and plan with it; the reference
            leaves it off. Defaults to ``False``.
        continuation_scale (float, optional): weight of that term. Defaults to ``1.0``.
        overshooting_distance (int, optional): steps over which predictions are compared with the
            posteriors, at least 2; 0 turns it off, as in the reference. Defaults to ``0``.
        overshooting_scale (float, optional): weight of that term. Defaults to ``1.0``.
        use_reconstruction, use_symlog (optional): see ``make_rssm``; not of identity models, whose numbers
            are always in symlog.
        image_bits (int, optional): bits of each colour that the model sees. Defaults to ``5``.
        exploration_noise (float, optional): standard deviation of the noise on continuous actions
            while collecting, in half ranges of bounded ones; for discrete actions the probability of a
            random one. Defaults to ``0.3``.
        world_model_lr (float, optional): learning rate. Defaults to ``1e-3``.
        grad_clip (float, optional): largest norm of the gradient. Defaults to ``1000.0``.
        device (torch.device, optional): where the parameters live.

    Raises:
        ValueError: for a number out of its range, or an unknown size or divergence.
        TypeError: for a ``planner`` that makes no Planner, for a spec or a world model's factory that is
            not supported, or exploration noise on a mixture of continuous and discrete actions.

    Examples:
        >>> from torchrl.data import Bounded, Unbounded
        >>> specs = Composite(joints=Unbounded(6)), Composite(action=Bounded(-1, 1, (2,)))
        >>> agent = PlaNet(*specs, planner=partial(CEMPlanner, planning_horizon=3, optim_steps=2,
        ...                                        num_candidates=8, top_k=2))
        >>> td = agent.world_model.initial([1]).update(
        ...     dict(joints=torch.randn(1, 6), previous_action=torch.zeros(1, 2)))
        >>> agent.policy(td.set("is_init", torch.ones(1, 1).bool()))["action"].shape
        torch.Size([1, 2])
    """

    @checks_options
    def __init__(
        self,
        observation_spec: Composite,
        action_spec: Composite,
        *,
        world_model: WorldModelFactory | None = None,
        planner: Callable[[WorldModel], Planner] | None = None,
        size: str = "planet",
        free_bits: float = 3.0,
        kl: Mapping[str, Any] = {"strategy": "excess"},  # noqa: B006 (read only)
        reconstruction_scale: float = 1.0,
        reward_scale: float = 10.0,
        use_continuation: bool = False,
        continuation_scale: float = 1.0,
        overshooting_distance: int = 0,
        overshooting_scale: float = 1.0,
        use_reconstruction: bool = True,
        use_symlog: bool = False,
        image_bits: int = 5,
        exploration_noise: float = 0.3,
        world_model_lr: float = 1e-3,
        grad_clip: float = 1000.0,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        flags = {"use_reconstruction": use_reconstruction, "use_symlog": use_symlog}
        chosen = {
            **WORLD_MODEL,
            **preset(SIZES, size),
            **flags,
            "use_continuation": use_continuation,
        }
        model = build_world_model(world_model, observation_spec, action_spec, chosen)
        planner = (planner or partial(CEMPlanner, **PLANNER))(model)
        if not isinstance(planner, Planner):
            raise TypeError(
                f"PlaNet plans with a Planner (planner=cem, icem or mppi), not with a "
                f"{type(planner).__name__}."
            )
        self.world_model = model
        self.quantize = QuantizeImages(observation_spec, image_bits)
        bounds = {"low": planner.space.low, "high": planner.space.high}
        exploration = make_exploration(action_spec, exploration_noise, **bounds)
        policy = partial(FilteringPlanner, model, planner, preprocess=self.quantize)
        self.policy, self.evaluation_policy = policy(exploration=exploration), policy()
        self.to(device)
        overshooting = None
        self.shortest_sequence = max(1, overshooting_distance)
        if overshooting_distance:
            options = {"free_nats": free_bits, "scale": overshooting_scale}
            overshooting = LatentOvershooting(overshooting_distance, **options)
        self.world_model_loss = WorldModelLoss(
            model,
            make_divergence(free_bits=free_bits, **kl),
            reconstruction_scale=reconstruction_scale,
            reward_scale=reward_scale,
            continuation_scale=continuation_scale,
            overshooting=overshooting,
        )
        optimizer = TensorFlowAdam(
            model.parameters(), world_model_lr, eps=1e-4, grad_clip=grad_clip
        )
        self.optimizers = {"world_model": optimizer}

    def update(self, sample: TensorDictBase) -> tuple[TensorDict, TensorDict]:
        """One update of the world model on step records ``[B, T + 1]``."""
        losses = self.world_model_loss(self.quantize(sample))
        optimizer = self.optimizers["world_model"]
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        return results(losses)

    def pretrain(self, sample: TensorDictBase) -> tuple[TensorDict, TensorDict]:
        """Same as :meth:`update`: only the world model is trained."""
        return self.update(sample)
