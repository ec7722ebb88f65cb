"""The values that returns bootstrap from, also for records that no search has evaluated."""

from __future__ import annotations

from collections.abc import Callable

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.transforms import Transform

from torchrl_wm import keys
from torchrl_wm.data.records import required, sequences

Evaluate = Callable[[TensorDictBase], Tensor]

_NO_POSITIONS = slice(0, 0)


class BootstrapValues(Transform):
    """Adds ``bootstrap_value`` to sampled records: the values that returns bootstrap from.

    That is the search's ``root_value``, except for the final records of truncated episodes, which were
    never searched: those are evaluated by a network. So are the records at the positions ``evaluated``,
    as by the target network of MuZero Reanalyze (https://arxiv.org/abs/2104.06294).

    Args:
        evaluate (callable): records ``[N]`` to values ``[N, 1]``.

    Keyword Args:
        length (int, optional): records in a sequence. Defaults to ``1``.
        evaluated (slice, optional): positions in a sequence. Defaults to none.

    Raises:
        KeyError: for a missing entry.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> ends = torch.tensor([[False], [True]])
        >>> records = TensorDict(
        ...     root_value=torch.ones(2, 1), is_last=ends, terminated=~ends & ends, batch_size=[2])
        >>> fill = BootstrapValues(lambda records: torch.full((len(records), 1), 7.0))
        >>> fill(records)["bootstrap_value"]
        tensor([[1.],
                [7.]])
    """

    def __init__(self, evaluate: Evaluate, *, length: int = 1, evaluated: slice = _NO_POSITIONS):
        super().__init__()
        self.evaluate, self.length, self.evaluated = evaluate, length, evaluated

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Adds the values to records ``[B * length]`` or ``[B, length]``."""
        rows = sequences(tensordict, self.length)
        value = required(tensordict, keys.ROOT_VALUE).clone()
        chosen = required(rows, keys.IS_LAST) & ~required(rows, keys.TERMINATED)
        chosen = chosen.reshape(rows.shape)
        chosen[:, self.evaluated] = True
        chosen = chosen.reshape(tensordict.shape)
        if chosen.any():
            value[chosen] = self.evaluate(tensordict[chosen]).to(value)
        return tensordict.set(keys.BOOTSTRAP_VALUE, value)
