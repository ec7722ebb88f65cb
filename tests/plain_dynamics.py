"""A model of one layer whose searches are programs, and when two of its trees are equal."""

from __future__ import annotations

import torch
from torch import nn
from torchrl.data import Categorical

from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.planners.tree_search import Dynamics, Root, Step


class Plain(Dynamics):
    """A small network, with what follows its linear layer chosen by the test."""

    in_keys = ["latent"]
    traceable = True

    def __init__(self, actions=3, after=torch.tanh):
        super().__init__(ActionEncoding(Categorical(actions)), actions, 0.97)
        self.net, self.after = nn.Linear(8 + actions, 8 + actions + 2), after
        self.register_buffer("codes", torch.eye(actions))

    def roots(self, rows, seed=0):
        generator = torch.Generator().manual_seed(seed)
        latent, value = torch.randn(rows, 8, generator=generator), torch.zeros(rows)
        return Root((latent,), value, torch.randn(rows, self.num_actions, generator=generator))

    def step(self, latents, action):
        out = self.net(torch.cat([latents[0], self.codes.index_select(0, action)], -1))
        latent = self.after(out[:, :8])
        return Step((latent,), out[:, 8], out[:, 9], out[:, 10:])


def assert_equal_trees(one, other):
    """Bitwise, with the latents of all nodes that were made."""
    made = one["node_visits"] > 0
    assert torch.equal(one["latents", "latent"][made], other["latents", "latent"][made])
    for name in set(one.keys()) - {"latents"}:
        assert torch.equal(one[name], other[name]), name
