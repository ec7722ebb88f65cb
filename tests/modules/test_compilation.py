"""Compiling where there is no compiler."""

import pytest
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from torchrl_wm.modules.compilation import compile_function


def test_without_a_compiler_the_function_itself_is_returned_loudly(monkeypatch):
    def missing():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    function = lambda x: x
    with pytest.warns(UserWarning, match=r"Install g\+\+"):
        assert compile_function(function) is function
