"""The loss of MuZero: rewards, values and policies along an unrolled model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams, dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives.common import LossModule

from torchrl_wm import keys
from torchrl_wm.objectives.entries import check_distinct, entry, scalar_entry
from torchrl_wm.objectives.initial_weights import InitialWeights
from torchrl_wm.world_models import MuZeroModel


class MuZeroLoss(InitialWeights, LossModule):
    """Trains a MuZero model on sequences with targets (https://arxiv.org/abs/1911.08265, appendix G).

    The model represents record ``root`` of each sequence and follows the actions of the next
    ``unroll_steps`` records. The losses of all steps after the first are scaled by ``1 / K``, and the
    gradient of the hidden state by one half where the dynamics read it: along the unroll, not on its way
    to the heads.

    Reads ``[B, L]`` records as :class:`~torchrl_wm.data.UnrolledTargets` completes them. Writes
    ``loss_policy``, ``loss_value``, ``loss_reward`` and, where the model has the parts,
    ``loss_consistency`` and one ``loss_*`` for each decoded observation, scalars; the metrics
    ``value``, ``entropy``, ``value_beyond_support`` and ``reward_beyond_support`` (shares of targets
    outside the support, which are clamped to its ends); and ``priority`` ``[B, K + 1, 1]``, the absolute
    errors of the values.

    Args:
        world_model (MuZeroModel): the model. A copy is kept as target parameters, for
            :class:`~torchrl_wm.objectives.SlowUpdate`.

    Keyword Args:
        unroll_steps (int): ``K``.
        root (int, optional): position of the root in a sequence. Defaults to ``0``.
        policy_scale, reward_scale (float, optional): weights of the terms. Default to ``1.0``.
        value_scale (float, optional): weight of the value, as in Reanalyze. Defaults to ``0.25``.
        consistency_scale (float, optional): weight of the consistency, as in EfficientZero. Defaults to
            ``2.0``.
        reconstruction_scale (float, optional): weight of the reconstruction. Defaults to ``1.0``.
        entropy_scale (float, optional): weight of the policy's entropy. Defaults to ``0.0``.

    Policies are learned from ``search_policy``, the probabilities of one-hot actions, or where the
    records have ``sampled_actions [..., S, A]`` those of the sampled actions
    (Sampled MuZero, https://arxiv.org/abs/2104.06303).

    Raises:
        ValueError: for a decoded observation with the name of a term; when called on anything but
            ``[B, L]`` records with ``L`` at least ``root + unroll_steps + 1``.
        KeyError: when called on records that lack an entry, ``sampled_actions`` included where the actions
            are not one choice.

    Examples:
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> from torchrl_wm.world_models import make_muzero
        >>> model = make_muzero(Composite(joints=Unbounded(6)), Composite(action=OneHot(2)), support=20)
        >>> loss = MuZeroLoss(model, unroll_steps=5)
        >>> target = {key: torch.zeros(3, 6, 1) for key in ("value", "reward")}
        >>> for key in ("value_mask", "reward_mask", "policy_mask", "observed_mask"):
        ...     target[key] = torch.ones(3, 6, 1, dtype=torch.bool)
        >>> target["action"] = torch.eye(2)[torch.randint(2, (3, 6))]
        >>> records = TensorDict({"joints": torch.randn(3, 6, 6), "target": target}, [3, 6])
        >>> out = loss(records.set("search_policy", torch.full((3, 6, 2), 0.5)))
        >>> sorted(key for key in out.keys() if key.startswith("loss_"))
        ['loss_policy', 'loss_reward', 'loss_value']
        >>> out["priority"].shape
        torch.Size([3, 6, 1])
    """

    @dataclass
    class _AcceptedKeys:
        value_target: NestedKey = keys.VALUE_TARGET
        reward_target: NestedKey = keys.REWARD_TARGET
        search_policy: NestedKey = keys.SEARCH_POLICY
        sampled_actions: NestedKey = keys.SAMPLED_ACTIONS
        action: NestedKey = keys.UNROLL_ACTION
        value_mask: NestedKey = keys.VALUE_MASK
        reward_mask: NestedKey = keys.REWARD_MASK
        policy_mask: NestedKey = keys.POLICY_MASK
        observed_mask: NestedKey = keys.OBSERVED_MASK
        weight: NestedKey = keys.PRIORITY_WEIGHT

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    world_model: MuZeroModel
    world_model_params: TensorDictParams
    target_world_model_params: TensorDictParams

    def __init__(
        self,
        world_model: MuZeroModel,
        *,
        unroll_steps: int,
        root: int = 0,
        policy_scale: float = 1.0,
        value_scale: float = 0.25,
        reward_scale: float = 1.0,
        consistency_scale: float = 2.0,
        reconstruction_scale: float = 1.0,
        entropy_scale: float = 0.0,
    ):
        super().__init__()
        self.convert_to_functional(world_model, "world_model", create_target_params=True)
        self.root, self.unroll_steps = root, unroll_steps
        self.policy_scale, self.value_scale = policy_scale, value_scale
        self.reward_scale, self.consistency_scale = reward_scale, consistency_scale
        self.reconstruction_scale, self.entropy_scale = reconstruction_scale, entropy_scale
        check_distinct(self.out_keys)

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries of the records that are read; importance weights are too, where there are any."""
        k, model = self.tensor_keys, self.world_model
        targets = [k.value_target, k.reward_target, k.search_policy, k.action]
        masks = [k.value_mask, k.reward_mask, k.policy_mask]
        if model.consistency is not None or model.decoder is not None:
            masks.append(k.observed_mask)
        decoded = [] if model.decoder is None else model.decoder.out_keys
        observed = dict.fromkeys([*model.encoder.in_keys, *decoded])
        sampled = [k.sampled_actions] if model.action_encoding.choices is None else []
        return [*observed, *targets, *sampled, *masks]

    @property
    def out_keys(self) -> list[NestedKey]:
        """The losses, the metrics and the priorities."""
        model, losses = self.world_model, ["loss_policy", "loss_value", "loss_reward"]
        if model.consistency is not None:
            losses.append("loss_consistency")
        if model.decoder is not None:
            losses += [_name(key) for key in model.decoder.out_keys]
        return [*losses, *_METRICS, keys.PRIORITY]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The losses of records ``[B, L]``.

        Raises:
            ValueError: for a batch of another shape, or too short a sequence.
            KeyError: for a missing entry.
        """
        stop = self.root + self.unroll_steps + 1
        if tensordict.ndim != 2 or tensordict.shape[1] < stop:
            raise ValueError(
                f"MuZeroLoss reads records [B, L] with L at least {stop} (root={self.root}, "
                f"unroll_steps={self.unroll_steps}), not a batch of shape {list(tensordict.shape)}."
            )
        rows = tensordict[:, self.root : stop]
        with self.world_model_params.to_module(self.world_model):
            hidden = self._unroll(rows)
            out = self._heads(hidden, rows)
            if self.world_model.consistency is not None:
                out.set("loss_consistency", self._consistency(hidden, rows))
            if self.world_model.decoder is not None:
                out.update(self._reconstruction(hidden, rows))
        self._clear_weakrefs(tensordict, out)
        return out

    @torch.no_grad()
    def target_values(self, records: TensorDictBase) -> Tensor:
        """Values ``[N, 1]`` that the target network gives to records ``[N]``."""
        model = self.world_model
        with self.target_world_model_params.to_module(model):
            return model.value_head(model.represent(records)).mean

    def _unroll(self, rows: TensorDictBase) -> Tensor:
        """Hidden states ``[B, K + 1, S]``."""
        model = self.world_model
        actions = entry(rows, self.tensor_keys.action, self)
        hidden = [model.represent(rows[:, 0])]
        for action in actions[:, 1:].unbind(1):
            hidden.append(model.advance(scale_gradient(hidden[-1], 0.5), action))
        return torch.stack(hidden, 1)

    def _heads(self, hidden: Tensor, rows: TensorDictBase) -> TensorDict:
        model, k = self.world_model, self.tensor_keys
        value, reward = model.value_head(hidden), model.reward_distribution(hidden)
        policy = model.policy_head(hidden)
        value_target, reward_target, value_mask, reward_mask, policy_mask = (
            scalar_entry(rows, key, self)
            for key in (k.value_target, k.reward_target, k.value_mask, k.reward_mask, k.policy_mask)
        )
        gain = self._policy_gain(policy, rows)
        entropy = policy.entropy()
        gain = gain + self.entropy_scale * entropy if self.entropy_scale else gain
        mean = value.mean.detach()
        out = TensorDict(
            loss_policy=self.policy_scale * self._total(-gain, policy_mask, rows),
            loss_value=self.value_scale
            * self._total(-value.log_prob(value_target), value_mask, rows),
            loss_reward=self.reward_scale
            * self._total(-reward.log_prob(reward_target), reward_mask, rows),
            value=mean[:, 0].mean(),
            entropy=entropy.detach()[:, 0].mean(),
            value_beyond_support=_share(value.beyond(value_target), value_mask),
            reward_beyond_support=_share(reward.beyond(reward_target), reward_mask),
        )
        return out.set(keys.PRIORITY, (mean - value_target).abs())

    def _policy_gain(self, policy, rows: TensorDictBase) -> Tensor:
        """Minus the cross-entropy ``[B, K + 1]`` of policy and search policy."""
        k, choices = self.tensor_keys, self.world_model.action_encoding.choices
        target, actions = entry(rows, k.search_policy, self), rows.get(k.sampled_actions, None)
        if actions is None and choices is None:
            raise KeyError(
                f"The records lack {k.sampled_actions!r}, which a search of actions that are not one choice "
                "writes beside its policy: store it, as with extra_keys of the replay."
            )
        edges = choices if actions is None else actions.shape[-2]
        if target.shape[-1] != edges:
            raise ValueError(
                f"{k.search_policy!r} has {target.shape[-1]} probabilities for {edges} actions."
            )
        if actions is None:
            return policy.log_prob(target)
        log_probs = policy.log_prob(actions.movedim(-2, 0))
        return (target * log_probs.movedim(0, -1)).sum(-1)

    def _consistency(self, hidden: Tensor, rows: TensorDictBase) -> Tensor:
        model = self.world_model
        mask = scalar_entry(rows, self.tensor_keys.observed_mask, self).clone()
        mask[:, 0] = False  # nothing was predicted there
        with torch.no_grad():
            observed = model.represent(rows)
        return self.consistency_scale * self._total(
            -model.consistency(hidden, observed), mask, rows
        )

    def _reconstruction(self, hidden: Tensor, rows: TensorDictBase) -> dict[str, Tensor]:
        mask = scalar_entry(rows, self.tensor_keys.observed_mask, self)
        decoded = self.world_model.decoder(hidden).items()
        terms = {
            key: -distribution.log_prob(entry(rows, key, self)) for key, distribution in decoded
        }
        return {
            _name(key): self.reconstruction_scale * self._total(term, mask, rows)
            for key, term in terms.items()
        }

    def _total(self, term: Tensor, mask: Tensor, rows: TensorDictBase) -> Tensor:
        """Scaled sum over the steps ``[B, K + 1]`` where ``mask`` is True, averaged over the batch."""
        term = term.where(mask.reshape(term.shape), term.new_zeros(()))
        loss = term[:, 0] + term[:, 1:].sum(1) / max(self.unroll_steps, 1)
        weight = rows.get(self.tensor_keys.weight, None)
        return loss.mean() if weight is None else (weight[:, 0].reshape(-1) * loss).mean()


_METRICS = ["value", "entropy", "value_beyond_support", "reward_beyond_support"]


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """``x``, whose gradient is multiplied by ``scale``.

    Examples:
        >>> x = torch.ones(1, requires_grad=True)
        >>> scale_gradient(x, 0.5).backward()
        >>> x.grad
        tensor([0.5000])
    """
    return x * scale + x.detach() * (1 - scale)


def _share(flags: Tensor, mask: Tensor) -> Tensor:
    mask = mask.reshape(flags.shape)
    return (flags & mask).sum() / mask.sum().clamp(min=1)


def _name(key: NestedKey) -> str:
    return f"loss_{key if isinstance(key, str) else '_'.join(key)}"
