"""Losses as TorchRL LossModules, and the objects in which the algorithms differ."""

from torchrl_wm.objectives.divergence_rules import BalancedKL, ClippedKL, ExcessKL, SeparateKL

__all__ = ["BalancedKL", "ClippedKL", "ExcessKL", "SeparateKL"]
