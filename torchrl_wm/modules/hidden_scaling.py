"""Scaling of hidden states."""

from __future__ import annotations

from torch import Tensor, nn

from torchrl_wm.functional.scaling import min_max_scale, simnorm


class HiddenScaling(nn.Module):
    """Keeps hidden states in a fixed range, so that neither losses nor unrolling make them explode.

    Args:
        kind (str): ``"minmax"`` to [0, 1] (MuZero), ``"simnorm"`` (TD-MPC2) or ``"none"``.

    Keyword Args:
        shape (tuple of int, optional): ``(C, H, W)`` where the hidden state is a map flattened as
            height, width, channel: each channel is scaled on its own.

    Raises:
        ValueError: for an unknown kind; the message lists the valid ones.

    Examples:
        >>> import torch
        >>> HiddenScaling("minmax")(torch.tensor([2.0, 3.0, 4.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """

    KINDS = ("minmax", "simnorm", "none")

    def __init__(self, kind: str, *, shape: tuple[int, int, int] | None = None):
        super().__init__()
        if kind not in self.KINDS:
            raise ValueError(f"Unknown scaling {kind!r}; expected one of {list(self.KINDS)}.")
        self.kind, self.shape = kind, shape

    def forward(self, hidden: Tensor) -> Tensor:
        """Scaled hidden states, shaped as the input ``[..., S]``."""
        if self.kind == "none":
            return hidden
        if self.kind == "simnorm":
            return simnorm(hidden)
        if self.shape is None:
            return min_max_scale(hidden)
        positions = hidden.unflatten(-1, (-1, self.shape[0]))
        return min_max_scale(positions, -2).flatten(-2)
