"""Tree search: one tree for a whole batch, several rules, several executors."""

from torchrl_wm.planners.tree_search.drawing import draw_tree, tree_to_dot
from torchrl_wm.planners.tree_search.env_model import EnvModel
from torchrl_wm.planners.tree_search.evaluation import Dynamics, NodeEvaluator, Root, Step
from torchrl_wm.planners.tree_search.export import to_torchrl_tree
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
    "EnvModel",
    "FixedBounds",
    "GumbelRule",
    "MuZeroRule",
    "NodeEvaluator",
    "ParentAndSiblings",
    "Root",
    "SearchPolicy",
    "Step",
    "TreeWide",
    "draw_tree",
    "make_tree",
    "search",
    "to_torchrl_tree",
    "tree_to_dot",
]
