"""Environment steps per second of a DreamerV3 policy, beside a small policy in a bare collector."""

from __future__ import annotations

import argparse
import time

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from torchrl_wm.algorithms import DreamerV3
from torchrl_wm.envs import gymnasium, model_specs
from torchrl_wm.training import with_latents


def report() -> None:
    """Prints steps per second with 1 and 8 environments of CartPole."""
    print("acting in CartPole-v1, environment steps per second:")
    for num_envs in (1, 8):
        filtering, bare = filtering_collector(num_envs), bare_collector(num_envs)
        rates = {"Dreamer": [], "bare": []}
        for _ in range(5):
            rates["Dreamer"].append(_rate(filtering, num_envs))
            rates["bare"].append(_rate(bare, num_envs))
        dreamer, small = (sorted(values)[2] for values in rates.values())
        print(f"  {num_envs} environments: DreamerV3 size1m {dreamer:.0f}, bare MLP {small:.0f}")
        filtering.shutdown()
        bare.shutdown()


def filtering_collector(num_envs: int) -> Collector:
    """A collector whose policy filters every observation with an RSSM."""
    env = gymnasium("CartPole-v1", num_envs=num_envs)
    agent = DreamerV3(*model_specs(env))
    return _collector(with_latents(env, agent.policy), agent.policy)


def bare_collector(num_envs: int) -> Collector:
    """A collector whose policy is an MLP on the observation."""
    env = gymnasium("CartPole-v1", num_envs=num_envs)
    network = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 2), _Choice())
    return _collector(env, TensorDictModule(network, ["observation"], ["action"]))


class _Choice(nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        index = torch.distributions.Categorical(logits=logits).sample()
        return nn.functional.one_hot(index, logits.shape[-1])


def _collector(env: EnvBase, policy) -> Collector:
    frames = 32 * env.numel()
    return Collector(
        env,
        policy,
        frames_per_batch=frames,
        total_frames=-1,
        auto_register_policy_transforms=False,
    )


def _rate(collector: Collector, num_envs: int, batches: int = 4) -> float:
    iterator = iter(collector)
    next(iterator)
    began = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    return 32 * num_envs * batches / (time.perf_counter() - began)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    report()
