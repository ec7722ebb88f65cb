"""The choices of networks that PlaNet and each Dreamer made."""

from __future__ import annotations

from typing import Literal

Style = Literal["planet", "v1", "v2", "v3"]

NETWORKS = {
    "planet": {"activation": "relu", "norm": None, "init": "glorot"},
    "v1": {"activation": "elu", "norm": None, "init": "glorot"},
    "v2": {"activation": "elu", "norm": None, "init": "glorot"},
    "v3": {"activation": "silu", "norm": "rms", "init": "trunc_normal"},
}
"""Arguments of dense networks (``MLP``, ``Head``) by style."""

SIZES = {
    "planet": {"depth": 32, "layers": 3, "units": 300},
    "v1": {"depth": 32, "layers": 4, "units": 400},
    "v2": {"depth": 48, "layers": 4, "units": 400},
    "v3": {"depth": 64, "layers": 3, "units": 1024},
}
"""Sizes of encoders and decoders by style: unit of channels, layers and units for vectors."""


def check_style(style: str) -> None:
    """Raises a ValueError for an unknown style.

    Examples:
        >>> check_style("v3")
    """
    if style not in NETWORKS:
        raise ValueError(f"Unknown style {style!r}; expected one of {sorted(NETWORKS)}.")
