"""The search: descend, evaluate, back up, until every root has had its simulations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_wm.planners.tree_search.evaluation import Dynamics, NodeEvaluator, Root
from torchrl_wm.planners.tree_search.executor import Executor
from torchrl_wm.planners.tree_search.gumbel_rule import GumbelRule
from torchrl_wm.planners.tree_search.muzero_rule import MuZeroRule
from torchrl_wm.planners.tree_search.numba_executor import numba_executor
from torchrl_wm.planners.tree_search.reference import ReferenceExecutor
from torchrl_wm.ranges import COUNT

Rule = MuZeroRule | GumbelRule

EXECUTORS: dict[str, Callable[..., Executor]] = {
    "numba": numba_executor,
    "reference": ReferenceExecutor,
}
"""Every executor makes the same trees. ``numba`` keeps them on the CPU, whatever the model's device."""


@torch.no_grad()
def search(
    dynamics: Dynamics | NodeEvaluator,
    root: Root,
    rule: Rule,
    *,
    num_simulations: int,
    noise: Tensor | None = None,
    max_depth: int | None = None,
    executor: str = "numba",
    keep_latents: bool = False,
) -> TensorDict:
    """Searches from every root and returns the trees.

    The search itself draws nothing: the rule's noise is an argument, or there is none. The model is called
    once per simulation; with the Gumbel rule ``numba`` evaluates the actions of a round together. A model
    that an evaluator could turn into a program is searched without leaving the compiled loop, 32 roots and
    more in as many threads as :func:`torch.get_num_threads` says; the trees are the same.

    Args:
        dynamics (Dynamics or NodeEvaluator): the searched dynamics; an evaluator keeps its recording.
        root (Root): ``B`` states; a logit of minus infinity forbids an action.
        rule (MuZeroRule or GumbelRule): how edges are chosen.

    Keyword Args:
        num_simulations (int): visits of every root.
        noise (Tensor, optional): ``[B, A]`` from ``rule.draw_noise``. Defaults to none.
        max_depth (int, optional): longest path; a node at this depth is visited again instead of
            expanded. Defaults to no limit.
        executor (str, optional): ``"numba"`` or ``"reference"``. Defaults to ``"numba"``.
        keep_latents (bool, optional): write the latents of all nodes below ``"latents"``, ``[B, N,
            ...]``, under the names of ``dynamics.in_keys``. Defaults to ``False``.

    Returns:
        TensorDict: the trees, see :func:`~torchrl_wm.planners.tree_search.make_tree`.

    Raises:
        ValueError: for fewer than one simulation or level, roots or noise of other shapes, a root
            without an allowed action, or an unknown executor.
        FloatingPointError: where the model returns NaN or infinity; the message names the node.

    Examples:
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> from torchrl_wm.planners.tree_search.search_policy import make_dynamics
        >>> from torchrl_wm.world_models import make_muzero
        >>> model = make_muzero(Composite(joints=Unbounded(6)), Composite(action=OneHot(3)), support=20)
        >>> dynamics = make_dynamics(model, discount=0.997)
        >>> root = dynamics.root(model.roots(TensorDict({"joints": torch.randn(2, 6)}, [2])))
        >>> tree = search(dynamics, root, MuZeroRule(), num_simulations=8, executor="reference")
        >>> tree["children_visits"].shape, tree["children_visits"][:, 0].sum(-1)
        (torch.Size([2, 9, 3]), tensor([8, 8]))
    """
    COUNT.check(num_simulations=num_simulations)
    if max_depth is not None:
        COUNT.check(max_depth=max_depth)
    _check_shapes(root, noise)
    if executor not in EXECUTORS:
        raise ValueError(f"Unknown executor {executor!r}; expected one of {list(EXECUTORS)}.")
    evaluator = (
        dynamics if isinstance(dynamics, NodeEvaluator) else NodeEvaluator(dynamics, trace=False)
    )
    logits = rule.root_logits(root.logits, noise)
    # Inference tensors do not track views; leaving inference mode would turn gradients on.
    with torch.inference_mode(False), torch.no_grad():
        work = EXECUTORS[executor](root.value, logits, rule, num_simulations, max_depth, noise)
    store = evaluator.begin(root.latents, work.capacity)
    work.run(evaluator, store)
    if keep_latents:
        # Entries that the dynamics carry besides the model's latents (sampled actions) come last.
        for name, buffer in zip(evaluator.dynamics.in_keys, store.buffers, strict=False):
            kept = buffer[work.states.to(buffer.device)]
            work.tree.set(unravel_key(("latents", name)), kept.to(work.tree.device))
    evaluator.end(store)
    return work.tree


def _check_shapes(root: Root, noise: Tensor | None) -> None:
    """Compiled loops would read beyond the end."""
    rows, latents = root.logits.shape[:1], [x.shape for x in root.latents]
    fit = root.logits.dim() == 2 and root.value.shape == rows
    if not fit or any(shape[:1] != rows for shape in latents):
        raise ValueError(
            f"Roots have values [B], logits [B, A] and latents [B, ...]; got {[*root.value.shape]}, "
            f"{[*root.logits.shape]} and {[[*shape] for shape in latents]}."
        )
    if noise is not None and noise.shape != root.logits.shape:
        raise ValueError(
            f"Noise has a number for every action of every root, {[*root.logits.shape]}, as "
            f"rule.draw_noise gives it; got {[*noise.shape]}."
        )
