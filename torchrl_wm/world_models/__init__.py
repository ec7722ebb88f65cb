"""World models: what is carried from step to step, and how it is filtered and predicted."""

from torchrl_wm.world_models.feed_forward import FeedForward, Identity
from torchrl_wm.world_models.make_feed_forward import make_autoencoder, make_identity
from torchrl_wm.world_models.make_muzero import make_muzero
from torchrl_wm.world_models.make_rssm import make_rssm
from torchrl_wm.world_models.muzero import MuZeroModel, PredictionNetwork
from torchrl_wm.world_models.rssm import RSSM
from torchrl_wm.world_models.world_model import WorldModel

__all__ = [
    "FeedForward",
    "Identity",
    "MuZeroModel",
    "PredictionNetwork",
    "RSSM",
    "WorldModel",
    "make_autoencoder",
    "make_identity",
    "make_muzero",
    "make_rssm",
]
