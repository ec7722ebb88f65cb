"""Choosing actions by looking ahead in a world model or a stateless environment."""

from torchrl_wm.planners.cem import CEMPlanner
from torchrl_wm.planners.icem import ICEMPlanner
from torchrl_wm.planners.mppi import MPPIPlanner
from torchrl_wm.planners.planner import Planner
from torchrl_wm.planners.simulators import EnvSimulator, ModelSimulator
from torchrl_wm.planners.tree_search import (
    EnvModel,
    FixedBounds,
    GumbelRule,
    MuZeroRule,
    ParentAndSiblings,
    SearchPolicy,
    TreeWide,
    draw_tree,
    search,
    to_torchrl_tree,
    tree_to_dot,
)

__all__ = [
    "CEMPlanner",
    "EnvModel",
    "EnvSimulator",
    "FixedBounds",
    "GumbelRule",
    "ICEMPlanner",
    "MPPIPlanner",
    "ModelSimulator",
    "MuZeroRule",
    "ParentAndSiblings",
    "Planner",
    "SearchPolicy",
    "TreeWide",
    "draw_tree",
    "search",
    "to_torchrl_tree",
    "tree_to_dot",
]
