"""Observations as one flat vector, and back."""

from __future__ import annotations

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Binary, Composite

from torchrl_wm.functional.images import centre_image
from torchrl_wm.functional.transforms import symexp, symlog
from torchrl_wm.modules.encoding import decode_leaf, encode_leaf, encoded_size, groups
from torchrl_wm.modules.observations import Observations, read, split_observations


class FlatEncoder(nn.Module):
    """Joins all observations to one vector by a fixed, invertible map.

    Plain numbers go through symlog, which keeps small numbers and compresses large ones to a few units,
    whatever has been observed so far. (Running statistics would change the meaning of the latents that a
    replay stores.) Classes become one-hot vectors; images lie in [-0.5, 0.5].

    Args:
        observation_spec (Composite): unbatched, nested or not.

    Raises:
        ValueError: for a spec without entries.
        TypeError: for a spec that has no flat form; the message names the entry.

    Examples:
        >>> from torchrl.data import Categorical, Unbounded
        >>> encoder = FlatEncoder(Composite(gear=Categorical(3), speed=Unbounded(1)))
        >>> code = encoder(dict(gear=torch.tensor(2), speed=torch.tensor([2.5])))
        >>> code
        tensor([0.0000, 0.0000, 1.0000, 1.2528])
        >>> encoder.inverse(code)
        {'gear': tensor(2), 'speed': tensor([2.5000])}
    """

    def __init__(self, observation_spec: Composite):
        super().__init__()
        vectors, self.images = split_observations(observation_spec)
        self.specs = {**vectors, **self.images}
        self.sizes = [encoded_size(key, spec) for key, spec in self.specs.items()]
        self.out_features = sum(self.sizes)

    @property
    def shapes(self) -> dict[NestedKey, torch.Size]:
        """The unbatched shape of each entry."""
        return {key: spec.shape for key, spec in self.specs.items()}

    @property
    def in_keys(self) -> list[NestedKey]:
        """The entries that are read."""
        return list(self.specs)

    def forward(self, observations: Observations) -> Tensor:
        """Observations with any leading dimensions to ``[..., out_features]``."""
        return torch.cat([self._encode(key, read(observations, key)) for key in self.specs], -1)

    def inverse(self, code: Tensor) -> dict[NestedKey, Tensor]:
        """The observations of a code ``[..., out_features]``; images as floats in [0, 1]."""
        parts = zip(self.specs, code.split(self.sizes, -1), strict=True)
        return {key: self._decode(key, part) for key, part in parts}

    def _encode(self, key: NestedKey, value: Tensor) -> Tensor:
        if key in self.images:
            return centre_image(value).flatten(-3)
        flat = encode_leaf(self.specs[key], value)
        return symlog(flat) if self._plain(key) else flat

    def _decode(self, key: NestedKey, flat: Tensor) -> Tensor:
        if key in self.images:
            return (flat + 0.5).unflatten(-1, self.specs[key].shape)
        return decode_leaf(self.specs[key], symexp(flat) if self._plain(key) else flat)

    def _plain(self, key: NestedKey) -> bool:
        return groups(self.specs[key]) is None and not isinstance(self.specs[key], Binary)
