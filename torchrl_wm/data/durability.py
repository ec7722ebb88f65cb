"""Files that survive a loss of power."""

from __future__ import annotations

import os
from pathlib import Path


def flush(path: str | Path) -> None:
    """Waits until a file or folder has reached the disk.

    The pages of a killed process survive anyway; only this makes them survive a loss of power.

    Raises:
        OSError: for a path that cannot be opened.

    Examples:
        >>> flush(".")
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
