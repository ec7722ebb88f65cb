"""How to act: filtering actors and exploration."""

from torchrl_wm.policies.exploration import GaussianNoise, RandomChoice, make_exploration
from torchrl_wm.policies.filtering_actor import FilteringActor

__all__ = ["FilteringActor", "GaussianNoise", "RandomChoice", "make_exploration"]
