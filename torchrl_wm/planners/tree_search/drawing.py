"""Drawing a tree: graphviz text, and PNG or SVG where graphviz is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tensordict import TensorDictBase

from torchrl_wm.planners.tree_search.tree import CHANCE, TERMINAL

_SHAPES = {CHANCE: "diamond", TERMINAL: "box"}


def tree_to_dot(
    tree: TensorDictBase,
    row: int = 0,
    *,
    action_names: Sequence[str] | None = None,
    min_visits: int = 1,
) -> str:
    """The tree of one row in graphviz's language.

    Nodes show their number, visits and value; edges show their action, prior and value. Chance nodes are
    diamonds, ends of episodes are boxes.

    Args:
        tree (TensorDictBase): ``[B]``, as :func:`~torchrl_wm.planners.search` returns it.
        row (int, optional): the row. Defaults to ``0``.

    Keyword Args:
        action_names (sequence of str, optional): names of the actions. Defaults to their indices.
        min_visits (int, optional): nodes with fewer visits are left out. Defaults to ``1``.

    Raises:
        IndexError: for a row that the tree does not have.

    Examples:
        >>> from torchrl_wm.planners.tree_search import make_tree
        >>> tree = make_tree(1, 4, 2)
        >>> tree["node_visits"][:, 0] = 1
        >>> print(tree_to_dot(tree))
        digraph search {
          node [fontsize=10]; edge [fontsize=9];
          n0 [label="0\\nN=1\\nV=0.000", shape=ellipse];
        }
    """
    if not 0 <= row < len(tree):
        raise IndexError(f"row={row}, but the trees have the rows 0 to {len(tree) - 1}.")
    one = tree[row].cpu()
    lines = ["digraph search {", "  node [fontsize=10]; edge [fontsize=9];"]
    for node in range(one["node_visits"].shape[0]):
        visits = int(one["node_visits"][node])
        if visits < min_visits:
            continue
        shape = _SHAPES.get(int(one["kinds"][node]), "ellipse")
        label = f"{node}\\nN={visits}\\nV={float(one['node_values'][node]):.3f}"
        lines.append(f'  n{node} [label="{label}", shape={shape}];')
        parent, action = int(one["parents"][node]), int(one["action_from_parent"][node])
        if parent >= 0:
            name = str(action) if action_names is None else action_names[action]
            prior, value = (float(one[key][parent, action]) for key in ("priors", "q_values"))
            label = f"{name}\\nP={prior:.2f} Q={value:.3f}"
            lines.append(f'  n{parent} -> n{node} [label="{label}"];')
    return "\n".join([*lines, "}"])


def draw_tree(tree: TensorDictBase, path: str | Path, row: int = 0, **options) -> Path:
    """Writes the tree of one row as ``.png`` or ``.svg`` (by graphviz) or as ``.dot``.

    Args:
        tree (TensorDictBase): ``[B]``, as :func:`~torchrl_wm.planners.search` returns it.
        path (str or Path): the file; its suffix is the format.
        row (int, optional): the row. Defaults to ``0``.
        **options: of :func:`tree_to_dot`.

    Returns:
        Path: of the file.

    Raises:
        ValueError: for another suffix.
        RuntimeError: for an image, if graphviz's ``dot`` is not installed or fails.
    """
    path, text = Path(path), tree_to_dot(tree, row, **options)
    if path.suffix == ".dot":
        path.write_text(text)
        return path
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"{path.name}: the suffix must be .dot, .png or .svg.")
    program = shutil.which("dot")
    if program is None:
        raise RuntimeError(
            "Pictures need the program dot of graphviz (apt-get install graphviz); its text does not: "
            f"write {path.with_suffix('.dot').name} instead."
        )
    command = [program, f"-T{path.suffix[1:]}", "-o", str(path)]
    done = subprocess.run(command, input=text, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"graphviz failed: {done.stderr.strip()}")
    return path
