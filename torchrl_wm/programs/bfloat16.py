"""Matrix products of numbers rounded to bfloat16, for processors that multiply and add pairs of them.

Neighbours in a row, and in a column of the weight, form the pairs. Sums are kept in single precision.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from llvmlite.binding import llvm_version_info
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from torchrl_wm.programs.arithmetic import (
    MINUS_INFINITY,
    ZERO,
    compiled,
    faithful,
    faithful_inlined,
)
from torchrl_wm.programs.products import PANEL, TILE_ROWS, tile_of

_TYPED = (16,)  # the first version of LLVM whose instructions take this type of numbers
_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
SUPPORTED = "+avx512bf16" in _FEATURES and llvm_version_info >= _TYPED
"""Whether the compiled loops run on such a processor."""

HALF, LAST, UPPER, SHIFT = (np.uint32(x) for x in (0x7FFF, 1, 0xFFFF0000, 16))
SIZE, INFINITE, QUIET = (np.uint32(x) for x in (0x7FFFFFFF, 0x7F800000, 0x400000))


class _BFloat(ir.Type):
    """The number type, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def _call(builder, name: str, kind: ir.Type, *arguments):
    """An instruction of the processor."""
    function = ir.FunctionType(kind, [argument.type for argument in arguments])
    name = f"llvm.x86.avx512bf16.{name}.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


_PAIRS = ir.VectorType(_BFloat(), 2 * PANEL)


@intrinsic
def _round_row(context, scratch, row, source, target, chunks):
    """Chunks of numbers in a row, rounded, as half as many pairs."""

    def generate(context, builder, signature, arguments):
        numbers, row, source, target, chunks = arguments
        numbers = context.make_array(signature.args[0])(context, builder, numbers)
        lanes, integer = ir.VectorType(ir.FloatType(), PANEL), ir.IntType(64)
        start = builder.mul(row, builder.extract_value(numbers.shape, 1))

        def vector(first, k):
            place = builder.add(builder.add(start, first), builder.mul(k, integer(PANEL)))
            return builder.bitcast(builder.gep(numbers.data, [place]), lanes.as_pointer())

        with cgutils.for_range(builder, chunks) as loop:
            k = builder.mul(loop.index, integer(2))
            low = builder.load(vector(source, k), align=4)
            high = builder.load(vector(source, builder.add(k, integer(1))), align=4)
            pairs = _call(builder, "cvtne2ps2bf16", _PAIRS, high, low)
            builder.store(builder.bitcast(pairs, lanes), vector(target, loop.index), align=4)
        return context.get_dummy_value()

    return types.void(scratch, *[types.intp] * 4), generate


@faithful
def _round_pairs(instruction, scratch, rows, weights):
    """Twice ``width`` columns as ``width`` pairs; reads and writes whole chunks of them."""
    target, width, source = instruction[1], instruction[2], instruction[3]
    for row in range(rows):
        _round_row(scratch, row, source, target, (width + PANEL - 1) // PANEL)


def _multiply_add(builder, number, weight, total):
    number, weight = (builder.bitcast(value, _PAIRS) for value in (number, weight))
    return _call(builder, "dpbf16ps", total.type, total, number, weight)


_one_panel, _two_panels = (tile_of(panels, PANEL, _multiply_add) for panels in (1, 2))


@faithful
def _linear_of_pairs(instruction, scratch, rows, weights):
    """Pairs of columns times a weight ``[2 depth, width]`` in panels, plus its bias."""
    target, width, source, offset = instruction[1], instruction[2], instruction[3], instruction[4]
    floor, depth = ZERO if instruction[5] else MINUS_INFINITY, instruction[6]
    column = 0
    while column < width:
        two = column + PANEL < width
        for row in range(0, rows, TILE_ROWS):
            if two:
                _two_panels(scratch, row, source, target + column, weights, offset, depth, floor)
            else:
                _one_panel(scratch, row, source, target + column, weights, offset, depth, floor)
        done = 2 if two else 1
        column += done * PANEL
        offset += done * PANEL * (depth + 1)


@faithful
def _unsupported(instruction, scratch, rows, weights):
    """On other processors: they cannot compile these instructions, and no program contains them."""


round_pairs = _round_pairs if SUPPORTED else _unsupported
linear_of_pairs = _linear_of_pairs if SUPPORTED else _unsupported


@faithful_inlined
def _rounded(number):
    """Bits whose upper half is that of a number rounded to the nearest, to the even one of two; NaN stays."""
    up = number + HALF + ((number >> SHIFT) & LAST)
    return number | QUIET if (number & SIZE) > INFINITE else up


@faithful
def round_into(out, numbers):
    """Bits ``uint16`` of rounded numbers."""
    for j in range(out.shape[0]):
        out[j] = np.uint16(_rounded(np.float32(numbers[j]).view(np.uint32)) >> SHIFT)


@compiled
def pack(layout, weights):
    """Weights and biases in panels, as bits ``uint32``, to panels of pairs.

    ``layout [n, 4]`` holds for each where it is, where it goes, its panels and their lines of pairs.
    """
    for i in range(layout.shape[0]):
        source, target, panels, depth = layout[i]
        for _ in range(panels):
            for _ in range(depth):
                for lane in range(PANEL):
                    low, high = weights[source + lane], weights[source + PANEL + lane]
                    low, high = _rounded(low) >> SHIFT, _rounded(high) & UPPER
                    weights[target + lane] = np.uint32(low | high)
                source, target = source + 2 * PANEL, target + PANEL
            for lane in range(PANEL):
                weights[target + lane] = weights[source + lane]
            source, target = source + PANEL, target + PANEL
