"""Signals that ask a run to stop, as a flag that the loop can check."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interruption:
    """Remembers SIGTERM and SIGINT, so that a run stops between two units of work.

    A second signal is no longer caught: it ends the process at once.
    Outside the main thread, where Python allows no handlers, nothing is caught.

    Examples:
        >>> import os, signal
        >>> with Interruption() as interruption:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     interruption.signal.name
        'SIGTERM'
    """

    CAUGHT = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._remember) for s in self.CAUGHT}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for caught, handler in self._before.items():
            signal.signal(caught, handler)
        self._before = {}
