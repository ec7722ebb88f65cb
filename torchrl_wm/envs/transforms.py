"""The action and reward that led to an observation, written by the environment."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import Composite, Unbounded
from torchrl.envs.transforms import Transform

from torchrl_wm import keys
from torchrl_wm.modules.actions import ActionEncoding

_TAKEN = "_encoded_action"


class PreviousStep(Transform):
    """Writes the action and the reward that led to an observation next to it, at the root.

    Sequence world models read ``(previous action, observation)`` pairs. When the environment writes
    them, the pairs are right for every policy (random warm-up included) and under partial resets, and
    converting a batch to step records needs no state. After a reset both entries are zero.

    The action is that written by the policy, before any transform of the environment rescales or casts
    it; therefore this transform must be the last one that changes actions.

    Args:
        action_key (NestedKey, optional): out-entry ``[..., A]`` float32: the flat encoding of ALL
            action entries by :class:`~torchrl_wm.modules.actions.ActionEncoding`.
        reward_key (NestedKey, optional): out-entry ``[..., 1]`` float32.
        source_reward_key (NestedKey, optional): the reward of the environment.

    Raises:
        KeyError: when the environment has no reward of the name ``source_reward_key``.
        RuntimeError: when used without an environment.

    Examples:
        >>> from torchrl.envs import PendulumEnv, TransformedEnv
        >>> env = TransformedEnv(PendulumEnv(), PreviousStep())
        >>> env.reset()["previous_action"]
        tensor([0.])
        >>> rollout = env.rollout(3)
        >>> bool((rollout["previous_action"][1:] == rollout["action"][:-1]).all())
        True
    """

    def __init__(
        self,
        action_key: NestedKey = keys.PREVIOUS_ACTION,
        reward_key: NestedKey = keys.PREVIOUS_REWARD,
        source_reward_key: NestedKey = "reward",
    ):
        super().__init__(in_keys=[], out_keys=[action_key, reward_key])
        self.action_key = action_key
        self.reward_key = reward_key
        self.source_reward_key = source_reward_key
        self._encode: ActionEncoding | None = None

    @property
    def encode(self) -> ActionEncoding:
        """The encoding, built from the action spec of the environment on first use."""
        if self._encode is None:
            if self.parent is None:
                raise RuntimeError(
                    "PreviousStep needs an environment: append it to a TransformedEnv."
                )
            self._encode = ActionEncoding(self.parent.full_action_spec_unbatched)
        return self._encode

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Not defined: stored transitions do not tell which row came before.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "PreviousStep works in environments only; for stored data use StepRecords."
        )

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        # The inverse runs from the policy inwards: here the action is still as the policy wrote it, while
        # `_step` would see it rescaled by the transforms before this one.
        return tensordict.set(_TAKEN, self.encode(tensordict))

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        next_tensordict.set(self.action_key, tensordict.get(_TAKEN))
        reward = next_tensordict.get(self.source_reward_key)
        return next_tensordict.set(self.reward_key, reward.float())

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        batch, device = self.parent.batch_size, self.parent.device
        size = self.encode.size
        tensordict_reset.set(self.action_key, torch.zeros(*batch, size, device=device))
        return tensordict_reset.set(self.reward_key, torch.zeros(*batch, 1, device=device))

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Adds the two entries to the specs."""
        rewards = self.parent.full_reward_spec.keys(True, True)
        if self.source_reward_key not in rewards:
            raise KeyError(
                f"PreviousStep finds no reward {self.source_reward_key!r} in the environment, "
                f"which has {sorted(map(str, rewards))}; name it with source_reward_key=."
            )
        batch, device = self.parent.batch_size, self.parent.device
        for key, size in ((self.action_key, self.encode.size), (self.reward_key, 1)):
            observation_spec[key] = Unbounded((*batch, size), device=device)
        return observation_spec
