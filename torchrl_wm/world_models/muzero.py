"""MuZero's model: a hidden state from which only rewards, values and policies are predicted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torch.distributions import Distribution

from torchrl_wm import keys
from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.modules.heads import Head
from torchrl_wm.modules.hidden_scaling import HiddenScaling
from torchrl_wm.modules.value_prefix import PrefixReward, ValuePrefix
from torchrl_wm.world_models.world_model import LatentTensors, WorldModel


class MuZeroModel(WorldModel):
    """Representation, dynamics and prediction of MuZero (https://arxiv.org/abs/1911.08265).

    :meth:`filter` represents the observation as the latent ``hidden``: there is no recurrence, so the
    latents of the previous step are carried but not used. :meth:`step` writes ``("next", hidden)`` and
    ``("next", "reward")``, :meth:`predict` the value and the policy of latents. Nothing is sampled: the
    noise has size 0.

    Args:
        encoder (nn.Module): from a TensorDict of observations to tokens ``[..., E]``, with ``in_keys``.
        action_encoding (ActionEncoding): how actions become vectors.
        representation (nn.Module): tokens to the hidden state ``[..., S]``, not yet scaled.
        dynamics (nn.Module): hidden state and encoded action to the next one, not yet scaled.

    Keyword Args:
        size (int): ``S``.
        reward_head (Head or ValuePrefix): hidden state to a distribution over the reward ``[..., 1]``;
            or a ValuePrefix, which predicts sums of rewards and carries the latent ``reward_memory``.
        value_head (Head): hidden state to a distribution over a scalar ``[..., 1]``.
        policy_head (Head): hidden state to a distribution over encoded actions.
        scaling (HiddenScaling): keeps hidden states in range, after representation and dynamics.
        consistency (nn.Module, optional): see :class:`~torchrl_wm.modules.ConsistencyHead`. Defaults
            to none.
        hidden_key, memory_key (NestedKey, optional): the latent entries. Default to ``"hidden"`` and
            ``"reward_memory"``.
        value_key, logits_key (NestedKey, optional): the entries that :meth:`predict` writes.
        **options: decoder, continuation head and keys of :class:`~torchrl_wm.world_models.WorldModel`.

    :func:`~torchrl_wm.world_models.make_muzero` builds one from specs and sizes.

    Examples:
        >>> from torchrl_wm.envs import gymnasium, model_specs
        >>> from torchrl_wm.world_models import make_muzero
        >>> env = gymnasium("CartPole-v1", num_envs=2)
        >>> model = make_muzero(*model_specs(env), support=20)
        >>> td = model.predict(model.roots(env.reset()))
        >>> td["state_value"].shape, td["policy_logits"].shape
        (torch.Size([2, 1]), torch.Size([2, 2]))
        >>> td = model.step(td.set("action", torch.eye(2)))
        >>> td["next", "hidden"].shape, td["next", "reward"].shape
        (torch.Size([2, 64]), torch.Size([2, 1]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        action_encoding: ActionEncoding,
        representation: nn.Module,
        dynamics: nn.Module,
        *,
        size: int,
        reward_head: Head | ValuePrefix,
        value_head: Head,
        policy_head: Head,
        scaling: HiddenScaling,
        consistency: nn.Module | None = None,
        hidden_key: NestedKey = keys.HIDDEN,
        memory_key: NestedKey = keys.REWARD_MEMORY,
        value_key: NestedKey = keys.STATE_VALUE,
        logits_key: NestedKey = keys.POLICY_LOGITS,
        **options,
    ):
        sizes, prefix = {hidden_key: size}, None
        if isinstance(reward_head, ValuePrefix):
            prefix, reward_head = reward_head, PrefixReward()
            sizes[memory_key] = prefix.size
        super().__init__(encoder, action_encoding, None, sizes, reward_head=reward_head, **options)
        self.value_prefix = prefix
        self.representation, self.dynamics, self.scaling = representation, dynamics, scaling
        self.value_head, self.policy_head = value_head, policy_head
        self.consistency = consistency
        self.value_key, self.logits_key = unravel_key(value_key), unravel_key(logits_key)

    @property
    def latent_codecs(self) -> dict:
        """Empty: the hidden state follows from the observation, so a replay need not store it."""
        return {}

    def represent(self, observations: TensorDictBase) -> Tensor:
        """Observations ``[...]`` to hidden states ``[..., S]``.

        Raises:
            KeyError, ValueError: for an observation that is missing or has another shape.
        """
        return self.scaling(self.representation(self._encode(observations)))

    def advance(self, hidden: Tensor, action: Tensor) -> Tensor:
        """Hidden states ``[..., S]`` and encoded actions ``[..., A]`` to the next hidden states."""
        return self.scaling(self.dynamics(hidden, action))

    def roots(self, observations: TensorDictBase) -> TensorDict:
        """The latents ``[...]`` of observations ``[...]``, from which a search or an unroll begins.

        Raises:
            KeyError, ValueError: for an observation that is missing or has another shape.
        """
        hidden = self.represent(observations)
        return self._latent_td(self._begin(hidden), observations.batch_size)

    def reward_distribution(self, hidden: Tensor) -> Distribution:
        """Distribution ``[B, K + 1]`` over rewards, or their sums, along hidden states ``[B, K + 1, S]``."""
        if self.value_prefix is None:
            return self.reward_head(hidden)
        return self.value_prefix.unroll(hidden)

    def predict(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Reads latents ``[...]``, writes ``state_value [..., 1]`` and ``policy_logits [..., P]``.

        With continuous actions ``P`` counts the raw numbers of the policy's distribution,
        ``policy_head.output(logits)``.
        """
        hidden, *_ = self._carry(tensordict)
        tensordict.set(self.value_key, self.value_head(hidden).mean)
        return tensordict.set(self.logits_key, self.policy_head.raw(hidden))

    def search_tensors(
        self, latents: LatentTensors, action: Tensor
    ) -> tuple[LatentTensors, Tensor, Tensor, Tensor]:
        """One step of a search on plain tensors, for compilers and tracers.

        Args:
            latents (tuple of Tensor): ``[N, size]`` each, in the order of ``latent_keys``.
            action (Tensor): encoded, ``[N, A]``.

        Returns:
            The next latents, reward ``[N]``, value ``[N]`` and policy logits ``[N, P]``.
        """
        latents = self.predict_tensors(latents, action, None)
        hidden, value = latents[0], self.value_head(latents[0]).mean
        features = hidden if len(latents) == 1 else torch.cat(latents, -1)
        reward = self.reward_head(features).mean
        return latents, reward.squeeze(-1), value.squeeze(-1), self.policy_head.raw(hidden)

    # -- the interface ---------------------------------------------------------------------------
    def noise(
        self, batch_size: Sequence[int], device=None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Empty, since nothing is sampled: ``[*batch_size, 0]``."""
        return torch.zeros(*batch_size, 0, device=device)

    def statistics(self, observed: TensorDictBase):
        """Not defined: a deterministic latent has no divergence.

        Raises:
            TypeError: always; :class:`~torchrl_wm.objectives.MuZeroLoss` trains this model.
        """
        raise TypeError(
            "MuZeroModel has no posterior and prior to compare; train it with MuZeroLoss."
        )

    def _begin(self, hidden: Tensor) -> LatentTensors:
        if self.value_prefix is None:
            return (hidden,)
        return hidden, hidden.new_zeros(*hidden.shape[:-1], self.value_prefix.size)

    def _filter_tensors(self, tokens, action, is_init, carry, noise) -> LatentTensors:
        return self._begin(self.scaling(self.representation(tokens)))

    def _observe_tensors(self, tokens, action, is_init, carry, noise):
        return self._begin(self.scaling(self.representation(tokens))), {}

    def predict_tensors(
        self, latents: LatentTensors, action: Tensor, noise: Tensor | None
    ) -> LatentTensors:
        """One step of prediction on plain tensors ``[N, size]``."""
        hidden = self.advance(latents[0], action)
        if self.value_prefix is None:
            return (hidden,)
        return hidden, self.value_prefix(hidden, latents[1])

    def _decoder_features(self, tensordict: TensorDictBase) -> Tensor:
        hidden, *_ = self._carry(tensordict)
        return hidden


class PredictionNetwork(TensorDictModuleBase):
    """Representation and prediction in one: from observations to values and policies, as in AlphaZero.

    Reads the observations ``[...]``, writes ``state_value [..., 1]`` and ``policy_logits [..., P]``.

    Args:
        model (MuZeroModel): the model whose networks are used.
    """

    def __init__(self, model: MuZeroModel):
        super().__init__()
        self.model = model
        self.in_keys = list(model.encoder.in_keys)
        self.out_keys = [model.value_key, model.logits_key]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Evaluates, in place."""
        hidden = self.model.represent(tensordict)
        tensordict.set(self.model.value_key, self.model.value_head(hidden).mean)
        return tensordict.set(self.model.logits_key, self.model.policy_head.raw(hidden))
