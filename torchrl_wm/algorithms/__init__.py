"""The algorithms: one short file each, which assembles the parts."""

from torchrl_wm.algorithms.dreamer_v3 import DreamerV3

__all__ = ["DreamerV3"]
