"""Averages over the steps that count."""

from __future__ import annotations

from torch import Tensor


def masked_mean(value: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of ``value [...]`` over the steps where ``mask`` (``[...]`` or ``[..., 1]``) is True.

    Padded steps may hold any finite numbers; what is computed from a not-a-number there is left out of
    the mean, but its gradient would still be one. Where no step counts the mean is 0.

    Examples:
        >>> import torch
        >>> masked_mean(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    if mask is None:
        return value.mean()
    mask = mask.reshape(value.shape)
    return value.where(mask, value.new_zeros(())).sum() / mask.sum().clamp_min(1)
