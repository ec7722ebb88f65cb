"""PlaNet's objectives against the reference code: divergence, rewards, latent overshooting."""

from __future__ import annotations

import golden_weights
import pytest
import torch
from golden_agents import belief_first, padded_row
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded

from torchrl_wm.algorithms.algorithm import total
from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.modules.cells import DenseCell
from torchrl_wm.modules.heads import NormalHead
from torchrl_wm.modules.latent_heads import PosteriorHead, PriorHead
from torchrl_wm.modules.latents import GaussianLatent
from torchrl_wm.objectives import ExcessKL, LatentOvershooting, WorldModelLoss
from torchrl_wm.world_models import RSSM


class Tokens(nn.Module):
    in_keys = ["tokens"]

    def forward(self, tensordict):
        return tensordict["tokens"]


class MeanOnly(RSSM):
    """The files hold the means of all latents, no draws."""

    def noise(self, batch_size, device=None, generator=None):
        return torch.zeros(*batch_size, self.latent.size)


def build(golden):
    cfg, network = golden.cfg, {"activation": "relu"}
    actions, tokens = golden["in/action"].shape[-1], golden["in/embed"].shape[-1]
    latent, hidden = GaussianLatent(cfg["stoch"]), cfg["embed_size"]
    cell = DenseCell(cfg["stoch"], actions, cfg["deter"], hidden, gru="reset_before", **network)
    prior = PriorHead(cfg["deter"], latent.raw_size, hidden, **network)
    posterior = PosteriorHead(cfg["deter"], tokens, latent.raw_size, hidden, **network)
    biases = [n for n in golden.group("param/head_reward") if n.endswith("bias")]
    units = golden["param/head_reward/dense/bias"].numel()
    options = {"norm": None, "init": "glorot", "units": units, **network}
    head = NormalHead(cfg["deter"] + cfg["stoch"], layers=len(biases) - 1, **options)
    belief_first(golden, cfg["stoch"], "dense")
    weights = golden_weights.planet_rssm(cell, prior, posterior)
    weights |= golden_weights.planet_head(head, "head_reward")
    golden.load(weights)
    encoding = ActionEncoding(Bounded(-1, 1, (actions,)))
    return MeanOnly(Tokens(), encoding, cell, latent, prior, posterior, reward_head=head), weights


def sample(golden, model):
    action = padded_row(golden["in/action"])
    records = TensorDict(
        tokens=padded_row(golden["in/embed"]),
        previous_action=action,
        reward=padded_row(golden["in/reward"]).unsqueeze(-1),
        is_init=torch.zeros(*action.shape[:2], 1, dtype=torch.bool),
        batch_size=action.shape[:2],
    )
    return records.update(model.initial(records.batch_size))


@pytest.mark.golden("planet_objectives")
def test_objectives(golden):
    model, weights = build(golden)
    scale = golden.cfg["reward_scale"]
    loss = WorldModelLoss(model, ExcessKL(golden.cfg["free_nats"]), reward_scale=scale)
    losses = loss(sample(golden, model))
    golden.close(losses["loss_kl"], "out/objective/divergence")
    golden.close(-losses["loss_reward"] / scale, "out/objective/reward")
    golden.close(total(losses), "out/total")
    total(losses).backward()
    golden.gradients(weights)


@pytest.mark.golden("planet_objectives")
def test_latent_overshooting(golden):
    model, _ = build(golden)
    distance, free = golden.cfg["overshooting_distance"], golden.cfg["free_nats"]
    overshooting = LatentOvershooting(distance, free_nats=free)
    loss = WorldModelLoss(model, ExcessKL(free), overshooting=overshooting)
    value = loss(sample(golden, model))["loss_overshooting"]
    golden.close(value.double(), "port/overshooting_masked")
