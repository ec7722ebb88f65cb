"""The compiled loop that executes a model's operations on rows of numbers, instruction by instruction.

A row of ``scratch`` holds every value of one evaluation side by side; an instruction reads some columns
and writes others. A few rows go through all instructions before the next few do, so that they stay in
the cache. See :mod:`~torchrl_wm.programs.program` for where instructions come from.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import numpy as np

from torchrl_wm.programs.arithmetic import (
    HALF,
    L1,
    L2,
    L3,
    L4,
    L5,
    L6,
    ONE,
    TWO,
    ZERO,
    compiled,
    faithful,
    faithful_around,
    faithful_inlined,
    faithful_sums,
    fused_exp,
    maximum,
    minimum,
)
from torchrl_wm.programs.bfloat16 import (
    linear_of_pairs,
    round_into,
    round_pairs,
)
from torchrl_wm.programs.columns import columns, fields, first, results, second
from torchrl_wm.programs.products import TILE_ROWS, add_outer, linear

BLOCK = 32
"""Rows that go through all instructions together; a multiple of those of a product's tile."""

NAN = np.float32(np.nan)


class Code(enum.IntEnum):
    """Instruction codes; the fields of one are code, target, width, a, b, step of b, and one more.

    A product has no step of b: its field tells whether a ReLU follows, and one more is its depth. Pairs of
    rounded numbers count as one column. A normalisation has its scale in b, and the column of what it adds in
    one more; of neighbours in groups, one more is their number. Sums over rows have their place in those in
    the field of the target, and as one more the number of columns in b.
    """

    GATHER, LOOKUP, STORE, LINEAR, LINEAR_OF_PAIRS, ROUND_PAIRS, ADD_OUTER = range(7)
    COPY, FLIP, SPREAD = 7, 8, 9
    RELU, TANH, SIGMOID, SILU, ELU = 10, 11, 12, 13, 14
    ABS, SQRT, RSQRT, SIGN, EXP, NEGATE, SOFTPLUS, LOG = 15, 16, 17, 18, 19, 20, 21, 22
    ADD, SUBTRACT, MULTIPLY, DIVIDE, LESS, EQUAL, LARGER, SMALLER, WHERE, LERP = range(30, 40)
    SILU_BACKWARD, SIGMOID_BACKWARD = 40, 41
    LOWEST, HIGHEST, SUM, MEAN, SOFTMAX, ONE_HOT, STANDARDISE, RMS_NORM = range(42, 50)
    SOFTMAX_BACKWARD = 50


FIELDS = 7
(
    GATHER, LOOKUP, STORE, LINEAR, LINEAR_OF_PAIRS, ROUND_PAIRS, ADD_OUTER, COPY, FLIP, SPREAD,
    RELU, TANH, SIGMOID, SILU, ELU, ABS, SQRT, RSQRT, SIGN, EXP, NEGATE, SOFTPLUS, LOG,
    ADD, SUBTRACT, MULTIPLY, DIVIDE, LESS, EQUAL, LARGER, SMALLER, WHERE, LERP,
    SILU_BACKWARD, SIGMOID_BACKWARD,
    LOWEST, HIGHEST, SUM, MEAN, SOFTMAX, ONE_HOT, STANDARDISE, RMS_NORM,
    SOFTMAX_BACKWARD,
) = (int(code) for code in Code)  # fmt: skip


class Network(NamedTuple):
    """The instructions of a network, the other arrays they use, and where a row's results begin.

    ``sums`` are taken over rows, and stay until they are set to 0.
    """

    code: np.ndarray
    weights: np.ndarray
    scratch: np.ndarray
    results: int
    sums: np.ndarray

    def copy(self, rows: int = BLOCK) -> Network:
        """The same network with a scratch of its own, for a thread of its own with so many rows."""
        whole = -(-rows // TILE_ROWS) * TILE_ROWS  # tiles of products
        return self._replace(scratch=self.scratch[:whole].copy(), sums=np.zeros_like(self.sums))


@compiled
def run(network, index, action, latents, place, out):
    """Evaluates actions ``[R]`` at stored states ``index [R]``: results to ``out [R, C]``.

    Reads ``latents``, arrays ``[*, S]``, and writes the following ones to their rows ``place ...``.
    """
    code, weights, scratch, result, sums = network
    for begin in range(0, index.shape[0], BLOCK):
        rows = min(index.shape[0] - begin, BLOCK)
        for i in range(code.shape[0]):
            instruction = fields(code[i])
            kind = instruction[0]
            if kind == LINEAR:
                linear(instruction, scratch, rows, weights)
            elif kind < LINEAR:
                move(instruction, weights, scratch, rows, begin, index, action, latents, place)
            elif kind == LINEAR_OF_PAIRS:
                linear_of_pairs(instruction, scratch, rows, weights)
            elif kind == ROUND_PAIRS:
                round_pairs(instruction, scratch, rows, weights)
            elif kind == ADD_OUTER:
                add_outer(instruction, scratch, rows, sums)
            else:
                calculate(instruction, scratch, rows)
        for row in range(rows):
            found = columns(scratch, row, result, out.shape[1])
            for j in range(out.shape[1]):
                out[begin + row, j] = found[j]


@compiled
def follow(network, rows, actions, noise, latents, out):
    """Consecutive ``rows`` of ``latents``, step by step: each state overwrites the one before.

    Reads ``actions [H, N, A]`` and ``noise [H, N, S]``, writes to ``out [H, R, C]``. A few rows take all
    steps before the next few do.
    """
    for begin in range(0, rows.shape[0], BLOCK):
        few, end = rows[begin : begin + BLOCK], min(begin + BLOCK, rows.shape[0])
        for step in range(out.shape[0]):
            inputs = actions[step], noise[step], *latents
            run(network, few, few, inputs, few[0], out[step, begin:end])


@compiled
def unroll(network, index, begin, end, state, draws, noise, whole, rounded, out):
    """Consecutive rows ``begin ... end - 1`` of ``state [N, S]``: each step overwrites them.

    Reads ``draws [H, N, A]`` and ``noise [H, N, Z]``, writes to ``out [H, N, C]``. The states go to
    ``whole [H, N, S]``, or, if this is empty, to ``rounded``, as bits of bfloat16.
    """
    for first_row in range(begin, end, BLOCK):
        rows = index[first_row : min(first_row + BLOCK, end)]
        for step in range(out.shape[0]):
            inputs = state, draws[step], noise[step]
            run(network, rows, rows, inputs, first_row, out[step, rows[0] : rows[-1] + 1])
            for row in rows:
                if whole.shape[0]:
                    copy_into(whole[step, row], state[row])
                else:
                    round_into(rounded[step, row], state[row])


@faithful
def copy_into(out, numbers):
    """Copies numbers, in a loop: an assignment would ask whether they overlap."""
    for j in range(out.shape[0]):
        out[j] = numbers[j]


@faithful
def move(instruction, weights, scratch, rows, begin, index, action, latents, place):
    """Moves values between the scratch and the memory of a search."""
    kind, width, which = instruction[0], instruction[2], instruction[6]
    for row in range(rows):
        if kind == GATHER:
            source = latents[which][index[begin + row]]
            out = results(instruction, scratch, row)
            for j in range(width):
                out[j] = source[j]
        elif kind == LOOKUP:
            begun = which + action[begin + row] * width
            source = weights[begun : begun + width]
            out = results(instruction, scratch, row)
            for j in range(width):
                out[j] = source[j]
        else:
            out, x = latents[which][place + begin + row], first(instruction, scratch, row)
            for j in range(width):
                out[j] = x[j]


# -- the rest: all rows of a block in one instruction ------------------------------------------------


@faithful
def calculate(instruction, scratch, rows):
    """Everything else; NaN propagates."""
    kind = instruction[0]
    if kind < RELU:
        arrange(instruction, scratch, rows)
    elif kind < ADD:
        apply(instruction, scratch, rows)
    elif kind < LOWEST:
        combine(instruction, scratch, rows)
    else:
        for row in range(rows):
            reduce(instruction, scratch, row)


@faithful
def arrange(instruction, scratch, rows):
    """Copies of columns."""
    kind = instruction[0]
    for row in range(rows):
        out, x = results(instruction, scratch, row), first(instruction, scratch, row)
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


def _of_one(function):
    """An instruction that applies ``function`` to every number."""

    @faithful_around(function)
    def carry_out(instruction, scratch, rows):
        for row in range(rows):
            out, x = results(instruction, scratch, row), first(instruction, scratch, row)
            for j in range(out.shape[0]):
                out[j] = function(x[j])

    return carry_out


@_of_one
@faithful_inlined
def relu(x):
    """``max(x, 0)``."""
    return ZERO if x < ZERO else x


@_of_one
@faithful_inlined
def tanh(x):
    """By an exponential that cannot overflow."""
    small = fused_exp(-TWO * abs(x))
    size = (ONE - small) / (ONE + small)
    return -size if x < ZERO else size


@_of_one
@faithful_inlined
def sigmoid(x):
    """By an exponential that cannot overflow."""
    small = fused_exp(-abs(x))
    return (small if x < ZERO else ONE) / (ONE + small)


@_of_one
@faithful_inlined
def silu(x):
    """``x sigmoid(x)``."""
    small = fused_exp(-abs(x))
    return x * (small if x < ZERO else ONE) / (ONE + small)


@_of_one
@faithful_inlined
def elu(x):
    """``x``, or ``exp(x) - 1`` below 0."""
    below = fused_exp(-abs(x)) - ONE
    return below if x < ZERO else x


@_of_one
@faithful_inlined
def exponential(x):
    """``exp(x)``, by a square root that cannot overflow."""
    root = fused_exp(-HALF * abs(x))
    root = root if x < ZERO else ONE / root
    return root * root


@_of_one
@faithful_inlined
def softplus(x):
    """``log(1 + exp(x))``, by an exponential that cannot overflow."""
    small = fused_exp(-abs(x))
    # The logarithm of 1 + small, by the series of the inverse hyperbolic tangent of z, at most 1/3.
    z = small / (TWO + small)
    square = z * z
    series = L5 + square * L6
    series = L3 + square * (L4 + square * series)
    series = ONE + square * (L1 + square * (L2 + square * series))
    return (x if x > ZERO else ZERO) + TWO * z * series


@faithful
def rare(instruction, scratch, rows):
    """Functions of one number that few networks use: a single loop compiles faster."""
    kind = instruction[0]
    for row in range(rows):
        out, x = results(instruction, scratch, row), first(instruction, scratch, row)
        for j in range(out.shape[0]):
            if kind == ABS:
                out[j] = abs(x[j])
            elif kind == SQRT:
                out[j] = np.sqrt(x[j])
            elif kind == RSQRT:
                out[j] = ONE / np.sqrt(x[j])
            elif kind == NEGATE:
                out[j] = -x[j]
            elif kind == LOG:
                out[j] = np.log(x[j])
            else:
                size = ONE if x[j] > ZERO else x[j]
                out[j] = -ONE if x[j] < ZERO else size


@faithful
def apply(instruction, scratch, rows):
    """Functions of one number."""
    kind = instruction[0]
    if kind == RELU:
        relu(instruction, scratch, rows)
    elif kind == TANH:
        tanh(instruction, scratch, rows)
    elif kind == SIGMOID:
        sigmoid(instruction, scratch, rows)
    elif kind == SILU:
        silu(instruction, scratch, rows)
    elif kind == ELU:
        elu(instruction, scratch, rows)
    elif kind == SOFTPLUS:
        softplus(instruction, scratch, rows)
    elif kind == EXP:
        exponential(instruction, scratch, rows)
    else:
        rare(instruction, scratch, rows)


def _of_two(function):
    """An instruction that applies ``function`` to pairs of numbers, or to numbers and one scalar per row."""

    @faithful_around(function)
    def carry_out(instruction, scratch, rows):
        for row in range(rows):
            out, x = results(instruction, scratch, row), first(instruction, scratch, row)
            if instruction[5]:
                y = second(instruction, scratch, row)
                for j in range(out.shape[0]):
                    out[j] = function(x[j], y[j])
            else:
                same = scratch[row, instruction[4]]
                for j in range(out.shape[0]):
                    out[j] = function(x[j], same)

    return carry_out


@_of_two
@faithful_inlined
def add(x, y):
    """``x + y``."""
    return x + y


@_of_two
@faithful_inlined
def subtract(x, y):
    """``x - y``."""
    return x - y


@_of_two
@faithful_inlined
def multiply(x, y):
    """``x y``."""
    return x * y


@_of_two
@faithful_inlined
def divide(x, y):
    """``x / y``."""
    return x / y


@_of_two
@faithful_inlined
def silu_backward(gradient, x):
    """The gradient of ``x`` from that of ``silu(x)``."""
    small = fused_exp(-abs(x))
    share = (small if x < ZERO else ONE) / (ONE + small)
    return gradient * share * (ONE + x * (ONE - share))


@_of_two
@faithful_inlined
def sigmoid_backward(gradient, y):
    """The gradient of ``x`` from that of ``y = sigmoid(x)``."""
    return gradient * y * (ONE - y)


@faithful
def compare(instruction, scratch, rows):
    """The rarer functions of two numbers."""
    kind, step = instruction[0], 1 if instruction[5] else 0
    for row in range(rows):
        out, x = results(instruction, scratch, row), first(instruction, scratch, row)
        for j in range(out.shape[0]):
            y = scratch[row, instruction[4] + step * j]
            if kind == LESS:
                out[j] = ONE if x[j] < y else ZERO
            elif kind == EQUAL:
                out[j] = ONE if x[j] == y else ZERO
            elif kind == LARGER:
                out[j] = x[j] if x[j] > y or x[j] != x[j] else y
            else:
                out[j] = x[j] if x[j] < y or x[j] != x[j] else y


@faithful
def combine(instruction, scratch, rows):
    """Functions of two numbers (comparisons give 1 or 0), and of three."""
    kind = instruction[0]
    if kind == ADD:
        add(instruction, scratch, rows)
    elif kind == SUBTRACT:
        subtract(instruction, scratch, rows)
    elif kind == MULTIPLY:
        multiply(instruction, scratch, rows)
    elif kind == DIVIDE:
        divide(instruction, scratch, rows)
    elif kind < WHERE:
        compare(instruction, scratch, rows)
    elif kind == WHERE:
        choose(instruction, scratch, rows)
    elif kind == LERP:
        interpolate(instruction, scratch, rows)
    elif kind == SILU_BACKWARD:
        silu_backward(instruction, scratch, rows)
    else:
        sigmoid_backward(instruction, scratch, rows)


def _of_three(function):
    """An instruction that applies ``function`` to three numbers at a time."""

    @faithful_around(function)
    def carry_out(instruction, scratch, rows):
        for row in range(rows):
            out, x = results(instruction, scratch, row), first(instruction, scratch, row)
            y = second(instruction, scratch, row)
            z = columns(scratch, row, instruction[6], instruction[2])
            for j in range(out.shape[0]):
                out[j] = function(x[j], y[j], z[j])

    return carry_out


@_of_three
@faithful_inlined
def choose(x, y, z):
    """``y`` where ``x`` is not 0, ``z`` elsewhere."""
    return y if x != ZERO else z


@_of_three
@faithful_inlined
def interpolate(x, y, z):
    """From ``x`` towards ``y``, by the share ``z``."""
    return x + z * (y - x)


@faithful_sums
def reduce(instruction, scratch, row):
    """Functions of all columns; sums are taken in double precision."""
    kind, x, width = instruction[0], first(instruction, scratch, row), instruction[2]
    out = columns(scratch, row, instruction[1], width if kind >= SOFTMAX else 1)
    if kind == LOWEST:
        low = x[0]
        for j in range(width):
            low = minimum(low, x[j])
        out[0] = low if missing(x) == ZERO else NAN
    elif kind == HIGHEST:
        out[0] = highest(x) if missing(x) == ZERO else NAN
    elif kind == SOFTMAX:
        if instruction[6] == 4:
            softmax_of_fours(out, x)
        else:
            softmax_of_groups(out, x, instruction[6])
    elif kind == ONE_HOT:
        if instruction[6] == 4:
            one_hot_of_fours(out, x)
        else:
            one_hot_of_groups(out, x, instruction[6])
    elif kind == RMS_NORM:
        scale = second(instruction, scratch, row)
        rms_norm(out, x, scale, scratch[row, instruction[6]])
    elif kind == SOFTMAX_BACKWARD:
        softmax_backward(out, x, second(instruction, scratch, row), instruction[6])
    else:
        total = 0.0
        for j in range(width):
            total += np.float64(x[j])
        if kind == SUM:
            out[0] = np.float32(total)
        elif kind == MEAN:
            out[0] = np.float32(total / width)
        else:
            standardise(out, x, np.float32(total / width), scratch[row, instruction[6]])


@faithful_sums
def highest(x):
    """The largest number, in a loop over several at a time."""
    high, whole = x[0], x.shape[0] // 8 * 8
    if whole:
        a, b, c, d, e, f, g, h = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
        for j in range(8, whole, 8):
            a, b = maximum(a, x[j]), maximum(b, x[j + 1])
            c, d = maximum(c, x[j + 2]), maximum(d, x[j + 3])
            e, f = maximum(e, x[j + 4]), maximum(f, x[j + 5])
            g, h = maximum(g, x[j + 6]), maximum(h, x[j + 7])
        a, b, c, d = maximum(a, e), maximum(b, f), maximum(c, g), maximum(d, h)
        high = maximum(maximum(a, b), maximum(c, d))
    for j in range(whole, x.shape[0]):
        high = maximum(high, x[j])
    return high


@faithful_sums
def missing(x):
    """How many of the numbers are NaN."""
    count = ZERO
    for j in range(x.shape[0]):
        count += ONE if x[j] != x[j] else ZERO
    return count


@faithful_sums
def softmax_into(out, x):
    """Probabilities of logits."""
    high, total = highest(x), 0.0
    for j in range(out.shape[0]):
        out[j] = fused_exp(x[j] - high)
    for j in range(out.shape[0]):
        total += np.float64(out[j])
    share = np.float32(1.0 / total)
    for j in range(out.shape[0]):
        out[j] = out[j] * share


@faithful_sums
def softmax_of_groups(out, x, count):
    """Probabilities of logits, of ``count`` neighbours each."""
    for begin in range(0, x.shape[0], count):
        softmax_into(out[begin : begin + count], x[begin : begin + count])


@faithful_sums
def softmax_of_fours(out, x):
    """The same for 4 neighbours each, whose loops use vector instructions."""
    for i in range(x.shape[0] // 4):
        high = maximum(maximum(x[4 * i], x[4 * i + 1]), maximum(x[4 * i + 2], x[4 * i + 3]))
        out[4 * i], out[4 * i + 1] = x[4 * i] - high, x[4 * i + 1] - high
        out[4 * i + 2], out[4 * i + 3] = x[4 * i + 2] - high, x[4 * i + 3] - high
    for j in range(out.shape[0]):
        out[j] = fused_exp(out[j])
    for i in range(x.shape[0] // 4):
        share = ONE / (out[4 * i] + out[4 * i + 1] + out[4 * i + 2] + out[4 * i + 3])
        for j in range(4):
            out[4 * i + j] = out[4 * i + j] * share


@faithful
def one_hot_of_groups(out, x, count):
    """1 at the first largest of ``count`` neighbours each, 0 elsewhere."""
    for begin in range(0, x.shape[0], count):
        best = begin
        for j in range(begin + 1, begin + count):
            best = j if x[j] > x[best] else best
        for j in range(begin, begin + count):
            out[j] = ONE if j == best else ZERO


@faithful
def one_hot_of_fours(out, x):
    """The same for 4 neighbours each, whose loop uses vector instructions."""
    for i in range(x.shape[0] // 4):
        a, b, c, d = x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]
        high = maximum(maximum(a, b), maximum(c, d))
        is_b = b == high and a != high
        is_c = c == high and a != high and b != high
        is_d = d == high and a != high and b != high and c != high
        out[4 * i] = ZERO if is_b or is_c or is_d else ONE
        out[4 * i + 1] = ONE if is_b else ZERO
        out[4 * i + 2] = ONE if is_c else ZERO
        out[4 * i + 3] = ONE if is_d else ZERO


@faithful_sums
def softmax_backward(out, gradient, y, count):
    """The gradient of logits from that of their probabilities ``y``, of ``count`` neighbours each."""
    for begin in range(0, y.shape[0], count):
        total = ZERO
        for j in range(begin, begin + count):
            total += gradient[j] * y[j]
        for j in range(begin, begin + count):
            out[j] = y[j] * (gradient[j] - total)


@faithful_sums
def rms_norm(out, x, scale, epsilon):
    """Divides by the root of the mean square, and multiplies by a scale."""
    total = 0.0
    for j in range(x.shape[0]):
        total += np.float64(x[j] * x[j])
    factor = ONE / np.sqrt(np.float32(total / x.shape[0]) + epsilon)
    for j in range(out.shape[0]):
        out[j] = x[j] * factor * scale[j]


@faithful_sums
def standardise(out, x, mean, epsilon):
    """Subtracts the mean and divides by the standard deviation."""
    total = 0.0
    for j in range(x.shape[0]):
        total += np.float64(x[j] - mean) ** 2
    scale = np.float32(1.0 / np.sqrt(total / x.shape[0] + epsilon))
    for j in range(out.shape[0]):
        out[j] = (x[j] - mean) * scale
