"""Programs that follow the training of the modules that they were recorded from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchrl_wm.programs import bfloat16
from torchrl_wm.programs.interception import is_intercepted
from torchrl_wm.programs.program import Program, recorded_program
from torchrl_wm.programs.watched import Watched

_FEW = 16  # rows to record with: of more, some modules do the same with other operations


class FollowedProgram:
    """The program of a function of rows, with the parameters that its modules have now.

    It is recorded at the first call, and again when parameters are replaced or moved, or plain attributes of
    the modules have changed and stay for a call. Its numbers are in single precision; under autocast to
    bfloat16, on a processor with products of such numbers, matrix products round what they multiply, if they
    add up an even number of at least 16. There is none on other devices than the CPU, in double precision,
    for more than two million weights, for what no program can express, for modules with hooks, and within
    transformations of functions, counters and whatever else is to see operations.

    Args:
        function (callable): what a :class:`~torchrl_wm.programs.program.Program` is made of.
        *modules (nn.Module): all that it reads parameters of; messages name the first.
        gradients (bool, optional): whether it asks for gradients of these. Defaults to ``False``.
    """

    def __init__(
        self, function: Callable[..., Tensor], *modules: nn.Module, gradients: bool = False
    ):
        self.function, self.modules, self.gradients = function, modules, gradients
        self.program: Program | None = None
        self._rounded: Program | None = None
        self._outdated, self._left_to_torch = True, False
        self._settings: list = []
        self._watched = Watched(nn.ModuleList(modules))
        self._read: Program | None = None  # whose parameters are those of the last call
        self._shapes: list = []

    def __call__(self, *tensors: Tensor, unchanged: bool = False) -> Program | None:
        """The program for tensors ``[N, size]``, of which the first few rows are recorded.

        It reads the parameters, unless they are ``unchanged`` since the last call.
        """
        if not unchanged:
            self._read = None
        if any(not x.is_cpu or x.dtype != torch.float32 or not x.numel() for x in tensors):
            return None
        if is_intercepted():
            return None
        if not unchanged:
            self._follow(tensors)
        if self._left_to_torch or self.program is None:
            return None
        if [x.shape[1:] for x in tensors] != self._shapes or len({len(x) for x in tensors}) > 1:
            return None  # the program's loop checks no bounds: torch says what does not fit
        program = self._wanted(self.program)
        if self._read is not program:
            program.refresh()
        self._read = program
        return program

    def _follow(self, tensors: tuple[Tensor, ...]) -> None:
        """Records what has changed since the last call, unless it is left to torch this time."""
        changed = self._watched.changed()
        settings, before = self._watched.settings(), self._settings
        # What changes with every call would be recorded every time: torch does it until it stays.
        unsettled = not changed and settings != before
        self._settings = settings
        self._outdated |= changed or unsettled
        self._left_to_torch = unsettled or self._watched.hooked(self.gradients)
        if self._outdated and not self._left_to_torch:  # recording would call hooks
            self._record(tensors)
            # What is recorded with numbers that are none is found wrong; it need not be with the next.
            self._outdated = not all(x[: 2 * _FEW].isfinite().all() for x in tensors)

    def _wanted(self, program: Program) -> Program:
        """The program with the products that autocast asks for."""
        asked = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        if asked is not torch.bfloat16 or not bfloat16.SUPPORTED:
            return program
        if self._rounded is None:
            self._rounded = program.rounded()
        return self._rounded

    def _record(self, tensors: tuple[Tensor, ...]) -> None:
        # With other rows, once more: where two classes are as likely, draws may differ by the rounding.
        self.program, self._shapes = None, [x.shape[1:] for x in tensors]
        self._rounded = None
        for rows in (slice(0, _FEW), slice(_FEW, 2 * _FEW)):
            few = [x[rows] for x in tensors]
            self.program = self._recorded(few) if all(map(len, few)) else None
            if self.program is not None:
                break

    def _recorded(self, few: list[Tensor]) -> Program | None:
        name = type(self.modules[0]).__name__
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            index = torch.arange(len(few[0]))
            few = [x.detach().clone(memory_format=torch.contiguous_format) for x in few]
            return recorded_program(
                self.function, (index, index, *few, *map(torch.clone, few)), name
            )

    def __getstate__(self) -> dict:
        return vars(FollowedProgram(self.function, *self.modules, gradients=self.gradients))
