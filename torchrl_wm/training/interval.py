"""When something periodic is due."""

from __future__ import annotations

from torchrl_wm.ranges import NUMBER


class Interval:
    """Due once in each ``every`` steps, however far one step jumps.

    Args:
        every (int): steps between two occasions; 0 means never.

    Raises:
        ValueError: for a negative or fractional number.

    Examples:
        >>> interval = Interval(10)
        >>> [interval.passed(step) for step in (0, 4, 12, 15, 20, 47, 49)]
        [False, False, True, False, True, True, False]
    """

    def __init__(self, every: int):
        NUMBER.check(every=every)
        self.every, self.last = every, 0

    def due(self, step: int) -> bool:
        """Whether a multiple of ``every`` lies after the last occasion, up to ``step``."""
        return bool(self.every) and step // self.every > self.last // self.every

    def done(self, step: int) -> None:
        """Marks all occasions up to ``step`` as used."""
        self.last = step

    def passed(self, step: int) -> bool:
        """Like :meth:`due`, and marks it as used if it is."""
        due = self.due(step)
        if due:
            self.done(step)
        return due
