"""A model made of tables, as the golden search files store it: states are integers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchrl.data import Categorical

from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.planners.tree_search import CHANCE, DECISION, Dynamics, Root, Step


class TabularDynamics(Dynamics):
    """Looks up ``next_state, reward, discount, prior_logits [S, A]`` and ``value [S]``.

    ``allowed [S, A]``, where given, says which actions are allowed below the root.
    """

    in_keys = ["state"]
    traceable = True

    def __init__(self, tables, allowed: Tensor | None = None):
        num_actions = tables["next_state"].shape[1]
        super().__init__(ActionEncoding(Categorical(num_actions)), num_actions, 1.0)
        names = ("next_state", "reward", "discount", "prior_logits", "value")
        self.tables = {name: tables[name] for name in names}
        self.below = tables["prior_logits"]
        if allowed is not None:
            self.below = self.below.masked_fill(~allowed, -torch.inf)
        self.calls = 0

    def roots(self, state: Tensor, allowed: Tensor | None = None) -> Root:
        state = state.long()
        logits = self.tables["prior_logits"][state]
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        return Root((state,), self.tables["value"][state], logits)

    def step(self, latents, action):
        self.calls += 1
        (state,), tables = latents, self.tables
        following = tables["next_state"][state, action].long()
        return Step(
            (following,),
            tables["reward"][state, action],
            tables["value"][following],
            self.below[following],
            tables["discount"][state, action],
        )


class ChanceDynamics(Dynamics):
    """Decisions lead to chance nodes, whose outcomes are actions ``A .. A + C - 1``."""

    in_keys = ["state", "is_chance"]
    traceable = True

    def __init__(self, tables):
        self.choices, self.outcomes = tables["afterstate"].shape[1], tables["next_state"].shape[1]
        num_actions = self.choices + self.outcomes
        super().__init__(ActionEncoding(Categorical(num_actions)), num_actions, 1.0)
        self.tables = tables

    def roots(self, state: Tensor, allowed: Tensor) -> Root:
        state = state.long()
        latents = state, torch.zeros_like(state, dtype=torch.bool)
        logits = self._decisions(state)
        logits[:, : self.choices].masked_fill_(~allowed, -torch.inf)
        return Root(latents, self.tables["value"][state], logits)

    def step(self, latents, action):
        (state, is_chance), tables = latents, self.tables
        choice = action.clamp_max(self.choices - 1)
        outcome = (action - self.choices).clamp_min(0)
        after = tables["afterstate"][state.clamp_max(len(tables["value"]) - 1), choice].long()
        chance = state.clamp_max(len(tables["afterstate_value"]) - 1)
        following = tables["next_state"][chance, outcome].long()
        wide = is_chance.unsqueeze(-1)
        return Step(
            (torch.where(is_chance, following, after), ~is_chance),
            torch.where(is_chance, tables["reward"][chance, outcome], 0.0),
            torch.where(is_chance, tables["value"][following], tables["afterstate_value"][after]),
            torch.where(wide, self._decisions(following), self._chances(after)),
            torch.where(is_chance, tables["discount"][chance, outcome], 1.0),
            torch.where(is_chance, DECISION, CHANCE).to(torch.int8),
        )

    def _decisions(self, state):
        return F.pad(self.tables["prior_logits"][state], (0, self.outcomes), value=-torch.inf)

    def _chances(self, after):
        return F.pad(self.tables["chance_logits"][after], (self.choices, 0), value=-torch.inf)
