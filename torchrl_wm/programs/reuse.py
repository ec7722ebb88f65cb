"""Columns that hold one value after another, so that fewer of them stay in the cache."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from torchrl_wm.programs.peephole import accesses
from torchrl_wm.programs.products import PANEL

_APART = 4 * PANEL
"""Columns between a result and what it is computed from, for loops with vector instructions."""


class Arrangement:
    """Where values lie once columns are used again that nothing reads any more.

    Args:
        code (sequence): instructions that name columns from ``-width`` on.
        width (int): number of columns.
        starts (iterable of int): the first column of each value; those that follow it are its own, whole
            panels of them.
        kept (iterable of int): columns of values that all instructions share, such as constants.
        result (int): a column that is read after all instructions.

    Examples:
        >>> chain = [(10, -16 * (i + 1), 16, -16 * i, 0, 1, 0) for i in range(1, 5)]
        >>> found = Arrangement(chain, 80, [-80, -64, -48, -32, -16], [], -80)
        >>> found.width, [line[1] for line in found.code]
        (80, [0, 64, 0, 64])
    """

    def __init__(
        self,
        code: Sequence[Sequence[int]],
        width: int,
        starts: Iterable[int],
        kept: Iterable[int],
        result: int,
    ):
        self._starts = sorted({-width, *starts})
        ends = [*self._starts[1:], 0]
        self._sizes = [end - start for start, end in zip(self._starts, ends, strict=True)]
        self._places: dict[int, int] = {}
        self.width = 0
        always = {self._value(column) for column in kept}
        for value in sorted(always):
            self._places[value] = self.width
            self.width += self._sizes[value]
        self._arrange(code, self._lives(code, self._value(result)), always)
        self.code = [self._renamed(line) for line in code]

    def place(self, column: int) -> int:
        """Where a column lies now."""
        value = self._value(column)
        return self._places[value] + column - self._starts[value]

    def _value(self, column: int) -> int:
        return bisect.bisect_right(self._starts, column) - 1

    def _lives(self, code, result: int) -> dict[int, list[int]]:
        """The first and the last instruction that names a value, in the order of the first."""
        lives: dict[int, list[int]] = {}
        for place, line in enumerate(code):
            for field, _ in accesses(line):
                lives.setdefault(self._value(line[field]), [place, place])[1] = place
        lives.setdefault(result, [0, 0])[1] = len(code)
        return lives

    def _arrange(self, code, lives: dict[int, list[int]], always: set[int]) -> None:
        taken: list[tuple[int, int, int]] = []  # first column, end, last instruction; in order
        begin = self.width
        for value, (first, last) in lives.items():
            if value in always:
                continue
            taken = [one for one in taken if one[2] >= first]
            read = [
                self.place(code[first][field])
                for field, _ in accesses(code[first])
                if self._value(code[first][field]) in self._places
            ]
            place = self._free(begin, self._sizes[value], taken, read)
            bisect.insort(taken, (place, place + self._sizes[value], last))
            self._places[value] = place
            self.width = max(self.width, place + self._sizes[value])

    def _free(self, begin: int, size: int, taken, read: list[int]) -> int:
        """The first free columns that do not closely follow what is read to compute them."""
        ends = [begin, *(end for _, end, _ in taken)]
        ends += [column + _APART for column in read]
        for place in sorted(ends):
            free = all(place + size <= start or end <= place for start, end, _ in taken)
            if place >= begin and free and not any(0 < place - column < _APART for column in read):
                return place
        raise AssertionError("there is room behind all columns")

    def _renamed(self, line: Sequence[int]) -> list[int]:
        line = list(line)
        for field, _ in accesses(line):
            line[field] = self.place(line[field])
        return line
