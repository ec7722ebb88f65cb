"""Losses as TorchRL LossModules, and the parts in which the algorithms differ."""

from torchrl_wm.objectives.actor_gradients import (
    Mixed,
    Reinforce,
    ThroughDynamics,
    make_actor_gradient,
)
from torchrl_wm.objectives.actor_loss import ActorLoss
from torchrl_wm.objectives.alignment import align_v1, align_v2, align_v3
from torchrl_wm.objectives.critic_loss import CriticLoss, ReplayCriticLoss
from torchrl_wm.objectives.divergence_rules import (
    BalancedKL,
    ClippedKL,
    ExcessKL,
    SeparateKL,
    make_divergence,
)
from torchrl_wm.objectives.imagination import Imagination
from torchrl_wm.objectives.muzero_loss import MuZeroLoss
from torchrl_wm.objectives.overshooting import LatentOvershooting
from torchrl_wm.objectives.target_update import SlowUpdate
from torchrl_wm.objectives.world_model_loss import WorldModelLoss

__all__ = [
    "ActorLoss",
    "BalancedKL",
    "ClippedKL",
    "CriticLoss",
    "ExcessKL",
    "Imagination",
    "LatentOvershooting",
    "Mixed",
    "MuZeroLoss",
    "Reinforce",
    "ReplayCriticLoss",
    "SeparateKL",
    "SlowUpdate",
    "ThroughDynamics",
    "WorldModelLoss",
    "align_v1",
    "align_v2",
    "align_v3",
    "make_actor_gradient",
    "make_divergence",
]
