"""A small network as a list of instructions, executed without torch and without a compiler.

For the few rows of a search, the operations of a small network take less time than torch needs between
them. A :class:`Program` observes the operations once, while torch executes them, and records what they do
with the columns of a row.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from torchrl_wm.programs import instructions, products
from torchrl_wm.programs.bfloat16 import SUPPORTED, pack
from torchrl_wm.programs.instructions import FIELDS
from torchrl_wm.programs.peephole import moved, simplify
from torchrl_wm.programs.recorder import Recorder, Untranslatable
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
    function asks :func:`torch.autograd.grad` for them. Rows must not depend on each other.
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
        out = np.empty((len(index), self.width), np.float32)
        rows, arrays = (index.numpy(), action.numpy()), tuple(x.numpy() for x in latents)

        def evaluate(begin: int, end: int) -> None:
            share, found = (x[begin:end] for x in rows), out[begin:end]
            instructions.run(self.network.copy(), *share, arrays, place + begin, found)

        in_threads(evaluate, len(index), _SHARE)
        return torch.from_numpy(out)

    def unroll(
        self, start: Tensor, draws: Tensor, noise: Tensor, states: Tensor, share: int
    ) -> Tensor:
        """Results ``[H, N, C]`` of consecutive steps of a function of a state and two inputs, in this order.

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

        def follow(begin: int, end: int) -> None:
            network = self.network.copy(end - begin)
            instructions.unroll(network, index, begin, end, *arrays, out)

        in_threads(follow, rows, share)
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
    for ours, theirs in zip(found, expected, strict=True):
        # Small numbers can be differences of the largest.
        largest = theirs.abs().nan_to_num(0.0, 0.0).max().item()
        try:
            tolerance = {"rtol": 1e-4, "atol": max(1e-5, 1e-4 * largest)}
            torch.testing.assert_close(ours, theirs, **tolerance)
        except AssertionError as error:
            raise Untranslatable(f"its program gives other numbers: {error}") from None
