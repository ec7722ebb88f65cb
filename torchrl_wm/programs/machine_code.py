"""Machine code that is kept on disk, safely for several processes and for functions in several files.

numba numbers the files of a function's signatures. Two processes that compile different ones at once give
them the same number, and from then on one is executed in place of the other
(https://github.com/numba/numba/issues/4807). It also looks for changes only in the file of the function
itself, not in those of the functions that are compiled into it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from pathlib import Path

from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.dispatcher import Dispatcher

SOURCES = (
    "programs/arithmetic",
    "programs/bfloat16",
    "programs/columns",
    "programs/draws",
    "programs/exponential",
    "programs/instructions",
    "programs/products",
    "planners/tree_search/kernels",
)
"""The files that hold compiled functions, or numbers that are compiled into them."""


def kept_on_disk(function: Dispatcher) -> Dispatcher:
    """Keeps the machine code of a function where numba would keep it."""
    if isinstance(function, Dispatcher):  # NUMBA_DISABLE_JIT leaves plain functions
        function._cache = _Cache(function.py_func)
    return function


class _Cache(FunctionCache):
    def __init__(self, function):
        super().__init__(function)
        try:
            stamp = sources_stamp()
        except OSError:  # frozen, without sources: numba's stamp is that of the executable
            stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig, target_context):
        found = super().load_overload(sig, target_context)
        if found is None:
            _announce()
        return found


class _Files(IndexDataCacheFile):
    """Files that are named after what they hold; they are complete when the index begins to name them."""

    def _load_index(self):
        try:
            return super()._load_index()
        except (AttributeError, ImportError):  # of earlier code, which had its classes elsewhere
            return {}

    def save(self, key, data):
        overloads = self._load_index()
        what = hashlib.sha256(repr((key, self._source_stamp, self._version)).encode())
        overloads[key] = self._data_name_pattern.replace("{number:d}", what.hexdigest()[:16])
        self._save_data(overloads[key], data)
        self._save_index(overloads)


@functools.cache
def _announce() -> None:
    logging.getLogger(__name__).warning(
        "Compiling the loops of searches, plans and imagination for this machine, which takes up to half a "
        "minute; they are kept for the next run."
    )


@functools.cache
def sources_stamp() -> str:
    """Differs when any of the files differs."""
    package = Path(__file__).parents[1]
    files = [str(package / f"{name}.py") for name in SOURCES]
    text = b"".join(__loader__.get_data(file) for file in files)  # also from a zip archive
    return hashlib.sha256(text).hexdigest()
