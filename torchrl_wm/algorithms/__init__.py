"""The algorithms: one short file each, which assembles the parts."""

from torchrl_wm.algorithms.algorithm import Algorithm
from torchrl_wm.algorithms.dreamer_v1 import DreamerV1
from torchrl_wm.algorithms.dreamer_v2 import DreamerV2
from torchrl_wm.algorithms.dreamer_v3 import DreamerV3
from torchrl_wm.algorithms.muzero import MuZero
from torchrl_wm.algorithms.planet import PlaNet

__all__ = ["Algorithm", "DreamerV1", "DreamerV2", "DreamerV3", "MuZero", "PlaNet"]
