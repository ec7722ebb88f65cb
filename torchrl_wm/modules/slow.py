"""Slowly moving copies of networks."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


class SlowCopy(nn.Module):
    """A copy of a module that follows it by an exponential average and is never trained.

    DreamerV3's slow critic moves by 0.02 after every update; Dreamer v2's target critic is copied
    whole (``rate=1``) ``every`` 100 updates, the first one included.

    Args:
        source (nn.Module): what is copied; not kept.
        rate (float, optional): share of the source taken over by a move. Defaults to ``0.02``.
        every (int, optional): number of updates from one move to the next. Defaults to ``1``.

    Raises:
        ValueError: where ``rate`` is not within 0 and 1, or ``every`` is below 1.

    Examples:
        >>> critic = nn.Linear(2, 1)
        >>> slow = SlowCopy(critic, rate=1.0)
        >>> _ = nn.init.ones_(critic.weight)
        >>> slow.update(critic)
        >>> torch.equal(slow.module.weight, critic.weight)
        True
    """

    def __init__(self, source: nn.Module, *, rate: float = 0.02, every: int = 1):
        super().__init__()
        if not 0 <= rate <= 1:
            raise ValueError(f"rate={rate} must be within 0 and 1.")
        if every < 1:
            raise ValueError(f"every={every} must be at least 1.")
        self.module = deepcopy(source).requires_grad_(False)
        self.rate, self.every = rate, every
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, *args, **kwargs):
        """Calls the copy."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """Counts one update of the source and moves where it is the turn; without host waits."""
        slow, fast = list(self.module.parameters()), list(source.parameters())
        if self.every == 1:
            torch._foreach_lerp_(slow, fast, self.rate)
        else:
            share = self.rate * (self.updates % self.every == 0)
            for old, new in zip(slow, fast, strict=True):
                old.lerp_(new, share.to(old.dtype))
        self.updates += 1
