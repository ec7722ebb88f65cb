"""TorchRL's optimizer is DreamerV3's: the reason why there is none here."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from torchrl.trainers.algorithms import DreamerV3Optimizer


@pytest.mark.golden("v3_opt")
def test_updates_equal_the_reference(golden):
    cfg, names = golden.cfg, list(golden.group("in/param0"))
    assert not cfg.get("wd"), "TorchRL's optimizer has no weight decay"
    parameters = [torch.nn.Parameter(golden[f"in/param0/{name}"]) for name in names]
    options = {name: cfg[name] for name in ("lr", "agc", "beta1", "beta2", "eps")}
    optimizer = DreamerV3Optimizer(parameters, warmup_steps=cfg["warmup"], **options)
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
    optimizer = DreamerV3Optimizer([parameter], lr=1.0, warmup_steps=10)
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(parameter, torch.ones(3))
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 0.9))
