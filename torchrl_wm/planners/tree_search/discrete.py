"""Searching all actions of a discrete action space."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_wm.planners.tree_search.evaluation import Dynamics, Latents, Root, Step
from torchrl_wm.planners.tree_search.models import SearchedModel


class DiscreteDynamics(Dynamics):
    """One edge for each of the ``A`` actions of a model with a single discrete action.

    Args:
        model (SearchedModel): a model with policy logits ``[..., A]``.
        discount (float): of a step.

    Raises:
        TypeError: for any other action spec.
        ValueError: at a root, for policy logits or an action mask of another shape.
    """

    def __init__(self, model: SearchedModel, discount: float):
        encoding = model.action_encoding
        if encoding.choices is None:
            specs = {str(key): type(spec).__name__ for key, spec in encoding.leaves.items()}
            raise TypeError(
                f"The actions {specs} cannot all be tried: that needs a single OneHot or Categorical "
                "entry. Set num_sampled_actions to search among sampled actions."
            )
        super().__init__(encoding, encoding.choices, discount)
        self.model, self.in_keys, self.traceable = model, list(model.in_keys), model.traceable
        codes = torch.eye(self.num_actions)
        self.register_buffer("codes", codes, persistent=False)

    @property
    def root_keys(self) -> list[NestedKey]:
        """The entries that :meth:`root` reads."""
        return self.model.root_keys

    def root(
        self,
        tensordict: TensorDictBase,
        allowed: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Root:
        """Roots of rows ``[B]``; ``allowed [B, A]`` says which actions may be taken there."""
        root = self.model.root(tensordict)
        self._check(root.logits)
        self._follow(root.logits.device)
        if allowed is not None:
            if allowed.shape != root.logits.shape:
                raise ValueError(
                    f"The action mask is {list(allowed.shape)}; it must say for each row and each of the "
                    f"{self.num_actions} actions whether it is allowed, {list(root.logits.shape)}."
                )
            root = root._replace(logits=root.logits.masked_fill(~allowed, -torch.inf))
        return root

    def step(self, latents: Latents, action: Tensor) -> Step:
        """Follows the actions with index ``action [R]``."""
        return self.model.step(latents, self.codes.index_select(0, action))

    def encoded_action(self, root: Root, index: Tensor) -> Tensor:
        """The one-hot form ``[B, A]`` of the chosen actions."""
        return self.codes[index.to(self.codes.device)]

    def _check(self, logits: Tensor) -> None:
        if logits.shape[-1] != self.num_actions:
            raise ValueError(
                f"The policy logits have {logits.shape[-1]} numbers for {self.num_actions} actions."
            )
