"""The peer of ``dreamer_update``: the same DreamerV3 update from TorchRL's own parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.model_based import DreamerEnv
from torchrl.modules import (
    DreamerV3MLP,
    RSSMPosteriorV3,
    RSSMPriorV3,
    RSSMRolloutV3,
    SymExpTwoHot,
    TanhNormal,
    WorldModelWrapper,
)
from torchrl.objectives import (
    DreamerV3ActorLoss,
    DreamerV3Loss,
    DreamerV3ModelLoss,
    DreamerV3ValueLoss,
    SoftUpdate,
)
from torchrl.trainers.algorithms import DreamerV3OptimizationStepper, DreamerV3Optimizer

BELIEF, UNITS, VARIABLES, CLASSES = 512, 64, 32, 4
STATE = VARIABLES * CLASSES
LATENT = ["state", "belief"]


class Joined(nn.Module):
    """A network over several entries joined along their last dimension."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The network's output for the joined inputs."""
        return self.network(torch.cat(inputs, -1))


def _head(outputs: int, layers: int) -> Joined:
    return Joined(DreamerV3MLP(STATE + BELIEF, outputs, depth=layers, num_cells=UNITS))


def _following(keys: list[str]) -> list[tuple[str, str]]:
    return [("next", key) for key in keys]


def make_update(
    observations: int,
    actions: int,
    batch: int,
    steps: int,
    horizon: int,
    *,
    compiled: bool = False,
    captured: bool = False,
    device: str = "cpu",
) -> Callable[[], None]:
    """A function that does one full update (forward, backward, optimiser, slow critic) of size1m."""
    sizes = {"hidden_dim": UNITS, "rnn_hidden_dim": BELIEF}
    sizes |= {"num_categoricals": VARIABLES, "num_classes": CLASSES, "unimix": 0.01}
    cell = {"recurrent_model": "block_gru", "num_blocks": 8}
    prior = RSSMPriorV3(action_shape=(actions,), action_dim=actions, **cell, **sizes)
    posterior = RSSMPosteriorV3(obs_embed_dim=UNITS, use_rms_norm=True, **sizes)
    encoder = DreamerV3MLP(observations, UNITS, depth=2, num_cells=UNITS)  # and the last layer
    decoder, reward, going_on = _head(observations, 3), _head(255, 1), _head(1, 1)
    model = _world_model(prior, posterior, encoder, decoder, reward, going_on)
    actor, value, continuation = _behaviour(actions, going_on)
    env = _imagination(prior, reward, actions)
    model_loss = DreamerV3ModelLoss(
        model, kl_mode="separate", unimix=0.01, lambda_continue=1.0, detach_output=False
    )
    model_loss.set_keys(pixels="observation")
    actor_loss = DreamerV3ActorLoss(
        actor,
        value,
        env,
        imagination_horizon=horizon,
        use_reinforce=True,
        continuation_model=continuation,
    )
    value_loss = DreamerV3ValueLoss(value, actor_loss=actor_loss, slow_critic_regularization=1.0)
    slow = SoftUpdate(value_loss, tau=0.02)
    loss = DreamerV3Loss(model_loss, actor_loss, value_loss)
    optimizer = DreamerV3Optimizer(loss.parameters(), warmup_steps=0)
    modes = {"compile_train_step": compiled, "cudagraph": captured}
    stepper = DreamerV3OptimizationStepper(loss, optimizer, slow, warmup_steps=3, **modes)
    sample = _sample(observations, actions, batch, steps)
    stepper._forward_backward(sample.clone())  # makes the layers whose sizes are inferred
    if device != "cpu":
        loss.to(device), env.to(device)
        sample = sample.to(device)
    if compiled or captured:
        stepper.warmup(sample.clone())
    return lambda: stepper.step(None, sample.clone())


def _world_model(prior, posterior, encoder, decoder, reward, going_on) -> TensorDictSequential:
    tokens = ("next", "encoded_latents")
    latent, observation = _following(LATENT), [("next", "observation")]
    prior = TensorDictModule(
        prior, [*LATENT, "action"], _following(["prior_logits", "state", "belief"])
    )
    posterior = TensorDictModule(
        posterior, [("next", "belief"), tokens], _following(["posterior_logits", "state"])
    )
    logits = [("next", "reward_logits")]
    return TensorDictSequential(
        TensorDictModule(encoder, observation, [tokens]),
        RSSMRolloutV3(prior, posterior, reset_key="is_init"),
        TensorDictModule(decoder, latent, [("next", "reco_pixels")]),
        TensorDictModule(reward, latent, logits),
        TensorDictModule(SymExpTwoHot(255), logits, [("next", "reward")]),
        TensorDictModule(going_on, latent, [("next", "continue_pred")]),
    )


def _behaviour(actions: int, going_on: nn.Module):
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(_head(2 * actions, 3), LATENT, ["params"]),
        TensorDictModule(NormalParamExtractor(), ["params"], ["loc", "scale"]),
        ProbabilisticTensorDictModule(
            ["loc", "scale"], ["action"], distribution_class=TanhNormal, return_log_prob=True
        ),
    )
    value = TensorDictSequential(
        TensorDictModule(_head(255, 3), LATENT, ["value_logits"]),
        TensorDictModule(SymExpTwoHot(255), ["value_logits"], ["state_value"]),
    )
    continuation = TensorDictSequential(
        TensorDictModule(going_on, LATENT, ["continue_logits"]),
        TensorDictModule(torch.sigmoid, ["continue_logits"], ["continuation"]),
    )
    return actor, value, continuation


def _imagination(prior, reward, actions: int) -> DreamerEnv:
    transition = TensorDictModule(prior, [*LATENT, "action"], ["_", *LATENT])
    rewards = TensorDictSequential(
        TensorDictModule(reward, LATENT, ["reward_logits"]),
        TensorDictModule(SymExpTwoHot(255), ["reward_logits"], ["reward"]),
    )
    env = DreamerEnv(
        WorldModelWrapper(transition, rewards), prior_shape=(STATE,), belief_shape=(BELIEF,)
    )
    env.observation_spec = Composite(state=Unbounded(STATE), belief=Unbounded(BELIEF))
    env.state_spec = env.observation_spec.clone()
    env.action_spec, env.reward_spec = Bounded(-1, 1, (actions,)), Unbounded((1,))
    return env


def _sample(observations: int, actions: int, batch: int, steps: int) -> TensorDict:
    shape = (batch, steps)
    flag = torch.zeros(*shape, 1, dtype=torch.bool)
    following = TensorDict(
        observation=torch.randn(*shape, observations),
        reward=torch.randn(*shape, 1),
        done=flag,
        terminated=flag.clone(),
        batch_size=shape,
    )
    return TensorDict(
        state=torch.zeros(*shape, STATE),
        belief=torch.zeros(*shape, BELIEF),
        action=torch.rand(*shape, actions) * 2 - 1,
        is_init=flag.clone(),
        next=following,
        batch_size=shape,
    )
