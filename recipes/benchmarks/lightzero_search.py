"""The peer of ``search`` where it is installed: LightZero's compiled tree under MuZero's rule.

Only the tree is loaded: ``pip install --no-deps LightZero`` will do. Around it stands what LightZero puts
there, lists on the tree's side and arrays of latents on the model's, and the model as plain operations.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from torchrl_wm.planners.tree_search import Dynamics, MuZeroRule, Root

RANGE = 0.01
"""LightZero's smallest range of values."""


def load_tree() -> ModuleType | None:
    """The compiled module, or ``None`` where there is none."""
    package = importlib.util.find_spec("lzero")
    if package is None:
        return None
    folder = Path(package.submodule_search_locations[0], "mcts", "ctree", "ctree_muzero")
    file = folder / f"mz_tree{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location("mz_tree", file)
    tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tree)
    return tree


def make_search(
    tree: ModuleType, model: Dynamics, root: Root, rule: MuZeroRule, num_simulations: int
) -> Callable[[], object]:
    """A function that searches once, without noise; returns the visits of the roots."""
    rows, num_actions = root.logits.shape
    one_player, discount = [-1] * rows, model.discount

    def run() -> list[list[int]]:
        roots = tree.Roots(rows, [list(range(num_actions))] * rows)
        roots.prepare_no_noise([0.0] * rows, root.logits.tolist(), one_player)
        ranges = tree.MinMaxStatsList(rows)
        ranges.set_delta(RANGE)
        latents = [root.latents[0].numpy()]
        for simulation in range(num_simulations):
            results = tree.ResultsWrapper(num=rows)
            node, row, action, to_play = tree.batch_traverse(
                roots, rule.c_base, rule.c_init, discount, ranges, results, one_player
            )
            parents = np.asarray([latents[i][j] for i, j in zip(node, row, strict=True)])
            step = model.step((torch.from_numpy(parents),), torch.tensor(action))
            latents.append(step.latents[0].numpy())
            said = (x.tolist() for x in (step.reward, step.value, step.logits))
            tree.batch_backpropagate(simulation + 1, discount, *said, ranges, results, to_play)
        return roots.get_distributions()

    return torch.inference_mode()(run)
