"""Rows that do not depend on each other, shared out to as many threads as torch may use.

The work is given to the OpenMP threads of torch itself, where there are any. After an operation of torch they
wait busily for the next one, some milliseconds long, and would keep other threads from their cores.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")
_TOGETHER = 4  # rows of one tile of a program's matrix products
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


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
    shares = [(begin, min(begin + share, rows)) for begin in range(0, rows, share)]
    waiting, results, errors = iter(range(len(shares))), [None] * len(shares), []

    def work() -> None:
        try:
            for place in waiting:  # fewer threads than shares, where OpenMP grants no more
                results[place] = function(*shares[place])
        except BaseException as error:  # could not pass through OpenMP
            errors.append(error)

    _at_once(work, len(shares))
    if errors:
        raise errors[0]
    return results


def _at_once(work: Callable[[], None], threads: int) -> None:
    """Calls it in several threads."""
    if _parallel_region() is not None:
        return _in_openmp(work, threads)
    begun = [_pool(torch.get_num_threads() - 1).submit(work) for _ in range(threads - 1)]
    work()
    for one in begun:
        one.result()


# -- torch's own threads -----------------------------------------------------------------------------

_forked = False
_team = threading.local()


def _in_openmp(work: Callable[[], None], threads: int) -> None:
    found = []

    def join(_) -> None:
        found.append(threading.get_native_id())
        work()

    with _kept_off_this_processor(getattr(_team, "others", ())):
        _parallel_region()(_WORK(join), None, threads, 0)
    _team.others = [thread for thread in found if thread != threading.get_native_id()]


@functools.cache
def _parallel_region() -> Callable | None:
    """``GOMP_parallel(work, data, threads, flags)``, which torch calls, or None.

    GNU's OpenMP has it, and on Linux Intel's and LLVM's. OpenMP's threads do not survive in a forked process,
    and it waits for them there.
    """
    function = None if _forked else getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)
    if function is not None:
        function.argtypes = [_WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
    return function


@contextlib.contextmanager
def _kept_off_this_processor(others: Sequence[int]) -> Iterator[None]:
    """Lets other threads begin elsewhere, those that sleep among them.

    The Linux of a virtual machine takes a processor without work for one that the host has taken away, and
    wakes a thread where the caller is, though others are idle: the two then take turns.
    """
    here, before = _current_processor()(), {}
    for thread in others:
        with contextlib.suppress(OSError):  # it has ended
            allowed = os.sched_getaffinity(thread)
            if elsewhere := allowed - {here}:
                os.sched_setaffinity(thread, elsewhere)
                before[thread] = allowed
    try:
        yield
    finally:
        for thread, allowed in before.items():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, allowed)


@functools.cache
def _current_processor() -> Callable[[], int]:
    return ctypes.PyDLL(None).sched_getcpu  # looked up once: that takes longer than calling it


# -- threads of our own ------------------------------------------------------------------------------


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Kept, as starting a thread takes longer than a small search; it starts no more than are needed."""
    return ThreadPoolExecutor(threads, thread_name_prefix="torchrl_wm")


def _after_fork() -> None:
    global _forked
    _forked = True
    _parallel_region.cache_clear()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
