"""Recorded data and draws of the reference agents in the forms of the package."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torchrl.data import Composite, Unbounded


def forced(sample):
    """Noise that forces recorded one-hot samples ``[..., S, K]``."""
    return sample.flatten(-2)


def without_gradient(value):
    """A draw that is ``value`` whatever the policy says."""
    return lambda policy: value


def observation_spec(observations):
    """Specs of entries ``[B, T, *shape]``."""
    leaves = {key: Unbounded(x.shape[2:], dtype=x.dtype) for key, x in observations.items()}
    return Composite(leaves)


def pictures_first(observations):
    """Pictures from ``[H, W, C]`` to ``[C, H, W]``."""
    byte = torch.uint8
    return {k: x.movedim(-1, -3) if x.dtype == byte else x for k, x in observations.items()}


def close(actual, expected):
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-4, atol=1e-6)


def records(observations, action, reward, terminated, carry=None):
    """Step records ``[B, T + 1]`` from rows whose action led to the observation; row 0 is padding."""
    entries = {
        **observations,
        "previous_action": action,
        "reward": reward.unsqueeze(-1),
        "terminated": terminated.unsqueeze(-1),
    }
    padded = {key: torch.cat([x[:, :1], x], 1) for key, x in entries.items()}
    out = TensorDict(padded, (action.shape[0], action.shape[1] + 1))
    out["is_init"] = torch.zeros_like(out["terminated"])
    for key, value in (carry or {}).items():
        out[key] = value.unsqueeze(1).expand(-1, out.shape[1], -1).clone()
    return out


def belief_first(golden, state_size, layer):
    """Heads of the first Dreamers read state, belief; here they read belief, state."""
    for name, kernel in golden.entries.items():
        head, _, end = name.rpartition(f"/{layer}/")
        if end == "kernel" and head.split("/")[-1] not in ("encoder", "decoder"):
            state, belief = kernel.split([state_size, len(kernel) - state_size])
            golden.entries[name] = torch.cat([belief, state])


def padded_row(noise):
    return torch.cat([torch.zeros_like(noise[:, :1]), noise], 1)


def with_gradient(value):
    """A draw that is ``value`` with the gradient of a sample."""

    def draw(policy):
        sample = policy.rsample()
        return value + sample - sample.detach()

    return draw


def slow_weights(agent, fast, below, instead):
    """The target parameters of the critic under the reference's names."""
    own = {parameter: name for name, parameter in agent.critic.named_parameters()}
    slow = agent.critic_loss.target_critic_params
    rename = lambda name: instead + name.removeprefix(below)
    return {rename(name): slow[tuple(own[p].split("."))] for name, p in fast.items()}
