"""The compiled loop that carries out a model's operations: rows of numbers, one instruction after another.

A row of ``scratch`` holds every value of one evaluation side by side; an instruction reads some columns
and writes others. A few rows go through all instructions before the next few do, so that they stay in
the cache. See :mod:`~torchrl_wm.planners.tree_search.program` for where instructions come from.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from torchrl_wm.planners.tree_search.arithmetic import (
    ONE,
    ZERO,
    compiled,
    exp,
    faithful,
    faithful_sums,
    maximum,
    minimum,
    views,
)

BLOCK = 16
"""Rows that go through all instructions together; a multiple of ``TILE_ROWS``."""
TILE_ROWS, LANES, VECTORS = 4, 8, 2
PANEL = LANES * VECTORS
"""Columns of a weight that lie together; the width of a matrix product's output is a multiple of it."""

TWO = np.float32(2.0)


class Code(enum.IntEnum):
    """What an instruction does; its fields are code, target, width, a, b, step of b, and one more."""

    GATHER, LOOKUP, STORE, LINEAR = 0, 1, 2, 3
    COPY, FLIP, SPREAD = 4, 5, 6
    RELU, TANH, SIGMOID, SILU, ELU = 10, 11, 12, 13, 14
    ABS, SQRT, RSQRT, SIGN, EXP, NEGATE = 15, 16, 17, 18, 19, 20
    ADD, SUBTRACT, MULTIPLY, DIVIDE, LESS, EQUAL, LARGER, SMALLER, WHERE = range(30, 39)
    LOWEST, HIGHEST, SUM, MEAN, SOFTMAX, STANDARDISE = range(40, 46)


FIELDS = 7
(
    GATHER, LOOKUP, STORE, LINEAR, COPY, FLIP, SPREAD,
    RELU, TANH, SIGMOID, SILU, ELU, ABS, SQRT, RSQRT, SIGN, EXP, NEGATE,
    ADD, SUBTRACT, MULTIPLY, DIVIDE, LESS, EQUAL, LARGER, SMALLER, WHERE,
    LOWEST, HIGHEST, SUM, MEAN, SOFTMAX, STANDARDISE,
) = (int(code) for code in Code)  # fmt: skip


class Network(NamedTuple):
    """The instructions of a network, what they read beside a row, and where a row's results begin."""

    code: np.ndarray
    weights: np.ndarray
    scratch: np.ndarray
    results: int


@compiled
def run(network, index, action, latents, place, out):
    """Evaluates actions ``[R]`` at stored states ``index [R]``: results to ``out [R, C]``.

    Reads ``latents``, arrays ``[*, S]``, and writes the following ones to their rows ``place ...``.
    """
    code, weights, scratch, columns = network
    for begin in range(0, index.shape[0], BLOCK):
        rows = min(index.shape[0] - begin, BLOCK)
        for i in range(code.shape[0]):
            kind = code[i, 0]
            if kind == LINEAR:
                target, width, source, offset = code[i, 1], code[i, 2], code[i, 3], code[i, 4]
                linear(scratch, rows, source, target, width, weights, offset, code[i, 6])
            elif kind < LINEAR:
                move(code[i], weights, scratch, rows, begin, index, action, latents, place)
            else:
                for row in range(rows):
                    calculate(code[i], scratch[row])
        for row in range(rows):
            found = scratch[row, columns : columns + out.shape[1]]
            for j in range(out.shape[1]):
                out[begin + row, j] = found[j]


@views
def results(instruction, row):
    """The columns that an instruction writes."""
    return row[instruction[1] : instruction[1] + instruction[2]]


@views
def first(instruction, row):
    """The columns of the first value that it reads."""
    return row[instruction[3] : instruction[3] + instruction[2]]


@faithful
def move(instruction, weights, scratch, rows, begin, index, action, latents, place):
    """Between the scratch and the memory of a search."""
    kind, width, which = instruction[0], instruction[2], instruction[6]
    for row in range(rows):
        if kind == GATHER:
            source = latents[which][index[begin + row]]
            out = results(instruction, scratch[row])
            for j in range(width):
                out[j] = source[j]
        elif kind == LOOKUP:
            begun = which + action[begin + row] * width
            source = weights[begun : begun + width]
            out = results(instruction, scratch[row])
            for j in range(width):
                out[j] = source[j]
        else:
            out, x = latents[which][place + begin + row], first(instruction, scratch[row])
            for j in range(width):
                out[j] = x[j]


# -- matrix products ---------------------------------------------------------------------------------


@intrinsic
def _tile(context, scratch, row, source, target, weights, offset, depth):
    """Four rows times a panel of a weight, plus its bias; all sums stay in registers."""
    kinds = [scratch, *[types.intp] * 3, weights, types.intp, types.intp]

    def generate(context, builder, signature, arguments):
        numbers, row, source, target, memory, offset, depth = arguments
        numbers = context.make_array(signature.args[0])(context, builder, numbers)
        memory = context.make_array(signature.args[4])(context, builder, memory)
        lanes, integer = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)
        pointer = lanes.as_pointer()
        stride = builder.extract_value(numbers.shape, 1)
        panel = builder.gep(memory.data, [offset])
        starts = [builder.mul(builder.add(row, integer(r)), stride) for r in range(TILE_ROWS)]
        starts = [builder.gep(numbers.data, [place]) for place in starts]
        together = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(lanes, [lanes] * 3), f"llvm.fmuladd.v{LANES}f32"
        )

        def vectors(place):
            places = [builder.gep(place, [integer(LANES * v)]) for v in range(VECTORS)]
            return [builder.bitcast(place, pointer) for place in places]

        def line(k):
            return vectors(builder.gep(panel, [builder.mul(k, integer(PANEL))]))

        sums = [
            [cgutils.alloca_once(builder, lanes) for _ in range(VECTORS)] for _ in range(TILE_ROWS)
        ]
        for v, place in enumerate(line(depth)):  # the bias follows the weight
            bias = builder.load(place, align=4)
            for r in range(TILE_ROWS):
                builder.store(bias, sums[r][v])
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        nothing = ir.Constant(lanes, ir.Undefined)
        with cgutils.for_range(builder, depth) as loop:
            weight = [builder.load(place, align=4) for place in line(loop.index)]
            for r in range(TILE_ROWS):
                number = builder.load(builder.gep(starts[r], [builder.add(source, loop.index)]))
                number = builder.insert_element(nothing, number, ir.IntType(32)(0))
                number = builder.shuffle_vector(number, nothing, everywhere)
                for v in range(VECTORS):
                    product = builder.call(together, [number, weight[v], builder.load(sums[r][v])])
                    builder.store(product, sums[r][v])
        for r in range(TILE_ROWS):
            for v, place in enumerate(vectors(builder.gep(starts[r], [target]))):
                builder.store(builder.load(sums[r][v]), place, align=4)
        return context.get_dummy_value()

    return types.void(*kinds), generate


@faithful
def linear(scratch, rows, source, target, width, weights, offset, depth):
    """Columns ``source ...`` times a weight ``[depth, width]`` in panels, plus its bias."""
    for column in range(0, width, PANEL):
        for row in range(0, rows, TILE_ROWS):
            _tile(scratch, row, source, target + column, weights, offset, depth)
        offset += PANEL * (depth + 1)


@compiled
def unpack(layout, flat, weights, scratch):
    """Brings parameters, one after another in ``flat``, to where the instructions read them.

    ``layout [n, 5]`` holds for each the kind, its first number, where it goes, and its shape.
    """
    for i in range(layout.shape[0]):
        kind, first, target, rows, columns = layout[i]
        if kind == MATRIX:  # [rows, columns] is transposed into panels
            for begin in range(0, rows, PANEL):
                lanes = min(rows - begin, PANEL)
                source, place = first + begin * columns, target + begin * (columns + 1)
                for column in range(columns):
                    out = weights[place + column * PANEL : place + column * PANEL + lanes]
                    for lane in range(lanes):
                        out[lane] = flat[source + lane * columns + column]
        elif kind == BIAS:  # [rows] follows the panels of a matrix with so many columns
            for row in range(rows):
                place = target + (row // PANEL + 1) * PANEL * (columns + 1) - PANEL + row % PANEL
                weights[place] = flat[first + row]
        elif kind == TABLE:
            for j in range(rows * columns):
                weights[target + j] = flat[first + j]
        else:
            for row in range(scratch.shape[0]):
                for j in range(columns):
                    scratch[row, target + j] = flat[first + j]


MATRIX, BIAS, TABLE, CONSTANT = range(4)


# -- the rest: one row -------------------------------------------------------------------------------


@faithful
def calculate(instruction, row):
    """Everything else, on the columns of one row; a NaN comes out as a NaN."""
    kind = instruction[0]
    if kind < RELU:
        arrange(instruction, row)
    elif kind < ADD:
        apply(instruction, row)
    elif kind < LOWEST:
        combine(instruction, row)
    else:
        reduce(instruction, row)


@faithful
def arrange(instruction, row):
    """Copies of columns."""
    kind, out, x = instruction[0], results(instruction, row), first(instruction, row)
    if kind == COPY:
        for j in range(out.shape[0]):
            out[j] = x[j]
    elif kind == FLIP:
        last = out.shape[0] - 1
        for j in range(out.shape[0]):
            out[j] = x[last - j]
    else:
        for j in range(out.shape[0]):
            out[j] = x[0]


@faithful
def apply(instruction, row):
    """Functions of one number."""
    kind, out, x = instruction[0], results(instruction, row), first(instruction, row)
    if kind == RELU:
        for j in range(out.shape[0]):
            out[j] = ZERO if x[j] < ZERO else x[j]
    elif kind == TANH:
        for j in range(out.shape[0]):
            small = exp(-TWO * abs(x[j]))
            size = (ONE - small) / (ONE + small)
            out[j] = -size if x[j] < ZERO else size
    elif kind == SIGMOID:
        for j in range(out.shape[0]):
            small = exp(-abs(x[j]))
            out[j] = (small if x[j] < ZERO else ONE) / (ONE + small)
    elif kind == SILU:
        for j in range(out.shape[0]):
            small = exp(-abs(x[j]))
            out[j] = x[j] * (small if x[j] < ZERO else ONE) / (ONE + small)
    elif kind == ELU:
        for j in range(out.shape[0]):
            below = exp(-abs(x[j])) - ONE
            out[j] = below if x[j] < ZERO else x[j]
    elif kind == EXP:
        for j in range(out.shape[0]):
            out[j] = np.exp(x[j])
    elif kind == ABS:
        for j in range(out.shape[0]):
            out[j] = abs(x[j])
    elif kind == SQRT:
        for j in range(out.shape[0]):
            out[j] = np.sqrt(x[j])
    elif kind == RSQRT:
        for j in range(out.shape[0]):
            out[j] = ONE / np.sqrt(x[j])
    elif kind == NEGATE:
        for j in range(out.shape[0]):
            out[j] = -x[j]
    elif kind == SIGN:
        for j in range(out.shape[0]):
            size = ONE if x[j] > ZERO else x[j]
            out[j] = -ONE if x[j] < ZERO else size


@faithful
def combine(instruction, row):
    """Functions of two numbers, the second of which may be the same for all columns, and a choice."""
    kind, out, x = instruction[0], results(instruction, row), first(instruction, row)
    width = out.shape[0]
    y = row[instruction[4] : instruction[4] + (width if instruction[5] else 1)]
    if kind == WHERE:
        other = row[instruction[6] : instruction[6] + width]
        for j in range(width):
            out[j] = y[j] if x[j] != ZERO else other[j]
    elif instruction[5]:
        combine_each(kind, out, x, y)
    else:
        combine_one(kind, out, x, y[0])


@faithful
def combine_each(kind, out, x, y):
    """Functions of two numbers; comparisons give 1 or 0."""
    if kind == ADD:
        for j in range(out.shape[0]):
            out[j] = x[j] + y[j]
    elif kind == SUBTRACT:
        for j in range(out.shape[0]):
            out[j] = x[j] - y[j]
    elif kind == MULTIPLY:
        for j in range(out.shape[0]):
            out[j] = x[j] * y[j]
    elif kind == DIVIDE:
        for j in range(out.shape[0]):
            out[j] = x[j] / y[j]
    else:
        for j in range(out.shape[0]):
            out[j] = compare(kind, x[j], y[j])


@faithful
def combine_one(kind, out, x, y):
    """Functions of numbers and one number."""
    if kind == ADD:
        for j in range(out.shape[0]):
            out[j] = x[j] + y
    elif kind == SUBTRACT:
        for j in range(out.shape[0]):
            out[j] = x[j] - y
    elif kind == MULTIPLY:
        for j in range(out.shape[0]):
            out[j] = x[j] * y
    elif kind == DIVIDE:
        for j in range(out.shape[0]):
            out[j] = x[j] / y
    else:
        for j in range(out.shape[0]):
            out[j] = compare(kind, x[j], y)


@faithful
def compare(kind, x, y):
    """The rarer functions of two numbers."""
    if kind == LESS:
        return ONE if x < y else ZERO
    if kind == EQUAL:
        return ONE if x == y else ZERO
    if kind == LARGER:
        return y if x < y else x
    return y if x > y else x


@faithful_sums
def reduce(instruction, row):
    """Functions of all columns; sums are taken in double precision."""
    kind, x, width = instruction[0], first(instruction, row), instruction[2]
    out = row[instruction[1] : instruction[1] + (width if kind >= SOFTMAX else 1)]
    if kind == LOWEST:
        low = x[0]
        for j in range(width):
            low = minimum(low, x[j])
        out[0] = low
    elif kind == HIGHEST:
        high = x[0]
        for j in range(width):
            high = maximum(high, x[j])
        out[0] = high
    elif kind == SOFTMAX:
        softmax_into(out, x)
    else:
        total = 0.0
        for j in range(width):
            total += np.float64(x[j])
        if kind == SUM:
            out[0] = np.float32(total)
        elif kind == MEAN:
            out[0] = np.float32(total / width)
        else:
            standardise(out, x, np.float32(total / width), row[instruction[6]])


@faithful_sums
def softmax_into(out, x):
    """Probabilities of logits."""
    high, total = x[0], 0.0
    for j in range(x.shape[0]):
        high = maximum(high, x[j])
    for j in range(out.shape[0]):
        out[j] = exp(x[j] - high)
    for j in range(out.shape[0]):
        total += np.float64(out[j])
    share = np.float32(1.0 / total)
    for j in range(out.shape[0]):
        out[j] = out[j] * share


@faithful_sums
def standardise(out, x, mean, epsilon):
    """Subtracts the mean and divides by the standard deviation."""
    total = 0.0
    for j in range(x.shape[0]):
        total += np.float64(x[j] - mean) ** 2
    scale = np.float32(1.0 / np.sqrt(total / x.shape[0] + epsilon))
    for j in range(out.shape[0]):
        out[j] = (x[j] - mean) * scale
