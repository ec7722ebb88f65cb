"""The vocabulary: every default TensorDict entry, its shape and its meaning.

Leading dimensions are written ``...`` (any number of them). A *step record* is one observation of an
episode with the action that led to it; a *transition* is TorchRL's row (observation, action, next).
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
"""``[..., D]`` float: the deterministic part of a recurrent latent."""

STATE = "state"
"""``[..., S]`` float: the stochastic part of a latent; ``S = categoricals * classes`` when discrete."""

HIDDEN = "hidden"
"""``[..., S]`` float: the hidden state of MuZero's model."""

REWARD_MEMORY = "reward_memory"
"""``[..., M]`` float: what a value prefix carries, see :class:`~torchrl_wm.modules.ValuePrefix`."""

FRAMES = "frames"
"""Nested, ``[..., K - 1, C, H, W]`` below it: the frames before the one that is observed."""

# What a model predicts ------------------------------------------------------------------------
CONTINUATION = "continuation"
"""``[..., 1]`` float: predicted probability that the episode goes on, used as a weight."""

STATE_VALUE = "state_value"
"""``[..., 1]`` float: the critic's estimate of the return."""

VALUE_UNITS = "value_units"
"""``[..., U]`` float: the critic's last hidden layer."""

RAW_POLICY = "raw_policy"
"""``[..., P]`` float: the outputs of the actor's last layer, such as means and deviations."""

POLICY_LOGITS = "policy_logits"
"""``[..., A]`` float: unnormalised log-probabilities of a policy head."""

# Search --------------------------------------------------------------------------------------
SEARCH_POLICY = "search_policy"
"""``[..., A]`` float: the policy improved by a search, which a policy head learns."""

ROOT_VALUE = "root_value"
"""``[..., 1]`` float: a search's value of its root."""

SAMPLED_ACTIONS = "sampled_actions"
"""``[..., S, A]`` float: the encoded actions that a search of sampled actions considered at its root."""

VISIT_COUNTS = "visit_counts"
"""``[..., A]`` int: how often a search tried each action of its root."""

ACTION_MASK = "action_mask"
"""``[..., A]`` bool: the actions that are allowed."""

TO_PLAY = "to_play"
"""``[..., 1]`` int64: whose turn it is, in games of two players."""

SEARCH_VERSION = "search_version"
"""``[..., 1]`` int64: the number of updates behind the search whose results are stored."""

POLICY_VERSION = "policy_version"
"""``[..., 1]`` int64: the number of updates behind the policy that acted here."""

# Targets of an unrolled model ----------------------------------------------------------------
BOOTSTRAP_VALUE = "bootstrap_value"
"""``[..., 1]`` float: the value of a record that a return bootstraps from."""

VALUE_TARGET = ("target", "value")
"""``[..., 1]`` float: the return of a record, zero past the end of the episode."""

REWARD_TARGET = ("target", "reward")
"""``[..., 1]`` float: the reward that arrives with a record, zero past the end; for a model that predicts
value prefixes the sum of the rewards since the root or the last reset."""

UNROLL_ACTION = ("target", "action")
"""``[..., A]`` float: the encoded action that leads to a record, drawn at random past the end."""

VALUE_MASK = ("target", "value_mask")
"""``[..., 1]`` bool: whether the value of a record is trained."""

REWARD_MASK = ("target", "reward_mask")
"""``[..., 1]`` bool: whether the reward of a record is trained."""

POLICY_MASK = ("target", "policy_mask")
"""``[..., 1]`` bool: whether the policy of a record is trained."""

OBSERVED_MASK = ("target", "observed_mask")
"""``[..., 1]`` bool: whether the observation of a record belongs to the unrolled episode."""

# Prioritised replay --------------------------------------------------------------------------
PRIORITY = "priority"
"""``[..., 1]`` float: the sampling priority of a record; infinite until it is first trained on."""

PRIORITY_WEIGHT = "priority_weight"
"""``[...]`` float: the importance weight of a drawn row, at most 1."""

# Planning -------------------------------------------------------------------------------------
PLAN = "plan"
"""``[..., H, A]`` float: the plan of this step, in normalised flat actions; zeros where there is none."""

PLAN_ELITES = "plan_elites"
"""``[..., E, H, A]`` float: the best sequences of this step, best first, in the same form."""

BOOKKEEPING = (
    IS_INIT,
    IS_LAST,
    TERMINATED,
    PREVIOUS_ACTION,
    PREVIOUS_REWARD,
    REWARD,
    "step_count",
    "episode_reward",
    ACTION_MASK,
    TO_PLAY,
    "done",
    "truncated",
)
"""Root entries that an environment may carry and that a world model never observes."""
