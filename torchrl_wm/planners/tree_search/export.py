"""A searched tree as TorchRL's ``Tree``, for its tools: paths, vertices, plots."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Tree


def to_torchrl_tree(tree: TensorDictBase, row: int = 0) -> Tree:
    """The tree of one row as :class:`torchrl.data.Tree`.

    Each vertex has the node's number as ``node_id`` and ``hash``, its visits as ``count``, the sum of
    its values as ``wins``, ``value`` and the latents (where they were kept) in ``node_data``, and the
    step that led to it as ``rollout``: ``action`` (an index), ``("next", "reward")`` and ``("next",
    "discount")``.

    Args:
        tree (TensorDictBase): ``[B]``, as :func:`~torchrl_wm.planners.search` returns it.
        row (int, optional): the row. Defaults to ``0``.

    Raises:
        IndexError: for a row that the tree does not have.

    Examples:
        >>> from torchrl_wm.planners.tree_search import make_tree
        >>> tree = make_tree(1, 4, 2)
        >>> tree["node_visits"][:, 0] = 1
        >>> to_torchrl_tree(tree).count
        tensor(1., dtype=torch.float64)
    """
    if not 0 <= row < len(tree):
        raise IndexError(f"row={row}, but the trees have the rows 0 to {len(tree) - 1}.")
    one = tree[row].cpu()
    made = (one["node_visits"] > 0).nonzero().flatten().tolist()
    children: dict[int, list[Tree]] = {node: [] for node in made}
    for node in reversed(made):  # children have higher numbers than their parents
        vertex = _vertex(one, node, children[node][::-1])
        parent = int(one["parents"][node])
        if parent < 0:
            return vertex
        children[parent].append(vertex)
    raise ValueError(f"The tree of row {row} has no root: nothing was searched.")


def _vertex(one: TensorDictBase, node: int, children: list[Tree]) -> Tree:
    count = one["node_visits"][node].double()
    data = TensorDict({"value": one["node_values"][node]}, [])
    if "latents" in one.keys():
        data.update(one["latents"].apply(lambda x: x[node], batch_size=[]))
    return Tree(
        count=count,
        wins=count * one["node_values"][node],
        node_data=data,
        rollout=_step(one, node),
        subtree=TensorDict.lazy_stack(children) if children else None,
        hash=torch.tensor(node),
        node_id=torch.tensor(node),
        batch_size=[],
    )


def _step(one: TensorDictBase, node: int) -> TensorDict | None:
    """The step ``[1]`` that led to a node."""
    if node == 0:
        return None
    arrived = {
        "reward": one["rewards"][node].view(1, 1),
        "discount": one["discounts"][node].view(1, 1),
    }
    action = one["action_from_parent"][node].long().view(1)
    return TensorDict({"action": action, "next": TensorDict(arrived, [1])}, [1])
