"""Whole updates of Dreamer v1 against the reference code: same weights, same draws."""

from __future__ import annotations

from functools import partial

import golden_weights
import pytest
import torch
from golden_agents import belief_first, observation_spec, padded_row, pictures_first, records
from torchrl.data import Bounded, Composite

from torchrl_wm.algorithms import DreamerV1
from torchrl_wm.modules.outputs import TanhNormalOutput
from torchrl_wm.objectives import align_v1
from torchrl_wm.world_models import make_rssm


@pytest.mark.golden("v1_train")
def test_dreamer_v1_equals_the_reference(golden, recorded, gradients):
    case = V1Agent(golden)
    imagination, grads = recorded(case.agent), gradients(case.agent)
    imagination.record(*case.draws())
    metrics, latents = case.agent.update(case.sample())
    golden.close(latents["belief"], "out/post/deter")
    golden.close(latents["state"], "out/post/stoch")
    losses = {"actor": metrics["loss_actor"], "value": metrics["loss_critic"]}
    losses["model"] = sum(v for k, v in metrics.items() if k.startswith("loss_")) - sum(
        losses.values()
    )
    check_v1_imagination(golden, imagination.trajectory)
    for name, loss in losses.items():
        golden.close(loss, f"out/{name}_loss")
        check_v1_gradients(case, name, grads)


class V1Agent:
    """The file's agent."""

    def __init__(self, golden):
        self.golden, self.cfg = golden, golden.cfg
        self.observations = pictures_first({"image": golden["in/image"]})
        observations = observation_spec(self.observations)
        actions = Composite(action=Bounded(-1, 1, (self.cfg["action_dim"],)))
        self.agent = DreamerV1(observations, actions, **self.options())
        output = self.agent.actor.output
        assert output.raw_std == TanhNormalOutput(1, init_std=self.cfg["action_init_std"]).raw_std
        self.parts = self.names()
        cell = self.agent.world_model.cell.gru.cell
        gru = golden_weights.load_keras_gru(golden, cell, "dynamics/cell")
        belief_first(golden, self.cfg["stoch_size"], "h0")
        golden.load(self.parts["model"] | self.parts["actor"] | self.parts["value"] | gru)

    def options(self):
        cfg, golden = self.cfg, self.golden
        model = partial(
            make_rssm,
            belief_size=cfg["deter_size"],
            hidden_size=golden["param/dynamics/img1/bias"].numel(),
            state_size=cfg["stoch_size"],
            units=cfg["num_units"],
            depth=cfg["cnn_depth"],
            reward_layers=golden.layers("reward/h{}/bias"),
            continuation_layers=golden.layers("pcont/h{}/bias"),
        )
        return {
            "world_model": model,
            "imagination_horizon": cfg["horizon"],
            "discount": cfg["discount"],
            "lambda_": cfg["disclam"],
            "free_bits": cfg["free_nats"],
            "kl": {"strategy": "clipped", "scale": cfg["kl_scale"]},
            "use_continuation": bool(cfg["pcont"]),
            "continuation_scale": cfg["pcont_scale"],
            "units": cfg["num_units"],
            "actor_layers": golden.layers("actor/h{}/bias"),
            "critic_layers": golden.layers("value/h{}/bias"),
        }

    def names(self):
        golden, agent, model = self.golden, self.agent, self.agent.world_model
        head = partial(golden_weights.v1_head, golden)
        weights = golden_weights.first_encoder(model.encoder.image, "encode/")
        weights |= golden_weights.first_decoder(model.decoder.image, "decode/")
        parts = (model.cell, model.prior, model.posterior)
        weights |= golden_weights.v1_rssm(*parts, below="dynamics/")
        weights |= head(model.reward_head, below="reward/")
        if model.continuation_head is not None:
            weights |= head(model.continuation_head, below="pcont/")
        actor, value = head(agent.actor, below="actor/"), head(agent.critic, below="value/")
        return {"model": weights, "actor": actor, "value": value}

    def sample(self):
        golden = self.golden
        terminated = golden["in/discount"] == 0
        action, reward = golden["in/action"], golden["in/reward"]
        out = records(self.observations, action, reward, terminated)
        out = out.update(self.agent.world_model.initial(out.batch_size))
        return out.set("noise", padded_row(golden["in/eps_post"]))

    def draws(self):
        noise = self.golden["in/eps_action"].unbind(0)
        draws = [lambda policy, eps=eps: policy.rsample(noise=eps) for eps in noise]
        return self.golden["in/eps_imag"].transpose(0, 1), draws


def check_v1_imagination(golden, trajectory):
    belief_first, size = trajectory["features"], golden.cfg["deter_size"]
    belief, state = belief_first.split([size, belief_first.shape[-1] - size], -1)
    golden.close(torch.cat([state, belief], -1)[1:], "out/imag_feat")
    names = {"reward": "imag_reward", "state_value": "imag_value", "continuation": "imag_pcont"}
    for key, name in names.items():
        golden.close(trajectory[key][1:-1].squeeze(-1), f"out/{name}")
    golden.close(trajectory["state_value"][-1].squeeze(-1), "out/bootstrap")
    rows, _ = align_v1(trajectory, golden.cfg["disclam"])
    golden.close(rows["lambda_target"].squeeze(-1), "out/returns")


def check_v1_gradients(case, part, grads):
    golden, prefix = case.golden, f"grad/{part}"
    given = golden.group(prefix)
    weights = {name: p for name, p in case.parts[part].items() if name in given}
    assert weights
    golden.gradients(weights, prefix, grads)
    if part == "model":
        cell = case.agent.world_model.cell.gru.cell
        own = {name: grads[p] for name, p in cell.named_parameters()}
        golden_weights.check_keras_gru(golden, own, "dynamics/cell", prefix)
    optimizer = {"model": "world_model", "actor": "actor", "value": "critic"}[part]
    groups = case.agent.optimizers[optimizer].param_groups
    squares = sum(grads[p].square().sum() for group in groups for p in group["params"])
    golden.close(squares.sqrt(), f"out/{part}_grad_norm")
