"""What a function does with the columns of a row, written down while torch executes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchrl_wm.programs import products
from torchrl_wm.programs.instructions import Code
from torchrl_wm.programs.products import PANEL, TILE_ROWS


class Untranslatable(Exception):
    """An operation without an instruction; the message names it."""


class Columns(NamedTuple):
    """Where a value ``[R, ...]`` of ``width`` numbers a row lies in the rows of the scratch."""

    first: int
    width: int


class Recorder(TorchDispatchMode):
    """Intercepts every operation after it was executed, and writes instructions that do the same.

    Args:
        inputs (tuple of Tensor): what the function is called with: index, action, latents, places.
        translations (dict): by operation, a function of the recorder, the operation's result and its
            arguments, which emits the instructions.
        of_blocks (set): the operations among them that take values whose blocks come before the rows.
    """

    def __init__(
        self,
        inputs: tuple[Tensor, ...],
        translations: Mapping[object, Callable],
        of_blocks: set,
    ):
        super().__init__()
        self.translations, self.of_blocks = translations, of_blocks
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
        self.starts: list[int] = []  # of values
        self.sums: list[tuple[Tensor, int]] = []  # sums over the rows, and where they begin
        self.concluded: list[tuple] = []  # tensors that follow from those, and how
        self.summed: set[int] = set()  # all of these
        self.across: dict[int, Columns] = {}  # values [n, R], whose rows are columns
        self.largest: dict[int, tuple[Columns, int]] = {}  # what an argmax is of, and its classes
        self.untold: set[int] = set()  # results that no instruction computes
        self.same: set[int] = set()  # parameters and constants, which do not differ from row to row
        # Values [blocks, R, n], whose columns are those of [R, blocks, n].
        self.turned: set[int] = set()
        self.width = self.memory = self.total = 0
        self._known: dict[int, Columns] = {}
        self._in_memory: dict[tuple, Tensor] = {}
        self._kept: list[Tensor] = []  # kept alive, so that no two have the same id

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        for value in _flat(arguments):
            self._recognise(value)
        self._refuse(function, arguments)
        result = function(*arguments, **options)
        try:
            if not self._is_constant(function, arguments, options, result):
                self._translate(function, arguments, options, result)
        except KeyError:
            raise Untranslatable(str(function)) from None
        except TypeError as error:
            raise Untranslatable(f"{function} with these options ({error})") from None
        return result

    def _refuse(self, function, arguments) -> None:
        """What must not even be executed once more: draws, and changes of parameters."""
        if torch.Tag.nondeterministic_seeded in function.tags:
            raise Untranslatable(f"{function}, which draws anew every time")
        inputs = [x for x in _flat(arguments) if isinstance(x, Tensor)]
        if inputs and function._schema.is_mutable and not self._vary(inputs):
            raise Untranslatable(f"{function} of parameters alone")

    def _vary(self, values: list[Tensor]) -> bool:
        """Whether one of them differs from row to row."""
        rows = self.index, self.action, *self.places
        found = self._known, self.largest, self.across
        return any(_among(x, rows) or any(id(x) in places for places in found) for x in values)

    def _recognise(self, value) -> None:
        """A value that autograd has kept for a derivative is another tensor in the same memory."""
        if not isinstance(value, Tensor) or id(value) in self._known or id(value) in self.untold:
            return
        kept = self._in_memory.get(_memory_of(value))
        if kept is not None:
            self.alias(value, self._known[id(kept)])
            if id(kept) in self.turned:
                self.turned.add(id(value))

    def _translate(self, function, arguments, options, result) -> None:
        values = [x for x in _flat(arguments) if isinstance(x, Tensor) and id(x) in self._known]
        turned = [x for x in values if id(x) in self.turned]
        if turned and (function not in self.of_blocks or len(turned) < len(values)):
            raise Untranslatable(f"{function} with blocks before rows")
        self.translations[function](self, result, *arguments, **options)
        for value in _flat((result,)):  # such as the mean beside a layer norm
            if not self._is_found(value):
                self.untold.add(id(value))
            self._kept.append(value)
        if turned and function is not torch.ops.aten.transpose.int:
            self.turned.add(id(result))

    def _is_found(self, value: Tensor) -> bool:
        found = self._known, self.largest, self.across, self.summed
        return any(id(value) in places for places in found)

    # -- where values are --------------------------------------------------------------------------

    def columns(self, value: Tensor) -> Columns:
        """Where a value lies; a tensor seen for the first time is a parameter or a constant."""
        found = self._known.get(id(value))
        if id(value) in self.untold:
            raise Untranslatable("a result that no instruction computes")
        self.refuse_sums(value)
        if found is None:
            self._same_for_all_rows(value)
            self.same.add(id(value))
            found = self.place(value, value.numel())
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
        for kind, first, _, width in self.layout:
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
        self.starts.append(-self.width)
        return Columns(-self.width, width)

    def alias(self, value: Tensor, found: Columns) -> Columns:
        """A value lies in columns that are there already."""
        self._known[id(value)] = found
        self._kept.append(value)
        if id(value) not in self.same:
            self._in_memory[_memory_of(value)] = value
        return found

    def load(self, kind: int, value: Tensor, target: int, rows: int, columns: int) -> None:
        """A parameter is read at every refresh."""
        if value.dtype != torch.float32:
            raise Untranslatable(f"a parameter of type {value.dtype}")
        self.layout.append((kind, target, rows, columns))
        self.parameters.append(value.detach())

    def reserve(self, count: int) -> int:
        """Reserves memory besides the rows."""
        self.memory += count
        return self.memory - count

    def product(self, weight: Tensor, bias: Tensor | None, source: int, target: int) -> None:
        """Columns from ``source`` on times a weight ``[depth, width]``, written from ``target`` on."""
        self.refuse_sums(weight, bias)
        depth, width = weight.shape
        panels = -(-width // PANEL) * PANEL
        memory = self.reserve(panels * (depth + 1))
        self.load(products.MATRIX, weight.t(), memory, width, depth)
        if bias is not None:
            self.load(products.BIAS, bias, memory, width, depth)
        self.emit(Code.LINEAR, target, panels, source, memory, step=0, more=depth)

    def add_up(self, result: Tensor, parts: list[tuple[Tensor, Columns, Columns]]) -> None:
        """Sums over the rows: each part ``[n, m]`` is that of products of all columns of two values."""
        for part, left, right in parts:
            offset, width = self.total, -(-right.width // PANEL) * PANEL
            self.emit(Code.ADD_OUTER, offset, right.width, right.first, left.first, more=left.width)
            self.sums.append((part, offset))
            self.total += -(-left.width // TILE_ROWS) * TILE_ROWS * width
        self.summed.add(id(result))

    def refuse_sums(self, *values: Tensor | None) -> None:
        """A sum over the rows is known when all have gone through the instructions."""
        if any(id(value) in self.summed for value in values):
            raise Untranslatable("rows that depend on a sum over them")

    def emit(self, code: Code, target: int, width: int, a=0, b=0, step=1, more=0) -> None:
        """One more instruction."""
        self.code.append((int(code), target, width, a, b, step, more))

    def _is_constant(self, function, arguments, options, result) -> bool:
        """Whether an operation involves only parameters, or sums; views of them follow training."""
        inputs = [x for x in _flat(arguments) if isinstance(x, Tensor)]
        if self._vary(inputs):
            return False
        of_sums = any(id(x) in self.summed for x in inputs)
        for value in _flat((result,)):
            shared = isinstance(value, Tensor) and any(_same_storage(x, value) for x in inputs)
            if inputs and not shared:
                if value is not result or not isinstance(value, Tensor):
                    raise Untranslatable(f"{function} of parameters alone")
                later = self.concluded if of_sums else self.derived
                later.append((value, function, arguments, options))
            if of_sums:
                self.summed.add(id(value))
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


def _memory_of(value: Tensor) -> tuple:
    return value.data_ptr(), value.dtype, value.shape, value.stride()


def _same_storage(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
