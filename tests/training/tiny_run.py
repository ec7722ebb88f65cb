"""A small conforming algorithm and a run of it, importable and executable (for signals, kills)."""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torch.nn import functional as F
from torchrl.data import OneHot, Unbounded
from torchrl.envs import TensorDictPrimer

from torchrl_wm.algorithms import Algorithm
from torchrl_wm.data import StepReplay
from torchrl_wm.envs import gymnasium as make_gymnasium
from torchrl_wm.envs import model_specs
from torchrl_wm.training import (
    Evaluator,
    MetricLog,
    Trainer,
    UpdateRatio,
    latest_checkpoint,
    read_checkpoint,
    seed_everything,
    with_latents,
)

BELIEF = 3


class TinyPolicy(TensorDictModuleBase):
    """Filters a random recurrent latent; acts by a noisy linear head on it."""

    def __init__(self, model: TinyModel, greedy: bool = False):
        super().__init__()
        self.in_keys = ["observation", "previous_action", "is_init", "belief"]
        self.out_keys = ["action", "belief"]
        self.model, self.greedy, self.random_actions = model, greedy, False

    def make_tensordict_primer(self):
        return TensorDictPrimer(belief=Unbounded(BELIEF), expand_specs=True)

    def forward(self, td):
        belief = self.model.filter(td)
        logits = self.model.actor(belief)
        if self.random_actions:
            logits = torch.zeros_like(logits)
        if not self.greedy:
            logits = logits - torch.empty_like(logits).exponential_().log()
        if self.model.discrete:
            action = F.one_hot(logits.argmax(-1), logits.shape[-1])
        else:
            action = logits.tanh()
        return td.update({"action": action, "belief": belief})


class TinyModel(nn.Module):
    latent_codecs = {"belief": torch.float32}

    def __init__(self, observation_size, action_size, discrete):
        super().__init__()
        self.discrete = discrete
        self.cell = nn.Linear(observation_size + action_size + BELIEF, BELIEF)
        self.actor = nn.Linear(BELIEF, action_size)
        self.reward = nn.Linear(BELIEF, 1)

    def filter(self, td):
        belief = td["belief"] * ~td["is_init"]
        inputs = torch.cat([td["observation"], td["previous_action"], belief], -1)
        return (self.cell(inputs) + 0.1 * torch.randn_like(belief)).tanh()


def make_env():
    return gymnasium.make("CartPole-v1")


def no_world_model():
    """What the config of the tiny algorithm gives as its world model."""


class TinyAlgorithm(Algorithm):
    """Regresses rewards on the latent of a one-step filter from the stored carry."""

    def __init__(
        self,
        observation_spec,
        action_spec,
        *,
        lr=1e-2,
        poison_at=None,
        world_model=None,
        device=None,
    ):
        super().__init__()
        discrete = isinstance(action_spec["action"], OneHot)
        sizes = observation_spec["observation"].shape[0], action_spec["action"].shape[0]
        self.world_model = TinyModel(*sizes, discrete)
        self.policy = TinyPolicy(self.world_model)
        self.evaluation_policy = TinyPolicy(self.world_model, greedy=True)
        self.optimizers = {"all": torch.optim.Adam(self.world_model.parameters(), lr)}
        self.poison_at = poison_at
        self.pretrained = 0
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def update(self, sample):
        carry, rows = sample[:, :-1], sample[:, 1:].copy()
        rows["belief"] = carry["belief"]
        beliefs = self.world_model.filter(rows)
        loss = (self.world_model.reward(beliefs) - rows["reward"]).square().mean()
        self.optimizers["all"].zero_grad()
        loss.backward()
        self.optimizers["all"].step()
        self.updates += 1
        if self.poison_at is not None and self.updates >= self.poison_at:
            loss = loss * float("nan")
        metrics = TensorDict(
            loss_reward=loss.detach(), bias=self.world_model.reward.bias[0].detach()
        )
        return metrics, TensorDict(belief=beliefs.detach(), batch_size=rows.batch_size)

    def pretrain(self, sample):
        self.pretrained += 1
        return self.update(sample)


def make_replay(env, run_dir, *, batch_size=4, slice_length=6, slack=200):
    _, action_spec = model_specs(env)
    return StepReplay(
        2000,
        env.batch_size[0],
        batch_size,
        slice_length,
        action_spec=action_spec,
        observation_keys=["observation"],
        latents={"belief": torch.float32},
        scratch_dir=Path(run_dir) / "replay",
        slack=slack,
    )


def make_trainer(
    run_dir,
    *,
    id="CartPole-v1",
    num_envs=1,
    total_steps=200,
    seed=3,
    poison_at=None,
    env=None,
    ratio=None,
    evaluate=True,
    **options,
):
    run_dir = Path(run_dir)
    seed_everything(seed)
    limits = {"max_episode_steps": 30}
    env = env or make_gymnasium(id, num_envs=num_envs, seed=seed, **limits)
    algorithm = TinyAlgorithm(*model_specs(env), poison_at=poison_at)
    replay = make_replay(env, run_dir)
    evaluator = None
    if evaluate:
        evaluation_env = with_latents(make_gymnasium(id, seed=seed + 1, **limits), algorithm.policy)
        evaluator = Evaluator(evaluation_env, algorithm.evaluation_policy, 2, seed=seed)
    defaults = {"warmup_steps": 40, "log_every": 20, "evaluate_every": 70, "checkpoint_every": 60}
    return Trainer(
        env,
        algorithm,
        replay,
        ratio or UpdateRatio(train_ratio=5, batch_steps=24),
        total_steps=total_steps,
        run_dir=run_dir,
        log=MetricLog(run_dir, tensorboard=False),
        evaluator=evaluator,
        seed=seed,
        progress=False,
        **(defaults | options),
    )


def resumed_trainer(run_dir, **options):
    trainer = make_trainer(run_dir, **options)
    trainer.load(read_checkpoint(latest_checkpoint(Path(run_dir) / "checkpoints")))
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir")
    parser.add_argument("--total-steps", type=int)
    parser.add_argument("--parallel", action="store_true")
    options = parser.parse_args()
    Path(options.run_dir).mkdir(exist_ok=True)
    env = None
    if options.parallel:
        env = make_gymnasium("CartPole-v1", num_envs=2, vectorization="parallel")
    trainer = make_trainer(options.run_dir, total_steps=options.total_steps, env=env)
    print("ready", flush=True)
    try:
        trainer.run()
    finally:
        trainer.close()
