"""Means over unmasked steps."""

from __future__ import annotations

from torch import Tensor


def masked_mean(value: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of ``value [...]`` over the steps where ``mask`` (``[...]`` or ``[..., 1]``) is True.

    Padded steps may hold any finite numbers; a NaN there is left out of the mean, but gradients through
    it would still be NaN. Without any unmasked step the mean is 0.

    Examples:
        >>> import torch
        >>> masked_mean(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    if mask is None:
        return value.mean()
    mask = mask.reshape(value.shape)
    return value.where(mask, value.new_zeros(())).sum() / mask.sum().clamp_min(1)
