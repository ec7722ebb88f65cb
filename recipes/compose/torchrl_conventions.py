"""The losses are TorchRL ``LossModule``s: renamed entries, keyword calls, functional and target weights.

A world model with nested entries everywhere learns from records whose reward has another name; then a
critic is fitted to imagined returns while TorchRL's own ``SoftUpdate`` moves its slow copy.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.objectives import SoftUpdate

from torchrl_wm.modules.heads import TwoHotHead, actor_head
from torchrl_wm.objectives import CriticLoss, Imagination, SeparateKL, WorldModelLoss, align_v3
from torchrl_wm.world_models import make_rssm

OBSERVATIONS = Composite(robot=Composite(joints=Unbounded(4)))
ACTIONS = Composite(robot=Composite(torque=Bounded(-1, 1, (2,))))


def make_records(batch: int, steps: int) -> TensorDict:
    """Random step records ``[batch, steps]``, everything about the robot below ``"robot"``."""
    flags = torch.zeros(batch, steps, 1, dtype=torch.bool)
    robot = {
        "joints": torch.randn(batch, steps, 4),
        "first": flags.clone(),
        "did": torch.rand(batch, steps, 2) * 2 - 1,
        "gain": torch.randn(batch, steps, 1),
        "fell": flags.clone(),
    }
    return TensorDict(robot=robot, batch_size=[batch, steps])


def main(updates: int = 50, batch: int = 8, steps: int = 12) -> dict[str, float]:
    """Trains world model and critic; returns first and last losses and how far the slow critic moved."""
    torch.manual_seed(0)
    model = make_rssm(
        OBSERVATIONS,
        ACTIONS,
        belief_size=32,
        belief_key=("wm", "h"),
        state_key=("wm", "z"),
        is_init_key=("robot", "first"),
        previous_action_key=("robot", "did"),
    )
    actor = actor_head(ACTIONS, model.feature_size, layers=1, units=16)
    critic = TwoHotHead(model.feature_size, layers=1, units=16)

    model_loss = WorldModelLoss(model, SeparateKL())
    model_loss.set_keys(reward=("robot", "gain"), terminated=("robot", "fell"))
    critic_loss = CriticLoss(critic, slow_regularization=1.0)
    critic_loss.set_keys(lambda_target=("returns", "lambda"), weight=("returns", "weight"))
    slow = SoftUpdate(critic_loss, eps=0.98)
    imagination = Imagination(model, actor, critic_loss.slow, horizon=5, discount=0.99)

    # The parameters of a loss are the model's own; the slow copy is no parameter.
    weights = [*model_loss.parameters(), *critic_loss.parameters()]
    assert {p.data_ptr() for p in weights} == {
        p.data_ptr() for part in (model, critic) for p in part.parameters()
    }
    start = critic_loss.target_critic_params.data.clone()
    optimizer = torch.optim.Adam(weights, lr=1e-3)
    records = make_records(batch, steps).update(model.initial([batch, steps]))
    history = []
    for _ in range(updates):
        losses = model_loss(records)
        rows, _ = align_v3(imagination(losses["latents"]))
        rows.set(("returns", "lambda"), rows["lambda_target"])
        rows.set(("returns", "weight"), rows["weight"])
        # Without a TensorDict: one keyword for each of ``in_keys``, nested ones joined by "_".
        entries = {"_".join([k] if isinstance(k, str) else k): rows[k] for k in critic_loss.in_keys}
        value_loss = critic_loss(**entries)
        total = value_loss + sum(v for k, v in losses.items() if k.startswith("loss_"))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        slow.step()
        history.append(total.item())
    moved = (critic_loss.target_critic_params.data - start).abs().sum(reduce=True)
    return {"first": history[0], "last": history[-1], "slow critic moved": moved.item()}


if __name__ == "__main__":
    print(main())
