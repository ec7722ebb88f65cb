"""DreamerV3 in a pipeline of one's own: TorchRL's collector, its replay buffer and a plain loop.

Nothing of ``torchrl_wm.training`` is used. The agent is a policy module and an ``update`` on step
records; the collector finds the latents that the policy carries by itself
(``auto_register_policy_transforms``); the replay buffer is a stock ``TensorDictReplayBuffer`` on a
memory-mapped storage, into which a writer, a sampler and a transform are put.
"""

from __future__ import annotations

import tempfile
from functools import partial

import torch
from torchrl.collectors import Collector
from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer

from torchrl_wm.algorithms import DreamerV3
from torchrl_wm.data import LatentCompression, RingWriter, SequenceSampler, step_records
from torchrl_wm.envs import gymnasium, model_specs
from torchrl_wm.world_models import make_rssm


def main(
    frames: int = 20_000,
    warm_up: int = 1_024,
    batch_size: int = 16,
    length: int = 32,
    seed: int = 0,
) -> dict[str, float]:
    """Trains on CartPole for ``frames`` steps; returns the last metrics."""
    torch.manual_seed(seed)
    env = gymnasium("CartPole-v1", num_envs=2, seed=seed)
    observations, actions = model_specs(env)
    agent = DreamerV3(
        observations,
        actions,
        world_model=partial(make_rssm, belief_size=128, hidden_size=64),
        lr=4e-4,
        lr_warmup=100,
    )
    collector = Collector(
        env,
        agent.policy,
        frames_per_batch=64,
        total_frames=frames,
        auto_register_policy_transforms=True,
    )
    writer = RingWriter(num_envs=2)
    buffer = TensorDictReplayBuffer(
        storage=LazyMemmapStorage(2 * frames, scratch_dir=tempfile.mkdtemp()),
        writer=writer,
        sampler=SequenceSampler(writer, length + 1),
        transform=LatentCompression(agent.world_model.latent_codecs),
        batch_size=batch_size * (length + 1),
    )
    metrics, lengths = {}, [0.0]
    for count, batch in enumerate(collector, 1):
        buffer.extend(
            step_records(
                batch,
                observation_keys=list(observations.keys(True, True)),
                policy_keys=agent.world_model.latent_keys,
            )
        )
        ends = batch["next", "step_count"][batch["next", "done"]]
        lengths = (lengths + ends.tolist())[-20:]
        agent.policy.random_actions = count * 64 < warm_up  # the latents are filtered all the same
        if agent.policy.random_actions:
            continue
        losses, _ = agent.update(buffer.sample().reshape(batch_size, length + 1))
        metrics = {key: value.item() for key, value in losses.items()}
        metrics["episode_length"] = sum(lengths) / len(lengths)
        if count % 20 == 0:
            print(f"{count * 64:>7} steps: episodes of {metrics['episode_length']:.0f} steps")
    collector.shutdown()
    return metrics


if __name__ == "__main__":
    main()
