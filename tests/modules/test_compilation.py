"""Compiling where there is no compiler, and copies of what was compiled."""

import copy
import pickle

import pytest
import torch
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


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(()))
        self.scaled = compile_function(self._scaled, backend="eager")

    def _scaled(self, x):
        return self.factor * x


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_a_compiled_module_reads_its_own_parameters(copied):
    one = Scale()
    assert one.scaled(torch.ones(())) == 1
    other = copied(one)
    other.factor.data.fill_(5)
    assert one.scaled(torch.ones(())) == 1 and other.scaled(torch.ones(())) == 5


def test_compiling_again_replaces_the_compiled_method():
    module = Scale()
    again = compile_function(module.scaled, backend="eager", dynamic=True)
    assert again.options == {"backend": "eager", "dynamic": True}
    assert again(x=torch.ones(())) == 1 and again.function is Scale._scaled
