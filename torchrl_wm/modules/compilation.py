"""``torch.compile`` for steps and phases, with a warning where there is no compiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch


class CompiledMethod:
    """A method of an object, compiled; a copy of the object gets one of its own.

    A compiled function that an object keeps would be shared by its copies, which would go on reading the
    parameters of the first. Copies and pickles compile anew, when they are first called.
    """

    def __init__(self, method: MethodType, options: dict[str, Any]):
        self.owner, self.function, self.options = method.__self__, method.__func__, options
        self._compiled: Callable | None = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Calls the compiled method."""
        if self._compiled is None:
            method = MethodType(self.function, self.owner)
            self._compiled = torch.compile(method, **self.options)
        return self._compiled(*args, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_compiled": None}


def compile_function(function: Callable, *, backend: str = "inductor", **options) -> Callable:
    """The compiled ``function``; the function itself, with a warning, where there is no C++ compiler.

    Args:
        function (callable): of tensors; a method of an object gives a :class:`CompiledMethod`.

    Keyword Args:
        backend (str, optional): of :func:`torch.compile`. Defaults to ``"inductor"``.
        **options: further keyword arguments of :func:`torch.compile`.

    Examples:
        >>> double = compile_function(lambda x: 2 * x, backend="eager")
        >>> double(torch.ones(1))
        tensor([2.])
    """
    if isinstance(function, CompiledMethod):
        function = MethodType(function.function, function.owner)
    if backend == "inductor" and not _has_compiler():
        warnings.warn(
            "No C++ compiler was found, so nothing is compiled and updates take longer. Install g++ or "
            "name a compiler in the environment variable CXX.",
            stacklevel=2,
        )
        return function
    options["backend"] = backend
    if isinstance(function, MethodType):
        return CompiledMethod(function, options)
    return torch.compile(function, **options)


def _has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True
