"""``torch.compile`` for steps and phases, with a warning where there is no compiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch


def compile_function(function: Callable, *, backend: str = "inductor", **options) -> Callable:
    """The compiled ``function``; the function itself, with a warning, where there is no C++ compiler.

    Args:
        function (callable): a function of tensors.

    Keyword Args:
        backend (str, optional): of :func:`torch.compile`. Defaults to ``"inductor"``.
        **options: further keyword arguments of :func:`torch.compile`.

    Examples:
        >>> double = compile_function(lambda x: 2 * x, backend="eager")
        >>> double(torch.ones(1))
        tensor([2.])
    """
    if backend != "inductor":
        return torch.compile(function, backend=backend, **options)
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        warnings.warn(
            "No C++ compiler was found, so nothing is compiled and updates take longer. Install g++ or "
            "name a compiler in the environment variable CXX.",
            stacklevel=2,
        )
        return function
    return torch.compile(function, **options)
