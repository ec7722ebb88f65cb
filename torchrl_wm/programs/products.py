"""Matrix products in the compiled loop: rows of the scratch times weights that lie in panels."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from torchrl_wm.programs.arithmetic import MINUS_INFINITY, ZERO, compiled, faithful
from torchrl_wm.programs.columns import numbers_at

TILE_ROWS, LANES, PANEL = 4, 8, 16
"""Columns of a weight that lie together; the width of a product's output is a multiple of it."""
MATRIX, BIAS, TABLE, CONSTANT = range(4)
"""What a parameter is to an instruction: how :func:`unpack` lays it out."""


def tile_of(panels: int, lanes: int, multiply_add: Callable) -> Callable:
    """Four rows times some panels of a weight, plus its bias, at least ``floor``.

    All sums stay in registers, ``lanes`` in each. ``multiply_add(builder, number, weight, sum)`` writes the
    instruction that adds a product to them.
    """
    vectors = [(panel, lane) for panel in range(panels) for lane in range(0, PANEL, lanes)]

    @intrinsic
    def tile(context, scratch, row, source, target, weights, offset, depth, floor):
        kinds = [scratch, *[types.intp] * 3, weights, types.intp, types.intp, types.float32]

        def generate(context, builder, signature, arguments):
            numbers, row, source, target, memory, offset, depth, floor = arguments
            numbers = context.make_array(signature.args[0])(context, builder, numbers)
            memory = context.make_array(signature.args[4])(context, builder, memory)
            kind, integer = ir.VectorType(ir.FloatType(), lanes), ir.IntType(64)
            stride = builder.extract_value(numbers.shape, 1)
            starts = [builder.mul(builder.add(row, integer(r)), stride) for r in range(TILE_ROWS)]
            starts = [builder.gep(numbers.data, [place]) for place in starts]
            size = builder.mul(builder.add(depth, integer(1)), integer(PANEL))
            begins = [
                builder.gep(memory.data, [builder.add(offset, builder.mul(size, integer(p)))])
                for p in range(panels)
            ]

            def line(k):
                """The ``k``-th line of all panels."""
                first = builder.mul(k, integer(PANEL))
                places = [
                    builder.gep(begins[panel], [builder.add(first, integer(lane))])
                    for panel, lane in vectors
                ]
                places = [builder.bitcast(place, kind.as_pointer()) for place in places]
                return [builder.load(place, align=4) for place in places]

            sums = [[cgutils.alloca_once(builder, kind) for _ in vectors] for _ in starts]
            bias = line(depth)  # it follows the weight
            for row_sums in sums:
                for total, value in zip(row_sums, bias, strict=True):
                    builder.store(value, total)
            with cgutils.for_range(builder, depth) as loop:
                weight = line(loop.index)
                for start, row_sums in zip(starts, sums, strict=True):
                    place = builder.gep(start, [builder.add(source, loop.index)])
                    number = _spread(builder, builder.load(place), kind)
                    for total, value in zip(row_sums, weight, strict=True):
                        added = multiply_add(builder, number, value, builder.load(total))
                        builder.store(added, total)
            least = _spread(builder, floor, kind)
            for start, row_sums in zip(starts, sums, strict=True):
                for (panel, lane), total in zip(vectors, row_sums, strict=True):
                    total = builder.load(total)
                    below = builder.fcmp_ordered("<", total, least)  # not where the sum is NaN
                    place = builder.add(target, integer(panel * PANEL + lane))
                    place = builder.bitcast(builder.gep(start, [place]), kind.as_pointer())
                    builder.store(builder.select(below, least, total), place, align=4)
            return context.get_dummy_value()

        return types.void(*kinds), generate

    return tile


def _spread(builder, number, kind):
    """A vector of the same number."""
    nothing, everywhere = ir.Constant(kind, ir.Undefined), ir.VectorType(ir.IntType(32), kind.count)
    number = builder.insert_element(nothing, number, ir.IntType(32)(0))
    return builder.shuffle_vector(number, nothing, ir.Constant(everywhere, [0] * kind.count))


def _multiply_add(builder, number, weight, total):
    kind = number.type
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.v{kind.count}f32"
    )
    return builder.call(function, [number, weight, total])


_tile = tile_of(1, LANES, _multiply_add)


@faithful
def linear(instruction, scratch, rows, weights):
    """Columns times a weight ``[depth, width]`` in panels, plus its bias, with or without a ReLU."""
    target, width, source, offset = instruction[1], instruction[2], instruction[3], instruction[4]
    floor, depth = ZERO if instruction[5] else MINUS_INFINITY, instruction[6]
    for column in range(0, width, PANEL):
        for row in range(0, rows, TILE_ROWS):
            _tile(scratch, row, source, target + column, weights, offset, depth, floor)
        offset += PANEL * (depth + 1)


def _outer_tile(panels: int) -> Callable:
    """Four columns of one value times some panels of another, added up over rows."""
    vectors = list(range(0, panels * PANEL, LANES))

    @intrinsic
    def tile(context, scratch, rows, left, right, sums, offset, stride):
        kinds = [scratch, *[types.intp] * 3, sums, types.intp, types.intp]

        def generate(context, builder, signature, arguments):
            numbers, rows, left, right, memory, offset, stride = arguments
            numbers = context.make_array(signature.args[0])(context, builder, numbers)
            memory = context.make_array(signature.args[4])(context, builder, memory)
            kind, integer = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)
            length = builder.extract_value(numbers.shape, 1)

            def vector(base, place, lane):
                place = builder.gep(base, [builder.add(place, integer(lane))])
                return builder.bitcast(place, kind.as_pointer())

            starts = [
                builder.add(offset, builder.mul(stride, integer(i))) for i in range(TILE_ROWS)
            ]
            places = [[vector(memory.data, start, lane) for lane in vectors] for start in starts]
            sums = [[cgutils.alloca_once(builder, kind) for _ in vectors] for _ in starts]
            pairs = list(zip(sum(places, []), sum(sums, []), strict=True))
            for _, total in pairs:  # of these rows alone: sums of sums lose fewer digits
                builder.store(ir.Constant(kind, [0.0] * LANES), total)
            with cgutils.for_range(builder, rows) as loop:
                start = builder.mul(loop.index, length)
                first, begin = builder.add(start, left), builder.add(start, right)
                line = [builder.load(vector(numbers.data, begin, x), align=4) for x in vectors]
                for i, row_sums in enumerate(sums):
                    place = builder.gep(numbers.data, [builder.add(first, integer(i))])
                    number = _spread(builder, builder.load(place), kind)
                    for value, total in zip(line, row_sums, strict=True):
                        added = _multiply_add(builder, number, value, builder.load(total))
                        builder.store(added, total)
            for place, total in pairs:
                before = builder.load(place, align=4)
                builder.store(builder.fadd(before, builder.load(total)), place, align=4)
            return context.get_dummy_value()

        return types.void(*kinds), generate

    return tile


_outer_of_one, _outer_of_two = (_outer_tile(panels) for panels in (1, 2))


@faithful
def add_outer(instruction, scratch, rows, sums):
    """Adds products of all pairs of columns of two values, ``[count, width]``, to what earlier rows had."""
    offset, width, right = instruction[1], instruction[2], instruction[3]
    left, count = instruction[4], instruction[6]
    stride = (width + PANEL - 1) // PANEL * PANEL
    column = 0
    while column < width:
        two = column + PANEL < width
        for i in range(0, count, TILE_ROWS):
            place = offset + i * stride + column
            if two:
                _outer_of_two(scratch, rows, left + i, right + column, sums, place, stride)
            else:
                _outer_of_one(scratch, rows, left + i, right + column, sums, place, stride)
        column += 2 * PANEL if two else PANEL


@compiled
def unpack(layout, addresses, weights, scratch):
    """Copies parameters to where the instructions read them.

    ``layout [n, 4]`` holds for each the kind, where it goes, and its shape.
    """
    for i in range(layout.shape[0]):
        kind, target, rows, columns = layout[i]
        source = numbers_at(addresses[i], rows * columns)
        if kind == MATRIX:  # [rows, columns] is transposed into panels
            for begin in range(0, rows, PANEL):
                lanes = min(rows - begin, PANEL)
                first, place = begin * columns, target + begin * (columns + 1)
                for column in range(columns):
                    out = weights[place + column * PANEL : place + column * PANEL + lanes]
                    for lane in range(lanes):
                        out[lane] = source[first + lane * columns + column]
        elif kind == BIAS:  # [rows] follows the panels of a matrix with so many columns
            for row in range(rows):
                place = target + (row // PANEL + 1) * PANEL * (columns + 1) - PANEL + row % PANEL
                weights[place] = source[row]
        elif kind == TABLE:
            for j in range(rows * columns):
                weights[target + j] = source[j]
        else:
            for row in range(scratch.shape[0]):
                for j in range(columns):
                    scratch[row, target + j] = source[j]
