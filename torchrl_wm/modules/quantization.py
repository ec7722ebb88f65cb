"""Images reduced to fewer bits, as PlaNet's world model sees them."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.data import Composite

from torchrl_wm.functional.images import quantize_image
from torchrl_wm.modules.observations import split_observations


class QuantizeImages(nn.Module):
    """Turns byte images into floats of a few bits, with noise in the dropped ones (arXiv:1811.04551).

    The noise is drawn anew in every call; encoder and likelihood have to see the same draw, so this
    comes before both.

    Args:
        observation_spec (Composite): unbatched specs; all byte images are replaced.
        bits (int): bits that are kept.

    Raises:
        ValueError: where ``bits`` is not within 1 to 8.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Unbounded
        >>> spec = Composite(pixels=Unbounded((3, 64, 64), dtype=torch.uint8))
        >>> out = QuantizeImages(spec, bits=5)(TensorDict(spec.rand(), batch_size=[]))
        >>> out["pixels"].dtype, bool((out["pixels"] < 1).all())
        (torch.float32, True)
    """

    def __init__(self, observation_spec: Composite, bits: int):
        super().__init__()
        if not 1 <= bits <= 8:
            raise ValueError(f"image_bits={bits} must be within 1 and 8.")
        _, images = split_observations(observation_spec)
        self.keys = [key for key, spec in images.items() if spec.dtype == torch.uint8]
        self.bits = bits

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """A shallow copy of the TensorDict ``[...]`` with the images as floats in [0, 1)."""
        out = tensordict.copy()
        for key in self.keys:
            out.set(key, quantize_image(tensordict.get(key), self.bits))
        return out
