"""Tree search as a policy: TensorDict in; action, search policy, value and visits out."""

from __future__ import annotations

from copy import copy

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn

from torchrl_wm import keys
from torchrl_wm.modules.exploration_type import wants_mode
from torchrl_wm.planners.evaluating import evaluating
from torchrl_wm.planners.tree_search.discrete import DiscreteDynamics
from torchrl_wm.planners.tree_search.env_model import EnvModel
from torchrl_wm.planners.tree_search.evaluation import Dynamics, NodeEvaluator
from torchrl_wm.planners.tree_search.models import SearchedModel, TensorDictModel, TensorModel
from torchrl_wm.planners.tree_search.muzero_rule import MuZeroRule
from torchrl_wm.planners.tree_search.sampled import SampledDynamics
from torchrl_wm.planners.tree_search.search import EXECUTORS, Rule, search
from torchrl_wm.ranges import COUNT, Range


class SearchPolicy(TensorDictModuleBase):
    """Searches from every row of a TensorDict, of any batch size ``[...]``, and acts.

    Reads the latents of roots (call ``world_model.filter`` first), or the inputs of a stateless
    environment. With an ``action_mask [..., A]``, only the allowed actions are tried at the root; rows
    whose ``done`` is True are not searched: they get zeros and the first action. Writes the action in the
    environment's own encoding, ``search_policy [..., A]``, ``root_value [..., 1]`` and ``visit_counts
    [..., A]``; with sampled actions ``A`` counts the samples, which are written to ``sampled_actions
    [..., A, F]``, encoded.

    Args:
        model (nn.Module): a world model that predicts rewards, values and policies, another module
            with such entries (:class:`~torchrl_wm.planners.tree_search.models.TensorDictModel`), or an
            environment with an evaluation module (:class:`~torchrl_wm.planners.EnvModel`).

    Keyword Args:
        rule (MuZeroRule or GumbelRule, optional): how actions are tried. Defaults to ``MuZeroRule()``.
        num_simulations (int, optional): visits of each root. Defaults to ``50``.
        discount (float, optional): of a step; negative in games in which two players take turns.
            Defaults to that of the model, if it has one as ``EnvModel`` does, otherwise to ``0.997``.
        num_sampled_actions (int, optional): search among samples of the policy instead of all
            actions. Defaults to all.
        max_depth (int, optional): longest path. Defaults to no limit.
        greedy (bool, optional): search without noise and take the best action instead of a drawn one.
            TorchRL's exploration types ``MODE``, ``MEAN`` and ``DETERMINISTIC`` have the same effect.
            Defaults to ``False``.
        executor (str, optional): ``"numba"`` or ``"reference"``. Defaults to ``"numba"``.
        trace (bool, optional): record the model's operations once, see
            :class:`~torchrl_wm.planners.tree_search.NodeEvaluator`. Defaults to ``True``.
        generator (torch.Generator, optional): source of all draws, on the CPU. Defaults to the global
            one.
        action_mask_key, done_key (NestedKey, optional): entries that are read where they exist.
        search_policy_key, root_value_key, visit_counts_key, sampled_actions_key (NestedKey, optional):
            the entries that are written, see :mod:`torchrl_wm.keys`.

    Raises:
        ValueError: for an option out of range; at a search, for a row without an allowed action.
        TypeError: for a rule of the wrong type, or an action spec that cannot be enumerated, without
            ``num_sampled_actions``.
        KeyError: at a search, for an entry that the model or the root lacks.
        FloatingPointError: at a search, where the model returns NaN or infinity.

    Examples:
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> from torchrl_wm.world_models import make_muzero
        >>> model = make_muzero(Composite(observation=Unbounded(4)), Composite(action=OneHot(2)))
        >>> policy = SearchPolicy(model, num_simulations=8, executor="reference")
        >>> td = policy(model.initial([5]))
        >>> td["action"].shape, td["visit_counts"].sum(-1)
        (torch.Size([5, 2]), tensor([8, 8, 8, 8, 8]))
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rule: Rule | None = None,
        num_simulations: int = 50,
        discount: float | None = None,
        num_sampled_actions: int | None = None,
        max_depth: int | None = None,
        greedy: bool = False,
        executor: str = "numba",
        trace: bool = True,
        generator: torch.Generator | None = None,
        action_mask_key: NestedKey = keys.ACTION_MASK,
        done_key: NestedKey = "done",
        search_policy_key: NestedKey = keys.SEARCH_POLICY,
        root_value_key: NestedKey = keys.ROOT_VALUE,
        visit_counts_key: NestedKey = keys.VISIT_COUNTS,
        sampled_actions_key: NestedKey = keys.SAMPLED_ACTIONS,
    ):
        super().__init__()
        COUNT.check(num_simulations=num_simulations)
        if max_depth is not None:
            COUNT.check(max_depth=max_depth)
        if discount is not None:
            Range(-1, 1).check(discount=discount)
        if not isinstance(rule, Rule | None):
            raise TypeError(f"rule={rule!r} must be a MuZeroRule() or a GumbelRule().")
        if executor not in EXECUTORS:
            raise ValueError(f"Unknown executor {executor!r}; expected one of {list(EXECUTORS)}.")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(
                f"A search draws its few random numbers on the CPU; its generator is on {generator.device}."
            )
        self.dynamics = make_dynamics(model, discount, num_sampled_actions)
        self.evaluator = NodeEvaluator(self.dynamics, trace=trace)
        # A copy: scheduling one search's temperature must not affect others with the same rule.
        self.rule = MuZeroRule() if rule is None else copy(rule)
        self.num_simulations, self.max_depth = num_simulations, max_depth
        self.greedy, self.executor, self.generator = greedy, executor, generator
        self.action_mask_key, self.done_key = unravel_key(action_mask_key), unravel_key(done_key)
        self.visit_counts_key = unravel_key(visit_counts_key)
        written = [search_policy_key, root_value_key, visit_counts_key]
        if num_sampled_actions is not None:
            written.append(sampled_actions_key)
        self.written = [unravel_key(key) for key in written]
        self.in_keys = list(self.dynamics.root_keys)
        self.out_keys = [*self.dynamics.action_encoding.in_keys, *self.written]

    @torch.compiler.disable  # compiled already, by numba
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Searches from every row and writes the actions and the search statistics, in place."""
        batch = tensordict.batch_size
        rows = tensordict.select(*self.in_keys, strict=False).reshape(batch.numel())
        device = next((x.device for x in rows.values(True, True)), None)  # a tree is on the CPU
        allowed = self._flat(tensordict, self.action_mask_key)
        over = self._over(tensordict)
        if not len(rows) or (over is not None and over.all()):
            found = self._nothing(len(rows), device)
        elif over is None or not over.any():
            found = self._search(rows, allowed)
        else:
            found = self._search_some(rows, allowed, ~over)
        found = [x.to(device).reshape(*batch, *x.shape[1:]) for x in found]
        for key, value in zip(self.written, found[1:], strict=True):
            tensordict.set(key, value)
        return self.dynamics.action_encoding.decode(found[0], tensordict)

    def trees(self, tensordict: TensorDictBase) -> TensorDict:
        """The trees of a search from rows ``[B]``, none of them finished; latents included.

        Nothing is written.

        Raises:
            ValueError: for another batch size.
        """
        if tensordict.ndim != 1:
            raise ValueError(
                f"Trees are those of rows [B], but the batch size is {list(tensordict.batch_size)}: reshape."
            )
        allowed = self._flat(tensordict, self.action_mask_key)
        with torch.no_grad(), evaluating(self.dynamics):
            return self._grow(tensordict, allowed, keep_latents=True)[1]

    # -- one search ----------------------------------------------------------------------------------
    @torch.no_grad()
    def _search(self, rows: TensorDictBase, allowed: Tensor | None) -> list[Tensor]:
        """Encoded actions and the values of the written entries, ``[B, ...]`` each."""
        with evaluating(self.dynamics):
            root, tree, noise = self._grow(rows, allowed)
        greedy = self._is_greedy()
        index = self.rule.action(tree, noise, greedy=greedy, generator=self.generator)
        visits = tree["children_visits"][:, 0].long()
        value = tree["node_values"][:, :1].clone()
        found = [self.dynamics.encoded_action(root, index), self.rule.policy(tree), value, visits]
        if isinstance(self.dynamics, SampledDynamics):
            found.append(self.dynamics.samples(root))
        return found

    def _grow(self, rows: TensorDictBase, allowed: Tensor | None, *, keep_latents: bool = False):
        root = self.dynamics.root(rows, allowed, self.generator)
        noise = None
        if not self._is_greedy():
            noise = self.rule.draw_noise(root.logits > -torch.inf, self.generator)
        tree = search(
            self.evaluator,
            root,
            self.rule,
            num_simulations=self.num_simulations,
            noise=noise,
            max_depth=self.max_depth,
            executor=self.executor,
            keep_latents=keep_latents,
        )
        return root, tree, noise

    def _search_some(self, rows, allowed: Tensor | None, live: Tensor) -> list[Tensor]:
        """The search of the live rows; the others get zeros and the first action."""
        try:
            values = self._search(rows[live], None if allowed is None else allowed[live])
        except (ValueError, FloatingPointError) as error:
            searched = live.nonzero().flatten().tolist()
            raise type(error)(
                f"{error} Rows are counted among those that were searched: {searched}."
            ) from error
        found = []
        for value in values:
            whole = value.new_zeros(len(rows), *value.shape[1:])
            whole[live.to(value.device)] = value
            found.append(whole)
        return found

    def _nothing(self, rows: int, device: torch.device | None) -> list[Tensor]:
        size, edges = self.dynamics.action_encoding.size, self.dynamics.num_actions
        found = [torch.zeros(rows, n, device=device) for n in (size, edges, 1)]
        found.append(torch.zeros(rows, edges, dtype=torch.int64, device=device))
        if isinstance(self.dynamics, SampledDynamics):
            found.append(torch.zeros(rows, edges, size, device=device))
        return found

    def _over(self, tensordict: TensorDictBase) -> Tensor | None:
        """Which rows ``[B]`` are done or no longer stepped by a rollout; None if no entry tells."""
        done, stepped = (self._flat(tensordict, key) for key in (self.done_key, "_step"))
        flags = [done] if done is not None else []
        flags += [~stepped] if stepped is not None else []
        return torch.stack([flag.all(-1) for flag in flags]).any(0) if flags else None

    def _is_greedy(self) -> bool:
        return self.greedy or wants_mode()

    def _flat(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor | None:
        """An optional entry as ``[B, n]`` bool."""
        value, batch = tensordict.get(key, None), tensordict.batch_size
        if value is None:
            return None
        return value.reshape(batch.numel(), value.shape[len(batch) :].numel()).bool()


def make_dynamics(
    model: nn.Module, discount: float | None = None, num_sampled_actions: int | None = None
) -> Dynamics:
    """The dynamics for a search of ``model``: over all its actions, or samples of its policy.

    Raises:
        TypeError: for a model or an action spec that cannot be searched.
        ValueError: for an option that contradicts the model's own.
    """
    own = model.discount if isinstance(model, Dynamics | EnvModel) else None
    if own is not None and discount is not None and discount != own:
        raise ValueError(
            f"discount={discount} contradicts that of the {type(model).__name__}, {own}: leave it out."
        )
    if isinstance(model, Dynamics):
        if num_sampled_actions is not None:
            raise ValueError(
                f"num_sampled_actions={num_sampled_actions} has no effect: the {type(model).__name__} says "
                "what is tried. Leave it out, or give the model that it was made of."
            )
        return model
    discount = next(value for value in (discount, own, 0.997) if value is not None)
    if not isinstance(model, SearchedModel):
        kind = TensorModel if hasattr(model, "search_tensors") else TensorDictModel
        model = kind(model, discount)
    if num_sampled_actions is None:
        return DiscreteDynamics(model, discount)
    return SampledDynamics(model, num_sampled_actions, discount)
