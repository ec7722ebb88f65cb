"""Choosing actions by looking ahead in a world model or a stateless environment."""

from torchrl_wm.planners.cem import CEMPlanner
from torchrl_wm.planners.icem import ICEMPlanner
from torchrl_wm.planners.mppi import MPPIPlanner
from torchrl_wm.planners.planner import Planner
from torchrl_wm.planners.simulators import EnvSimulator, ModelSimulator

__all__ = [
    "CEMPlanner",
    "EnvSimulator",
    "ICEMPlanner",
    "MPPIPlanner",
    "ModelSimulator",
    "Planner",
]
