"""Rows that do not depend on each other, shared out to as many threads as torch may use."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")
_TOGETHER = 4  # rows of one tile of a program's matrix products


def in_threads(function: Callable[[int, int], Result], rows: int, least: int) -> list[Result]:
    """Calls ``function(begin, end)`` for consecutive shares of the rows, in several threads at once.

    There are as many threads as :func:`torch.get_num_threads` says, the caller's own among them. The
    function has to release the interpreter's lock, as compiled loops do.

    Args:
        function (callable): of the first row of a share and the one after its last.
        rows (int): number of rows.
        least (int): rows below which a share is not worth a thread.

    Returns:
        list: the results, in the order of the rows.

    Examples:
        >>> sum(in_threads(lambda begin, end: end - begin, 100, least=32))
        100
    """
    threads = max(1, min(torch.get_num_threads(), rows // least))
    if threads == 1:
        return [function(0, rows)]
    share = -(-rows // (threads * _TOGETHER)) * _TOGETHER
    first, *others = ((begin, min(begin + share, rows)) for begin in range(0, rows, share))
    pool = _pool(torch.get_num_threads() - 1)
    begun = [pool.submit(function, *bounds) for bounds in others]
    return [function(*first), *(work.result() for work in begun)]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Kept, as starting a thread takes longer than a small search; it starts no more than are needed."""
    return ThreadPoolExecutor(threads, thread_name_prefix="torchrl_wm")


if hasattr(os, "register_at_fork"):  # threads do not survive in a forked process
    os.register_at_fork(after_in_child=_pool.cache_clear)
