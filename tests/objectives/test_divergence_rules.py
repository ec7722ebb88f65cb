"""The rules from divergence to loss against the reference codes."""

import pytest
import torch

from torchrl_wm.modules.latents import CategoricalLatent, GaussianLatent
from torchrl_wm.objectives import BalancedKL, ClippedKL, ExcessKL, SeparateKL


def gaussians(golden):
    names = ("post_mean", "post_std", "prior_mean", "prior_std")
    tensors = {name: golden[f"in/{name}"].requires_grad_() for name in names}
    values = list(tensors.values())
    return GaussianLatent(values[0].shape[-1]), tensors, tuple(values[:2]), tuple(values[2:])


def categoricals(golden, unimix=0.0):
    tensors = {n: golden[f"in/{n}"].requires_grad_() for n in ("post_logit", "prior_logit")}
    post, prior = tensors.values()
    latent = CategoricalLatent(*post.shape[-2:], unimix=unimix)
    return latent, tensors, (post,), (prior,)


@pytest.mark.golden("v1_kl")
@pytest.mark.parametrize("name, rule", [("dreamer", ClippedKL), ("planet", ExcessKL)])
def test_free_nats(golden, name, rule):
    latent, tensors, post, prior = gaussians(golden)
    golden.close(latent.kl(post, prior), "out/kl")
    loss = rule(golden.cfg["free_nats"])(latent.kl, post, prior, torch.mean)["kl"]
    golden.close(loss, f"out/{name}_div")
    if loss.requires_grad:
        loss.backward()
    for key, tensor in tensors.items():
        grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        golden.close(grad, f"grad/{name}_div/{key}")


@pytest.mark.golden("v2_kl")
def test_balance(golden):
    variants = sorted({n.split("/")[0] for n in golden.cfg if n.startswith("variant")})
    assert variants
    for variant in variants:
        make = categoricals if golden.cfg["discrete"] else gaussians
        latent, tensors, post, prior = make(golden)
        cfg = {key: golden.cfg[f"{variant}/{key}"] for key in ("forward", "balance", "free_avg")}
        rule = BalancedKL(
            cfg["balance"],
            golden.cfg["free"],
            free_average=bool(cfg["free_avg"]),
            forward_kl=bool(cfg["forward"]),
        )
        loss = rule(latent.kl, post, prior, torch.mean)["kl"]
        golden.close(loss, f"out/{variant}/loss")
        pair = (prior, post) if cfg["forward"] else (post, prior)
        golden.close(latent.kl(*pair), f"out/{variant}/value")
        loss.backward()
        for key, tensor in tensors.items():
            golden.close(tensor.grad, f"grad/{variant}/{key}")


@pytest.mark.golden("v3_kl")
def test_separate_terms(golden):
    latent, tensors, post, prior = categoricals(golden, golden.cfg["unimix"])
    rule = SeparateKL(golden.cfg["free_nats"], golden.cfg["dyn_scale"], golden.cfg["rep_scale"])
    dynamics, representation = rule.terms(latent.kl, post, prior)
    golden.close(dynamics, "out/dyn")
    golden.close(representation, "out/rep")
    golden.close(latent.kl(post, prior), "out/kl_no_free")
    probs = golden["out/post_probs_unimix"]  # exp(logits), not normalised where unimix is 0
    probs = probs / probs.sum(-1, keepdim=True)
    torch.testing.assert_close(latent.log_probs(post).exp(), probs, rtol=0, atol=1e-4)
    golden.close(latent.entropy(post).mean(), "out/post_ent_mean")
    golden.close(latent.entropy(prior).mean(), "out/prior_ent_mean")
    total = sum(rule(latent.kl, post, prior, torch.mean).values())
    golden.close(total, "out/total")
    total.backward()
    for key, tensor in tensors.items():
        golden.close(tensor.grad, f"grad/{key}")
