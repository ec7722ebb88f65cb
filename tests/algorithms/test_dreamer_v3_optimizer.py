"""The optimiser of DreamerV3 against the reference code."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from torchrl_wm.algorithms.optimizers import DecayingDreamerV3Optimizer, TensorFlowAdam


@pytest.mark.golden("v3_opt")
def test_updates_equal_the_reference(golden):
    cfg, names = golden.cfg, list(golden.group("in/param0"))
    kernel = lambda name: name.endswith("kernel")
    if cfg.get("wd"):  # the reference chooses what decays by name, here it is every matrix
        assert all(kernel(name) == (golden[f"in/param0/{name}"].ndim > 1) for name in names)
    parameters = [torch.nn.Parameter(golden[f"in/param0/{name}"]) for name in names]
    options = {name: cfg[name] for name in ("lr", "agc", "beta1", "beta2", "eps")}
    optimizer = DecayingDreamerV3Optimizer(
        parameters, warmup_steps=cfg["warmup"], weight_decay=cfg.get("wd", 0.0), **options
    )
    schedule = LambdaLR(optimizer, lambda step: _annealed(step, cfg))
    history = {name: [] for name in names}
    for step in range(len(golden[f"in/grads/{names[0]}"])):
        for parameter, name in zip(parameters, names, strict=True):
            parameter.grad = golden[f"in/grads/{name}"][step]
        optimizer.step()
        schedule.step()
        for parameter, name in zip(parameters, names, strict=True):
            history[name].append(parameter.detach().clone())
    for name, values in history.items():
        golden.close(torch.stack(values), f"out/params/{name}")
        before = torch.stack([golden[f"in/param0/{name}"], *values[:-1]])
        # A difference of float32 parameters knows an update to the last bit of the parameters only.
        grain = 2e-7 * before.abs().max() / golden[f"out/updates/{name}"].abs().max()
        golden.close(torch.stack(values) - before, f"out/updates/{name}", 1e-4 + grain.item())


def _annealed(step, cfg):
    """The factor of the linear schedule that follows the warm-up: 1 down to 0.1."""
    if not cfg["schedule"]:
        return 1.0
    share = (step - cfg["warmup"]) / (cfg["anneal"] - cfg["warmup"])
    return 1 - 0.9 * min(max(share, 0), 1)


def test_the_first_update_of_a_warm_up_changes_nothing():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = DecayingDreamerV3Optimizer([parameter], lr=1.0, warmup_steps=10)
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(parameter, torch.ones(3))
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 0.9))


@pytest.mark.parametrize("schedule", [0, 1])
def test_weight_decay_equals_the_chain_of_the_reference(schedule):
    """Decay is added after clipping, scaling and momentum, and multiplied by the learning rate."""
    lr, decay, warmup, steps = 0.1, 0.3, 4, 6
    torch.manual_seed(0)
    matrix, bias = torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(2))
    plain = [torch.nn.Parameter(p.detach().clone()) for p in (matrix, bias)]
    optimizer = DecayingDreamerV3Optimizer(
        [matrix, bias], lr=lr, warmup_steps=warmup, weight_decay=decay
    )
    for step in range(steps):
        before = matrix.detach().clone()
        with torch.no_grad():
            plain[0].copy_(matrix)
            plain[1].copy_(bias)
        reference = DecayingDreamerV3Optimizer(plain, lr=lr, warmup_steps=warmup)
        if step:
            reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for parameter, twin in zip((matrix, bias), plain, strict=True):
            parameter.grad = torch.randn_like(parameter)
            twin.grad = parameter.grad.clone()
        if schedule:
            for one in (optimizer, reference):
                one.param_groups[0]["lr"] = lr / (1 + step)
        rate = optimizer.param_groups[0]["lr"] * min(1, step / warmup)
        optimizer.step()
        reference.step()
        torch.testing.assert_close(matrix.detach(), plain[0].detach() - rate * decay * before)
        torch.testing.assert_close(bias.detach(), plain[1].detach())


def test_weight_decay_of_tensorflow_adam_does_not_follow_the_learning_rate():
    weight = torch.ones(1, 1, requires_grad=True)
    optimizer = TensorFlowAdam([weight], lr=1e-2, eps=1e-5, weight_decay=0.1)
    weight.grad = torch.zeros(1, 1)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e-4  # as a scheduler does
    optimizer.step()
    torch.testing.assert_close(weight.item(), 0.9**2)
