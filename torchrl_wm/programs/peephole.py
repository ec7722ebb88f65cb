"""Fewer instructions for the same numbers.

An instruction takes some nanoseconds for each row besides its arithmetic. So a product applies the ReLU
that follows it, a value that is copied into a concatenation is written there in the first place, and a
root-mean-square normalisation is one instruction (whose factors are multiplied in another order).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torchrl_wm.programs.instructions import Code
from torchrl_wm.programs.products import PANEL

TARGET, WIDTH, A, B, STEP, MORE = range(1, 7)


class Access(NamedTuple):
    """Columns ``first ... end - 1`` that the instruction at ``place`` names in a field."""

    place: int
    field: int
    first: int
    end: int

    def within(self, first: int, end: int) -> bool:
        """Whether it touches no other columns."""
        return first <= self.first and self.end <= end


def simplify(
    code: Sequence[Sequence[int]], first: int, width: int
) -> tuple[list[Sequence[int]], int]:
    """Instructions with the same results, and the first column of these.

    Args:
        code (sequence): the instructions, see :class:`~torchrl_wm.programs.instructions.Code`.
        first (int): first column of the results; as all columns, below 0.
        width (int): their number.

    Examples:
        >>> product, relu = (3, -32, 16, -16, 0, 0, 8), (10, -48, 16, -32, 0, 1, 0)
        >>> simplify([product, relu], -48, 16)
        ([[3, -48, 16, -16, 0, 1, 8]], -48)
    """
    lines = [list(line) for line in code]
    # The results are read last, by an instruction that writes to columns of nobody.
    lines.append([Code.COPY, 0, width, first, 0, 1, 0])
    _drop_unread(lines)
    _join_norms(lines)
    for simpler in (_join_relu, _write_in_place):
        place = 0
        while place < len(lines) - 1:
            if simpler(lines, place):
                del lines[place]
            else:
                place += 1
    return lines[:-1], lines[-1][A]


def _drop_unread(lines: list[list[int]]) -> None:
    """Leaves out what nothing reads: of a derivative, parts of the function that it does not depend on."""
    for place in range(len(lines) - 2, -1, -1):
        kind, target = lines[place][:WIDTH]
        if kind not in (Code.STORE, Code.ADD_OUTER):
            (_, width), *_ = accesses(lines[place])
            after = _touching(lines[place + 1 :], target, target + width)
            if all(access.field == TARGET for access in after):
                del lines[place]


_RMS_NORM = (Code.MULTIPLY, Code.MEAN, Code.ADD, Code.RSQRT, Code.MULTIPLY, Code.MULTIPLY)


def _join_norms(lines: list[list[int]]) -> None:
    """Makes one instruction of the operations of a root-mean-square normalisation."""
    for place in range(len(lines) - len(_RMS_NORM), -1, -1):
        after = place + len(_RMS_NORM)
        found = lines[place:after]
        if tuple(line[0] for line in found) != _RMS_NORM:
            continue
        square, mean, shift, root, divide, scale = found
        x, width = square[A], square[WIDTH]
        chain = [square[B] == x, mean[A] == square[TARGET], mean[WIDTH] == width]
        chain += [shift[A] == mean[TARGET], root[A] == shift[TARGET], shift[WIDTH] == 1]
        chain += [divide[A] == x, divide[B] == root[TARGET], divide[WIDTH] == width]
        chain += [not divide[STEP], scale[A] == divide[TARGET], scale[WIDTH] == width]
        if all(chain) and square[STEP] and scale[STEP]:
            own = [(line[TARGET], line[TARGET] + line[WIDTH]) for line in (square, divide)]
            own += [(line[TARGET], line[TARGET] + 1) for line in (mean, shift, root)]
            users = {access.place for columns in own for access in _touching(lines, *columns)}
            # What the one instruction goes on reading must come from elsewhere.
            kept = ((x, width), (scale[B], width), (shift[B], 1))
            free = not any(_overlap(*columns, *part) for columns in own for part in kept)
            if free and users <= set(range(place, after)):
                fused = [Code.RMS_NORM, scale[TARGET], width, x, scale[B], 1, shift[B]]
                lines[place:after] = [fused]


def _overlap(first: int, end: int, other: int, width: int) -> bool:
    return first < other + width and other < end


def _join_relu(lines: list[list[int]], place: int) -> bool:
    """Lets the product before it apply a ReLU, if nothing else reads what comes between them."""
    kind, target, width, source = lines[place][:B]
    products = (x for x in lines if x[0] == Code.LINEAR and x[TARGET] == source)
    product = next(products, None) if kind == Code.RELU else None
    if product is None:
        return False
    whole = product[WIDTH]
    users = {x.place for x in _touching(lines, source, source + whole)}
    fits = 0 <= whole - width < PANEL  # the new columns have room for whole panels
    if len(users) > 2 or not fits:
        return False
    product[TARGET], product[STEP] = target, 1
    return True


def _write_in_place(lines: list[list[int]], place: int) -> bool:
    """Writes a value where it is copied to, if its columns are its own and nobody changes it later."""
    kind, target, width, source = lines[place][:B]
    if kind != Code.COPY:
        return False
    found = list(_touching(lines, source, source + width))
    own = all(x.within(source, source + width) for x in found)
    written = [x.place for x in found if x.field == TARGET]
    others = [x for x in _touching(lines, target, target + width) if x.place != place]
    read_only = all(x.field != TARGET for x in others)
    if not (own and written and max(written) < place and read_only):
        return False
    for x in found:
        lines[x.place][x.field] += target - source
    return True


def _touching(lines: list[list[int]], first: int, end: int) -> Iterator[Access]:
    """What reads or writes any of the columns."""
    for place, line in enumerate(lines):
        for field, width in accesses(line):
            if line[field] < end and first < line[field] + width:
                yield Access(place, field, line[field], line[field] + width)


def accesses(line: Sequence[int]) -> list[tuple[int, int]]:
    """The fields of an instruction that name columns, and how many of them it reads or writes."""
    kind, width = line[0], line[WIDTH]
    if kind in (Code.GATHER, Code.LOOKUP):
        return [(TARGET, width)]
    if kind == Code.STORE:
        return [(A, width)]
    if kind == Code.ADD_OUTER:
        return [(A, width), (B, line[MORE])]
    if kind == Code.LINEAR:
        return [(TARGET, width), (A, line[MORE])]
    if kind == Code.SPREAD:
        return [(TARGET, width), (A, 1)]
    if kind < Code.ADD:
        return [(TARGET, width), (A, width)]
    if kind < Code.LOWEST:
        fields = [(TARGET, width), (A, width), (B, width if line[STEP] else 1)]
        return [*fields, (MORE, width)] if kind in (Code.WHERE, Code.LERP) else fields
    if kind == Code.RMS_NORM:
        return [(TARGET, width), (A, width), (B, width), (MORE, 1)]
    if kind == Code.SOFTMAX_BACKWARD:
        return [(TARGET, width), (A, width), (B, width)]
    if kind == Code.STANDARDISE:
        return [(TARGET, width), (A, width), (MORE, 1)]
    whole = kind in (Code.SOFTMAX, Code.ONE_HOT)
    return [(TARGET, width if whole else 1), (A, width)]
