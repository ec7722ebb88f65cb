"""Losses of DreamerV3's actor and critic against the reference code.

The files give logits instead of networks, so the networks here are made of parameters that are the
logits; the slow critic's logits are its target parameters.
"""

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.nn import functional as F

from torchrl_wm.modules.action_distributions import DiagonalNormal, OneHotCategorical
from torchrl_wm.modules.distributions import TwoHot
from torchrl_wm.modules.normalizers import ReturnNormalizer
from torchrl_wm.objectives import (
    ActorLoss,
    CriticLoss,
    Reinforce,
    ReplayCriticLoss,
    align_v3,
)


class Recorded(nn.Module):
    """A distribution from recorded numbers; ``features`` say how many rows are wanted."""

    def __init__(self, make, **parameters):
        super().__init__()
        self.make, self.names = make, list(parameters)
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, features):
        rows, columns = features.shape[:2]
        return self.make(*(getattr(self, name)[:rows, :columns] for name in self.names))


def critic_loss(golden, value_logits, slow_logits):
    bins = golden["in/bins"]
    critic = Recorded(lambda logits: TwoHot(logits, bins), logits=value_logits)
    loss = CriticLoss(critic, slow_regularization=golden.cfg["slowreg"])
    loss.target_critic_params["logits"].data.copy_(slow_logits)
    return critic, loss


def check_no_gradient(golden, tensors):
    """Of tensors by the name of the reference's gradient, which is zero."""
    for name, tensor in tensors.items():
        assert tensor.grad is None or not tensor.grad.any(), name
        assert not golden[name].any()


pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


@pytest.mark.golden("v3_imag_loss")
def test_imagined_losses_equal_the_reference(golden):
    cfg = golden.cfg
    normalizer = ReturnNormalizer(
        rate=cfg["retnorm_rate"],
        limit=cfg["retnorm_limit"],
        percentiles=(cfg["retnorm_perclo"], cfg["retnorm_perchi"]),
        debias=bool(cfg["retnorm_debias"]),
    )
    calls = sorted({name.split("/")[0] for name in golden.group("in") if "/" in name})
    for call in calls:
        check_imagined_losses(golden, call, normalizer)


def check_imagined_losses(golden, call, normalizer):
    cfg = golden.cfg
    read = lambda name: golden[f"in/{call}/{name}"].transpose(0, 1).contiguous()
    critic, critics = critic_loss(golden, read("value_logits"), read("slow_logits"))
    actor, action = recorded_policy(golden, call, read)
    actors = ActorLoss(actor, Reinforce(), entropy_scale=cfg["actent"], normalizer=normalizer)
    reward, continuation = read("rew").requires_grad_(), read("con").requires_grad_()
    features = torch.zeros(*reward.shape, 1)
    with torch.no_grad():
        value = (critics.slow if cfg["slowtar"] else critic)(features).mean
    trajectory = TensorDict(
        features=features,
        action=action,
        reward=reward.unsqueeze(-1),
        continuation=continuation.unsqueeze(-1),
        state_value=value,
        batch_size=reward.shape,
    )
    discount = 1.0 if cfg["contdisc"] else 1 - 1 / cfg["horizon"]
    rows, critic_rows = align_v3(trajectory, cfg["lam"], discount)
    golden.close(rows["lambda_target"].squeeze(-1).T, f"out/{call}/ret")
    policy, fit = actors(rows)["loss_actor"], critics(critic_rows)["loss_critic"]
    expected = golden[f"out/{call}/policy"].mean()
    torch.testing.assert_close(policy.detach(), expected, rtol=1e-4, atol=1e-5)
    terms = critics.terms(critic_rows["features"], critic_rows["lambda_target"])
    golden.close((terms * critic_rows["weight"].squeeze(-1)).T, f"out/{call}/value")
    golden.close(policy + fit, f"out/{call}/total")
    for i, end in enumerate(("lo", "hi")):
        golden.close(normalizer.averages[i], f"out/{call}/retnorm/{end}/value")
    (policy + fit).backward()
    swap = lambda x: x.transpose(0, 1)
    for name, parameter in actor.named_parameters():
        golden.close(swap(parameter.grad), f"grad/{call}/policy_{name}")
    golden.close(swap(critic.logits.grad), f"grad/{call}/value_logits")
    slow = critics.target_critic_params["logits"]
    untouched = {"slow_logits": slow, "rew": reward, "con": continuation}
    check_no_gradient(golden, {f"grad/{call}/{name}": value for name, value in untouched.items()})


def recorded_policy(golden, call, read):
    action = read("action")
    if golden.cfg["discrete"]:
        logits = read("policy_logits")
        policy = Recorded(OneHotCategorical, logits=logits)
        return policy, F.one_hot(action.long(), logits.shape[-1]).float()
    return Recorded(DiagonalNormal, mean=read("policy_mean"), std=read("policy_std")), action


@pytest.mark.golden("v3_repl_loss")
def test_replay_loss_equals_the_reference(golden):
    cfg = golden.cfg
    critic, critics = critic_loss(golden, golden["in/value_logits"], golden["in/slow_logits"])
    discount = 1 - 1 / cfg["horizon"]
    loss = ReplayCriticLoss(critics, discount=discount, lambda_=cfg["lam"], scale=1.0)
    reward, bootstrap = golden["in/rew"].requires_grad_(), golden["in/boot"].requires_grad_()
    entries = {
        "reward": reward,
        "bootstrap": bootstrap,
        "is_last": golden["in/last"],
        "terminated": golden["in/term"],
        "features": torch.zeros_like(reward),
    }
    records = TensorDict({k: v.unsqueeze(-1) for k, v in entries.items()}, reward.shape)
    terms, returns = loss.terms(records)
    golden.close(terms, "out/repval")
    golden.close(returns.squeeze(-1), "out/ret")
    mean = loss(records)["loss_replay_critic"]
    torch.testing.assert_close(mean, terms.mean())
    mean.backward()
    golden.close(critic.logits.grad, "grad/value_logits")
    slow = critics.target_critic_params["logits"]
    untouched = {"slow_logits": slow, "rew": reward, "boot": bootstrap}
    check_no_gradient(golden, {f"grad/{name}": value for name, value in untouched.items()})
