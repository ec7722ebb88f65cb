"""Dreamer v1 (https://arxiv.org/abs/1912.01603), as in the author's TensorFlow 2 code.

Differs from that code: every imagined trajectory draws its own latent noise, and sequences start from the
latents in the replay instead of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Composite

from torchrl_wm import keys
from torchrl_wm.algorithms.algorithm import results, total
from torchrl_wm.algorithms.dreamer import Dreamer
from torchrl_wm.algorithms.options import checks_options, preset
from torchrl_wm.algorithms.world_model_factory import WorldModelFactory, build_world_model
from torchrl_wm.modules.heads import NormalHead, actor_head
from torchrl_wm.modules.styles import NETWORKS
from torchrl_wm.objectives import (
    ActorLoss,
    CriticLoss,
    Imagination,
    ThroughDynamics,
    WorldModelLoss,
    align_v1,
    make_divergence,
)
from torchrl_wm.policies import FilteringActor, make_exploration
from torchrl_wm.ranges import Range

WORLD_MODEL = {
    "style": "v1",
    "latent": "gaussian",
    "cell": "gru",
    "prior_layers": 1,
    "vector_layers": 4,
    "reward_layers": 2,
    "continuation_layers": 3,
}
"""Defaults of the world model for every size."""

SIZES = {
    "paper": {"belief_size": 200, "hidden_size": 200, "state_size": 30, "units": 400, "depth": 32},
    "small": {  # for classic control on a CPU
        "belief_size": 128,
        "hidden_size": 128,
        "state_size": 30,
        "units": 128,
        "depth": 16,
    },
}
"""Presets of the sizes."""


class DreamerV1(Dreamer):
    """A Gaussian RSSM, and an actor trained through its dynamics.

    Args:
        observation_spec, action_spec (Composite): unbatched specs.

    Keyword Args:
        world_model (callable, optional): makes the world model from the specs; parameters that it names
            and does not set are those of Dreamer v1. Defaults to
            :func:`~torchrl_wm.world_models.make_rssm`.
        size (str, optional): preset of all sizes, ``"paper"`` or ``"small"``.
        imagination_horizon (int, optional): imagined steps, at least 2. Defaults to ``15``.
        imagination_starts (int, optional): number of last steps of each sequence that imagination starts
            from; ``0`` for all. Defaults to ``0``.
        discount (float, optional): discount of one step. Defaults to ``0.99``.
        lambda_ (float, optional): mixture of the lambda return. Defaults to ``0.95``.
        free_bits (float, optional): floor of the average divergence. Defaults to ``3.0``.
        kl (dict, optional): options of :func:`~torchrl_wm.objectives.make_divergence`.
        reconstruction_scale (float, optional): weight of the observations; above 1 for vectors that are
            small compared with the unit variance of their likelihood. Defaults to ``1.0``.
        use_continuation (bool, optional): learn when episodes end; the reference turns it off in
            dm_control, where they do not terminate. Defaults to ``True``.
        continuation_scale (float, optional): weight of that term. Defaults to ``10.0``.
        use_reconstruction, use_symlog (optional): see ``make_rssm``.
        use_ema_critic (bool, optional): take targets from a slow critic. Defaults to ``False``.
        critic_ema_decay (float, optional): share of the slow critic kept. Defaults to ``0.98``.
        entropy (float, optional): weight of the policy's entropy. Defaults to ``0.0``.
        exploration_noise (float, optional): standard deviation of the noise on continuous actions; for
            discrete actions the probability of a random one. Defaults to ``0.3``.
        world_model_lr, actor_lr, critic_lr (float, optional): learning rates.
        grad_clip (float, optional): largest norm of each gradient. Defaults to ``100.0``.
        units (int, optional): size of the layers of actor and critic; that of the preset where
            ``None``. Defaults to ``None``.
        actor_layers, critic_layers (int, optional): their numbers of layers. Default to ``4`` and ``3``.
        device (torch.device, optional): where the parameters live.

    Raises:
        ValueError: for a number out of its range, or an unknown size or divergence.
        TypeError: for a spec or a world model's factory that is not supported, or exploration noise on
            a mixture of continuous and discrete actions.

    Examples:
        >>> from torchrl.data import Bounded, Composite, Unbounded
        >>> specs = Composite(joints=Unbounded(6)), Composite(action=Bounded(-1, 1, (2,)))
        >>> agent = DreamerV1(*specs, size="small", imagination_horizon=3)
        >>> sample = agent.world_model.initial([2, 9]).update({"joints": torch.randn(2, 9, 6)})
        >>> for key in ("is_init", "is_last", "terminated"):
        ...     sample[key] = torch.zeros(2, 9, 1, dtype=torch.bool)
        >>> sample["reward"], sample["previous_action"] = torch.zeros(2, 9, 1), torch.zeros(2, 9, 2)
        >>> metrics, latents = agent.update(sample)
        >>> latents["belief"].shape
        torch.Size([2, 8, 128])
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
        free_bits: float = 3.0,
        kl: Mapping[str, Any] = {"strategy": "clipped"},  # noqa: B006 (read only)
        reconstruction_scale: float = 1.0,
        use_continuation: bool = True,
        continuation_scale: float = 10.0,
        use_reconstruction: bool = True,
        use_symlog: bool = False,
        use_ema_critic: bool = False,
        critic_ema_decay: float = 0.98,
        entropy: float = 0.0,
        exploration_noise: float = 0.3,
        world_model_lr: float = 6e-4,
        actor_lr: float = 8e-5,
        critic_lr: float = 8e-5,
        grad_clip: float = 100.0,
        units: int | None = None,
        actor_layers: int = 4,
        critic_layers: int = 3,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        Range(2, whole=True).check(imagination_horizon=imagination_horizon)
        flags = {"use_reconstruction": use_reconstruction, "use_symlog": use_symlog}
        sizes = preset(SIZES, size)
        chosen = {**WORLD_MODEL, **sizes, **flags, "use_continuation": use_continuation}
        model = build_world_model(world_model, observation_spec, action_spec, chosen)
        units = sizes["units"] if units is None else units
        network = {**NETWORKS["v1"], "units": units}
        self.actor = actor_head(
            action_spec,
            model.feature_size,
            continuous="tanh_normal",
            layers=actor_layers,
            **network,
        )
        self.critic = NormalHead(model.feature_size, layers=critic_layers, **network)
        self.world_model = model
        self.shortest_sequence = 1 if model.continuation_head is None else 2
        exploration = make_exploration(action_spec, exploration_noise)
        self.policy = FilteringActor(model, self.actor, exploration=exploration)
        self.evaluation_policy = FilteringActor(model, self.actor, greedy=True)
        self.to(device)
        self.world_model_loss = WorldModelLoss(
            model,
            make_divergence(free_bits=free_bits, **kl),
            reconstruction_scale=reconstruction_scale,
            continuation_scale=continuation_scale,
            continuation_discount=discount,
        )
        self.actor_loss = ActorLoss(self.actor, ThroughDynamics(), entropy_scale=entropy)
        self.critic_loss = CriticLoss(self.critic, use_ema_critic=use_ema_critic)
        self.slow_update = self._slow_update(1 - critic_ema_decay)
        self.imagination = Imagination(
            model,
            self.actor,
            self.critic_loss.slow,
            imagination_horizon,
            discount=discount,
            through_dynamics=True,
        )
        self.imagination_starts, self.lambda_ = imagination_starts, lambda_
        rates = {"world_model": world_model_lr, "actor": actor_lr, "critic": critic_lr}
        self.optimizers = self._adams(rates, eps=1e-7, grad_clip=grad_clip)

    def update(self, sample: TensorDictBase) -> tuple[TensorDict, TensorDict]:
        """One update of everything on step records ``[B, T + 1]``; all losses see the same weights."""
        model_losses = self.world_model_loss(sample)
        starts, records = self._starts(model_losses["latents"], sample[:, 1:])
        rows, _ = align_v1(self.imagination(starts), self.lambda_)
        self.start_mask(records, rows)
        actor_losses, critic_losses = self.actor_loss(rows), self.critic_loss(rows)
        self._step(
            world_model=total(model_losses),
            actor=actor_losses["loss_actor"],
            critic=critic_losses["loss_critic"],
        )
        if self.slow_update is not None:
            self.slow_update.step()
        return results(model_losses, actor_losses, critic_losses)

    def _starts(
        self, latents: TensorDictBase, records: TensorDictBase
    ) -> tuple[TensorDictBase, TensorDictBase]:
        """As in every Dreamer, but with learned ends nothing is imagined to follow them.

        In the reference every sequence ends with its episode, so its last step is dropped. Here
        episodes also end in mid-sequence, so terminal steps are masked too.
        """
        if self.world_model.continuation_head is None:
            return super()._starts(latents, records)
        if latents.shape[1] < self.shortest_sequence:
            raise ValueError(
                "Dreamer v1 with use_continuation needs sequences of at least 2 steps, the last of which "
                f"starts nothing; got {latents.shape[1]}. Raise the slice length of the replay."
            )
        records = records[:, :-1]
        going_on, mask = ~records.get(keys.TERMINATED), records.get(keys.MASK, None)
        if mask is not None:
            going_on = going_on & mask.reshape(going_on.shape)
        return super()._starts(latents[:, :-1], records.copy().set(keys.MASK, going_on))
