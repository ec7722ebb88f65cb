"""Which entries of an observation are images, which are vectors, and which sizes networks accept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, OneHot, TensorSpec

from torchrl_wm.modules.encoding import encoded_size, sorted_leaves

Observations = TensorDictBase | Mapping[NestedKey, Tensor]
Specs = Mapping[NestedKey, TensorSpec]


def split_observations(observation_spec: Composite) -> tuple[dict, dict]:
    """The vector entries and the image entries of a spec, each sorted by key.

    An image is a three-dimensional entry ``[C, H, W]`` of bytes (0 to 255), of booleans (the planes of a
    board), or of floats with at least 8 rows and columns; all else counts as a vector.

    Raises:
        ValueError: for a spec without entries or an image whose channels come last.
        TypeError: for a spec that has no flat form; the message names the entry.

    Examples:
        >>> from torchrl.data import Unbounded
        >>> spec = Composite(a=Unbounded((3, 64, 64), dtype=torch.uint8), b=Unbounded((2,)))
        >>> [list(entries) for entries in split_observations(spec)]
        [['b'], ['a']]
    """
    leaves = sorted_leaves(observation_spec, "observation")
    if not leaves:
        raise ValueError("The observation spec has no entry; there is nothing to encode.")
    images = {key: spec for key, spec in leaves.items() if _is_image(key, spec)}
    vectors = {key: spec for key, spec in leaves.items() if key not in images}
    for key, spec in vectors.items():
        encoded_size(key, spec)
    return vectors, images


def read(observations: Observations, key: NestedKey) -> Tensor:
    """The entry ``key``.

    Raises:
        KeyError: where it is missing; the message names the entries found.
    """
    value = observations.get(key, None)
    if value is None:
        nested = isinstance(observations, TensorDictBase)
        found = observations.keys(True, True) if nested else observations
        raise KeyError(f"The observation {key!r} is missing; found {sorted(map(str, found))}.")
    return value


def image_shape(specs: Specs) -> tuple[int, int, int]:
    """Channels of all images together, their common height and width.

    Raises:
        ValueError: where two images differ in height or width.
    """
    sizes = {key: tuple(spec.shape[-2:]) for key, spec in specs.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"Pictures of one model must agree in height and width; found {sizes}.")
    return sum(spec.shape[0] for spec in specs.values()), *next(iter(sizes.values()))


def check_size_64(specs: Specs) -> None:
    """Raises a ValueError where an image is not 64x64."""
    for key, spec in specs.items():
        if tuple(spec.shape[-2:]) != (64, 64):
            raise ValueError(
                f"The picture {key!r} has the size {tuple(spec.shape[-2:])}; the networks of "
                "PlaNet, Dreamer v1 and v2 take 64x64. Make the environment with image_size=64 "
                "(env.image_size=64), add torchrl.envs.Resize (needs torchvision), or use style 'v3'."
            )


def final_size(specs: Specs, halvings: int) -> tuple[int, int]:
    """Height and width after halving ``halvings`` times.

    Raises:
        ValueError: where that leaves a remainder or ends outside 3 to 16.
    """
    factor = 2**halvings
    for key, spec in specs.items():
        size = tuple(spec.shape[-2:])
        if any(n % factor or not 3 <= n // factor <= 16 for n in size):
            raise ValueError(
                f"The picture {key!r} has the size {size}; halved {halvings} times it must leave "
                f"3 to 16 rows and columns. Take a multiple of {factor} from {3 * factor} to {16 * factor}: "
                f"make the environment with such an image_size (env.image_size={4 * factor}) or add "
                "torchrl.envs.Resize (needs torchvision); or torchrl.envs.FlattenObservation for an MLP."
            )
    return size[0] // factor, size[1] // factor


def _is_image(key: NestedKey, spec: TensorSpec) -> bool:
    classes = isinstance(spec, Categorical | MultiCategorical | OneHot)
    if len(spec.shape) != 3 or classes:
        return False
    channels, height, width = spec.shape
    floating = spec.dtype.is_floating_point
    if width <= 4 < channels and (
        spec.dtype == torch.uint8 or floating and min(channels, height) >= 8
    ):
        raise ValueError(
            f"The picture {key!r} has the shape {tuple(spec.shape)} with its channels last; "
            "expected [C, H, W]. Add torchrl.envs.ToTensorImage or PermuteTransform((-1, -3, -2))."
        )
    if spec.dtype in (torch.uint8, torch.bool):
        return True
    if not floating or min(height, width) < 8:
        return False
    low, high = (
        (spec.space.low.min(), spec.space.high.max()) if isinstance(spec, Bounded) else (0, 1)
    )
    if 1 < high < float("inf") or -float("inf") < low < 0:
        raise ValueError(
            f"The picture {key!r} has floats from {low:g} to {high:g}; expected bytes, or "
            "floats in [0, 1]. Add torchrl.envs.ToTensorImage, or scale it where it is made."
        )
    return True
