"""Equations on plain tensors."""

from torchrl_wm.functional.divergences import categorical_kl, gaussian_kl
from torchrl_wm.functional.images import (
    centre_image,
    image_to_uint8,
    quantize_image,
    scale_image,
)
from torchrl_wm.functional.returns import lambda_return
from torchrl_wm.functional.transforms import (
    symexp,
    symexp_bins,
    symlog,
    two_hot,
    two_hot_log_prob,
    two_hot_mean,
)

__all__ = [
    "categorical_kl",
    "centre_image",
    "gaussian_kl",
    "image_to_uint8",
    "lambda_return",
    "quantize_image",
    "scale_image",
    "symexp",
    "symexp_bins",
    "symlog",
    "two_hot",
    "two_hot_log_prob",
    "two_hot_mean",
]
