"""Stacking frames in sampled sequences, so that a replay stores each frame once."""

from __future__ import annotations

from tensordict import TensorDictBase
from torchrl.envs.transforms import Transform

from torchrl_wm.data.records import sequences
from torchrl_wm.modules.frame_stack import FrameStack


class StackedFrames(Transform):
    """Replaces the frames of sampled sequences by stacks that include those of the rows before.

    The first ``frames.count - 1`` rows have no full stack; they only supply frames to later ones.

    Args:
        frames (FrameStack): the stack that the policy acts with.

    Keyword Args:
        length (int): records in a sequence.

    Raises:
        KeyError: for a missing entry.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Composite, Unbounded
        >>> spec = Composite(pixels=Unbounded((1, 32, 32), dtype=torch.uint8))
        >>> stacked = StackedFrames(FrameStack(spec, 2), length=3)
        >>> records = TensorDict(
        ...     is_init=torch.zeros(6, 1, dtype=torch.bool), pixels=spec.rand([6])["pixels"],
        ...     batch_size=[6])
        >>> stacked(records)["pixels"].shape
        torch.Size([6, 2, 32, 32])
    """

    def __init__(self, frames: FrameStack, *, length: int):
        super().__init__()
        self.frames, self.length = frames, length

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Stacks in ``[B * length]`` or ``[B, length]`` records, in place."""
        rows = tensordict.select(*self.frames.carried, self.frames.is_init_key)
        rows = self.frames.sequence(sequences(rows, self.length))
        for key in self.frames.carried:
            value = rows.get(key)
            tensordict.set(key, value.reshape(*tensordict.shape, *value.shape[2:]))
        return tensordict
