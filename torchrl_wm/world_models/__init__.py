"""World models: what is carried from step to step, and how it is filtered and predicted."""

from torchrl_wm.world_models.make_rssm import make_rssm
from torchrl_wm.world_models.rssm import RSSM
from torchrl_wm.world_models.world_model import WorldModel

__all__ = ["RSSM", "WorldModel", "make_rssm"]
