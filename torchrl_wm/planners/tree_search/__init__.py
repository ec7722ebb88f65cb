"""Tree search: one tree for a whole batch, several rules, several executors."""

from torchrl_wm.planners.tree_search.evaluation import Dynamics, Evaluator, Root, Step
from torchrl_wm.planners.tree_search.gumbel_rule import GumbelRule
from torchrl_wm.planners.tree_search.muzero_rule import MuZeroRule
from torchrl_wm.planners.tree_search.normalization import FixedBounds, ParentAndSiblings, TreeWide
from torchrl_wm.planners.tree_search.search import EXECUTORS, search
from torchrl_wm.planners.tree_search.search_policy import SearchPolicy
from torchrl_wm.planners.tree_search.tree import CHANCE, DECISION, TERMINAL, make_tree

__all__ = [
    "CHANCE",
    "DECISION",
    "EXECUTORS",
    "TERMINAL",
    "Dynamics",
    "Evaluator",
    "FixedBounds",
    "GumbelRule",
    "MuZeroRule",
    "ParentAndSiblings",
    "Root",
    "SearchPolicy",
    "Step",
    "TreeWide",
    "make_tree",
    "search",
]
