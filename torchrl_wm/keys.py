"""The vocabulary: every default TensorDict entry, its shape and its meaning.

Leading dimensions are written ``...`` (any number of them). A *step record* is one observation of an
episode beside the action that led to it; a *transition* is TorchRL's row (observation, action, next).
"""

from __future__ import annotations

# Step records ---------------------------------------------------------------------------------
IS_INIT = "is_init"
"""``[..., 1]`` bool: the observation is the first of its episode."""

IS_LAST = "is_last"
"""``[..., 1]`` bool: the observation is the final one of its episode (terminated or truncated)."""

TERMINATED = "terminated"
"""``[..., 1]`` bool: the episode ended *in* this observation; nothing is bootstrapped from it."""

PREVIOUS_ACTION = "previous_action"
"""``[..., A]`` float32: the action that led to the observation, encoded flat; zeros at ``is_init``."""

PREVIOUS_REWARD = "previous_reward"
"""``[..., 1]`` float32: the reward that arrived with the observation, as environments carry it."""

REWARD = "reward"
"""``[..., 1]`` float32: the reward that arrived with the observation (records); zero at ``is_init``."""

ACTION = "action"
"""The action taken at the observation, in the environment's own encoding."""

MASK = ("collector", "mask")
"""``[...]`` bool: False on padded steps, as TorchRL's collectors and samplers write it."""

# Latents --------------------------------------------------------------------------------------
BELIEF = "belief"
"""``[..., D]`` float: deterministic part of a recurrent latent."""

STATE = "state"
"""``[..., S]`` float: stochastic part of a latent; ``S = categoricals * classes`` when discrete."""

# What a model predicts ------------------------------------------------------------------------
CONTINUATION = "continuation"
"""``[..., 1]`` float: predicted probability that the episode goes on, used as a weight."""

STATE_VALUE = "state_value"
"""``[..., 1]`` float: the critic's estimate of the return."""

BOOKKEEPING = (
    IS_INIT,
    IS_LAST,
    TERMINATED,
    PREVIOUS_ACTION,
    PREVIOUS_REWARD,
    REWARD,
    "step_count",
    "episode_reward",
    "done",
    "truncated",
)
"""Root entries that an environment may carry and that a world model never observes."""
