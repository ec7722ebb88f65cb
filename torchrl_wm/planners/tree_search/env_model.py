"""Searching true dynamics: a stateless environment and a network that evaluates its states (AlphaZero)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_wm import keys
from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.planners.stateless import check_unbatched, ended, outermost, start_keys
from torchrl_wm.planners.tree_search.evaluation import Latents, Root, Step
from torchrl_wm.planners.tree_search.models import SearchedModel, require
from torchrl_wm.planners.tree_search.tree import DECISION, TERMINAL


class EnvModel(SearchedModel):
    """Steps an environment; values and policies come from an evaluation module.

    Every node keeps the entries that the environment's step and the evaluation read. The search ends
    where an episode ends; forbidden actions are never stepped.

    Args:
        env (EnvBase): an environment whose step depends on its input alone, without a batch size of its
            own (and not batch-locked).
        evaluation (TensorDictModuleBase): reads observations, writes ``state_value [..., 1]``, from the
            view of the player to move, and ``policy_logits [..., A]``.

    Keyword Args:
        discount (float, optional): of a step. Defaults to ``1.0``.
        reward_keys (sequence of NestedKey, optional): the reward of a move, or one entry for each
            player, in which case a move earns the mover's minus the others'. Defaults to the
            environment's.
        turn_key (NestedKey, optional): whose turn it is, ``[..., 1]``: where a step changes it, values
            change their sign. Defaults to one player.
        mask_key (NestedKey, optional): allowed actions ``[..., A]``, at every node. Defaults to all.
        value_key, logits_key (NestedKey, optional): what the evaluation writes.

    Raises:
        ValueError: for an environment that is batch-locked or has a batch size, or rewards of several
            players without a turn.

    Examples:
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.envs.custom import TicTacToeEnv
        >>> from torchrl_wm.planners import SearchPolicy
        >>> def judge(board):
        ...     return torch.zeros(*board.shape[:-2], 1), torch.zeros(*board.shape[:-2], 9)
        >>> judge = TensorDictModule(judge, ["board"], ["state_value", "policy_logits"])
        >>> model = EnvModel(TicTacToeEnv(), judge, turn_key="turn", mask_key="mask")
        >>> policy = SearchPolicy(model, num_simulations=30, executor="reference", greedy=True)
        >>> td = model.env.reset(TensorDict(batch_size=[1]))
        >>> td["board"] = torch.tensor([[[1, 1, -1], [0, 0, -1], [-1, -1, -1]]], dtype=torch.int32)
        >>> td["mask"] = td["board"].flatten(1) == -1
        >>> policy(td)["action"]
        tensor([2])
    """

    def __init__(
        self,
        env: EnvBase,
        evaluation: TensorDictModuleBase,
        *,
        discount: float = 1.0,
        reward_keys: Sequence[NestedKey] | None = None,
        turn_key: NestedKey | None = None,
        mask_key: NestedKey | None = None,
        value_key: NestedKey = keys.STATE_VALUE,
        logits_key: NestedKey = keys.POLICY_LOGITS,
    ):
        super().__init__()
        check_unbatched(env)
        self.env, self.evaluation, self.discount = env, evaluation, float(discount)
        self.reward_keys = list(env.reward_keys if reward_keys is None else reward_keys)
        if len(self.reward_keys) > 1 and turn_key is None:
            raise ValueError(
                f"The rewards {self.reward_keys} of several players need turn_key, the entry that says "
                "who moves; or choose one with reward_keys."
            )
        self.turn_key = None if turn_key is None else unravel_key(turn_key)
        self.mask_key = None if mask_key is None else unravel_key(mask_key)
        self.value_key, self.logits_key = unravel_key(value_key), unravel_key(logits_key)
        self.action_encoding = ActionEncoding(env.full_action_spec)
        self.done_keys, self.terminated_keys = outermost(env, "done"), outermost(env, "terminated")
        read = [*start_keys(env), *evaluation.in_keys]
        read += [key for key in (self.turn_key, self.mask_key) if key is not None]
        self.in_keys = list(dict.fromkeys(map(unravel_key, read)))

    def root(self, tensordict: TensorDictBase) -> Root:
        """States, value ``[B]`` and logits ``[B, A]`` of rows ``[B]``."""
        name = type(self.env).__name__
        states = tuple(require(tensordict, key, name) for key in self.in_keys)
        return Root(states, *self._judge(tensordict.select(*self.in_keys)))

    def step(self, latents: Latents, action: Tensor) -> Step:
        """Follows encoded actions ``[R, F]`` from states ``[R, ...]``."""
        rows = TensorDict(dict(zip(self.in_keys, latents, strict=True)), [len(action)])
        before = None if self.turn_key is None else rows.get(self.turn_key).reshape(len(action))
        row = self.env.step(self.action_encoding.decode(action, rows))
        following = row.get("next")
        states = tuple(
            require(following, key, type(self.env).__name__, ("next",)) for key in self.in_keys
        )
        value, logits = self._judge(following.select(*self.in_keys))
        discount = torch.where(ended(row, self.terminated_keys), 0.0, self.discount).to(value.dtype)
        if before is not None:
            after = following.get(self.turn_key).reshape(len(action))
            discount = torch.where(before == after, discount, -discount)
        kind = torch.where(ended(row, self.done_keys), TERMINAL, DECISION).to(torch.int8)
        return Step(states, self._reward(following, before), value, logits, discount, kind)

    def _reward(self, following: TensorDictBase, turn: Tensor | None) -> Tensor:
        """The mover's reward ``[R]``, minus that of the others."""
        rewards = [following.get(key).reshape(len(following)) for key in self.reward_keys]
        if len(rewards) == 1:
            return rewards[0]
        rewards = torch.stack(rewards, -1)
        mine = rewards.gather(-1, turn.long().unsqueeze(-1)).squeeze(-1)
        return 2 * mine - rewards.sum(-1)

    def _judge(self, rows: TensorDictBase) -> tuple[Tensor, Tensor]:
        name = type(self.evaluation).__name__
        judged = self.evaluation(rows)
        value = require(judged, self.value_key, name).reshape(len(rows))
        logits = require(judged, self.logits_key, name)
        if self.mask_key is not None:
            logits = logits.masked_fill(~rows.get(self.mask_key).bool(), -torch.inf)
        return value, logits
