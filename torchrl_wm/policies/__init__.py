"""Acting: policies that filter and then act, plan or search, and exploration."""

from torchrl_wm.policies.exploration import GaussianNoise, RandomChoice, make_exploration
from torchrl_wm.policies.filtering_actor import FilteringActor
from torchrl_wm.policies.filtering_policy import FilteringPolicy
from torchrl_wm.policies.planning_policy import PlanningPolicy
from torchrl_wm.policies.searching_policy import SearchingPolicy

__all__ = [
    "FilteringActor",
    "FilteringPolicy",
    "GaussianNoise",
    "PlanningPolicy",
    "RandomChoice",
    "SearchingPolicy",
    "make_exploration",
]
