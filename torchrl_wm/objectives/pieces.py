"""A function of many rows, applied to some of them at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_ROWS = 5 * 2**10  # the logits of more rows do not stay in a CPU's cache between two passes


def in_pieces(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Applies ``function`` to ``rows [T, ..., F]``, a few of the first dimension at a time.

    Args:
        function (callable): rows ``[t, ..., F]`` to ``[t, ...]``.
        rows (Tensor): the input, ``[T, ..., F]``.

    Returns:
        Tensor: the results, joined along the first dimension.

    Examples:
        >>> in_pieces(lambda x: x.sum(-1), torch.ones(3, 4096, 2)).shape
        torch.Size([3, 4096])
    """
    pieces = math.ceil(rows[..., 0].numel() / _ROWS)
    return torch.cat([function(x) for x in rows.tensor_split(max(1, min(pieces, len(rows))))])
