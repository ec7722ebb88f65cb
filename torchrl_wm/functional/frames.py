"""Images of successive steps seen together: what moves, and where to, is in no single one."""

from __future__ import annotations

import torch
from torch import Tensor


def stack_frames(frames: Tensor, is_init: Tensor, count: int) -> Tensor:
    """Each image of a sequence with those before it in its episode, the newest last.

    Where an episode has not had so many, its first image is repeated; before the sequence its own
    first row stands for what is not there.

    Args:
        frames (Tensor): ``[B, T, C, H, W]``.
        is_init (Tensor): ``[B, T]`` bool, the first image of an episode.
        count (int): images seen together.

    Returns:
        Tensor: ``[B, T, count * C, H, W]``.

    Examples:
        >>> frames = torch.arange(5).view(1, 5, 1, 1, 1)
        >>> begins = torch.tensor([[False, False, False, True, False]])
        >>> stack_frames(frames, begins, 3)[0, :, :, 0, 0]
        tensor([[0, 0, 0],
                [0, 0, 1],
                [0, 1, 2],
                [3, 3, 3],
                [3, 3, 4]])
    """
    rows, steps = is_init.shape
    position = torch.arange(steps, device=frames.device)
    first = torch.where(is_init, position, 0).cummax(1).values
    back = position[:, None] - torch.arange(count - 1, -1, -1, device=frames.device)
    index = torch.maximum(back, first.unsqueeze(-1))
    row = torch.arange(rows, device=frames.device).view(-1, 1, 1)
    return frames[row, index].flatten(2, 3)
