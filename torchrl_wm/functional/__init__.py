"""Equations on plain tensors."""

from torchrl_wm.functional.divergences import categorical_kl, gaussian_kl
from torchrl_wm.functional.frames import stack_frames
from torchrl_wm.functional.images import (
    centre_image,
    image_to_uint8,
    quantize_image,
    scale_image,
)
from torchrl_wm.functional.n_step import n_step_returns, steps_of_age, value_prefixes
from torchrl_wm.functional.noise import coloured_noise, gumbel_noise
from torchrl_wm.functional.priorities import importance_weights, priority_probabilities
from torchrl_wm.functional.returns import discount_of_length, lambda_return
from torchrl_wm.functional.scaling import min_max_scale, simnorm
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
    "coloured_noise",
    "discount_of_length",
    "gaussian_kl",
    "gumbel_noise",
    "image_to_uint8",
    "importance_weights",
    "lambda_return",
    "min_max_scale",
    "n_step_returns",
    "priority_probabilities",
    "quantize_image",
    "scale_image",
    "simnorm",
    "stack_frames",
    "steps_of_age",
    "symexp",
    "symexp_bins",
    "symlog",
    "two_hot",
    "two_hot_log_prob",
    "two_hot_mean",
    "value_prefixes",
]
