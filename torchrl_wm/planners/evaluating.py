"""Evaluation mode for the time of a plan or a search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode afterwards.

    Recorded operations are those of one mode, and a plan must not move the statistics of a batch norm.

    Examples:
        >>> dropout = nn.Dropout()
        >>> with evaluating(dropout):
        ...     dropout.training
        False
        >>> dropout.training
        True
    """
    training = [part for part in module.modules() if part.training]
    for part in training:  # not by assignment, which first searches the module for parameters
        vars(part)["training"] = False
    try:
        yield
    finally:
        for part in training:
            vars(part)["training"] = True
