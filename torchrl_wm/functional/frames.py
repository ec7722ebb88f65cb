"""Frame stacking: a single image does not show motion."""

from __future__ import annotations

import torch
from torch import Tensor


def stack_frames(frames: Tensor, is_init: Tensor, count: int) -> Tensor:
    """Stacks each frame of a sequence with those before it in its episode, the newest last.

    Where the episode has too few, its first frame is repeated; frames before the start of the sequence
    are replaced by its first row.

    Args:
        frames (Tensor): ``[B, T, C, H, W]``.
        is_init (Tensor): ``[B, T]`` bool, the first frame of an episode.
        count (int): frames in a stack.

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
