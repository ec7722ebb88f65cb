"""Searching among sampled actions, for continuous and large action spaces (Sampled MuZero)."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_wm.planners.tree_search.evaluation import (
    Dynamics,
    Latents,
    Root,
    Step,
    no_action_allowed,
)
from torchrl_wm.planners.tree_search.models import SearchedModel
from torchrl_wm.ranges import COUNT

SETS = 256
"""Sets of draws of one search; each node takes one by its path."""
MULTIPLIER = 6364136223846793005


class SampledDynamics(Dynamics):
    """``K`` edges at each node, actions drawn from the policy there (https://arxiv.org/abs/2104.06303).

    As the samples come from the policy itself, the prior of an edge is its share among them: uniform for
    continuous actions. Samples that coincide (discrete ones, or those clipped to a bound) are merged: the
    first counts for all, the others are forbidden. The actions are carried in the latents, after those of
    the model.

    Random numbers are drawn once per search, with the roots; a node uses the set selected by a hash of
    its path, so that results depend neither on the executor nor on the order of evaluation.

    Args:
        model (SearchedModel): a model whose logits parametrise its ``distribution``.
        num_samples (int): ``K``.
        discount (float): of a step.

    Raises:
        ValueError: for less than one sample.
    """

    def __init__(self, model: SearchedModel, num_samples: int, discount: float):
        COUNT.check(num_sampled_actions=num_samples)
        super().__init__(model.action_encoding, num_samples, discount)
        self.model = model
        self.in_keys, self.traceable = list(model.in_keys), model.traceable
        size = model.action_encoding.size
        self.register_buffer("draws", torch.zeros(SETS, num_samples, size), persistent=False)

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
        """Roots of rows ``[B]``; ``allowed [B, P]`` masks the logits of a discrete policy."""
        root = self.model.root(tensordict)
        raw = root.logits
        if allowed is not None:
            if allowed.shape != raw.shape or self.action_encoding.choices is None:
                raise ValueError(
                    f"An action mask {tuple(allowed.shape)} for a policy of {tuple(raw.shape)} numbers: "
                    "sampled actions can be masked where the policy is one choice."
                )
            if not allowed.any(-1).all():
                raise no_action_allowed(~allowed.any(-1))
            raw = raw.masked_fill(~allowed, torch.finfo(raw.dtype).min)
        # On the CPU, where the generator is.
        policy = self.model.distribution(raw[:1].detach().cpu())
        noise = policy.noise((SETS * self.num_actions,), generator=generator)
        self._follow(raw.device)
        self.draws.copy_(noise.view_as(self.draws))  # in place: a recording refers to them
        path = torch.arange(len(raw), device=raw.device) * MULTIPLIER
        path = (path ^ (path >> 32)) * MULTIPLIER  # not linear in the row, which would be a period
        latents, logits = self._with_samples(root.latents, path, raw)
        return Root(latents, root.value, logits)

    def step(self, latents: Latents, action: Tensor) -> Step:
        """Follows the samples with index ``action [R]``."""
        *carried, samples, path = latents
        index = action.view(-1, 1, 1).expand(-1, 1, samples.shape[-1])
        step = self.model.step(tuple(carried), samples.gather(1, index).squeeze(1))
        # A linear congruential step; its upper bits are well mixed.
        path = path * MULTIPLIER + (action + 1) * 1442695040888963407
        latents, logits = self._with_samples(step.latents, path, step.logits)
        return step._replace(latents=latents, logits=logits)

    def samples(self, root: Root) -> Tensor:
        """The encoded actions ``[B, K, F]`` of roots."""
        return root.latents[-2]

    def encoded_action(self, root: Root, index: Tensor) -> Tensor:
        """The encoded form ``[B, F]`` of the chosen samples."""
        samples = self.samples(root)
        return samples[torch.arange(len(samples), device=samples.device), index.to(samples.device)]

    def _with_samples(self, latents: Latents, path: Tensor, raw: Tensor) -> tuple[Latents, Tensor]:
        noise = self.draws[(path >> 56) % SETS].transpose(0, 1)
        samples = self.model.distribution(raw).sample((self.num_actions,), noise=noise)
        samples = self.action_encoding.clip(samples).transpose(0, 1)
        return (*latents, samples, path), self._shares(samples)

    def _shares(self, samples: Tensor) -> Tensor:
        """Logits ``[R, K]`` of the samples: the log of how often each was drawn."""
        same = (samples.unsqueeze(-2) == samples.unsqueeze(-3)).all(-1)
        seen_before = same.tril(-1).any(-1)
        logits = same.sum(-1).to(samples.dtype).log().masked_fill(seen_before, -torch.inf)
        # Equal to nothing, they would count as actions that are not allowed.
        return logits.masked_fill(samples.isnan().any(-1), torch.nan)
