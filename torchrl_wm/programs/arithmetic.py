"""Shared by the compiled loops: compiler options, and arithmetic that rounds as the reference does."""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from torchrl_wm.programs.exponential import (
    COEFFICIENTS,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    LOWEST,
    SHIFTER,
)
from torchrl_wm.programs.machine_code import kept_on_disk

# Nothing is allocated inside, so arrays need no reference counts (atomic, costlier than the arithmetic).
# Nor is the interpreter's lock needed: rows are shared out to threads.
_OPTIONS = {"error_model": "numpy", "_nrt": False, "nogil": True}
# Ignoring NaN and signed zeros lets loops over actions use vector instructions; results are the same.
_NUMBERS = {"nnan", "nsz"}
inlined = numba.njit(fastmath=_NUMBERS, forceinline=True, **_OPTIONS)
views = numba.njit(inline="always", **_OPTIONS)
# For sums in double precision, whose order does not affect the result. Inlined, as a call would pass every
# size and stride of a tree.
reordered = numba.njit(fastmath={*_NUMBERS, "reassoc"}, forceinline=True, **_OPTIONS)
# Where NaN has to propagate.
faithful = numba.njit(fastmath={"nsz"}, **_OPTIONS)
# Fused multiply-add: for models, which match torch only to a tolerance.
faithful_inlined = numba.njit(fastmath={"nsz", "contract"}, forceinline=True, **_OPTIONS)
fused = numba.njit(fastmath={*_NUMBERS, "contract"}, forceinline=True, **_OPTIONS)
faithful_sums = numba.njit(fastmath={"nsz", "reassoc"}, **_OPTIONS)


def compiled(function):
    """Compiles at the first call, and keeps the machine code."""
    return kept_on_disk(numba.njit(fastmath=_NUMBERS, **_OPTIONS)(function))


def faithful_around(inner):
    """:data:`faithful`, for a function that is made around several others in turn.

    It gets a name of its own: machine code on disk is linked by name, and of functions with the same name
    one would be executed in place of the others.
    """

    def compile_named(function):
        function.__qualname__ += f".{inner.__name__}"
        return faithful(function)

    return compile_named


ZERO, ONE, HALF, TINY = (np.float32(x) for x in (0.0, 1.0, 0.5, np.finfo(np.float32).tiny))
TWO = np.float32(2.0)
# Of the inverse hyperbolic tangent's series, from which logarithms are computed.
L1, L2, L3, L4, L5, L6 = (np.float32(1 / n) for n in (3, 5, 7, 9, 11, 13))
MINUS_INFINITY, LOWEST_ARGUMENT = np.float32(-np.inf), np.float32(LOWEST)
LOWEST_LOGIT = np.float32(np.finfo(np.float32).min)
C0, C1, C2, C3, C4, C5 = COEFFICIENTS
EXPONENT_BIAS, EXPONENT_SHIFT = np.int32(127), np.int32(23)


def _extreme(name: str):
    """The smaller or larger of two numbers, in the only form whose loops are vectorised."""

    @intrinsic
    def extreme(context, first, second):
        def generate(context, builder, signature, arguments):
            kind = context.get_value_type(signature.return_type)
            both = ir.FunctionType(kind, [kind, kind])
            return builder.call(builder.module.declare_intrinsic(name, [kind], both), arguments)

        return first(first, first), generate

    return extreme


minimum, maximum = _extreme("llvm.minnum"), _extreme("llvm.maxnum")


def _exp(x):
    """The polynomial of :mod:`~torchrl_wm.programs.exponential`, for ``x <= 0`` or NaN."""
    x = LOWEST_ARGUMENT if x < LOWEST_ARGUMENT else x
    shifted = x * LOG2_E + SHIFTER
    n = shifted - SHIFTER
    r = x - n * LN2_HIGH
    r = r - n * LN2_LOW
    square = r * r
    series = (C0 * r + C1) * square + (C2 * r + C3)
    series = series * square + (C4 * r + C5)
    series = series * square + (r + ONE)
    exponent = np.float32(shifted).view(np.int32) + EXPONENT_BIAS
    power = np.int32(exponent << EXPONENT_SHIFT).view(np.float32)  # the shifter's bits are gone
    return series * power


# The second in fewer operations, which round differently: for models.
exp, fused_exp = inlined(_exp), fused(_exp)


@reordered
def total_of(scores):
    """Their sum in double precision."""
    total = 0.0
    for a in range(scores.shape[0]):
        total += np.float64(scores[a])
    return total


@inlined
def softmax(scores):
    """Replaces logits by their probabilities, exactly 0 for a logit of minus infinity."""
    highest = LOWEST_LOGIT
    for a in range(scores.shape[0]):
        highest = maximum(highest, scores[a])
    for a in range(scores.shape[0]):
        weight = exp(scores[a] - highest)
        scores[a] = weight if scores[a] > MINUS_INFINITY else ZERO
    normaliser = max(np.float32(total_of(scores)), TINY)
    for a in range(scores.shape[0]):
        scores[a] = scores[a] / normaliser
