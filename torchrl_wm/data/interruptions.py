"""Episodes that were neither terminated nor truncated, but left: a reset came from outside."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torchrl.envs.transforms import Transform

from torchrl_wm import keys
from torchrl_wm.data.records import required, sequences


class InterruptedEpisodes(Transform):
    """Marks the newest record of an interrupted episode as its final one, ``is_last``.

    A new collector, or a resume in an environment that cannot be restored, resets in the middle of an
    episode. What the episode led to is not known, as at a truncation.

    Args:
        length (int): records in a sequence.

    Raises:
        KeyError: for a missing entry.

    Examples:
        >>> from tensordict import TensorDict
        >>> flags = torch.zeros(4, 1, dtype=torch.bool)
        >>> begins = torch.tensor([[False], [False], [True], [False]])
        >>> records = TensorDict(is_init=begins, is_last=flags, batch_size=[4])
        >>> InterruptedEpisodes(4)(records)["is_last"].flatten()
        tensor([False,  True, False, False])
    """

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Marks records ``[B * length]`` or ``[B, length]``."""
        rows = sequences(tensordict, self.length)
        begins, last = (
            required(rows, key).reshape(rows.shape) for key in (keys.IS_INIT, keys.IS_LAST)
        )
        before = torch.cat([begins[:, 1:], torch.zeros_like(begins[:, :1])], 1)
        return tensordict.set(keys.IS_LAST, (last | before).reshape(*tensordict.shape, 1))
