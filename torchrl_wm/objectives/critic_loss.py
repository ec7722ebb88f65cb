"""The losses of a critic: on imagined states, and on the states of the replay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.distributions import Distribution
from torchrl.objectives.common import LossModule

from torchrl_wm import keys
from torchrl_wm.functional.returns import lambda_return
from torchrl_wm.modules.compilation import compile_function
from torchrl_wm.modules.distributions import Prediction, TwoHot
from torchrl_wm.modules.heads import Head
from torchrl_wm.objectives.entries import entry, flag_entry, scalar_entry
from torchrl_wm.objectives.initial_weights import InitialWeights
from torchrl_wm.objectives.masking import masked_mean
from torchrl_wm.objectives.pieces import in_pieces
from torchrl_wm.programs.followed_rows import FollowedLoss, FollowedRows


class CriticLoss(InitialWeights, LossModule):
    """Fits the distribution of a critic to lambda returns.

    Reads rows ``[...]`` as :mod:`torchrl_wm.objectives.alignment` makes them: ``features``,
    ``lambda_target`` and ``weight``, and ``value_units`` if :meth:`evaluate` has made them. Writes
    ``loss_critic``, a scalar.

    On a CPU many rows go through a program (:mod:`torchrl_wm.programs`), which follows training and notices
    replaced parts, hooks and changed attributes.

    Args:
        critic (nn.Module): features to a distribution over returns ``[..., 1]``.

    Keyword Args:
        use_ema_critic (bool, optional): keep a slow copy as target parameters, for
            :class:`torchrl.objectives.SoftUpdate` or ``HardUpdate``. Defaults to ``True``.
        slow_regularization (float, optional): weight of the distance to the slow critic's mean
            (DreamerV3). Defaults to ``0.0``.

    Raises:
        ValueError: for ``slow_regularization`` without a slow critic.

    Examples:
        >>> from torchrl_wm.modules import TwoHotHead
        >>> loss = CriticLoss(TwoHotHead(16, layers=1, units=8), slow_regularization=1.0)
        >>> rows = TensorDict({"features": torch.randn(5, 16)}, [5])
        >>> rows["lambda_target"], rows["weight"] = torch.randn(5, 1), torch.ones(5, 1)
        >>> loss(rows)["loss_critic"].shape, loss.slow(rows["features"]).mean.shape
        (torch.Size([]), torch.Size([5, 1]))
    """

    @dataclass
    class _AcceptedKeys:
        features: NestedKey = "features"
        lambda_target: NestedKey = "lambda_target"
        weight: NestedKey = "weight"
        value_units: NestedKey = keys.VALUE_UNITS
        mask: NestedKey = keys.MASK

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_critic"]
    critic: nn.Module
    critic_params: TensorDictParams
    target_critic_params: TensorDictParams

    def __init__(
        self, critic: nn.Module, *, use_ema_critic: bool = True, slow_regularization: float = 0.0
    ):
        super().__init__()
        if slow_regularization and not use_ema_critic:
            raise ValueError("slow_regularization needs a slow critic: set use_ema_critic=True.")
        self.convert_to_functional(critic, "critic", create_target_params=use_ema_critic)
        self.slow_regularization, self.use_ema_critic = slow_regularization, use_ema_critic
        self._values, self._slow_values = (FollowedRows(self._mean, critic) for _ in range(2))
        self._fit = FollowedLoss(self._loss_at, critic)
        self._fit_both = FollowedLoss(self._loss_at_both, critic)

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries of the imagined rows that are read."""
        return [self.tensor_keys.features, self.tensor_keys.lambda_target, self.tensor_keys.weight]

    def slow(self, features: Tensor) -> Distribution:
        """The slow critic's distribution, or the critic's if there is no slow one."""
        with self.target_critic_params.to_module(self.critic):
            return self.critic(features)

    def compile_steps(self, **options) -> None:
        """Compiles the critic's terms.

        Args:
            **options: keyword arguments of :func:`torch.compile`.
        """
        for name in ("_units", "_mean_of_units", "_mean", "_terms"):
            setattr(self, name, compile_function(getattr(self, name), **options))

    def evaluate(self, trajectory: TensorDictBase) -> Tensor | None:
        """Writes ``state_value`` ``[T, N, 1]`` into imagined states ``[T, N]``, with one pass of a Head.

        For critics that get no gradient from the returns (REINFORCE): the loss of the same states needs no
        second pass through the hidden layers. The last layer is applied again: on a CPU its many logits
        and their gradients cost more to pass from one compiled phase to the next than to compute.

        Returns:
            ``value_units [T - 1, N, U]``, with their graph: the last hidden layer of all but the last state.
            ``None`` where programs predict the values, and what the loss needs in a second pass.
        """
        features = trajectory.get(self.tensor_keys.features).detach()
        with self.critic_params.to_module(self.critic):
            value = self._values(features)
            if value is not None:
                trajectory.set(keys.STATE_VALUE, value)
                return None
            units = self._units(features[:-1])
            with torch.no_grad():
                value = [in_pieces(self._mean_of_units, units.detach()), self._mean(features[-1:])]
        trajectory.set(keys.STATE_VALUE, torch.cat(value))
        return units

    def terms(
        self,
        features: Tensor,
        target: Tensor,
        units: Tensor | None = None,
        slow: Tensor | None = None,
    ) -> Tensor:
        """Negative log-likelihood ``[...]`` of returns ``[..., 1]``.

        ``units``, from :meth:`evaluate`, replace the output of the critic's hidden layers, and ``slow`` the
        slow critic's values ``[..., 1]``.
        """
        slow = self._slow_mean(features) if slow is None else slow
        with self.critic_params.to_module(self.critic):
            return self._terms(features, target.detach(), slow, units)

    def _slow_mean(self, features: Tensor) -> Tensor | None:
        """The slow critic's values, if they are a second target."""
        if not self.slow_regularization:
            return None
        with torch.no_grad(), self.target_critic_params.to_module(self.critic):
            found = self._slow_values(features)
            return in_pieces(self._mean, features.detach()) if found is None else found

    def _in_program(
        self, features: Tensor, target: Tensor, slow: Tensor | None, weight: Tensor
    ) -> Tensor | None:
        """The mean loss, if a program predicts it."""
        share, fit = self.slow_regularization, self._fit if slow is None else self._fit_both
        with self.critic_params.to_module(self.critic):
            like = _prediction_of(self.critic)
            if like is None or not isinstance(share, int | float):
                return None
            known = [like.position(target.detach().float())]
            if slow is not None:  # the share may change, which a program would not notice
                known += [like.position(slow), torch.full_like(slow, share)]
            found = fit(features, torch.cat(known, -1), weight)
        return None if found is None else found[0]

    def _loss_at(self, features: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each row ``[N, 1]`` from the position of its target; there are no metrics."""
        return -self.critic(features).log_prob_at(position).unsqueeze(-1), position[:, :0]

    def _loss_at_both(self, features: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """The same with a second target, and its share in the loss."""
        prediction, size = self.critic(features), known.shape[1] // 2
        target, slow, share = known.split([size, size, 1], -1)
        fit, regularization = (prediction.log_prob_at(x).unsqueeze(-1) for x in (target, slow))
        return -fit - share * regularization, known[:, :0]

    def _units(self, features: Tensor) -> Tensor:
        return self.critic.mlp(features)

    def _mean_of_units(self, units: Tensor) -> Tensor:
        return self.critic.conclude(units).mean

    def _mean(self, features: Tensor) -> Tensor:
        return self.critic(features).mean

    def _terms(
        self, features: Tensor, target: Tensor, slow: Tensor | None, units: Tensor | None
    ) -> Tensor:
        prediction = self.critic(features) if units is None else self.critic.conclude(units)
        if slow is None:
            return -prediction.log_prob(target)
        # Both targets in one call, which reads the logits once.
        fit, regularization = prediction.log_prob(torch.stack([target, slow])).unbind()
        return -fit - self.slow_regularization * regularization

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The loss of imagined rows ``[...]``, whose features are detached.

        Raises:
            KeyError: for an entry of ``in_keys`` that is missing.
            ValueError: for a return or weight that is not ``[..., 1]``.
        """
        features, *scalars = self.in_keys
        features = entry(tensordict, features, self)
        target, weight = (scalar_entry(tensordict, key, self) for key in scalars)
        mask = tensordict.get(self.tensor_keys.mask, None)
        units = tensordict.get(self.tensor_keys.value_units, None)
        features, known, found = features.detach(), {}, None
        usual = type(self).terms is CriticLoss.terms
        if features.is_cpu and mask is None and units is None and usual:
            known = {"slow": self._slow_mean(features)}
            found = self._in_program(features, target, known["slow"], weight)
        if found is None:
            loss = self.terms(features, target, units, **known) * weight.squeeze(-1).detach()
            found = masked_mean(loss, mask)
        out = TensorDict(loss_critic=found)
        self._clear_weakrefs(tensordict, out)
        return out


def _prediction_of(critic: nn.Module) -> Prediction | None:
    """A distribution of a head's kind, without calling it, if its likelihoods are those of positions."""
    usual = isinstance(critic, Head) and type(critic).forward is Head.forward
    if not usual or type(critic).conclude is not Head.conclude:
        return None
    like = critic.output.forward(torch.zeros(critic.output.size))
    # What else a subclass says of likelihoods, positions do not know.
    if type(like) is TwoHot or getattr(type(like), "log_prob_at", None) is Prediction.log_prob_at:
        return like
    return None


class ReplayCriticLoss(LossModule):
    """DreamerV3's critic loss on the states of the replay, whose gradient reaches the world model.

    Reads step records ``[B, T]`` with ``features`` (with their graph), ``reward``, ``is_last``,
    ``terminated`` and ``bootstrap`` (the return imagined from each state). Writes
    ``loss_replay_critic``. Truncations bootstrap fully, terminations not at all; the last step of each
    sequence and of each episode is not trained on.

    Args:
        critic_loss (CriticLoss): the loss whose critic is trained; it keeps the parameters.

    Keyword Args:
        discount (float): discount of one step.
        lambda_ (float, optional): mixture of the returns. Defaults to ``0.95``.
        scale (float, optional): weight of the loss. Defaults to ``0.3``.

    Raises:
        ValueError: when called on sequences of a single step.

    Examples:
        >>> from torchrl_wm.modules import TwoHotHead
        >>> critic_loss = CriticLoss(TwoHotHead(16, layers=1, units=8))
        >>> loss = ReplayCriticLoss(critic_loss, discount=0.99)
        >>> records = TensorDict({"features": torch.randn(2, 9, 16)}, [2, 9])
        >>> for key in ("reward", "bootstrap"):
        ...     records[key] = torch.randn(2, 9, 1)
        >>> for key in ("is_last", "terminated"):
        ...     records[key] = torch.zeros(2, 9, 1, dtype=torch.bool)
        >>> loss(records)["loss_replay_critic"].shape
        torch.Size([])
    """

    @dataclass
    class _AcceptedKeys:
        features: NestedKey = "features"
        reward: NestedKey = keys.REWARD
        is_last: NestedKey = keys.IS_LAST
        terminated: NestedKey = keys.TERMINATED
        bootstrap: NestedKey = "bootstrap"
        mask: NestedKey = keys.MASK

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_replay_critic"]

    def __init__(
        self,
        critic_loss: CriticLoss,
        *,
        discount: float,
        lambda_: float = 0.95,
        scale: float = 0.3,
    ):
        super().__init__()
        self.__dict__["critic_loss"] = critic_loss  # not registered: not our parameters
        self.discount, self.lambda_, self.scale = discount, lambda_, scale

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries of the step records that are read."""
        k = self.tensor_keys
        return [k.features, k.reward, k.is_last, k.terminated, k.bootstrap]

    def terms(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Weighted loss of each step ``[B, T - 1]`` before scaling, and the returns ``[B, T - 1, 1]``.

        Raises:
            ValueError: for sequences of a single step, or a batch that is not ``[B, T]``.
        """
        if tensordict.ndim != 2:
            raise ValueError(
                "The critic's loss on replayed states reads step records [B, T], not a batch of shape "
                f"{list(tensordict.shape)}."
            )
        features, *scalars = self.in_keys
        features = entry(tensordict, features, self)
        read = (scalar_entry, flag_entry, flag_entry, scalar_entry)
        reward, last, terminated, bootstrap = (
            get(tensordict, key, self) for get, key in zip(read, scalars, strict=True)
        )
        if reward.shape[1] < 2:
            raise ValueError(
                "The critic's loss on replayed states needs sequences of at least 2 steps, for what a "
                f"state led to; got {reward.shape[1]}. Raise imagination_starts (0 takes all steps) or "
                "the slice length of the replay."
            )
        live, trace = (~terminated).float() * self.discount, (~last).float() * self.lambda_
        mask = tensordict.get(self.tensor_keys.mask, None)
        if mask is not None:  # the last step before padding bootstraps fully, as a truncation does
            mask = mask.reshape(reward.shape)
            reward, bootstrap = (x.where(mask, x.new_zeros(())) for x in (reward, bootstrap))
            trace = trace * torch.cat([mask[:, 1:], mask[:, -1:]], 1)
        arrived = (reward[:, 1:], bootstrap[:, 1:], live[:, 1:], trace[:, 1:])
        target = lambda_return(*arrived, time_dim=1)
        value = self.critic_loss.terms(features[:, :-1], target)
        return value * (~last[:, :-1, 0]).float(), target

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The loss of step records ``[B, T]``."""
        mask = tensordict.get(self.tensor_keys.mask, None)
        value, _ = self.terms(tensordict)
        mean = masked_mean(value, None if mask is None else mask[:, :-1] & mask[:, 1:])
        out = TensorDict(loss_replay_critic=self.scale * mean)
        self._clear_weakrefs(tensordict, out)
        return out
