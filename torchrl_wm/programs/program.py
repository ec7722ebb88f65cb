"""A small network as a list of instructions, executed without torch and without a compiler.

For the few rows of a search, the operations of a small network take less time than torch needs between
them. A :class:`Program` observes the operations once, while torch executes them, and records what they do
with the columns of a row.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from torchrl_wm.programs import instructions, products
from torchrl_wm.programs.bfloat16 import SUPPORTED, pack
from torchrl_wm.programs.instructions import FIELDS
from torchrl_wm.programs.peephole import simplify
from torchrl_wm.programs.products import PANEL
from torchrl_wm.programs.recorder import Recorder, Untranslatable
from torchrl_wm.programs.reuse import Arrangement
from torchrl_wm.programs.rounding import in_pairs
from torchrl_wm.programs.threads import in_threads
from torchrl_wm.programs.translations import OF_BLOCKS, TRANSLATIONS

_LOGGER = logging.getLogger(__name__)
_SHARE = 256  # rows that are worth a thread of their own
_LARGEST = 2**21  # weights: models with more were not measured, and torch's products may be faster


class Program:
    """The operations of a function on rows of numbers, recorded while torch executes them.

    The function takes ``index [R]``, ``action [R]``, latents ``[*, S]`` and places ``[R, S]`` for the
    following ones, and returns ``[R, C]``, as
    :meth:`~torchrl_wm.planners.tree_search.evaluation.NodeEvaluator.forward` does: MLPs with the
    usual activations and normalisations, recurrent cells, one-hot samples, and anything made of
    elementwise operations and reductions over the last dimension; and derivatives of such, where the
    function asks :func:`torch.autograd.grad` for them. Rows must not depend on each other. But the function
    may return a tuple of ``[R, C]`` and a list of sums over all rows, such as the gradients of parameters.
    What is computed of parameters alone is computed again whenever they are read.

    Args:
        function (callable): on tensors in single precision on the CPU.
        inputs (tuple of Tensor): to record it with; those that it writes to are overwritten.

    Raises:
        Untranslatable: for an operation that is not supported; the message names it.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]):
        recorder = Recorder(inputs, TRANSLATIONS, OF_BLOCKS)
        with torch.no_grad(), recorder:
            out, totals = _parts(function(*inputs))
        if any(id(x) not in recorder.summed for x in totals):
            raise Untranslatable("a sum that is not over the rows")
        self._sums, self._concluded, self._totals = recorder.sums, recorder.concluded, totals
        self._concluding = threading.Lock()
        found = recorder.columns(out)
        self.width, self.parameters = found.width, recorder.parameters
        self.derived = recorder.derived
        code, first = simplify(recorder.code, *found)
        self.layout = np.array(recorder.layout, np.int64).reshape(-1, 4)
        constant = self.layout[:, 0] == products.CONSTANT
        constants = self.layout[constant, 1].tolist()
        arranged = Arrangement(code, recorder.width, recorder.starts, constants, first)
        self.layout[constant, 1] = [arranged.place(column) for column in constants]
        # Instructions read whole panels. With an odd number of these in a row, those of one value in many
        # rows do not compete for the same lines of the cache.
        room = arranged.width + PANEL + (PANEL if arranged.width // PANEL % 2 else 0)
        self.network = instructions.Network(
            np.array(arranged.code, np.int64).reshape(-1, FIELDS),
            np.zeros(max(recorder.memory, 1), np.float32),
            np.zeros((instructions.BLOCK, room), np.float32),
            arranged.place(first),
            np.zeros(recorder.total, np.float32),
        )
        self.packing = np.zeros((0, 4), np.int64)
        self.refresh()

    def refresh(self) -> None:
        """Reads the parameters again: they may have been trained since."""
        if self.derived:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                for value, function, arguments, options in self.derived:
                    value.copy_(function(*arguments, **options))
        sources = [x if x.is_contiguous() else x.contiguous() for x in self.parameters]
        addresses = np.array([x.data_ptr() for x in sources], np.int64)
        weights = self.network.weights
        products.unpack(self.layout, addresses, weights, self.network.scratch)
        pack(self.packing, weights.view(np.uint32))

    def rounded(self) -> Program:
        """The same with products of numbers rounded to bfloat16.

        Only the instructions of its products differ, so it is not checked again.

        Raises:
            RuntimeError: on a processor without such products.
        """
        if not SUPPORTED:
            raise RuntimeError("This processor has no products of bfloat16 (AVX512-BF16).")
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
        arrays = tuple(x.numpy() for x in latents)
        return self._run(index.numpy(), action.numpy(), arrays, place)[0]

    def add_up(self, *tensors: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What a function of latents returns for all of their rows ``[R, S]``, and its sums over these."""
        arrays = tuple(x.detach().contiguous().numpy() for x in tensors)
        index = np.arange(len(arrays[0]))
        out, sums = self._run(index, index, arrays, 0)
        return out, self._conclude(sums)

    def _run(
        self, index: np.ndarray, action: np.ndarray, arrays: tuple, place: int
    ) -> tuple[Tensor, list[np.ndarray]]:
        """Results ``[R, C]``, and the sums of each thread."""
        out = np.empty((len(index), self.width), np.float32)

        def evaluate(begin: int, end: int) -> np.ndarray:
            network, found = self.network.copy(), out[begin:end]
            rows = index[begin:end], action[begin:end]
            instructions.run(network, *rows, arrays, place + begin, found)
            return network.sums

        sums = in_threads(evaluate, len(index), _SHARE)
        return torch.from_numpy(out), sums

    def _conclude(self, parts: list[np.ndarray]) -> list[Tensor]:
        """What the function made of its sums, from those of each thread.

        The tensors of the recording take their values.
        """
        sums = sum(parts[1:], parts[0])
        with self._concluding, torch.no_grad(), torch.autocast("cpu", enabled=False):
            for value, first in self._sums:
                rows, width = value.shape
                stride = -(-width // PANEL) * PANEL
                found = sums[first : first + rows * stride].reshape(rows, stride)[:, :width]
                value.copy_(torch.from_numpy(found))
            for value, function, arguments, options in self._concluded:
                value.copy_(function(*arguments, **options))
            return [x.clone() for x in self._totals]

    def unroll(
        self, start: Tensor, draws: Tensor, noise: Tensor, states: Tensor, share: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Results ``[H, N, C]`` of consecutive steps of a function of a state and two inputs, and its sums.

        Args:
            start (Tensor): the state ``[N, S]`` before the first step.
            draws, noise (Tensor): the inputs of the steps, ``[H, N, ...]``.
            states (Tensor): ``[H, N, S]``, contiguous, in single precision or bfloat16, to which the states
                after them are written.
            share (int): rows that are worth a thread of their own.

        Raises:
            ValueError: for states that are not contiguous.
        """
        if not states.is_contiguous():
            raise ValueError("Only contiguous states can be written to.")
        horizon, rows, _ = noise.shape
        empty, bits = start.new_empty(0, *start.shape), states.dtype == torch.bfloat16
        whole = empty if bits else states
        rounded = (states if bits else empty.bfloat16()).view(torch.uint16)
        inputs = start.clone(memory_format=torch.contiguous_format), draws, noise
        arrays = [x.detach().contiguous().numpy() for x in (*inputs, whole, rounded)]
        index, out = np.arange(rows), np.empty((horizon, rows, self.width), np.float32)

        def follow(begin: int, end: int) -> np.ndarray:
            network = self.network.copy(end - begin)
            instructions.unroll(network, index, begin, end, *arrays, out)
            return network.sums

        sums = in_threads(follow, rows, share)
        return torch.from_numpy(out), self._conclude(sums)


def _parts(found: Tensor | tuple[Tensor, list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
    return (found, []) if isinstance(found, Tensor) else found


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
    """Compares a program with the function that it was recorded from.

    For one row less, if there are several: what depends on their number, or on the other rows, differs then.
    """
    rows = max(len(index) - 1, 1)
    index, action, latents = index[:rows], action[:rows], tensors[: len(tensors) // 2]
    # Fresh places: those of the recording hold the function's results, stored by the program or not.
    places = [x[:rows].clone() for x in latents]
    memory = [torch.cat([x, x]) for x in latents]
    found = [program(index, action, memory, len(latents[0]))]
    found += [x[len(latents[0]) :][:rows] for x in memory]
    out, totals = _parts(function(index, action, *latents, *places))
    expected = [out, *places]
    if totals:
        found += program.add_up(*(x[:rows] for x in latents))[1]
        expected += totals
    for ours, theirs in zip(found, expected, strict=True):
        # Small numbers can be differences of the largest.
        largest = theirs.abs().nan_to_num(0.0, 0.0).max().item()
        try:
            tolerance = {"rtol": 1e-4, "atol": max(1e-5, 1e-4 * largest)}
            torch.testing.assert_close(ours, theirs, **tolerance)
        except AssertionError as error:
            raise Untranslatable(f"its program gives other numbers: {error}") from None
