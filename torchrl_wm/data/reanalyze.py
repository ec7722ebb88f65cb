"""MuZero Reanalyze (https://arxiv.org/abs/2104.06294): fresh searches for old records."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torchrl.envs.transforms import Transform

from torchrl_wm import keys
from torchrl_wm.data.records import required, sequences

Search = Callable[[TensorDictBase], TensorDictBase]


class Reanalyze(Transform):
    """Searches again from the unrolled records of a share of the sampled sequences.

    All of them are the roots of one batched search. Its results replace the search statistics in the
    sample, with the present version; :meth:`StepReplay.write_back
    <torchrl_wm.data.StepReplay.write_back>` then stores them where the row still holds the same record
    and nothing newer.

    Args:
        search (callable): records ``[N]`` to a TensorDict ``[N]`` with the entries ``updated``.

    Keyword Args:
        ratio (float): share of the sequences; the first ones are taken, as they are drawn independently.
        length (int): records in a sequence.
        root (int): position of the root in a sequence.
        unroll_steps (int): records after the root that are trained on.
        version (callable): the version of the searching network, an int that grows.
        updated (sequence of NestedKey, optional): Defaults to ``search_policy`` and ``root_value``.

    Raises:
        ValueError: for a ratio outside [0, 1].
        KeyError: where the search lacks an entry or the records have no version.

    Examples:
        >>> from tensordict import TensorDict
        >>> def search(records):
        ...     return TensorDict(search_policy=torch.ones(len(records), 2) / 2,
        ...                       root_value=torch.ones(len(records), 1), batch_size=[len(records)])
        >>> again = Reanalyze(
        ...     search, ratio=1.0, length=2, root=0, unroll_steps=0, version=lambda: 5)
        >>> records = TensorDict(
        ...     search_policy=torch.zeros(2, 2), root_value=torch.zeros(2, 1),
        ...     search_version=torch.zeros(2, 1, dtype=torch.long),
        ...     is_last=torch.zeros(2, 1, dtype=torch.bool), batch_size=[2])
        >>> again(records)["search_version"].flatten()
        tensor([5, 0])
    """

    def __init__(
        self,
        search: Search,
        *,
        ratio: float,
        length: int,
        root: int,
        unroll_steps: int,
        version: Callable[[], int],
        updated=(keys.SEARCH_POLICY, keys.ROOT_VALUE),
    ):
        super().__init__()
        if not 0 <= ratio <= 1:
            raise ValueError(f"reanalyze_ratio={ratio} is a share and must lie within 0 and 1.")
        self.search, self.ratio, self.version = search, ratio, version
        self.length, self.root, self.unroll_steps = length, root, unroll_steps
        self.updated = list(updated)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Replaces search statistics in ``[B * length]`` or ``[B, length]`` records, in place."""
        rows = sequences(tensordict, self.length)
        chosen = torch.zeros(rows.shape, dtype=torch.bool)
        # The share holds on average, also where it is less than one sequence of a batch.
        count = int(self.ratio * len(rows) + torch.rand((), dtype=torch.float64))
        chosen[:count, self.root : self.root + self.unroll_steps + 1] = True
        # Neither the final record of the root's episode, where no action was taken, nor anything later.
        last = required(rows, keys.IS_LAST).reshape(rows.shape)[:, self.root :].cpu()
        chosen[:, self.root :] &= ~last.cumsum(1).bool()
        if not chosen.any():
            return tensordict
        chosen = chosen.reshape(tensordict.shape)
        found = self.search(tensordict[chosen])
        for key in self.updated:
            value = required(tensordict, key).clone()
            value[chosen] = required(found, key).to(value)
            tensordict.set(key, value)
        version = required(tensordict, keys.SEARCH_VERSION).clone()
        version[chosen] = self.version()
        return tensordict.set(keys.SEARCH_VERSION, version)
