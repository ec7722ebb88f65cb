"""The RSSM against the reference codes: filtering, prior, imagination, losses and gradients."""

import golden_weights
import pytest
import torch
from golden_agents import forced
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical

from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.modules.cells import BlockCell, DenseCell
from torchrl_wm.modules.latent_heads import PosteriorHead, PriorHead
from torchrl_wm.modules.latents import CategoricalLatent, GaussianLatent
from torchrl_wm.objectives import BalancedKL, ExcessKL, SeparateKL
from torchrl_wm.world_models import RSSM


class Tokens(nn.Module):
    """The files give the encoder's output, so the encoder only reads it."""

    in_keys = ["tokens"]

    def forward(self, tensordict):
        return tensordict["tokens"]


def observe(model, tokens, action, is_init=None, carry=None, noise=None):
    is_init = torch.zeros(action.shape[:2], dtype=torch.bool) if is_init is None else is_init
    records = TensorDict(
        tokens=tokens,
        previous_action=action,
        is_init=is_init.unsqueeze(-1),
        batch_size=action.shape[:2],
    )
    return model.observe(records, carry, noise=noise)


def imagine(model, latents, actions, noise):
    """Steps through recorded actions with the public ``step``, from the last latents."""
    td, out = latents[:, -1].select("belief", "state"), []
    for t in range(noise.shape[1]):
        td = model.step(td.update(actions[:, t]), noise=noise[:, t])
        out.append(td["next"].clone())
        td = td["next"].select("belief", "state")
    return torch.stack(out, 1)


# -- PlaNet and Dreamer v1 --------------------------------------------------------------------


@pytest.mark.golden("planet_rssm")
def test_planet(golden):
    cfg = golden.cfg
    action = golden["in/action"]
    activation = "elu" if cfg["act_elu"] else "relu"
    layers, hidden = cfg["num_layers"], cfg["embed_size"]
    embed = golden["in/embed"].requires_grad_()
    latent = GaussianLatent(cfg["stoch"], min_std=cfg["min_std"])
    cell = DenseCell(
        cfg["stoch"],
        action.shape[-1],
        cfg["deter"],
        hidden,
        gru="reset_before",
        layers=layers,
        activation=activation,
    )
    prior = PriorHead(cfg["deter"], latent.raw_size, hidden, layers, activation=activation)
    posterior = PosteriorHead(
        cfg["deter"], embed.shape[-1], latent.raw_size, hidden, layers, activation=activation
    )
    model = make(action, cell, latent, prior, posterior)
    weights = golden_weights.planet_rssm(cell, prior, posterior)
    golden.load(weights)
    out = observe(model, embed, action, noise=golden["in/eps_post"])
    for name in ("posterior", "prior"):
        short = {"posterior": "post", "prior": "prior"}[name]
        golden.close(out[name, "mean"], f"out/{short}/mean")
        golden.close(out[name, "std"], f"out/{short}/stddev")
    golden.close(out["belief"], "out/post/belief")
    golden.close(out["state"], "out/post/sample")
    post, pri = statistics(out)
    golden.close(latent.kl(post, pri), "out/kl")
    loss = ExcessKL(cfg["free_nats"])(latent.kl, post, pri, torch.mean)["kl"]
    probe = torch.cat([out["state"], out["belief"]], -1) * golden["in/probe_feat"]
    loss = loss + probe.sum()
    golden.close(loss, "out/loss")
    imagined = imagine(model, out, actions_td(golden["in/imag_action"]), golden["in/eps_imag"])
    golden.close(imagined["belief"], "out/imag/belief")
    golden.close(imagined["state"], "out/imag/sample")
    loss.backward()
    golden.gradients(weights)
    golden.close(embed.grad, "grad/embed")


def actions_td(action):
    return TensorDict(action=action, batch_size=action.shape[:2])


def statistics(out):
    names = ("mean", "std") if ("prior", "mean") in out.keys(True) else ("logits",)
    return tuple(tuple(out[side, n] for n in names) for side in ("posterior", "prior"))


def make(action, cell, latent, prior, posterior):
    if action.is_floating_point():
        spec = Bounded(-1, 1, (action.shape[-1],))
    else:
        spec = Categorical(cell.inputs[2].in_features)
    return RSSM(Tokens(), ActionEncoding(spec), cell, latent, prior, posterior)


@pytest.mark.golden("v1_rssm")
def test_dreamer_v1(golden):
    cfg = golden.cfg
    action, embed = golden["in/action"], golden["in/embed"].requires_grad_()
    latent = GaussianLatent(cfg["stoch"], min_std=cfg["min_std"])
    sizes = (cfg["deter"], cfg["hidden"])
    cell = DenseCell(cfg["stoch"], action.shape[-1], *sizes)
    prior = PriorHead(cfg["deter"], latent.raw_size, cfg["hidden"])
    posterior = PosteriorHead(cfg["deter"], embed.shape[-1], latent.raw_size, cfg["hidden"])
    model = make(action, cell, latent, prior, posterior)
    weights = golden_weights.v1_rssm(cell, prior, posterior)
    golden.load(weights | golden_weights.load_keras_gru(golden, cell.gru.cell, "cell"))
    out = observe(model, embed, action, noise=golden["in/eps_post"])
    for name, short in (("posterior", "post"), ("prior", "prior")):
        golden.close(out[name, "mean"], f"out/{short}/mean")
        golden.close(out[name, "std"], f"out/{short}/std")
    golden.close(out["belief"], "out/post/deter")
    golden.close(out["state"], "out/post/stoch")
    post, pri = statistics(out)
    golden.close(latent.kl(post, pri), "out/kl")
    probe = torch.cat([out["state"], out["belief"]], -1) * golden["in/probe_feat"]
    loss = latent.kl(post, pri).mean() + probe.sum()
    golden.close(loss, "out/loss")
    imagined = imagine(model, out, actions_td(golden["in/imag_action"]), golden["in/eps_imag"])
    golden.close(imagined["belief"], "out/imag/deter")
    golden.close(imagined["state"], "out/imag/stoch")
    loss.backward()
    golden.gradients(weights)
    golden.close(embed.grad, "grad/embed")
    gradients = {name: p.grad for name, p in cell.gru.cell.named_parameters()}
    golden_weights.check_keras_gru(golden, gradients, "cell")


# -- Dreamer v2 ---------------------------------------------------------------------------------


@pytest.mark.golden("v2_rssm")
def test_dreamer_v2(golden):
    cfg = golden.cfg
    action, embed = golden["in/action"], golden["in/embed"].requires_grad_()
    norm = "layer" if cfg["norm_layer"] else None
    latent = v2_latent(cfg)
    cell = DenseCell(
        latent.flat_size, action.shape[-1], cfg["deter"], cfg["hidden"], gru="layer_norm", norm=norm
    )
    prior = PriorHead(cfg["deter"], latent.raw_size, cfg["hidden"], norm=norm)
    posterior = PosteriorHead(
        cfg["deter"], embed.shape[-1], latent.raw_size, cfg["hidden"], norm=norm
    )
    model = make(action, cell, latent, prior, posterior)
    weights = golden_weights.v2_rssm(golden, cell, prior, posterior)
    golden.load(weights)
    discrete = bool(cfg["discrete"])
    draws = forced(golden["in/sample/stoch"]) if discrete else golden["in/eps_post"]
    stoch = golden["in/init/stoch"]
    carry = TensorDict(
        belief=golden["in/init/deter"],
        state=stoch.flatten(-2) if discrete else stoch,
        batch_size=[len(stoch)],
    )
    out = observe(model, embed, action, golden["in/is_first"], carry, draws)
    golden.close(out["belief"], "out/post/deter")
    for name, short in (("posterior", "post"), ("prior", "prior")):
        for entry in latent.names:
            golden.close(out[name, entry], f"out/{short}/{entry.removesuffix('s')}")
    post, pri = statistics(out)
    kl = BalancedKL(0.8, 0.0)(latent.kl, post, pri, torch.mean)["kl"]
    golden.close(latent.kl(post, pri), "out/kl_value")
    golden.close(kl, "out/kl_loss")
    probe = torch.cat([out["state"], out["belief"]], -1) * golden["in/probe_feat"]
    loss = kl + probe.sum()
    golden.close(loss, "out/loss")
    draws = forced(golden["in/sample/imag_stoch"]) if discrete else golden["in/eps_imag"]
    imagined = imagine(model, out, actions_td(golden["in/imag_action"]), draws)
    golden.close(imagined["belief"], "out/imag/deter")
    loss.backward()
    golden.gradients(weights)
    golden.close(embed.grad, "grad/embed")


def v2_latent(cfg):
    if cfg["discrete"]:
        return CategoricalLatent(cfg["stoch"], cfg["discrete"])
    std = ("softplus", "sigmoid", "sigmoid2")[cfg["std_act"]]
    return GaussianLatent(cfg["stoch"], min_std=cfg["min_std"], std=std)


# -- Dreamer v3 ---------------------------------------------------------------------------------


@pytest.mark.golden("v3_rssm")
def test_dreamer_v3(golden):
    cfg = golden.cfg
    tokens = golden["in/tokens"].requires_grad_()
    actions = named(golden, "in/action")
    latent = CategoricalLatent(cfg["stoch"], cfg["classes"], unimix=cfg["unimix"])
    action_size = golden["param/dynin2/kernel"].shape[0]
    cell = BlockCell(
        latent.flat_size,
        action_size,
        cfg["deter"],
        cfg["hidden"],
        blocks=cfg["blocks"],
        layers=cfg["dynlayers"],
    )
    options = {"activation": "silu", "norm": "rms", "init": "trunc_normal"}
    head_sizes = (latent.raw_size, cfg["hidden"])
    prior = PriorHead(cfg["deter"], *head_sizes, cfg["imglayers"], **options)
    posterior = PosteriorHead(
        0 if cfg["absolute"] else cfg["deter"],
        tokens.shape[-1],
        *head_sizes,
        cfg["obslayers"],
        **options,
    )
    encoding = ActionEncoding(v3_action_spec(actions, action_size))
    model = RSSM(Tokens(), encoding, cell, latent, prior, posterior)
    weights = golden_weights.v3_rssm(golden, cell, prior, posterior)
    golden.load(weights)
    deter, stoch = golden["in/carry_deter"].requires_grad_(), golden["in/carry_stoch"]
    stoch.requires_grad_()
    carry = TensorDict(belief=deter, state=stoch.flatten(-2), batch_size=[len(deter)])
    encoded = model.action_encoding(actions)
    draws = forced(golden["in/sample/stoch"])
    out = observe(model, tokens, encoded, golden["in/reset"], carry, draws)
    golden.close(out["belief"], "out/deter")
    golden.close(out["posterior", "logits"], "out/post_logit")
    golden.close(out["prior", "logits"], "out/prior_logit")
    post, pri = statistics(out)
    dynamics, representation = SeparateKL(cfg["free_nats"]).terms(latent.kl, post, pri)
    golden.close(dynamics, "out/dyn")
    golden.close(representation, "out/rep")
    stoch_probe = out["state"].unflatten(-1, stoch.shape[-2:]) * golden["in/probe_stoch"]
    loss = dynamics.mean() + 0.1 * representation.mean() + stoch_probe.sum()
    loss = loss + (out["belief"] * golden["in/probe_deter"]).sum()
    golden.close(loss, "out/loss_total")
    draws = forced(golden["in/sample/imag_stoch"])
    imagined = imagine(model, out, named(golden, "in/imag_action"), draws)
    golden.close(imagined["belief"], "out/imag_deter")
    loss.backward()
    golden.gradients(weights)
    golden.close(tokens.grad, "grad/tokens")
    golden.close(deter.grad, "grad/carry_deter")
    golden.close(stoch.grad, "grad/carry_stoch")


def named(golden, prefix):
    """The recorded actions by their names, ``[B, T]``."""
    found = {n.split("/")[-1]: golden[n] for n in golden.entries if n.startswith(f"{prefix}/")}
    return TensorDict(found, batch_size=next(iter(found.values())).shape[:2])


def v3_action_spec(actions, size):
    """Numbers within -1 and 1, and classes, which share what the numbers leave of the encoded size."""
    classes = size - sum(a.shape[2:].numel() for a in actions.values() if a.is_floating_point())
    groups = sum(a.shape[2:].numel() for a in actions.values() if not a.is_floating_point())
    spec = Composite()
    for name, action in actions.items():
        shape = action.shape[2:]
        if action.is_floating_point():
            spec[name] = Bounded(-1, 1, shape)
        elif shape:
            spec[name] = MultiCategorical([classes // groups] * shape.numel())
        else:
            spec[name] = Categorical(classes // groups)
    return spec
