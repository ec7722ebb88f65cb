"""Detecting that a module's tensors were replaced after a recording."""

from __future__ import annotations

from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType

from tensordict.nn import TensorDictParams
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

_PLAIN = (int, float, str, type(None), FunctionType, BuiltinFunctionType)
_OF_MODULES = frozenset(vars(nn.Module()))  # modes, parameters, parts and hooks


class Watched:
    """Detects that a module has other tensors or parts than before, or is in another mode.

    A recording refers to the parameters it was made with, so it follows training, which updates them in
    place. It does not follow replaced parameters (``load_state_dict(assign=True)``,
    ``TensorDict.to_module``, a new head), or the same ones in new memory; nor parts without parameters, or
    whether they train. Attributes, such as a share or a scale, can be compared with those of
    before, but not what changes inside of them.

    Args:
        module (nn.Module): the watched module.

    Examples:
        >>> layer = nn.Linear(1, 1)
        >>> watched = Watched(layer)
        >>> watched.changed(), watched.changed()
        (True, False)
        >>> layer.bias = nn.Parameter(layer.bias + 1)
        >>> watched.changed()
        True
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self._tensors: list[Tensor] = []  # kept alive, so that no other tensor gets the id of one
        self._places: list[int] | None = None
        self._parts: list[tuple[nn.Module, bool]] = []
        self._own: list[tuple[dict, str]] | None = None  # where attributes are
        self._counts: list[int] = []
        self._values: list = []  # kept alive, so that no other gets the id of one

    def changed(self) -> bool:
        """Whether the tensors differ from those at the last call; True the first time."""
        modules = _modules(self.module)
        tensors = list(_tensors(modules))
        places = [(x.data_ptr(), x.stride()) for x in tensors]
        parts = [(x, x.training) for x in modules]
        same = places == self._places and len(parts) == len(self._parts)
        same = same and all(a is b for a, b in zip(tensors, self._tensors, strict=True))
        pairs = zip(parts, self._parts, strict=True) if same else ()
        same = same and all(a is b and mode == before for (a, mode), (b, before) in pairs)
        self._tensors, self._places, self._parts = tensors, places, parts
        if not same:
            self._own = None
        return not same

    def settings(self) -> list:
        """The attributes of the parts, such as a share or a function, as of the last change.

        Those that are no numbers, names or functions are told apart by their identity.
        """
        # The state of a TensorDict's own changes while a loss uses it.
        parts = (part for part, _ in self._parts if not isinstance(part, TensorDictParams))
        everything = [vars(part) for part in parts]
        counts = [len(attributes) for attributes in everything]
        if self._own is None or counts != self._counts:  # some were added
            self._own = [(x, name) for x in everything for name in x if name not in _OF_MODULES]
            self._counts = counts
        self._values = [attributes.get(name) for attributes, name in self._own]
        return counts + [x if isinstance(x, _PLAIN) else id(x) for x in self._values]

    def hooked(self, gradients: bool = False) -> bool:
        """Whether hooks are to be called with what parts take or give, as of the last call.

        Args:
            gradients (bool, optional): with the gradients of parameters, too. Defaults to ``False``.
        """
        if _has_any_global_hook() or (gradients and any(x._backward_hooks for x in self._tensors)):
            return True
        return any(
            part._forward_hooks
            or part._forward_pre_hooks
            or part._backward_hooks
            or part._backward_pre_hooks
            for part, _ in self._parts
        )

    def __getstate__(self) -> dict:
        return vars(Watched(self.module))


def _modules(module: nn.Module) -> list[nn.Module]:
    """The module and all within it, in a tenth of the time that ``module.modules()`` takes."""
    modules = [module]
    for part in modules:  # which grows meanwhile
        modules += [child for child in part._modules.values() if child is not None]
    return modules


def _tensors(modules: list[nn.Module]) -> Iterator[Tensor]:
    """Parameters and buffers."""
    for module in modules:
        for found in (module._parameters, module._buffers):
            for value in found.values():
                if value is not None:
                    yield value
