from __future__ import annotations

import pytest
import torch
from torch import nn

from torchrl_wm.modules.slow import SlowCopy


@pytest.mark.golden("v3_slow")
def test_moves_equal_the_reference(golden):
    source, steps = golden.group("in/source"), golden.group("out/slow")
    network = nn.ParameterList(golden.group("in/slow0")[name] for name in steps)
    slow = SlowCopy(network, rate=golden.cfg["rate"], every=golden.cfg["every"])
    moved = {name: [] for name in steps}
    for step in range(len(next(iter(steps.values())))):
        with torch.no_grad():
            for parameter, name in zip(network, steps, strict=True):
                parameter.copy_(source[name][step])
        slow.update(network)
        for parameter, name in zip(slow.module, steps, strict=True):
            moved[name].append(parameter.clone())
    for name, values in moved.items():
        golden.close(torch.stack(values), f"out/slow/{name}")


def test_a_whole_copy_is_exact_and_waits_its_turn():
    source = nn.Linear(3, 2)
    slow = SlowCopy(source, rate=1.0, every=2)
    seen = []
    for _ in range(4):
        nn.init.normal_(source.weight)
        slow.update(source)
        seen.append(torch.equal(slow.module.weight, source.weight))
    assert seen == [True, False, True, False]


def test_the_turn_survives_a_checkpoint():
    source = nn.Linear(3, 2)
    slow = SlowCopy(source, rate=1.0, every=2)
    slow.update(source)
    again = SlowCopy(source, rate=1.0, every=2)
    again.load_state_dict(slow.state_dict())
    nn.init.normal_(source.weight)
    again.update(source)
    assert not torch.equal(again.module.weight, source.weight)


def test_the_copy_is_never_trained():
    slow = SlowCopy(nn.Linear(3, 2))
    assert not any(p.requires_grad for p in slow.parameters())
    assert not slow(torch.ones(3)).requires_grad


@pytest.mark.parametrize("options", [{"rate": 1.5}, {"every": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        SlowCopy(nn.Linear(1, 1), **options)
