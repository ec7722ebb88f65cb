"""How latents are stored: floats in half precision, one-hot variables as class indices."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.envs.transforms import Transform

Codec = torch.dtype | int
"""A float dtype to store, or the number of classes of a flat one-hot latent ``[..., S * K]``."""


class LatentCompression(Transform):
    """Encodes latents on their way into a replay buffer and decodes them to float32 on the way out.

    A one-hot latent takes a byte per variable (DreamerV3: 32 bytes instead of 4,096) and is restored
    exactly; the zeros of rows without a latent are restored as zeros. Straight-through samples, which
    are one-hot up to rounding, are stored as the one-hot they stand for. ``torch.float32`` stores
    values unchanged.

    Args:
        codecs (mapping of NestedKey to torch.dtype or int): for each latent entry the float dtype
            to store, or its number of classes where it is one-hot.

    Raises:
        TypeError: for a codec that is neither a dtype nor a number of classes.
        ValueError: for a latent that is not one-hot or does not fit into the dtype; the message names
            the entry.

    Examples:
        >>> from tensordict import TensorDict
        >>> compression = LatentCompression({"belief": torch.float16, "state": 3})
        >>> latents = TensorDict(
        ...     belief=torch.ones(1, 2), state=torch.tensor([[0.0, 1, 0, 1, 0, 0]]), batch_size=[1])
        >>> stored = compression.inv(latents)
        >>> stored["state"]
        tensor([[2, 1]], dtype=torch.uint8)
        >>> compression(stored)["state"]
        tensor([[0., 1., 0., 1., 0., 0.]])
    """

    def __init__(self, codecs: Mapping[NestedKey, Codec]):
        super().__init__()
        self.codecs = {unravel_key(key): codec for key, codec in codecs.items()}
        for key, codec in self.codecs.items():
            is_dtype = isinstance(codec, torch.dtype) and codec.is_floating_point
            if not is_dtype and not (type(codec) is int and codec >= 2):
                raise TypeError(
                    f"The latent {key!r} needs a float dtype to be stored in, or its number of "
                    f"classes (an int of at least 2) where it is one-hot; got {codec!r}."
                )

    def stored_dtype(self, key: NestedKey) -> torch.dtype:
        """The dtype in which one latent entry is stored."""
        codec = self.codecs[unravel_key(key)]
        return _smallest_integer(codec) if isinstance(codec, int) else codec

    def encode(self, key: NestedKey, latent: Tensor) -> Tensor:
        """The stored form of one latent entry ``[..., D]``."""
        codec = self.codecs[unravel_key(key)]
        if isinstance(codec, int):
            return _encode_one_hot(key, latent, codec)
        stored = latent.to(codec)
        if not stored.isfinite().all():
            raise ValueError(
                f"The latent {key!r} is not finite as {codec}: its largest value is "
                f"{latent.abs().max().item()}. Store it as torch.float32 if that is a number."
            )
        return stored

    def decode(self, key: NestedKey, stored: Tensor) -> Tensor:
        """The latent ``[..., D]`` as float32, from its stored form."""
        codec = self.codecs[unravel_key(key)]
        if isinstance(codec, int):
            classes = torch.arange(1, codec + 1, dtype=stored.dtype, device=stored.device)
            return (stored.unsqueeze(-1) == classes).flatten(-2).float()
        return stored.float()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Decodes the latents of a sample in place."""
        for key in self.codecs:
            tensordict.set(key, self.decode(key, tensordict.get(key)))
        return tensordict

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        # Runs on the way into a buffer, on a shallow copy: the caller's TensorDict is not changed.
        for key in self.codecs:
            tensordict.set(key, self.encode(key, tensordict.get(key)))
        return tensordict


def _encode_one_hot(key: NestedKey, latent: Tensor, classes: int) -> Tensor:
    """Codes 1 to K for the classes and 0 for zeros: ``[..., S * K]`` to ``[..., S]``."""
    if latent.shape[-1] % classes:
        raise ValueError(
            f"The latent {key!r} has {latent.shape[-1]} entries, which is no multiple of the "
            f"{classes} classes it should consist of."
        )
    variables = latent.unflatten(-1, (-1, classes))
    largest, chosen = variables.max(-1)
    is_set = largest > 0.5
    # One large entry and a sum of absolute values that is no larger: all others are zero.
    rest = (variables.abs().sum(-1) - is_set.to(latent.dtype)).abs()
    if not bool(latent.isfinite().all()):
        raise ValueError(
            f"The latent {key!r} is not finite; the network that made it is not, either."
        )
    if not bool(((rest < 1e-3) & ((largest - is_set.to(latent.dtype)).abs() < 1e-3)).all()):
        raise ValueError(
            f"The latent {key!r} is not one-hot in groups of {classes} classes, so it cannot be "
            "stored as class indices; give it a float dtype instead."
        )
    return ((chosen + 1) * is_set).to(_smallest_integer(classes))


def _smallest_integer(largest: int) -> torch.dtype:
    if largest <= torch.iinfo(torch.uint8).max:
        return torch.uint8
    return torch.int16 if largest <= torch.iinfo(torch.int16).max else torch.int32
