"""TorchRL's PPO trains a policy inside a learned world model; the real environment then tests it.

The world model is fitted to a few thousand random steps of CartPole. ``LearnedEnv`` makes an
environment of it, in which TorchRL's collector, ``GAE`` and ``ClipPPOLoss`` work as in any other. As
it writes observations under their own names, the policy goes back to the real one as it is. There
its episodes last about ten steps before and hundreds after.
"""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.envs import ExplorationType, StepCounter, TransformedEnv, set_exploration_type
from torchrl.modules import MLP, OneHotCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_wm.data import step_records
from torchrl_wm.envs import LearnedEnv, gymnasium, model_specs
from torchrl_wm.objectives import SeparateKL, WorldModelLoss
from torchrl_wm.world_models import make_identity


def learn_world(env, random_steps: int, updates: int):
    """A world model of random play, and the latents of that play."""
    model = make_identity(*model_specs(env))
    rollout = env.rollout(random_steps // env.batch_size[0], break_when_any_done=False)
    records = step_records(rollout, observation_keys=["observation"]).exclude("environment")
    # The latents of this model are its observations: filtered once, they are never out of date.
    records = model.filter(records.update(model.initial(records.shape)))
    loss = WorldModelLoss(model, SeparateKL(free_nats=0.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(updates):
        starts = torch.randint(len(records) - 8, (128, 1))
        descend(optimizer, loss(records[starts + torch.arange(8)]))
    going_on = records[~records["is_last"].squeeze(-1)]
    return model.requires_grad_(False), going_on.select(*model.latent_keys)


def main(
    random_steps: int = 2_400, updates: int = 400, frames: int = 30_000, test_steps: int = 300
) -> dict[str, float]:
    """Mean length of real episodes, with the policy before and after PPO."""
    torch.manual_seed(0)
    real = gymnasium("CartPole-v1", num_envs=8)
    model, latents = learn_world(real, random_steps, updates)
    learned = LearnedEnv(
        model, start=latents, write_observations=True, terminate_below=0.5, batch_size=[16]
    )
    learned = TransformedEnv(learned, StepCounter(max_steps=100))
    actor = ProbabilisticActor(
        TensorDictModule(MLP(4, 2, num_cells=[64, 64]), ["observation"], ["logits"]),
        in_keys=["logits"],
        distribution_class=OneHotCategorical,
        return_log_prob=True,
    )
    critic = ValueOperator(MLP(4, 1, num_cells=[64, 64]), in_keys=["observation"])
    before = episode_length(real, actor, test_steps)
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.01)
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for batch in Collector(learned, actor, frames_per_batch=2_048, total_frames=frames):
        for _ in range(4):
            rows = advantage(batch).reshape(-1)
            for part in rows[torch.randperm(len(rows))].split(256):
                descend(optimizer, loss(part))
    return {"before": before, "after": episode_length(real, actor, test_steps)}


def descend(optimizer: torch.optim.Optimizer, losses) -> None:
    """One step down the gradient of the sum of all losses."""
    optimizer.zero_grad()
    sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
    optimizer.step()


@torch.no_grad()
def episode_length(env, actor, steps: int) -> float:
    """Steps per end of a real episode, without exploration."""
    with set_exploration_type(ExplorationType.MODE):
        rollout = env.rollout(steps, actor, break_when_any_done=False)
    return rollout.numel() / max(1, int(rollout["next", "done"].sum()))


if __name__ == "__main__":
    print(main())
