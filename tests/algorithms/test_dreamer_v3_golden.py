"""Whole updates of DreamerV3 against the reference code: same weights, same draws."""

from __future__ import annotations

import golden_weights
import pytest
import torch
from golden_agents import close, forced, observation_spec, pictures_first, without_gradient
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite

from torchrl_wm.algorithms import DreamerV3
from torchrl_wm.modules.decoders import make_decoder
from torchrl_wm.world_models import make_rssm

FLAGS = {"is_first": "is_init", "is_last": "is_last", "is_terminal": "terminated"}


V3_LOSSES = {
    "dyn": "dynamics",
    "rep": "representation",
    "rew": "reward",
    "con": "continuation",
    "policy": "actor",
    "value": "critic",
    "repval": "replay_critic",
}


class V3Agent:
    """The file's agent, and its data as step records."""

    def __init__(self, golden):
        self.golden, self.cfg = golden, golden.cfg
        assert self.cfg["replay_context"], "sequences start from stored latents here"
        self.actions = sorted(golden.group("in/carry/prevact"))
        self.agent = DreamerV3(
            observation_spec(self.observations(0)), self.action_spec(), **self.options()
        )
        self.agent.normalizer.limit = self.cfg["retnorm_limit"]
        for option in ("beta1", "beta2"):
            self.agent.optimizers["all"].param_groups[0][option] = self.cfg[option]
        self.agent.optimizers["all"].param_groups[0]["eps"] = self.cfg["opt_eps"]
        self.weights, self.slow = self.names(), self.slow_names()
        golden.load(self.weights | self.slow)

    def data(self, step):
        """The rows from the last one of the context on."""
        context = int(self.cfg["replay_context"])
        rows = self.golden.group(f"in/step{step}/data")
        return {name: value[:, context - 1 :] for name, value in rows.items()}

    def observations(self, step):
        data = self.data(step)
        known = {*FLAGS, "reward", "consec", "dyn.deter", "dyn.stoch", *self.actions}
        return pictures_first({key: data[key] for key in sorted(set(data) - known)})

    def action_spec(self):
        data, leaves = self.data(0), {}
        for key in self.actions:
            classes = self.cfg.get(f"action_classes/{key}")
            shape = data[key].shape[2:]
            leaves[key] = Categorical(classes, shape) if classes else Bounded(-1, 1, shape)
        return Composite(leaves)

    def options(self):
        cfg = self.cfg
        scales = {"dynamics_scale": cfg["scale/dyn"], "representation_scale": cfg["scale/rep"]}
        return {
            "world_model": self.world_model,
            "units": cfg["units"],
            "actor_layers": cfg["policy_layers"],
            "critic_layers": cfg["value_layers"],
            "bins": cfg["bins"],
            "imagination_horizon": cfg["imag_length"],
            "imagination_starts": cfg["imag_last"],
            "discount": 1 - 1 / cfg["horizon"],
            "contdisc": bool(cfg["contdisc"]),
            "lambda_": cfg["lam"],
            "free_bits": cfg["free_nats"],
            "kl": {"strategy": "separate", **scales},
            "critic_ema_decay": 1 - cfg["slow_rate"],
            "critic_update_every": cfg["slow_every"],
            "reconstruction_scale": cfg["scale/rec"],
            "reward_scale": cfg["scale/rew"],
            "continuation_scale": cfg["scale/con"],
            "actor_scale": cfg["scale/policy"],
            "critic_scale": cfg["scale/value"],
            "replay_critic_scale": cfg["scale/repval"],
            "entropy": cfg["actent"],
            "return_rate": cfg["retnorm_rate"],
            "lr": cfg["lr"],
            "agc": cfg["agc"],
            "lr_warmup": cfg["warmup"],
        }

    def world_model(self, observations, actions, bins):
        cfg, golden = self.cfg, self.golden
        pictures = golden.layers("enc/cnn{}/bias")
        depth = golden["param/enc/cnn0/bias"].numel() // 2 if pictures else 4
        model = make_rssm(
            observations,
            actions,
            belief_size=cfg["deter"],
            hidden_size=cfg["hidden"],
            state_size=cfg["stoch"],
            classes=cfg["classes"],
            blocks=cfg["blocks"],
            units=cfg["units"],
            unimix=cfg["unimix"],
            bins=bins,
            depth=depth,
            vector_layers=cfg["enc_layers"],
            reward_layers=cfg["rew_layers"],
            continuation_layers=cfg["con_layers"],
            prior_layers=golden.layers("dyn/prior{}/bias"),
            posterior_layers=golden.layers("dyn/obs{}/bias"),
        )
        sizes = {"units": cfg["units"], "blocks": cfg["blocks"], "depth": depth}
        latent = cfg["deter"], cfg["stoch"] * cfg["classes"]
        model.decoder = make_decoder(observations, *latent, layers=cfg["dec_layers"], **sizes)
        return model

    def names(self):
        golden, agent, model = self.golden, self.agent, self.agent.world_model
        heads = []
        for key in self.actions:
            discrete = f"action_classes/{key}" in self.cfg
            heads += [f"{key}/{part}" for part in (["logits"] if discrete else ["mean", "stddev"])]
        parts = (model.cell, model.prior, model.posterior)
        return {
            **golden_weights.v3_encoder(golden, model.encoder),
            **golden_weights.v3_decoder(golden, model.decoder),
            **golden_weights.v3_rssm(golden, *parts, below="dyn/"),
            **golden_weights.v3_head(golden, model.reward_head, "logits", below="rew/"),
            **golden_weights.v3_head(golden, model.continuation_head, "logit", below="con/"),
            **golden_weights.v3_head(golden, agent.actor, *heads, below="pol/"),
            **golden_weights.v3_head(golden, agent.critic, "logits", below="val/"),
        }

    def slow_names(self):
        fast = golden_weights.v3_head(self.golden, self.agent.critic, "logits", below="slowval/")
        own = {parameter: name for name, parameter in self.agent.critic.named_parameters()}
        slow = self.agent.critic_loss.target_critic_params
        return {name: slow[tuple(own[p].split("."))] for name, p in fast.items()}

    def records(self, step, carry):
        """Step records ``[B, T + 1]`` from rows whose action was chosen after the observation."""
        data = self.data(step)
        shape = data["reward"].shape
        encode = self.agent.world_model.action_encoding
        chosen = encode(TensorDict({key: data[key] for key in self.actions}, shape))
        records = TensorDict(self.observations(step), shape)
        records["previous_action"] = torch.cat([torch.zeros_like(chosen[:, :1]), chosen[:, :-1]], 1)
        records["reward"] = data["reward"].unsqueeze(-1)
        for key, flag in FLAGS.items():
            records[flag] = data[key].unsqueeze(-1)
        # A chunk that follows the one before goes on from its last latents.
        follows = data["consec"][:, :1] != 0
        stored = {"belief": data["dyn.deter"][:, 0], "state": data["dyn.stoch"][:, 0].flatten(-2)}
        for key, value in stored.items():
            first = torch.where(follows, carry[key], value).unsqueeze(1)
            records[key] = first.expand(-1, shape[1], -1).clone()
        sample = forced(self.golden[f"in/step{step}/sample/stoch"])
        records["noise"] = torch.cat([torch.zeros_like(sample[:, :1]), sample], 1)
        return records

    def draws(self, step):
        actions = self.golden.group(f"in/step{step}/sample/imag_action")
        shape = actions[self.actions[0]].shape[:2]
        chosen = self.agent.world_model.action_encoding(TensorDict(actions, shape))
        noise = forced(self.golden[f"in/step{step}/sample/imag_stoch"])
        return noise, [without_gradient(action) for action in chosen[:, :-1].unbind(1)]


@pytest.mark.golden("v3_agent")
def test_dreamer_v3_equals_the_reference(golden, recorded, gradients):
    case = V3Agent(golden)
    imagination, grads = recorded(case.agent), gradients(case.agent)
    carry = golden.group("in/carry")
    carry = {"belief": carry["deter"], "state": carry["stoch"].flatten(-2)}
    steps = sorted({int(name[4:].split("/")[0]) for name in golden.group("out")})
    for step in steps:
        sample = case.records(step, carry)
        check_context(case, step, sample)
        imagination.record(*case.draws(step))
        grads.clear()
        metrics, latents = case.agent.update(sample)
        check_v3_losses(golden, step, metrics)
        golden.close(latents["belief"], f"out/step{step}/deter")
        golden.close(latents["belief"], f"out/step{step}/entry_deter")
        check_v3_imagination(case, step, imagination.trajectory)
        check_v3_parameters(case, step, grads)
        carry = latents[:, -1]


def check_context(case, step, sample):
    """The carry and the actions that the reference reads."""
    context = case.golden.group(f"out/step{step}/context")
    for key, name in (("belief", "deter"), ("state", "stoch")):
        close(sample[:, 0][key], context[name].flatten(1))
    previous = {key: context[f"prevact/{key}"] for key in case.actions}
    encode = case.agent.world_model.action_encoding
    expected = encode(TensorDict(previous, previous[case.actions[0]].shape[:2]))
    assert torch.equal(sample["previous_action"][:, 1:], expected)


def check_v3_losses(golden, step, metrics):
    """Means of the reference's steps; its names of observations are the entries here."""
    losses, total = golden.group(f"out/step{step}/loss"), 0
    assert len(losses) == sum(key.startswith("loss_") for key in metrics.keys())
    for name, value in losses.items():
        scale = golden.cfg[f"scale/{name}" if name in V3_LOSSES else "scale/rec"]
        actual = metrics[f"loss_{V3_LOSSES.get(name, name)}"]
        close(actual, scale * value.mean())
        total = total + actual
    golden.close(total, f"out/step{step}/total")


def check_v3_imagination(case, step, trajectory):
    golden, of = case.golden, f"out/step{step}"
    belief, _ = trajectory["features"].split(list(case.agent.world_model.latent_sizes.values()), -1)
    golden.close(belief[1:].transpose(0, 1), f"{of}/imag_deter")
    golden.close(trajectory["reward"].squeeze(-1).T, f"{of}/imag_rew")
    golden.close(trajectory["continuation"].squeeze(-1).T, f"{of}/imag_con")
    for average, end in zip(case.agent.normalizer.averages, ("lo", "hi"), strict=True):
        golden.close(average, f"{of}/retnorm_{end}")


def check_v3_parameters(case, step, grads):
    golden, of = case.golden, f"out/step{step}"
    if golden.group(f"grad/step{step}"):
        golden.gradients(case.weights, f"grad/step{step}", grads)
    squares = sum(gradient.square().sum() for gradient in grads.values())
    golden.close(squares.sqrt(), f"{of}/grad_norm")
    names = {n if isinstance(n, str) else n[0]: p for n, p in case.weights.items()}
    for name, value in golden.group(f"{of}/paramsum").items():
        close(names[name].sum(), value)
    if golden.group(f"{of}/param"):
        weights = case.weights | case.slow
        golden.gradients(weights, f"{of}/param", {p: p for p in weights.values()})
