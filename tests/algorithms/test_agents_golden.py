"""Whole updates of DreamerV3, v2 and v1 against the reference codes: same weights, same draws."""

from __future__ import annotations

from functools import partial

import golden_weights
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded

from torchrl_wm.algorithms import DreamerV1, DreamerV2, DreamerV3
from torchrl_wm.modules.decoders import make_decoder
from torchrl_wm.modules.outputs import TanhNormalOutput
from torchrl_wm.objectives import align_v1, align_v2
from torchrl_wm.world_models import make_rssm


def forced(sample):
    """Gumbel noise that forces recorded one-hot samples ``[..., S, K]``."""
    return 1e9 * sample.flatten(-2)


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


# -- DreamerV3 ----------------------------------------------------------------------------------

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
        fixed = ("replay_context", "contdisc", "scale/policy", "scale/value")
        assert all(self.cfg[name] == 1 for name in fixed)
        self.actions = sorted(golden.group("in/carry/prevact"))
        self.agent = DreamerV3(
            observation_spec(self.observations(0)), self.action_spec(), **self.options()
        )
        # Weights of the terms that DreamerV3 leaves at 1 are options of its world model's loss.
        loss = self.agent.world_model_loss
        loss.reconstruction_scale = self.cfg["scale/rec"]
        loss.reward_scale, loss.continuation_scale = self.cfg["scale/rew"], self.cfg["scale/con"]
        self.agent.normalizer.limit = self.cfg["retnorm_limit"]
        for option in ("beta1", "beta2"):
            self.agent.optimizers["all"].param_groups[0][option] = self.cfg[option]
        self.agent.optimizers["all"].param_groups[0]["eps"] = self.cfg["opt_eps"]
        self.weights, self.slow = self.names(), self.slow_names()
        golden.load(self.weights | self.slow)

    def data(self, step):
        return self.golden.group(f"in/step{step}/data")

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
            "lambda_": cfg["lam"],
            "free_bits": cfg["free_nats"],
            "kl": {"strategy": "separate", **scales},
            "critic_ema_decay": 1 - cfg["slow_rate"],
            "critic_update_every": cfg["slow_every"],
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


def close(actual, expected):
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-4, atol=1e-6)


# -- Dreamer v2 and v1 --------------------------------------------------------------------------


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


def slow_weights(agent, fast, below, instead):
    """The target parameters of the critic under the reference's names."""
    own = {parameter: name for name, parameter in agent.critic.named_parameters()}
    slow = agent.critic_loss.target_critic_params
    rename = lambda name: instead + name.removeprefix(below)
    return {rename(name): slow[tuple(own[p].split("."))] for name, p in fast.items()}


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
