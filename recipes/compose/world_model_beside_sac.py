"""A world model learns from what a stock TorchRL SAC script collects, without changing that script.

The upper half is SAC on Pendulum as anyone would write it: its collector, its replay buffer of
transitions, its loss. The lower half looks into the same storage with TorchRL's ``SliceSampler`` and
turns the slices into step records with ``StepRecords``.
"""

from __future__ import annotations

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
from torchrl.envs import GymEnv, StepCounter, TransformedEnv
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from torchrl_wm.data import StepRecords
from torchrl_wm.envs import model_specs
from torchrl_wm.objectives import SeparateKL, WorldModelLoss
from torchrl_wm.world_models import make_rssm


def make_sac(env) -> tuple[ProbabilisticActor, SACLoss]:
    """TorchRL's policy and loss."""
    spec = env.action_spec_unbatched
    net = nn.Sequential(MLP(3, 2 * spec.shape[-1], num_cells=[64, 64]), NormalParamExtractor())
    policy = ProbabilisticActor(
        TensorDictSequential(TensorDictModule(net, ["observation"], ["loc", "scale"])),
        in_keys=["loc", "scale"],
        spec=spec,
        distribution_class=TanhNormal,
        distribution_kwargs={"low": spec.space.low, "high": spec.space.high},
    )
    critic = ValueOperator(MLP(4, 1, num_cells=[64, 64]), in_keys=["observation", "action"])
    return policy, SACLoss(policy, critic, num_qvalue_nets=2)


def main(frames: int = 10_000, batches: int = 8, length: int = 16) -> dict[str, float]:
    """Trains SAC and, from its data, a world model; returns the world model's first and last loss."""
    torch.manual_seed(0)
    env = TransformedEnv(GymEnv("Pendulum-v1"), StepCounter())
    env.set_seed(0)
    policy, sac = make_sac(env)
    collector = Collector(env, policy, frames_per_batch=100, total_frames=frames)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100_000), batch_size=128)
    target = SoftUpdate(sac, eps=0.995)
    sac_optimizer = torch.optim.Adam(sac.parameters(), lr=3e-4)

    # -- the world model ------------------------------------------------------------------------
    specs = model_specs(env)
    model = make_rssm(*specs, style="v1", latent="gaussian", cell="gru", belief_size=64, units=64)
    loss = WorldModelLoss(model, SeparateKL(free_nats=1.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    slices = TensorDictReplayBuffer(
        storage=buffer.storage,  # a second look at the same rows
        sampler=SliceSampler(slice_len=length + 1, traj_key=("collector", "traj_ids")),
        batch_size=16 * (length + 1),
    )
    to_records = StepRecords(
        model.action_encoding, length=length + 1, observation_keys=["observation"]
    )

    history = []
    for batch in collector:
        buffer.extend(batch)
        for _ in range(batches):
            descend(sac_optimizer, sac(buffer.sample()))
            target.step()

            records = to_records(slices.sample())
            records.update(model.initial(records.shape))  # SAC stored no latents: carry zeros
            history.append(descend(optimizer, loss(records)))
    collector.shutdown()
    return {"first": history[0], "last": sum(history[-5:]) / 5}


def descend(optimizer: torch.optim.Optimizer, losses) -> float:
    """One step down the gradient of the sum of all losses, which is returned."""
    total = sum(value for key, value in losses.items() if key.startswith("loss_"))
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return total.item()


if __name__ == "__main__":
    print(main())
