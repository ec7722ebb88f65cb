"""Ranges of numeric options, and the error for a number outside."""

from __future__ import annotations

import argparse
import math
from numbers import Integral, Real
from typing import Any, NamedTuple


class Range(NamedTuple):
    """Finite numbers from ``low`` to ``high``, except those that are ``excluded``."""

    low: float
    high: float = math.inf
    whole: bool = False
    excluded: tuple[float, ...] = ()

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        return self.low <= value <= self.high and value not in (*self.excluded, math.inf)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.high < math.inf:
            text = f"{kind} from {self.low} to {self.high}"
            return text + "".join(f", but not {number}" for number in self.excluded)
        return f"{kind} {'above' if self.low in self.excluded else 'of at least'} {self.low}"

    def check(self, **options: Any) -> None:
        """Checks options by their names.

        Raises:
            ValueError: names the option, its value and the valid range.

        Examples:
            >>> COUNT.check(num_envs=4, action_repeat=0)
            Traceback (most recent call last):
            ValueError: action_repeat=0 must be a whole number of at least 1.
            >>> COUNT.check(total_steps=1e5)
            Traceback (most recent call last):
            ValueError: total_steps=100000.0 must be a whole number of at least 1: write 100000.
        """
        for name, value in options.items():
            if value not in self:
                unwritten = self.whole and isinstance(value, float) and value.is_integer()
                hint = f": write {int(value)}" if unwritten and int(value) in self else ""
                raise ValueError(f"{name}={value!r} must be {self}{hint}.")

    def parse(self, text: str) -> float:
        """The number in an argument of a command, as a ``type`` for :mod:`argparse`.

        Raises:
            argparse.ArgumentTypeError: names the argument's value and the valid range.

        Examples:
            >>> COUNT.parse("3")
            3
        """
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            value = None
        if value is None or value not in self:
            raise argparse.ArgumentTypeError(f"{text!r} must be {self}")
        return value


SHARE, WEIGHT, RATE = Range(0, 1), Range(0), Range(0, excluded=(0,))
NUMBER, COUNT = Range(0, whole=True), Range(1, whole=True)
