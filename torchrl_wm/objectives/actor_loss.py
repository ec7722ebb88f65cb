"""The loss of an actor on imagined states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.objectives.common import LossModule

from torchrl_wm import keys
from torchrl_wm.modules.compilation import compile_function
from torchrl_wm.objectives.actor_gradients import ActorGradient, Reinforce
from torchrl_wm.objectives.entries import entry, scalar_entry
from torchrl_wm.objectives.initial_weights import InitialWeights
from torchrl_wm.objectives.masking import masked_mean
from torchrl_wm.programs.followed_rows import FollowedLoss


class ActorLoss(InitialWeights, LossModule):
    """Maximises imagined returns and the entropy of the policy.

    Reads rows ``[...]`` as :mod:`torchrl_wm.objectives.alignment` makes them: ``features``, ``action``,
    ``lambda_target``, ``baseline`` and ``weight``, and ``raw_policy`` if imagination has stored it.
    Writes ``loss_actor`` and the metrics ``entropy``, ``advantage`` and ``value`` (the mean baseline),
    scalars.

    On a CPU many rows of :class:`~torchrl_wm.objectives.Reinforce` go through a program
    (:mod:`torchrl_wm.programs`), which follows training and notices replaced parts, hooks and changed
    attributes.

    Args:
        actor (nn.Module): features to a distribution over encoded actions.
        gradient (ActorGradient): see :mod:`torchrl_wm.objectives.actor_gradients`.

    Keyword Args:
        entropy_scale (float, optional): weight of the entropy. Defaults to ``0.0``.
        normalizer (nn.Module, optional): a return normaliser, such as
            :class:`~torchrl_wm.modules.ReturnNormalizer`; it is updated with the returns, then its scale
            divides returns and advantages. Defaults to ``None``.

    Examples:
        >>> from torchrl.data import OneHot
        >>> from torchrl_wm.modules import actor_head
        >>> from torchrl_wm.objectives import Reinforce
        >>> actor = actor_head(OneHot(3), 16, layers=1, units=8)
        >>> loss = ActorLoss(actor, Reinforce(), entropy_scale=3e-4)
        >>> rows = TensorDict({"features": torch.randn(5, 16), "action": torch.eye(3)[[0, 1, 2, 0, 1]]}, [5])
        >>> for key in ("lambda_target", "baseline", "weight"):
        ...     rows[key] = torch.ones(5, 1)
        >>> sorted(loss(rows).keys())
        ['advantage', 'entropy', 'loss_actor', 'value']
    """

    @dataclass
    class _AcceptedKeys:
        features: NestedKey = "features"
        action: NestedKey = keys.ACTION
        lambda_target: NestedKey = "lambda_target"
        baseline: NestedKey = "baseline"
        weight: NestedKey = "weight"
        raw_policy: NestedKey = keys.RAW_POLICY
        mask: NestedKey = keys.MASK

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_actor", "entropy", "advantage", "value"]
    actor: nn.Module
    actor_params: TensorDictParams
    target_actor_params: TensorDictParams

    def __init__(
        self,
        actor: nn.Module,
        gradient: ActorGradient,
        *,
        entropy_scale: float = 0.0,
        normalizer: nn.Module | None = None,
    ):
        super().__init__()
        self.convert_to_functional(actor, "actor", create_target_params=False)
        self.gradient, self.entropy_scale, self.normalizer = gradient, entropy_scale, normalizer
        self._maximised = FollowedLoss(self._reinforced, actor)

    @property
    def in_keys(self) -> list[NestedKey]:
        """The entries of the imagined rows that are read."""
        keys_ = self.tensor_keys
        return [keys_.features, keys_.action, keys_.lambda_target, keys_.baseline, keys_.weight]

    def compile_steps(self, **options) -> None:
        """Compiles the policy's terms.

        Args:
            **options: keyword arguments of :func:`torch.compile`.
        """
        self._terms = compile_function(self._terms, **options)

    def _terms(self, features, action, target, advantage, raw) -> tuple[Tensor, Tensor]:
        """Objective and entropy of each row, ``[...]``."""
        policy = self.actor(features) if raw is None else self.actor.output(raw)
        return self.gradient(policy, action, target, advantage), policy.entropy()

    def _followed(
        self, features, action, target, advantage, weight
    ) -> tuple[Tensor, Tensor] | None:
        """The mean loss, and the entropy of each row, if a program predicts them."""
        known = type(self.gradient) is Reinforce and isinstance(self.entropy_scale, int | float)
        if not (known and features.is_cpu) or target.requires_grad:
            return None
        # The scale may change, which a program would not notice of an attribute.
        scale = torch.full_like(advantage, self.entropy_scale, dtype=torch.float32)
        found = self._maximised(features, torch.cat([action, advantage, scale], -1), weight)
        return found and (found[0], found[1].squeeze(-1))

    def _reinforced(self, features: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and entropy of each row, ``[N, 1]``, from its action and advantage."""
        policy = self.actor(features)
        action, advantage, scale = known.split([known.shape[1] - 2, 1, 1], -1)
        objective = self.gradient(policy, action, advantage, advantage).unsqueeze(-1)
        entropy = policy.entropy().unsqueeze(-1)
        return -objective - scale * entropy, entropy

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The loss of imagined rows ``[...]``; in training mode it updates the normaliser.

        Raises:
            KeyError: for an entry of ``in_keys`` that is missing.
            ValueError: for a return, baseline or weight that is not ``[..., 1]``.
        """
        features, action, *scalars = self.in_keys
        features, action = (entry(tensordict, key, self) for key in (features, action))
        target, value, weight = (scalar_entry(tensordict, key, self) for key in scalars)
        baseline = value
        mask = tensordict.get(self.tensor_keys.mask, None)
        if self.normalizer is not None:
            returns = target.detach() if mask is None else target.detach()[mask]
            if len(returns) and self.training:
                self.normalizer.update(returns)
            scale = self.normalizer.scale()
            target, baseline = target / scale, value / scale
        advantage = target - baseline
        raw = tensordict.get(self.tensor_keys.raw_policy, None)
        inputs = features.detach(), action, target, advantage
        with self.actor_params.to_module(self.actor):
            found = self._followed(*inputs, weight) if raw is None and mask is None else None
            objective, entropy = found or self._terms(*inputs, raw)
        if found is None:
            loss = -weight.squeeze(-1).detach() * (objective + self.entropy_scale * entropy)
        out = TensorDict(loss_actor=objective if found else masked_mean(loss, mask))
        with torch.no_grad():
            out.set("entropy", masked_mean(entropy, mask))
            out.set("advantage", masked_mean(advantage.abs().squeeze(-1), mask))
            out.set("value", masked_mean(value.squeeze(-1), mask))
        self._clear_weakrefs(tensordict, out)
        return out
