"""Functions of tensors whose operations are recorded once and then run without Python in between."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from torchrl_wm.programs.watched import Watched

# A planner meets a few shapes: its iterations, with the environments of training and of evaluation.
_SHAPES = 16


class Recording:
    """A function of tensors, recorded by ``torch.jit.trace`` for every shape of its inputs.

    With small networks most of the time of a plan is overhead between the operations; recorded ones take
    less than half of it. A recording holds references to parameters, so it follows their training. Under
    autocast nothing is recorded. Copies and pickles start without recordings.

    Args:
        function (callable): a method of a module, on tensors, without random numbers and without
            branches that depend on values.

    Examples:
        >>> layer = torch.nn.Linear(2, 1)
        >>> recorded = Recording(layer.forward)
        >>> with torch.no_grad():
        ...     before, _ = recorded(torch.ones(1, 2)), layer.bias.add_(1)
        ...     after = recorded(torch.ones(1, 2))
        >>> bool(torch.isclose(after, before + 1))
        True
    """

    def __init__(self, function: Callable[..., Tensor | tuple[Tensor, ...]]):
        self.function = function
        self._recorded: dict[tuple, Callable] = {}
        self._watched = Watched(function.__self__)

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the function returns; nothing is differentiated."""
        if self._watched.changed():
            self._recorded.clear()
        device = inputs[0].device
        key = (device, *(value.shape for value in inputs))
        if key not in self._recorded:
            if torch.is_autocast_enabled(device.type) or len(self._recorded) >= _SHAPES:
                return self.function(*inputs)
            self._recorded[key] = self._record(inputs)
        if torch.is_autocast_enabled(device.type):
            return self.function(*inputs)
        return self._recorded[key](*inputs)

    def _record(self, inputs: tuple[Tensor, ...]) -> Callable:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about shapes turned into constants: they are fixed
            inputs = tuple(value.clone() for value in inputs)
            name = type(self.function.__self__).__name__
            return traced(self.function, inputs, lambda call: call(*inputs), name) or self.function

    def __getstate__(self) -> dict:
        return vars(Recording(self.function))


def traced(
    function: Callable, inputs: tuple[Tensor, ...], results: Callable[[Callable], object], name: str
) -> Callable | None:
    """A method of a module, recorded by ``torch.jit.trace``; ``None``, with a warning, where that fails.

    Args:
        function (callable): a method of a module, on tensors.
        inputs (tuple of Tensor): to record it with.
        results (callable): calls a function and returns tensors, which have to be the same for the
            recording.
        name (str): of what is recorded, for the warning.
    """
    try:
        recording = torch.jit.trace(_Module(function), inputs, check_trace=False)
        torch.testing.assert_close(results(recording), results(function), equal_nan=True)
        return recording.forward  # without the overhead of the module's own call
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[-1]
    logging.getLogger(__name__).warning(
        "The operations of %s cannot be recorded (%s); searches and plans call them one by one, which is "
        "slower. Set trace=False to do so without this message.",
        name,
        reason,
    )
    return None


class _Module(torch.nn.Module):
    """A method named ``forward``, as a tracer needs it, with the module that holds its parameters."""

    def __init__(self, function: Callable):
        super().__init__()
        self.owner, self.function = function.__self__, function

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(*inputs)
