"""The planners against the reference codes: PlaNet's cross-entropy method, TD-MPC2's refit."""

from __future__ import annotations

import golden_weights
import pytest
import torch
from golden_agents import belief_first
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded

from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.modules.cells import DenseCell
from torchrl_wm.modules.heads import NormalHead
from torchrl_wm.modules.latent_heads import PosteriorHead, PriorHead
from torchrl_wm.modules.latents import GaussianLatent
from torchrl_wm.planners import CEMPlanner, MPPIPlanner
from torchrl_wm.world_models import RSSM, make_identity


class Recording(nn.Module):
    """A simulator that keeps the candidates that it was asked about and the returns it gave."""

    def __init__(self, simulator):
        super().__init__()
        self.simulator, self.in_keys = simulator, simulator.in_keys
        self.encoding, self.start = simulator.encoding, simulator.start
        self.asked, self.given = [], []

    def returns(self, start, actions, generator):
        self.asked.append(actions)
        self.given.append(self.simulator.returns(start, actions, generator))
        return self.given[-1]


class Tokens(nn.Module):
    in_keys = ["tokens"]


def planet_model(golden):
    cfg = golden.cfg
    hidden, network = cfg["embed_size"], {"activation": "relu"}
    latent = GaussianLatent(cfg["stoch"])
    sizes = (cfg["stoch"], cfg["action_dim"], cfg["deter"], hidden)
    cell = DenseCell(*sizes, gru="reset_before", **network)
    prior = PriorHead(cfg["deter"], latent.raw_size, hidden, **network)
    posterior = PosteriorHead(cfg["deter"], 1, latent.raw_size, hidden, **network)
    options = {"norm": None, "init": "glorot", **network}
    features = cfg["deter"] + cfg["stoch"]
    head = NormalHead(features, layers=cfg["head_layers"], units=cfg["head_units"], **options)
    belief_first(golden, cfg["stoch"], "dense")
    weights = golden_weights.planet_rssm(cell, prior, posterior)
    weights = {k: v for k, v in weights.items() if "posterior" not in str(k)}
    weights |= golden_weights.planet_head(head, "head_reward")
    golden.load(weights)
    encoding = ActionEncoding(Bounded(-1, 1, (cfg["action_dim"],)))
    return RSSM(Tokens(), encoding, cell, latent, prior, posterior, reward_head=head)


@pytest.mark.golden("planet_cem")
def test_planet(golden):
    cfg = golden.cfg
    sizes = (cfg["horizon"], cfg["iterations"], cfg["amount"], cfg["topk"])
    planner = CEMPlanner(planet_model(golden), *sizes, sample_latents=False)
    start = TensorDict(
        belief=golden["in/start/deter"], state=golden["in/start/stoch"], batch_size=[1]
    )
    planner.simulator = recording = Recording(planner.simulator)
    refits = []
    planner._refit = lambda *args, refit=planner._refit: refits.append(refit(*args)) or refits[-1]
    plan, _ = planner.plan(start, noise=golden["in/noise"])
    golden.close(torch.cat(recording.given), "out/returns")
    golden.close(torch.stack([mean for mean, _ in refits]), "out/iter_mean")
    golden.close(torch.stack([std for _, std in refits]), "out/iter_std")
    golden.close(plan, "out/mean")


class Known(nn.Module):
    """A simulator whose returns are given."""

    in_keys = ["state"]

    def __init__(self, encoding, values):
        super().__init__()
        self.encoding, self.values = encoding, values

    def start(self, rows):
        return ()

    def returns(self, start, actions, generator):
        return self.values.unsqueeze(0)


@pytest.mark.golden("misc*")
def test_mppi_refit_of_td_mpc2(golden):
    actions, values = golden["mppi_actions"].float(), golden["mppi_values"].float()
    horizon, candidates, size = actions.shape
    model = make_identity(
        Composite(observation=Unbounded(1)), Composite(action=Bounded(-1, 1, (size,)))
    )
    limits = {"min_std": golden["mppi_min_std"].item(), "max_std": golden["mppi_max_std"].item()}
    planner = MPPIPlanner(
        model,
        temperature=golden["mppi_temperature"].item(),
        planning_horizon=horizon,
        optim_steps=1,
        num_candidates=candidates,
        top_k=int(golden["mppi_num_elites"]),
        **limits,
    )
    # There a return that is not a number counts as 0; here it would never be an elite.
    planner.simulator = Known(planner.simulator.encoding, values.nan_to_num(0.0))
    refits = []
    given = []
    planner._refit = lambda *args, refit=planner._refit: (
        given.append(args) or refits.append(refit(*args)) or refits[-1]
    )
    planner.plan(model.initial([1]), noise=[actions.transpose(0, 1).unsqueeze(0)])
    ((_, _, elites, weights),) = given
    index = golden["mppi_elite_index"]
    torch.testing.assert_close(elites[0].transpose(0, 1), actions[:, index])
    golden.close(weights[0].double(), "mppi_score")
    ((mean, std),) = refits
    golden.close(mean[0].double(), "mppi_mean")
    golden.close(std[0].double(), "mppi_std")
