"""Whether something else than torch's kernels is to see the operations."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode


def is_intercepted() -> bool:
    """Whether they pass through a transformation, a counter or a recording, or something keeps their values.

    Examples:
        >>> from torch.utils.flop_counter import FlopCounterMode
        >>> with FlopCounterMode(display=False):
        ...     is_intercepted()
        True
    """
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    kept = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    counted = _get_current_dispatch_mode() is not None
    return transformed or kept or counted or forward_ad._current_level >= 0
