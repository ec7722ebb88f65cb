"""Values for records that no search has seen."""

from __future__ import annotations

from collections.abc import Callable

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.transforms import Transform

from torchrl_wm import keys
from torchrl_wm.data.records import required

Evaluate = Callable[[TensorDictBase], Tensor]


class FinalValues(Transform):
    """Writes the values of a network to sampled records, as ``root_value``.

    The final record of an episode has been searched by nobody, but the return of a truncated episode
    ends in its value. With ``everywhere`` all returns are bootstrapped from the network, as from
    MuZero's target network in Reanalyze (https://arxiv.org/abs/2104.06294).

    Args:
        evaluate (callable): records ``[N]`` to values ``[N, 1]``.

    Keyword Args:
        everywhere (bool, optional): for all records, not only where an episode was truncated.
            Defaults to ``False``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> ends = torch.tensor([[False], [True]])
        >>> records = TensorDict(
        ...     root_value=torch.zeros(2, 1), is_last=ends, terminated=~ends & ends, batch_size=[2])
        >>> FinalValues(lambda records: torch.full((len(records), 1), 7.0))(records)["root_value"]
        tensor([[0.],
                [7.]])
    """

    def __init__(self, evaluate: Evaluate, *, everywhere: bool = False):
        super().__init__()
        self.evaluate, self.everywhere = evaluate, everywhere

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the values, in place, to records ``[...]``."""
        value = required(tensordict, keys.ROOT_VALUE)
        if self.everywhere:
            fresh = self.evaluate(tensordict.reshape(-1)).reshape(value.shape)
            return tensordict.set(keys.ROOT_VALUE, fresh.to(value))
        truncated = required(tensordict, keys.IS_LAST) & ~required(tensordict, keys.TERMINATED)
        truncated = truncated.reshape(tensordict.shape)
        if truncated.any():
            value = value.clone()
            value[truncated] = self.evaluate(tensordict[truncated]).to(value)
            tensordict.set(keys.ROOT_VALUE, value)
        return tensordict
