"""The loss of a world model: observations, rewards, ends, and the divergence of posterior and prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.objectives.common import LossModule

from torchrl_wm import keys
from torchrl_wm.objectives.divergence_rules import DivergenceRule
from torchrl_wm.objectives.entries import check_distinct, flag_entry, scalar_entry
from torchrl_wm.objectives.initial_weights import InitialWeights
from torchrl_wm.objectives.masking import masked_mean
from torchrl_wm.objectives.overshooting import LatentOvershooting
from torchrl_wm.world_models import WorldModel


class WorldModelLoss(InitialWeights, LossModule):
    """Trains a world model on sequences of step records.

    Reads ``[B, T + 1]`` step records; row 0 is not trained on, its latents are the carry of row 1. Writes
    one ``loss_*`` scalar for each decoded observation, for reward, continuation, overshooting and each
    term of the divergence rule; the metric ``kl``, the mean divergence in nats before scaling and free
    nats; and the posterior ``latents`` ``[B, T]`` of rows 1 to T with their graph, for the losses of
    actor and critic and for the replay. Steps whose mask entry is False count in none of the means.

    An entry ``noise`` ``[B, T + 1, noise size]`` (row 0 unused), where present, replaces the draws.

    Args:
        world_model (WorldModel): the model; its reward head, continuation head and decoder are
            trained where it has them.
        divergence (DivergenceRule): see :mod:`torchrl_wm.objectives.divergence_rules`.

    Keyword Args:
        reconstruction_scale, reward_scale, continuation_scale (float, optional): weights of the
            terms. Default to ``1.0``.
        continuation_discount (float, optional): the target of the continuation is this number where
            the episode goes on and 0 where it terminated. Defaults to ``1.0``.
        overshooting (LatentOvershooting, optional): a term over predictions of several steps.
            Defaults to none.
        squash_reward (bool, optional): learn the tanh of the reward (Dreamer v2 on Atari).
            Defaults to ``False``.

    Raises:
        TypeError: for a model without a latent distribution.
        ValueError: for observations whose losses would share a name.

    Examples:
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> from torchrl_wm.objectives import SeparateKL
        >>> from torchrl_wm.world_models import make_rssm
        >>> specs = Composite(joints=Unbounded(6)), Composite(action=OneHot(2))
        >>> model = make_rssm(*specs, belief_size=16, hidden_size=16, units=16)
        >>> loss = WorldModelLoss(model, SeparateKL())
        >>> records = model.initial([2, 9]).update({"joints": torch.randn(2, 9, 6)})
        >>> for key in ("is_init", "terminated"):
        ...     records[key] = torch.zeros(2, 9, 1, dtype=torch.bool)
        >>> records["reward"], records["previous_action"] = torch.zeros(2, 9, 1), torch.zeros(2, 9, 2)
        >>> out = loss(records)
        >>> sorted(key for key in out.keys() if key.startswith("loss_"))
        ['loss_continuation', 'loss_dynamics', 'loss_joints', 'loss_representation', 'loss_reward']
        >>> out["latents"]["belief"].shape
        torch.Size([2, 8, 16])
    """

    @dataclass
    class _AcceptedKeys:
        reward: NestedKey = keys.REWARD
        terminated: NestedKey = keys.TERMINATED
        mask: NestedKey = keys.MASK
        latents: NestedKey = "latents"
        noise: NestedKey = "noise"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    world_model: WorldModel
    world_model_params: TensorDictParams
    target_world_model_params: TensorDictParams

    def __init__(
        self,
        world_model: WorldModel,
        divergence: DivergenceRule,
        *,
        reconstruction_scale: float = 1.0,
        reward_scale: float = 1.0,
        continuation_scale: float = 1.0,
        continuation_discount: float = 1.0,
        overshooting: LatentOvershooting | None = None,
        squash_reward: bool = False,
    ):
        super().__init__()
        if world_model.latent is None:
            raise TypeError(
                f"A {type(world_model).__name__} draws no latents, so there is no divergence to train: take "
                "MuZeroLoss for it (algorithm=muzero), or another world model."
            )
        self.convert_to_functional(world_model, "world_model", create_target_params=False)
        self.divergence, self.overshooting = divergence, overshooting
        self.reconstruction_scale, self.reward_scale = reconstruction_scale, reward_scale
        self.continuation_scale = continuation_scale
        self.continuation_discount = continuation_discount
        self.squash_reward = squash_reward
        self._check_names()

    def _check_names(self) -> None:
        check_distinct(self.out_keys)
        if self.tensor_keys.noise in self.world_model.in_keys:
            raise ValueError(
                f"An observation is called {self.tensor_keys.noise!r}, as the draws that may stand beside "
                "it. Rename it with torchrl.envs.RenameTransform."
            )

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries of the step records that are read."""
        model = self.world_model
        entries = [*model.in_keys]
        if model.reward_head is not None:
            entries.append(self.tensor_keys.reward)
        if model.continuation_head is not None:
            entries.append(self.tensor_keys.terminated)
        return [unravel_key(key) for key in entries]

    @property
    def out_keys(self) -> list[NestedKey]:
        """The losses, the unscaled divergence and the latents."""
        model, names = self.world_model, list(self.divergence.names)
        if model.decoder is not None:
            names += [_name(key) for key in model.decoder.out_keys]
        if self.overshooting is not None:
            names.append("overshooting")
        if model.reward_head is not None:
            names.append("reward")
        if model.continuation_head is not None:
            names.append("continuation")
        return [*(f"loss_{name}" for name in names), "kl", self.tensor_keys.latents]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The losses of step records ``[B, T + 1]``.

        Raises:
            KeyError: for an entry of ``in_keys`` that is missing.
            ValueError: for a batch that is not ``[B, T + 1]`` with ``T`` at least 1, or an observation,
                action or latent of another shape than the specs say.
        """
        if tensordict.ndim != 2 or tensordict.shape[-1] < 2:
            raise ValueError(
                f"The world model loss reads step records [B, T + 1] with T at least 1, not a batch of "
                f"shape {list(tensordict.shape)}."
            )
        records, carry = tensordict[..., 1:], tensordict[..., 0]
        noise = records.get(self.tensor_keys.noise, None)
        mask = records.get(self.tensor_keys.mask, None)
        mean = lambda value: masked_mean(value, mask)
        with self.world_model_params.to_module(self.world_model):
            observed = self.world_model.observe(records, carry, noise=noise)
            losses = self._likelihoods(self.world_model.features(observed), records, mean)
            if self.overshooting is not None:
                inputs = (observed, records, carry, mask)
                losses["overshooting"] = self.overshooting(self.world_model, *inputs)
        posterior, prior = self.world_model.statistics(observed)
        losses |= self.divergence(self.world_model.kl, posterior, prior, mean)
        out = TensorDict({f"loss_{name}": value for name, value in losses.items()})
        with torch.no_grad():
            out.set("kl", mean(self.world_model.kl(posterior, prior)))
        latents = observed.select(*self.world_model.latent_keys)
        self._clear_weakrefs(tensordict, out)
        return out.set(self.tensor_keys.latents, latents)

    def _likelihoods(self, features: Tensor, records: TensorDictBase, mean) -> dict[str, Tensor]:
        model, losses = self.world_model, {}
        if model.decoder is not None:
            for key, prediction in model.decoder(features).items():
                value = -prediction.log_prob(records.get(key))
                losses[_name(key)] = self.reconstruction_scale * mean(value)
        if model.reward_head is not None:
            reward = scalar_entry(records, self.tensor_keys.reward, self)
            reward = reward.tanh() if self.squash_reward else reward
            losses["reward"] = -self.reward_scale * mean(
                model.reward_head(features).log_prob(reward)
            )
        if model.continuation_head is not None:
            goes_on = (~flag_entry(records, self.tensor_keys.terminated, self)).float()
            value = model.continuation_head(features).log_prob(goes_on * self.continuation_discount)
            losses["continuation"] = -self.continuation_scale * mean(value)
        return losses


def _name(key: NestedKey) -> str:
    return key if isinstance(key, str) else "_".join(key)
