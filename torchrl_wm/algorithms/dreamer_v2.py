"""Dreamer v2 (https://arxiv.org/abs/2010.02193), as in the author's code.

Differs from that code: sequences start from the latents in the replay instead of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Composite, Unbounded

from torchrl_wm import keys
from torchrl_wm.algorithms.algorithm import results, total
from torchrl_wm.algorithms.dreamer import Dreamer
from torchrl_wm.algorithms.options import checks_options, preset
from torchrl_wm.algorithms.world_model_factory import WorldModelFactory, build_world_model
from torchrl_wm.modules.encoding import sorted_leaves
from torchrl_wm.modules.heads import NormalHead, actor_head
from torchrl_wm.modules.styles import NETWORKS
from torchrl_wm.objectives import (
    ActorLoss,
    CriticLoss,
    Imagination,
    WorldModelLoss,
    align_v2,
    make_actor_gradient,
    make_divergence,
)
from torchrl_wm.policies import FilteringActor
from torchrl_wm.ranges import Range

WORLD_MODEL = {
    "style": "v2",
    "latent": "categorical",
    "cell": "layer_norm",
    "unimix": 0.0,
    "std": "sigmoid2",
    "prior_layers": 1,
    "vector_layers": 4,
    "reward_layers": 4,
    "continuation_layers": 4,
}
"""Defaults of the world model for every size."""

SIZES = {
    "paper": {
        "belief_size": 200,
        "hidden_size": 200,
        "state_size": 32,
        "classes": 32,
        "units": 400,
        "depth": 48,
    },
    "small": {  # for classic control on a CPU
        "belief_size": 128,
        "hidden_size": 128,
        "state_size": 16,
        "classes": 16,
        "units": 128,
        "depth": 16,
    },
}
"""Presets of the sizes."""


class DreamerV2(Dreamer):
    """A categorical RSSM with a balanced divergence, and targets from a slow critic.

    Args:
        observation_spec, action_spec (Composite): unbatched specs.

    Keyword Args:
        world_model (callable, optional): makes the world model from the specs; parameters that it names
            and does not set are those of Dreamer v2. Defaults to
            :func:`~torchrl_wm.world_models.make_rssm`.
        size (str, optional): preset of all sizes, ``"paper"`` or ``"small"``.
        imagination_horizon (int, optional): imagined steps, at least 2. Defaults to ``15``.
        imagination_starts (int, optional): number of last steps of each sequence that imagination starts
            from; ``0`` for all. Defaults to ``0``.
        discount (float, optional): discount of one step. Defaults to ``0.99``.
        lambda_ (float, optional): mixture of the lambda return. Defaults to ``0.95``.
        free_bits (float, optional): floor of the average divergence. Defaults to ``1.0``.
        kl (dict, optional): options of :func:`~torchrl_wm.objectives.make_divergence`.
        reconstruction_scale (float, optional): weight of the observations; above 1 for vectors that are
            small compared with the unit variance of their likelihood. Defaults to ``1.0``.
        use_continuation (bool, optional): learn when episodes end. Defaults to ``True``.
        reward_scale, continuation_scale (float, optional): weights of the terms. Default to ``1.0``.
        squash_reward (bool, optional): learn the tanh of the reward (Atari). Defaults to ``False``.
        use_reconstruction, use_symlog (optional): see ``make_rssm``.
        actor_gradient (str, optional): ``"auto"`` (REINFORCE for discrete actions, through the
            dynamics otherwise), ``"reinforce"``, ``"dynamics"`` or ``"mixed"``.
        mix (float, optional): share of the dynamics in ``"mixed"``. Defaults to ``0.1``.
        use_ema_critic (bool, optional): take targets from a slow critic. Defaults to ``True``.
        critic_ema_decay (float, optional): share of the slow critic kept when it moves; 0 copies the
            critic. Defaults to ``0.0``.
        critic_update_every (int, optional): updates from one move to the next. Defaults to ``100``.
        entropy (float, optional): weight of the policy's entropy. Defaults to ``1e-4``.
        world_model_lr, actor_lr, critic_lr (float, optional): learning rates.
        grad_clip (float, optional): largest norm of each gradient. Defaults to ``100.0``.
        weight_decay (float, optional): share of the weights lost in each step. Defaults to ``1e-6``.
        units (int, optional): size of the layers of actor and critic; that of the preset where
            ``None``. Defaults to ``None``.
        actor_layers, critic_layers (int, optional): their numbers of layers. Default to ``4``.
        device (torch.device, optional): where the parameters live.

    Raises:
        ValueError: for a number out of its range, or an unknown size, divergence or gradient.
        TypeError: for a spec or a world model's factory that is not supported.

    Examples:
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> specs = Composite(joints=Unbounded(6)), Composite(action=OneHot(2))
        >>> agent = DreamerV2(*specs, size="small", imagination_horizon=3)
        >>> sample = agent.world_model.initial([2, 9]).update({"joints": torch.randn(2, 9, 6)})
        >>> for key in ("is_init", "is_last", "terminated"):
        ...     sample[key] = torch.zeros(2, 9, 1, dtype=torch.bool)
        >>> sample["reward"], sample["previous_action"] = torch.zeros(2, 9, 1), torch.zeros(2, 9, 2)
        >>> metrics, latents = agent.update(sample)
        >>> latents["state"].shape
        torch.Size([2, 8, 256])
    """

    @checks_options
    def __init__(
        self,
        observation_spec: Composite,
        action_spec: Composite,
        *,
        world_model: WorldModelFactory | None = None,
        size: str = "paper",
        imagination_horizon: int = 15,
        imagination_starts: int = 0,
        discount: float = 0.99,
        lambda_: float = 0.95,
        free_bits: float = 1.0,
        kl: Mapping[str, Any] = {"strategy": "balanced"},  # noqa: B006 (read only)
        reconstruction_scale: float = 1.0,
        use_continuation: bool = True,
        reward_scale: float = 1.0,
        continuation_scale: float = 1.0,
        squash_reward: bool = False,
        use_reconstruction: bool = True,
        use_symlog: bool = False,
        actor_gradient: str = "auto",
        mix: float = 0.1,
        use_ema_critic: bool = True,
        critic_ema_decay: float = 0.0,
        critic_update_every: int = 100,
        entropy: float = 1e-4,
        world_model_lr: float = 3e-4,
        actor_lr: float = 8e-5,
        critic_lr: float = 8e-5,
        grad_clip: float = 100.0,
        weight_decay: float = 1e-6,
        units: int | None = None,
        actor_layers: int = 4,
        critic_layers: int = 4,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        Range(2, whole=True).check(imagination_horizon=imagination_horizon)
        flags = {"use_reconstruction": use_reconstruction, "use_symlog": use_symlog}
        sizes = preset(SIZES, size)
        chosen = {**WORLD_MODEL, **sizes, **flags, "use_continuation": use_continuation}
        model = build_world_model(world_model, observation_spec, action_spec, chosen)
        units = sizes["units"] if units is None else units
        network = {**NETWORKS["v2"], "units": units}
        self.actor = actor_head(
            action_spec,
            model.feature_size,
            continuous="truncated_normal",
            layers=actor_layers,
            **network,
        )
        self.critic = NormalHead(model.feature_size, layers=critic_layers, **network)
        self.world_model = model
        self.policy = FilteringActor(model, self.actor)
        self.evaluation_policy = FilteringActor(model, self.actor, greedy=True)
        self.to(device)
        self.world_model_loss = WorldModelLoss(
            model,
            make_divergence(free_bits=free_bits, **kl),
            reward_scale=reward_scale,
            reconstruction_scale=reconstruction_scale,
            continuation_scale=continuation_scale,
            continuation_discount=discount,
            squash_reward=squash_reward,
        )
        if actor_gradient == "auto":
            actor_gradient = "dynamics" if _continuous(action_spec) else "reinforce"
        gradient = make_actor_gradient(actor_gradient, mix)
        self.actor_loss = ActorLoss(self.actor, gradient, entropy_scale=entropy)
        self.critic_loss = CriticLoss(self.critic, use_ema_critic=use_ema_critic)
        self.slow_update = self._slow_update(1 - critic_ema_decay, critic_update_every)
        self.imagination = Imagination(
            model,
            self.actor,
            self.critic_loss.slow,
            imagination_horizon,
            discount=discount,
            through_dynamics=gradient.through_dynamics,
        )
        self.imagination_starts = imagination_starts
        self.discount, self.lambda_ = discount, lambda_
        rates = {"world_model": world_model_lr, "actor": actor_lr, "critic": critic_lr}
        self.optimizers = self._adams(
            rates, eps=1e-5, grad_clip=grad_clip, weight_decay=weight_decay
        )

    def update(self, sample: TensorDictBase) -> tuple[TensorDict, TensorDict]:
        """One update of the world model, then one of actor and critic inside it."""
        model_losses = self.world_model_loss(sample)
        self._step(world_model=total(model_losses))
        behaviour = self._behaviour(model_losses["latents"], sample)
        self._step(actor=behaviour["loss_actor"], critic=behaviour["loss_critic"])
        if self.slow_update is not None:
            self.slow_update.step()
        return results(model_losses, behaviour)

    def _behaviour(self, latents: TensorDictBase, sample: TensorDictBase) -> TensorDict:
        """Losses of actor and critic on trajectories imagined from the latents of ``sample``."""
        latents, records = self._starts(latents, sample[:, 1:])
        start = None
        if self.world_model.continuation_head is not None:
            start = (~records.get(keys.TERMINATED)).float() * self.discount
        trajectory = self.imagination(latents, start_continuation=start)
        actor_rows, critic_rows = align_v2(trajectory, self.lambda_)
        self.start_mask(records, actor_rows)
        self.start_mask(records, critic_rows)
        return self.actor_loss(actor_rows).update(self.critic_loss(critic_rows))


def _continuous(action_spec: Composite) -> bool:
    return all(
        isinstance(spec, Bounded | Unbounded)
        for spec in sorted_leaves(action_spec, "action").values()
    )
