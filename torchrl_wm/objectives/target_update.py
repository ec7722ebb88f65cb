"""Updating the slow copy of a critic."""

from __future__ import annotations

import warnings

import torch
from torchrl.objectives import SoftUpdate
from torchrl.objectives.common import LossModule

from torchrl_wm.ranges import COUNT


class SlowUpdate(SoftUpdate):
    """TorchRL's ``SoftUpdate``, applied every so many updates, the first one included.

    DreamerV3 moves its slow critic by 0.02 after every update; Dreamer v2 copies the whole critic
    (``tau=1``) every 100 updates, starting with the first. The count is a buffer of the loss, so it is
    saved with it.

    Args:
        loss_module (LossModule): the loss that holds the target parameters.

    Keyword Args:
        tau (float): share of the critic taken over by a move.
        every (int, optional): updates from one move to the next. Defaults to ``1``.

    Raises:
        ValueError: where ``tau`` is not above 0 and at most 1, or ``every`` is below 1.

    Examples:
        >>> from torchrl_wm.modules import TwoHotHead
        >>> from torchrl_wm.objectives import CriticLoss
        >>> loss = CriticLoss(TwoHotHead(16, layers=1, units=8))
        >>> update, bias = SlowUpdate(loss, tau=0.5, every=2), ("out", "bias")
        >>> for _ in range(3):  # the slow critic moves in the first and the third
        ...     loss.critic_params[bias].data += 1
        ...     update.step()
        >>> loss.target_critic_params[bias][0].item()
        1.75
    """

    def __init__(self, loss_module: LossModule, *, tau: float, every: int = 1):
        if not 0 < tau <= 1:
            raise ValueError(f"tau={tau} must be above 0 and at most 1.")
        COUNT.check(every=every)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found an eps value < 0.5")
            super().__init__(loss_module, tau=tau)
        self.every = every
        loss_module.register_buffer("slow_updates", torch.zeros((), dtype=torch.int64))

    def step(self) -> None:
        """Counts one update of the critic and moves the slow one when it is due."""
        count = self.loss_module.slow_updates
        if count % self.every == 0:
            super().step()
        count += 1
