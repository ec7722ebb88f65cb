"""A small network as a list of instructions, executed without torch and without a compiler.

For the few rows of a search, the operations of a small network take less time than torch needs between
them. A :class:`Program` observes the operations once, while torch executes them, and records what they do
with the columns of a row.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchrl_wm.programs import instructions, products
from torchrl_wm.programs.bfloat16 import pack
from torchrl_wm.programs.instructions import FIELDS, Code
from torchrl_wm.programs.peephole import moved, simplify
from torchrl_wm.programs.products import PANEL
from torchrl_wm.programs.rounding import in_pairs
from torchrl_wm.programs.threads import in_threads

aten = torch.ops.aten
_LOGGER = logging.getLogger(__name__)
_SHARE = 256  # rows that are worth a thread of their own
_LARGEST = 2**21  # weights: models with more were not measured, and torch's products may be faster


class Untranslatable(Exception):
    """An operation without an instruction; the message names it."""


class Columns(NamedTuple):
    """Where a value ``[R, ...]`` of ``width`` numbers a row lies in the rows of the scratch."""

    first: int
    width: int


class Program:
    """The operations of a function on rows of numbers, recorded while torch executes them.

    The function takes ``index [R]``, ``action [R]``, latents ``[*, S]`` and places ``[R, S]`` for the
    following ones, and returns ``[R, C]``, as
    :meth:`~torchrl_wm.planners.tree_search.evaluation.NodeEvaluator.forward` does: MLPs with the
    usual activations and normalisations, recurrent cells, one-hot samples, and anything made of
    elementwise operations and reductions over the last dimension. Rows must not depend on each other.
    What is computed of parameters alone is computed again whenever they are read.

    Args:
        function (callable): on tensors in single precision on the CPU.
        inputs (tuple of Tensor): to record it with; those that it writes to are overwritten.

    Raises:
        Untranslatable: for an operation that is not supported; the message names it.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]):
        recorder = _Recorder(inputs)
        with torch.no_grad(), recorder:
            out = function(*inputs)
        found = recorder.columns(out)
        self.width, self.parameters = found.width, recorder.parameters
        self.derived = recorder.derived
        code, first = simplify(recorder.code, *found)
        self.layout = np.array(recorder.layout, np.int64).reshape(-1, 5)
        self.layout[self.layout[:, 0] == products.CONSTANT, 2] += recorder.width
        code = moved(code, recorder.width)
        self.network = instructions.Network(
            np.array(code, np.int64).reshape(-1, FIELDS),
            np.zeros(max(recorder.memory, 1), np.float32),
            np.zeros((instructions.BLOCK, recorder.width), np.float32),
            first + recorder.width,
        )
        self.packing = np.zeros((0, 4), np.int64)
        self.refresh()

    def refresh(self) -> None:
        """Reads the parameters again: they may have been trained since."""
        if self.parameters:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                for value, function, arguments, options in self.derived:
                    value.copy_(function(*arguments, **options))
                flat = torch.cat([value.reshape(-1) for value in self.parameters])
            weights = self.network.weights
            products.unpack(self.layout, flat.numpy(), weights, self.network.scratch)
            pack(self.packing, weights.view(np.uint32))

    def rounded(self) -> Program:
        """The same with products of numbers rounded to bfloat16, for a processor that has them."""
        other = copy.copy(self)
        other.network, other.packing = in_pairs(self.network)
        other.refresh()
        return other

    def __call__(
        self, index: Tensor, action: Tensor, latents: Sequence[Tensor], place: int
    ) -> Tensor:
        """What the function returns for ``index [R]`` and ``action [R]``.

        The following latents are written to the rows ``place ...`` of ``latents``.
        """
        out = np.empty((len(index), self.width), np.float32)
        rows, arrays = (index.numpy(), action.numpy()), tuple(x.numpy() for x in latents)

        def evaluate(begin: int, end: int) -> None:
            share, found = (x[begin:end] for x in rows), out[begin:end]
            instructions.run(self.network.copy(), *share, arrays, place + begin, found)

        in_threads(evaluate, len(index), _SHARE)
        return torch.from_numpy(out)


def recorded_program(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], name: str
) -> Program | None:
    """The program of a function, if it gives the same numbers for the inputs that it is recorded with.

    ``None`` where it does not, or cannot be recorded; the log then gives the reason under ``name``.
    """
    try:
        program = Program(function, inputs)
        if (weights := program.network.weights.size) > _LARGEST:
            raise Untranslatable(f"{weights} weights are too many")
        _check(program, function, *inputs)
    except Exception as error:  # a module's own code may do anything; torch then says what is wrong
        _LOGGER.info("%s is traced: %s", name, error)
        return None
    return program


def _check(
    program: Program, function: Callable[..., Tensor], index: Tensor, action: Tensor, *tensors
) -> None:
    """Compares a program with the function that it was recorded from."""
    # Fresh places: those of the recording hold the function's results, stored by the program or not.
    latents = tensors[: len(tensors) // 2]
    places, memory = [x.clone() for x in latents], [torch.cat([x, x]) for x in latents]
    found = [program(index, action, memory, len(index)), *(x[len(index) :] for x in memory)]
    expected = [function(index, action, *latents, *places), *places]
    try:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    except AssertionError as error:
        raise Untranslatable(f"its program gives other numbers: {error}") from None


class _Recorder(TorchDispatchMode):
    """Intercepts every operation before it is executed, and writes instructions that do the same."""

    def __init__(self, inputs: tuple[Tensor, ...]):
        super().__init__()
        self.index, self.action, *tensors = inputs
        half = len(tensors) // 2
        self.latents, self.places = tensors[:half], tensors[half:]
        if any(x.dtype != torch.float32 or x.ndim != 2 or not x.is_contiguous() for x in tensors):
            raise Untranslatable("latents that are not matrices in single precision")
        if not all(x.is_cpu for x in inputs):
            raise Untranslatable("latents on another device than the CPU")
        self.rows = len(self.index)
        self.code: list[tuple[int, ...]] = []
        self.layout: list[tuple[int, ...]] = []
        self.parameters: list[Tensor] = []
        self.derived: list[tuple] = []  # tensors that follow from parameters, and how
        self.largest: dict[int, tuple[Columns, int]] = {}  # what an argmax is of, and its classes
        self.untold: set[int] = set()  # results that no instruction computes
        self.same: set[int] = set()  # parameters and constants, which do not differ from row to row
        # Values [blocks, R, n], whose columns are those of [R, blocks, n].
        self.turned: set[int] = set()
        self.width = self.memory = self.numbers = 0
        self._known: dict[int, Columns] = {}
        self._kept: list[Tensor] = []  # kept alive, so that no two have the same id

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        result = function(*arguments, **options)
        try:
            if not self._is_constant(function, arguments, options, result):
                self._translate(function, arguments, options, result)
        except KeyError:
            raise Untranslatable(str(function)) from None
        except TypeError as error:
            raise Untranslatable(f"{function} with these options ({error})") from None
        return result

    def _translate(self, function, arguments, options, result) -> None:
        values = [x for x in _flat(arguments) if isinstance(x, Tensor) and id(x) in self._known]
        turned = [x for x in values if id(x) in self.turned]
        if turned and (function not in _OF_BLOCKS or len(turned) < len(values)):
            raise Untranslatable(f"{function} with blocks before rows")
        _TRANSLATIONS[function](self, result, *arguments, **options)
        for value in _flat((result,)):  # such as the mean beside a layer norm
            if id(value) not in self._known and id(value) not in self.largest:
                self.untold.add(id(value))
                self._kept.append(value)
        if turned and function is not aten.transpose.int:
            self.turned.add(id(result))

    # -- where values are --------------------------------------------------------------------------

    def columns(self, value: Tensor) -> Columns:
        """Where a value lies; a tensor seen for the first time is a parameter or a constant."""
        found = self._known.get(id(value))
        if id(value) in self.untold:
            raise Untranslatable("a result that no instruction computes")
        if found is None:
            self._same_for_all_rows(value)
            found = self.place(value, value.numel())
            self.same.add(id(value))
            self.load(products.CONSTANT, value, found.first, 1, found.width)
        return found

    def known(self, value: Tensor) -> Columns:
        """Where a value lies that differs from row to row."""
        if id(value) not in self._known:
            raise Untranslatable("an operation on parameters alone")
        return self._known[id(value)]

    def changed(self, value: Tensor) -> Columns:
        """Where a value lies that an operation changes in place."""
        found = self.known(value)
        for kind, _, first, _, width in self.layout:
            if kind == products.CONSTANT and first <= found.first < first + width:
                raise Untranslatable("a constant that is changed in place")  # all rows share it
        return found

    def width_of(self, value: Tensor) -> int:
        """Numbers in a row of a value ``[R, ...]``."""
        return value.numel() // self.rows

    def number(self, value: float) -> int:
        """The column of a number."""
        return self.columns(torch.tensor([value])).first

    def place(self, value: Tensor, width: int) -> Columns:
        """New columns for a value."""
        return self.alias(value, self.fresh(width))

    def fresh(self, width: int) -> Columns:
        """New columns, whole panels of their own, before all others; so their numbers are negative.

        Loops over a result that overlaps what is read, or follows it closely, use no vector instructions.
        """
        self.width += -(-width // PANEL) * PANEL
        return Columns(-self.width, width)

    def alias(self, value: Tensor, found: Columns) -> Columns:
        """A value lies in columns that are there already."""
        self._known[id(value)] = found
        self._kept.append(value)
        return found

    def load(self, kind: int, value: Tensor, target: int, rows: int, columns: int) -> None:
        """A parameter is read at every refresh."""
        if value.dtype != torch.float32:
            raise Untranslatable(f"a parameter of type {value.dtype}")
        self.layout.append((kind, self.numbers, target, rows, columns))
        value = value.detach()
        self.parameters.append(value.view(-1) if value.is_contiguous() else value)
        self.numbers += rows * columns if kind != products.BIAS else rows

    def reserve(self, count: int) -> int:
        """Reserves memory besides the rows."""
        self.memory += count
        return self.memory - count

    def product(self, weight: Tensor, bias: Tensor | None, source: int, target: int) -> None:
        """Columns from ``source`` on times a weight ``[depth, width]``, written from ``target`` on."""
        depth, width = weight.shape
        panels = -(-width // PANEL) * PANEL
        memory = self.reserve(panels * (depth + 1))
        self.load(products.MATRIX, weight.t(), memory, width, depth)
        if bias is not None:
            self.load(products.BIAS, bias, memory, width, depth)
        self.emit(Code.LINEAR, target, panels, source, memory, step=0, more=depth)

    def emit(self, code: Code, target: int, width: int, a=0, b=0, step=1, more=0) -> None:
        """One more instruction."""
        self.code.append((int(code), target, width, a, b, step, more))

    def _is_constant(self, function, arguments, options, result) -> bool:
        """Whether an operation involves only parameters; views of them follow training."""
        if torch.Tag.nondeterministic_seeded in function.tags:
            raise Untranslatable(f"{function}, which draws anew every time")
        inputs = [x for x in _flat(arguments) if isinstance(x, Tensor)]
        rows = self.index, self.action, *self.places
        if any(id(x) in self._known or id(x) in self.largest or _among(x, rows) for x in inputs):
            return False
        if inputs and function._schema.is_mutable:
            raise Untranslatable(f"{function} of parameters alone")
        for value in _flat((result,)):
            shared = isinstance(value, Tensor) and any(_same_storage(x, value) for x in inputs)
            if inputs and not shared:
                if value is not result or not isinstance(value, Tensor):
                    raise Untranslatable(f"{function} of parameters alone")
                self.derived.append((value, function, arguments, options))
            self._kept.append(value)
        return True

    def _same_for_all_rows(self, value: Tensor) -> None:
        if value.ndim > 1 and value.numel() != value.shape[-1]:
            raise Untranslatable(f"a parameter of shape {tuple(value.shape)} beside rows")


def _among(value: Tensor, tensors) -> bool:
    """Whether it is one of them; ``in`` would compare their numbers."""
    return any(value is x for x in tensors)


def _flat(values):
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _same_storage(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _last(value: Tensor, dim) -> None:
    dims = [dim] if isinstance(dim, int) else list(dim)
    if value.ndim != 2 or [d % 2 for d in dims] != [1]:
        raise Untranslatable(f"dimension {dim} of a tensor of shape {tuple(value.shape)}")


def _among_neighbours(value: Tensor, dim: int | None) -> None:
    if dim is None or value.ndim < 2 or dim % value.ndim != value.ndim - 1:
        raise Untranslatable(f"dimension {dim} of a tensor of shape {tuple(value.shape)}")


# -- translations ------------------------------------------------------------------------------------


def _index_select(recorder: _Recorder, result, source, dim, index):
    if dim % source.ndim or source.ndim != 2:
        raise Untranslatable("index_select of anything but rows")
    found = recorder.place(result, source.shape[1])
    for which, latent in enumerate(recorder.latents):
        if source is latent and index is recorder.index:
            recorder.emit(Code.GATHER, *found, more=which)
            return
    if index is not recorder.action or id(source) in recorder._known:
        raise Untranslatable("index_select by anything but the action")
    table = recorder.reserve(source.numel())
    recorder.load(products.TABLE, source, table, *source.shape)
    recorder.emit(Code.LOOKUP, *found, more=table)


def _copy_(recorder: _Recorder, result, target, source):
    value = recorder.known(source)
    for which, place in enumerate(recorder.places):
        if target is place:
            recorder.emit(Code.STORE, 0, value.width, value.first, more=which)
            return
    raise Untranslatable("copy_ to anything but the next latents")


def _addmm(recorder: _Recorder, result, bias, value, weight):
    _product(recorder, result, value, weight, bias)


def _product(recorder: _Recorder, result, value, weight, bias=None):
    x, (_, width) = recorder.known(value), weight.shape
    if id(weight) in recorder._known or (bias is not None and bias.shape != (width,)):
        raise Untranslatable("a product of two values")
    recorder.product(weight, bias, x.first, recorder.place(result, width).first)


def _block_product(recorder: _Recorder, result, value, weight):
    _add_block_product(recorder, result, None, value, weight)


def _add_block_product(recorder: _Recorder, result, bias, value, weight):
    """Values ``[blocks, R, n]`` times a weight ``[blocks, n, m]``: one product for each block."""
    if id(value) not in recorder.turned or id(weight) in recorder._known:
        raise Untranslatable("a product of matrices that differ from row to row")
    x, (blocks, depth, width) = recorder.known(value), weight.shape
    if id(bias) in recorder._known:
        raise Untranslatable("a bias that differs from row to row")
    if bias is not None and bias.shape != (blocks, 1, width):
        raise Untranslatable(f"blocks with a bias of shape {tuple(bias.shape)}")
    # A product writes whole panels: those of a narrow block reach into the next one, which comes after it.
    found = recorder.fresh(blocks * width + PANEL)
    recorder.alias(result, Columns(found.first, blocks * width))
    for block in range(blocks):
        part = None if bias is None else bias[block, 0]
        source, target = x.first + block * depth, found.first + block * width
        recorder.product(weight[block], part, source, target)


def _cat(recorder: _Recorder, result, parts, dim=0):
    _last(result, dim)
    found = recorder.place(result, result.shape[1])
    first = found.first
    for part in parts:
        x = recorder.columns(part)
        if id(part) in recorder._known and len(part) != len(result):
            raise Untranslatable("cat of values of different length")
        recorder.emit(Code.COPY, first, x.width, x.first)
        first += x.width


def _unary(code: Code, in_place: bool = False):
    def translate(recorder: _Recorder, result, value):
        x = recorder.known(value)
        found = recorder.changed(value) if in_place else recorder.place(result, x.width)
        recorder.emit(code, *found, x.first)
        recorder.alias(result, found)

    return translate


def _curve(code: Code):
    """Functions with an exponential, which a few numbers more make faster: a loop over whole panels."""

    def translate(recorder: _Recorder, result, value):
        x = recorder.known(value)
        rest, aligned = x.width % PANEL, x.first % PANEL == 0
        width = x.width + PANEL - rest if aligned and rest > 4 else x.width
        recorder.emit(code, recorder.place(result, x.width).first, width, x.first)

    return translate


def _elu(recorder: _Recorder, result, value, alpha=1.0, scale=1.0, input_scale=1.0):
    if (alpha, scale, input_scale) != (1.0, 1.0, 1.0):
        raise Untranslatable("elu with other constants than 1")
    _curve(Code.ELU)(recorder, result, value)


def _softplus(recorder: _Recorder, result, value, beta=1.0, threshold=20.0):
    if beta != 1.0:
        raise Untranslatable(f"softplus with beta={beta}")
    _curve(Code.SOFTPLUS)(recorder, result, value)


def _lerp(recorder: _Recorder, result, start, end, weight):
    x, y, share = map(recorder.known, (start, end, weight))
    if len({x.width, y.width, share.width}) > 1:
        raise Untranslatable("lerp of different widths")
    found = recorder.place(result, x.width)
    recorder.emit(Code.LERP, *found, x.first, y.first, more=share.first)


def _clone(recorder: _Recorder, result, value, **options):
    x = recorder.known(value)
    recorder.emit(Code.COPY, *recorder.place(result, x.width), x.first)


def _binary(code: Code, in_place: bool = False, swapped: bool = False):
    def translate(recorder: _Recorder, result, one, other, alpha=1):
        if alpha != 1:
            raise Untranslatable("add or sub with alpha")
        if swapped:
            one, other = other, one
        x, y = (_operand(recorder, result, value) for value in (one, other))
        width = recorder.width_of(result)
        if x.width != width:
            x = _spread(recorder, x, width)
        if result.dtype == torch.bool and code < Code.LESS:
            raise Untranslatable("arithmetic of truth values")
        found = recorder.changed(one) if in_place else recorder.place(result, width)
        recorder.emit(code, *found, x.first, y.first, int(y.width == width))
        recorder.alias(result, found)

    return translate


def _operand(recorder: _Recorder, result: Tensor, value) -> Columns:
    if not isinstance(value, Tensor):
        return Columns(recorder.number(float(value)), 1)
    found = recorder.columns(value)
    if id(value) not in recorder.same and value.ndim != result.ndim:
        raise Untranslatable("tensors with different numbers of dimensions")
    width = recorder.width_of(result)
    if found.width not in (1, width):
        raise Untranslatable(f"shapes {tuple(value.shape)} and {tuple(result.shape)} together")
    return found


def _spread(recorder: _Recorder, value: Columns, width: int) -> Columns:
    found = recorder.fresh(width)
    recorder.emit(Code.SPREAD, *found, value.first)
    return found


def _power(recorder: _Recorder, result, value, exponent):
    if exponent != 2:
        raise Untranslatable(f"the power {exponent}")
    _binary(Code.MULTIPLY)(recorder, result, value, value)


def _where(recorder: _Recorder, result, condition, one, other):
    width = recorder.width_of(result)
    found = [_operand(recorder, result, value) for value in (condition, one, other)]
    found = [x if x.width == width else _spread(recorder, x, width) for x in found]
    target = recorder.place(result, width)
    recorder.emit(Code.WHERE, *target, found[0].first, found[1].first, more=found[2].first)


def _reduce(code: Code):
    def translate(recorder: _Recorder, result, value, dim=None, keepdim=False):
        if dim is None:
            raise Untranslatable("a reduction over the rows")
        _last(value, dim)
        x = recorder.known(value)
        recorder.emit(code, recorder.place(result, 1).first, x.width, x.first)

    return translate


def _softmax(recorder: _Recorder, result, value, dim, half_to_float):
    _among_neighbours(value, dim)
    x = recorder.known(value)
    found = recorder.place(result, x.width)
    recorder.emit(Code.SOFTMAX, *found, x.first, more=value.shape[-1])


def _log_softmax(recorder: _Recorder, result, value, dim, half_to_float):
    _last(value, dim)
    x = recorder.known(value)
    (high, _), (total, _), (log, _) = (recorder.fresh(1) for _ in range(3))
    below, powers = recorder.fresh(x.width), recorder.fresh(x.width)
    recorder.emit(Code.HIGHEST, high, x.width, x.first)
    recorder.emit(Code.SUBTRACT, *below, x.first, high, step=0)
    recorder.emit(Code.EXP, *powers, below.first)
    recorder.emit(Code.SUM, total, x.width, powers.first)
    recorder.emit(Code.LOG, log, 1, total)
    recorder.emit(Code.SUBTRACT, *recorder.place(result, x.width), below.first, log, step=0)


def _argmax(recorder: _Recorder, result, value, dim=None, keepdim=False):
    _among_neighbours(value, dim)
    if not keepdim:
        raise Untranslatable("argmax without keepdim")
    recorder.largest[id(result)] = recorder.known(value), value.shape[-1]
    recorder._kept.append(result)


def _equal(recorder: _Recorder, result, one, other):
    """The index of the largest number compared with all indices: one-hot."""
    x, count = recorder.largest.get(id(one), (None, 0))
    if x is None or not torch.equal(other, torch.arange(count)):
        raise Untranslatable("eq of anything but an argmax and all its indices")
    recorder.emit(Code.ONE_HOT, *recorder.place(result, x.width), x.first, more=count)


def _clamp(recorder: _Recorder, result, value, low=None, high=None):
    x = recorder.known(value)
    for code, bound in ((Code.LARGER, low), (Code.SMALLER, high)):
        if bound is not None:
            y, before, x = _operand(recorder, result, bound), x, recorder.fresh(x.width)
            recorder.emit(code, *x, before.first, y.first, int(y.width == x.width))
    recorder.alias(result, x)


def _layer_norm(recorder: _Recorder, results, value, shape, weight, bias, epsilon):
    x, result = recorder.known(value), results[0]
    if list(shape) != [x.width] or value.ndim != 2:
        raise Untranslatable("layer_norm over more than the last dimension")
    found = recorder.fresh(x.width)
    recorder.emit(Code.STANDARDISE, *found, x.first, more=recorder.number(epsilon))
    for code, value in ((Code.MULTIPLY, weight), (Code.ADD, bias)):
        if value is not None:
            before, found = found, recorder.fresh(x.width)
            recorder.emit(code, *found, before.first, recorder.columns(value).first)
    recorder.alias(result, found)


def _flip(recorder: _Recorder, result, value, dims):
    _last(value, dims)
    x = recorder.known(value)
    recorder.emit(Code.FLIP, *recorder.place(result, x.width), x.first)


def _slice(recorder: _Recorder, result, value, dim=0, start=None, end=None, step=1):
    _last(value, dim)
    if step != 1:
        raise Untranslatable("a slice with steps")
    x, (first, _, _) = recorder.known(value), slice(start, end).indices(value.shape[1])
    recorder.alias(result, Columns(x.first + first, result.shape[1]))


def _select(recorder: _Recorder, result, value, dim, index):
    _last(value, dim)
    x = recorder.known(value)
    recorder.alias(result, Columns(x.first + index % x.width, 1))


def _split(recorder: _Recorder, results, value, sizes, dim=0):
    _last(value, dim)
    first = recorder.known(value).first
    for result in results:
        recorder.alias(result, Columns(first, result.shape[1]))
        first += result.shape[1]


def _reshape(recorder: _Recorder, result, value, *_):
    x = recorder.known(value)
    if len(result) != recorder.rows or result.numel() != recorder.rows * x.width:
        raise Untranslatable(f"{tuple(value.shape)} as {tuple(result.shape)}")
    recorder.alias(result, x)


def _transpose(recorder: _Recorder, result, value, one, other):
    if value.ndim != 3 or {one % 3, other % 3} != {0, 1}:
        raise Untranslatable("a transposition of anything but rows and blocks")
    recorder.alias(result, recorder.known(value))
    if id(value) not in recorder.turned:
        recorder.turned.add(id(result))


def _convert(recorder: _Recorder, result, value, **options):
    if result.dtype != torch.float32:
        raise Untranslatable(f"numbers of type {result.dtype}")
    recorder.alias(result, recorder.known(value))


def _filled(number: float):
    def translate(recorder: _Recorder, result, value, *_, **options):
        width = recorder.width_of(result)
        recorder.alias(result, recorder.columns(torch.full((width,), number)))

    return translate


def _full_like(recorder: _Recorder, result, value, number, **options):
    _filled(float(number))(recorder, result, value)


_TRANSLATIONS: dict = {
    aten.index_select.default: _index_select,
    aten.copy_.default: _copy_,
    aten.addmm.default: _addmm,
    aten.mm.default: _product,
    aten.bmm.default: _block_product,
    aten.baddbmm.default: _add_block_product,
    aten.cat.default: _cat,
    aten.relu.default: _unary(Code.RELU),
    aten.elu.default: _elu,
    aten.silu.default: _curve(Code.SILU),
    aten.softplus.default: _softplus,
    aten.clone.default: _clone,
    aten.lerp.Tensor: _lerp,
    aten.tanh.default: _curve(Code.TANH),
    aten.tanh_.default: _unary(Code.TANH, in_place=True),
    aten.sigmoid.default: _curve(Code.SIGMOID),
    aten.sigmoid_.default: _unary(Code.SIGMOID, in_place=True),
    aten.exp.default: _unary(Code.EXP),
    aten.log.default: _unary(Code.LOG),
    aten.abs.default: _unary(Code.ABS),
    aten.neg.default: _unary(Code.NEGATE),
    aten.sqrt.default: _unary(Code.SQRT),
    aten.rsqrt.default: _unary(Code.RSQRT),
    aten.sign.default: _unary(Code.SIGN),
    aten.add.Tensor: _binary(Code.ADD),
    aten.add_.Tensor: _binary(Code.ADD, in_place=True),
    aten.add_.Scalar: _binary(Code.ADD, in_place=True),
    aten.sub.Tensor: _binary(Code.SUBTRACT),
    aten.rsub.Scalar: _binary(Code.SUBTRACT, swapped=True),
    aten.mul.Tensor: _binary(Code.MULTIPLY),
    aten.mul_.Tensor: _binary(Code.MULTIPLY, in_place=True),
    aten.div.Tensor: _binary(Code.DIVIDE),
    aten.maximum.default: _binary(Code.LARGER),
    aten.minimum.default: _binary(Code.SMALLER),
    aten.clamp_min.default: _binary(Code.LARGER),
    aten.clamp_max.default: _binary(Code.SMALLER),
    aten.clamp.Tensor: _clamp,
    aten.lt.Scalar: _binary(Code.LESS),
    aten.lt.Tensor: _binary(Code.LESS),
    aten.eq.Scalar: _binary(Code.EQUAL),
    aten.eq.Tensor: _equal,
    aten.pow.Tensor_Scalar: _power,
    aten.where.self: _where,
    aten.amin.default: _reduce(Code.LOWEST),
    aten.amax.default: _reduce(Code.HIGHEST),
    aten.sum.dim_IntList: _reduce(Code.SUM),
    aten.mean.dim: _reduce(Code.MEAN),
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _log_softmax,
    aten.argmax.default: _argmax,
    aten.native_layer_norm.default: _layer_norm,
    aten.flip.default: _flip,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.split_with_sizes.default: _split,
    aten.split.Tensor: _split,
    aten.unsafe_split.Tensor: _split,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.unsqueeze.default: _reshape,
    aten.squeeze.dim: _reshape,
    aten.detach.default: _reshape,
    aten.alias.default: _reshape,
    aten.transpose.int: _transpose,
    aten._to_copy.default: _convert,
    aten.zeros_like.default: _filled(0.0),
    aten.ones_like.default: _filled(1.0),
    aten.full_like.default: _full_like,
}

_OF_BLOCKS = {
    aten.transpose.int,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.lerp.Tensor,
}
"""What takes values whose blocks come before the rows."""
