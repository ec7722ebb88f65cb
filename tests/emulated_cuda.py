"""A device ``cuda`` for machines without one: everything is computed on the CPU, and where is checked.

    with emulated_cuda():
        model.to("cuda")

As on a GPU, tensors on the device are made by ``device="cuda"`` and ``to("cuda")``, combine with each other,
with numbers and with scalars of the CPU only, and are no arrays. What is emulated cannot be compiled.
"""

from __future__ import annotations

from contextlib import contextmanager
from unittest.mock import MagicMock, patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
aten = torch.ops.aten
_MIXING = {aten.copy_.default, aten._local_scalar_dense.default}
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
_COMPOSED = {"new_tensor", "one_hot"}  # make a tensor within, where they think that they are
_ANSWERS = {  # of torch.cuda
    "is_available": True,
    "is_current_stream_capturing": False,
    "current_device": 0,
    "device_count": 1,
    "get_device_name": "emulated",
    "get_rng_state_all": [],
    "synchronize": None,
}


class OnCuda(torch.Tensor):
    """A tensor on the emulated device, around one on the CPU."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cpu",
        )
        made.inner = inner
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def numpy(self, **options):
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    def __array__(self, *arguments):
        return self.numpy()

    def tolist(self):
        return self.inner.tolist()

    def __repr__(self, **options):
        return f"OnCuda({self.inner})"

    def __format__(self, spec):
        return format(self.inner, spec)

    def __reduce_ex__(self, protocol):  # checkpoints are read to the CPU
        return self.inner.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in _MIXING:
            _check(function, args, kwargs)
        out = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if "out" in kwargs:
            return kwargs["out"]
        name = function._schema.name
        if name.endswith("_") and not name.endswith("__") and isinstance(args[0], torch.Tensor):
            return args[0]
        return tree_map(_wrapped, out)


def _inner(value):
    return value.inner if isinstance(value, OnCuda) else value


def _wrapped(value):
    if isinstance(value, torch.Tensor) and not isinstance(value, OnCuda):
        return OnCuda(value)
    return value


def _check(function, args, kwargs):
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    if function in _INDEXING and isinstance(args[0], OnCuda):
        tensors = []  # indices may be on the CPU
    strict = function is aten.clamp.Tensor  # takes no scalars of the CPU
    placed = {isinstance(x, OnCuda) for x in tensors if x.ndim or strict or isinstance(x, OnCuda)}
    if len(placed) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({function})."
        )


def _is_cuda(device):
    return torch.device(device).type == "cuda"


class _Places(TorchFunctionMode):
    """Understands ``device="cuda"``, ``to``, ``cuda`` and ``cpu``."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        moves = name in ("to", "cuda", "cpu", "as_tensor")
        if moves and isinstance(args[0], torch.Tensor):
            return _move(name, *args, **kwargs)
        device = kwargs.pop("device", None)
        if device is None and name in _COMPOSED and isinstance(args[0], OnCuda):
            device = CUDA
        if device is None:
            return function(*args, **kwargs)
        requires_grad = kwargs.pop("requires_grad", False)
        with torch.device("cpu"):
            out = function(*tree_map(_inner, args), **kwargs)
        out = OnCuda(out) if _is_cuda(device) else out
        return out.requires_grad_() if requires_grad else out


def _move(name, value, *args, dtype=None, device=None, **options):
    device = {"cuda": CUDA, "cpu": CPU}.get(name, device)
    for argument in args if name != "cuda" else ():
        if isinstance(argument, torch.dtype):
            dtype = argument
        elif isinstance(argument, torch.Tensor):
            device, dtype = argument.device, argument.dtype
        elif isinstance(argument, str | torch.device):
            device = argument
    if device is not None and _is_cuda(device) != isinstance(value, OnCuda):
        value = value.detach()
        value = OnCuda(value.clone()) if _is_cuda(device) else value.inner.clone()
    return value if dtype in (None, value.dtype) else value.type(dtype)


def _enter_no_grad(context):
    context.before = torch.is_grad_enabled()
    torch.set_grad_enabled(context.before and not context.mode)


def _leave_no_grad(context, *error):
    torch.set_grad_enabled(context.before)


@contextmanager
def emulated_cuda():
    """Where ``cuda`` can be used."""
    answers = {name: MagicMock(return_value=answer) for name, answer in _ANSWERS.items()}
    # Inference mode knows no wrapped tensors.
    without = {"__enter__": _enter_no_grad, "__exit__": _leave_no_grad}
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # they change their class
    try:
        with (
            patch.multiple(torch.inference_mode, **without),
            patch.multiple(torch.cuda, **answers),
            _Places(),
        ):
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
