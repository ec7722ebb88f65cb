"""Acting: policies that filter and then act, plan or search, and exploration."""

from torchrl_wm.policies.exploration import GaussianNoise, RandomChoice, make_exploration
from torchrl_wm.policies.filtering_actor import FilteringActor
from torchrl_wm.policies.filtering_planner import FilteringPlanner
from torchrl_wm.policies.filtering_policy import FilteringPolicy
from torchrl_wm.policies.filtering_search import FilteringSearch

__all__ = [
    "FilteringActor",
    "FilteringPlanner",
    "FilteringPolicy",
    "FilteringSearch",
    "GaussianNoise",
    "RandomChoice",
    "make_exploration",
]
