"""Whole updates of Dreamer v2 against the reference code: same weights, same draws."""

from __future__ import annotations

from functools import partial

import golden_weights
import pytest
from golden_agents import (
    belief_first,
    close,
    forced,
    observation_spec,
    padded_row,
    pictures_first,
    records,
    slow_weights,
    with_gradient,
    without_gradient,
)
from torchrl.data import Bounded, Composite, OneHot

from torchrl_wm.algorithms import DreamerV2
from torchrl_wm.objectives import align_v2
from torchrl_wm.world_models import make_rssm

V2_KNOWN = ("reward", "is_first", "is_last", "is_terminal", "action")
STILL = 1e-30
"""A learning rate that leaves every float32 as it is."""


class V2Agent:
    """The file's agent; its world model stands still, since the reference's losses share weights."""

    def __init__(self, golden):
        self.golden, self.cfg = golden, golden.cfg
        entries = golden.group("in").items()
        self.observations = pictures_first(
            {k: v for k, v in entries if "/" not in k and k not in V2_KNOWN}
        )
        self.action = golden["in/action"]
        size = self.action.shape[-1]
        spec = OneHot(size) if self.cfg["discrete_action"] else Bounded(-1, 1, (size,))
        observations = observation_spec(self.observations)
        self.agent = DreamerV2(observations, Composite(action=spec), **self.options())
        self.parts = self.names()
        belief_first(golden, golden["in/init/stoch"].shape[-2:].numel(), "dense0")
        self.slow = slow_weights(self.agent, self.parts["critic"], "critic/", "target_critic/")
        weights = self.parts["model"] | self.parts["actor"] | self.parts["critic"]
        golden.load(weights | self.slow)

    def options(self):
        cfg, golden = self.cfg, self.golden
        categoricals, classes = golden["in/init/stoch"].shape[-2:]
        units = golden["param/actor/dense0/bias"].numel()
        model = partial(
            make_rssm,
            belief_size=golden["in/init/deter"].shape[-1],
            hidden_size=golden["param/rssm/img_in/bias"].numel(),
            state_size=categoricals,
            classes=classes,
            units=golden["param/reward/dense0/bias"].numel(),
            vector_layers=golden.layers("encoder/dense{}/bias"),
            reward_layers=golden.layers("reward/dense{}/bias"),
            continuation_layers=golden.layers("discount/dense{}/bias"),
        )
        names = ("reinforce", "dynamics", "mixed")
        balance = {"balance": cfg["kl_balance"], "free_average": bool(cfg["kl_free_avg"])}
        return {
            "world_model": model,
            "imagination_horizon": cfg["imag_horizon"],
            "discount": cfg["discount"],
            "lambda_": cfg["lam"],
            "free_bits": cfg["kl_free"],
            "kl": {"strategy": "balanced", "scale": cfg["kl_scale"], **balance},
            "use_continuation": bool(cfg["pred_discount"]),
            "reward_scale": cfg["reward_scale"],
            "continuation_scale": cfg["discount_scale"],
            "squash_reward": cfg["clip_rewards"] == 2,
            "actor_gradient": names[cfg["actor_grad"]],
            "entropy": cfg["actor_ent"],
            "world_model_lr": STILL,
            "weight_decay": 0.0,
            "units": units,
            "actor_layers": golden.layers("actor/dense{}/bias"),
            "critic_layers": golden.layers("critic/dense{}/bias"),
        }

    def names(self):
        golden, agent, model = self.golden, self.agent, self.agent.world_model
        head = partial(golden_weights.v2_head, golden)
        parts = (model.cell, model.prior, model.posterior)
        weights = golden_weights.v2_rssm(golden, *parts, below="rssm/")
        weights |= golden.dense(model.encoder.vector.mlp, "encoder/dense{}", "encoder/norm{}")
        decoder = model.decoder.vector
        weights |= golden.dense(decoder.mlp, "decoder/dense{}", "decoder/norm{}")
        for key, layer in zip(decoder.keys, decoder.outs, strict=True):
            weights |= golden_weights.linear(layer, f"decoder/dense_{key}/out")
        weights |= head(model.reward_head, "out", below="reward/")
        if model.continuation_head is not None:
            weights |= head(model.continuation_head, "out", below="discount/")
        actions = ["out"] if self.cfg["discrete_action"] else ["out", "std"]
        actor = head(agent.actor, *actions, below="actor/")
        return {
            "model": weights,
            "actor": actor,
            "critic": head(agent.critic, "out", below="critic/"),
        }

    def sample(self):
        golden, reward = self.golden, self.golden["in/reward"]
        reward = reward.sign() if self.cfg["clip_rewards"] == 1 else reward
        carry = {"belief": golden["in/init/deter"], "state": golden["in/init/stoch"].flatten(-2)}
        terminated = golden["in/is_terminal"]
        out = records(self.observations, self.action, reward, terminated, carry)
        out["is_init"][:, 1:] = golden["in/is_first"].unsqueeze(-1)
        return out.set("noise", padded_row(forced(golden["in/sample/stoch"])))

    def draws(self):
        """Row 0 of the recorded imagination is the start: its state, and no action."""
        draw = with_gradient if self.cfg["actor_grad"] else without_gradient
        noise = forced(self.golden["in/sample/imag_stoch"])[1:].transpose(0, 1)
        return noise, [draw(action) for action in self.golden["in/sample/imag_action"][1:]]


@pytest.mark.golden("v2_agent")
def test_dreamer_v2_equals_the_reference(golden, recorded, gradients):
    case = V2Agent(golden)
    imagination, grads = recorded(case.agent), gradients(case.agent)
    imagination.record(*case.draws())
    metrics, _ = case.agent.update(case.sample())
    check_v2_losses(golden, metrics)
    check_v2_imagination(case, imagination.trajectory)
    golden.gradients(case.parts["model"], "grad/model", grads)
    golden.gradients(case.parts["critic"], "grad", grads)
    if golden.group("grad/actor"):
        golden.gradients(case.parts["actor"], "grad", grads)


def check_v2_losses(golden, metrics):
    cfg = golden.cfg
    scales = {
        "kl": cfg["kl_scale"],
        "reward": cfg["reward_scale"],
        "discount": cfg["discount_scale"],
    }
    total = 0
    for name, value in golden.group("out/loss").items():
        actual = metrics[f"loss_{'continuation' if name == 'discount' else name}"]
        close(actual, scales.get(name, 1.0) * value)
        total = total + actual
    golden.close(total, "out/model_loss")
    close(metrics["kl"], golden["out/kl_value"].mean())
    golden.close(metrics["loss_actor"], "out/actor_loss")
    golden.close(metrics["loss_critic"], "out/critic_loss")
    golden.close(metrics["entropy"], "out/actor_ent")


def check_v2_imagination(case, trajectory):
    golden = case.golden
    belief, _ = trajectory["features"].split(list(case.agent.world_model.latent_sizes.values()), -1)
    golden.close(belief, "out/imag_deter")
    golden.close(trajectory["reward"].squeeze(-1), "out/imag_reward")
    golden.close(trajectory["continuation"].squeeze(-1), "out/imag_discount")
    _, rows = align_v2(trajectory, golden.cfg["lam"])
    golden.close(rows["lambda_target"].squeeze(-1), "out/target")
    close(rows["weight"].squeeze(-1), golden["out/imag_weight"][:-1])
