from __future__ import annotations

import pytest
import torch
from torch import nn
from torchrl.objectives.common import LossModule

from torchrl_wm.objectives import SlowUpdate


class CriticOnly(LossModule):
    """The smallest loss with a critic and its slow copy."""

    def __init__(self, critic: nn.Module):
        super().__init__()
        self.convert_to_functional(critic, "critic", create_target_params=True)


def set_values(parameters, values):
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].data.copy_(value)


def plain(group):
    return {name.replace(".", "_"): value for name, value in group.items()}


@pytest.mark.golden("v3_slow")
def test_moves_equal_the_reference(golden):
    sources, moves = plain(golden.group("in/source")), golden.group("out/slow")
    loss = CriticOnly(nn.ParameterDict(plain(golden.group("in/source0"))))
    update = SlowUpdate(loss, tau=golden.cfg["rate"], every=golden.cfg["every"])
    set_values(loss.target_critic_params, plain(golden.group("in/slow0")))
    moved = {name: [] for name in moves}
    for step in range(len(next(iter(moves.values())))):
        set_values(loss.critic_params, {name: value[step] for name, value in sources.items()})
        update.step()
        for name, history in moved.items():
            history.append(loss.target_critic_params[name.replace(".", "_")].clone())
    for name, history in moved.items():
        golden.close(torch.stack(history), f"out/slow/{name}")


def test_the_turn_survives_a_checkpoint():
    first, second = CriticOnly(nn.Linear(3, 2)), CriticOnly(nn.Linear(3, 2))
    updates = [SlowUpdate(loss, tau=1.0, every=2) for loss in (first, second)]
    updates[0].step()
    second.load_state_dict(first.state_dict())
    set_values(second.critic_params, {"weight": torch.ones(2, 3)})
    updates[1].step()
    assert not torch.equal(second.target_critic_params["weight"], torch.ones(2, 3))
    updates[1].step()
    assert torch.equal(second.target_critic_params["weight"], torch.ones(2, 3))


@pytest.mark.parametrize("options", [{"tau": 0.0}, {"tau": 1.5}, {"tau": 0.5, "every": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=f"{list(options)[-1]}="):
        SlowUpdate(CriticOnly(nn.Linear(1, 1)), **options)
