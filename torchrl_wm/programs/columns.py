"""The columns that an instruction names, and the numbers at an address, as arrays for compiled loops.

Slicing would check bounds, which takes longer than adding some numbers.
"""

from __future__ import annotations

from numba.core import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from torchrl_wm.programs.arithmetic import views


@intrinsic
def columns(context, scratch, row, first, width):
    """Some columns of a row."""
    view = types.Array(types.float32, 1, "C")

    def generate(context, builder, signature, arguments):
        numbers, row, first, width = arguments
        numbers = context.make_array(signature.args[0])(context, builder, numbers)
        place = builder.add(builder.mul(row, builder.extract_value(numbers.shape, 1)), first)
        found = context.make_array(view)(context, builder)
        data = builder.gep(numbers.data, [place])
        populate_array(found, data, (width,), (place.type(4),), 4, meminfo=None)
        return found._getvalue()

    return view(scratch, *[types.intp] * 3), generate


@intrinsic
def numbers_at(context, address, count):
    """So many numbers at an address."""
    view = types.Array(types.float32, 1, "C")

    def generate(context, builder, signature, arguments):
        address, count = arguments
        found = context.make_array(view)(context, builder)
        data = builder.inttoptr(address, found.data.type)
        populate_array(found, data, (count,), (count.type(4),), 4, meminfo=None)
        return found._getvalue()

    return view(types.intp, types.intp), generate


@views
def fields(line):
    """The numbers of an instruction, which as an array would be read again for every row."""
    return line[0], line[1], line[2], line[3], line[4], line[5], line[6]


@views
def results(instruction, scratch, row):
    """The columns that an instruction writes."""
    return columns(scratch, row, instruction[1], instruction[2])


@views
def first(instruction, scratch, row):
    """The columns of the first value that it reads."""
    return columns(scratch, row, instruction[3], instruction[2])


@views
def second(instruction, scratch, row):
    """The columns of the second."""
    return columns(scratch, row, instruction[4], instruction[2])
