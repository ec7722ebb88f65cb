"""Frames to observations: shrinking by area and moving the channels to the front."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def area_resize(image: np.ndarray, size: int) -> np.ndarray:
    """Shrinks an image so that every new pixel is the mean of the area that it covers.

    Thin objects (the ball of Pong) survive, unlike under interpolation between pixels. Each row and
    column is a weighted mean, so this takes two matrix products.

    Args:
        image (array): ``[H, W, C]`` uint8.
        size (int): new height and width, at most the old ones for true area means.

    Returns:
        ``[size, size, C]`` uint8.

    Examples:
        >>> image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
        >>> area_resize(image, 2)[..., 0].tolist()
        [[2, 4], [10, 12]]
    """
    height, width, channels = image.shape
    if (height, width) == (size, size):
        return np.array(image)
    rows = _weights(height, size)
    columns = _weights(width, size)
    shrunk = (rows @ image.reshape(height, -1).astype(np.float32)).reshape(size, width, channels)
    shrunk = columns @ shrunk
    return np.rint(shrunk).clip(0, 255).astype(np.uint8)


def channels_first(image: np.ndarray) -> np.ndarray:
    """Image ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]`` to contiguous ``[C, H, W]``.

    The two dimensions that are equal are height and width; where that does not tell, the channels are the
    smaller of the two outer dimensions.

    Examples:
        >>> channels_first(np.zeros((8, 8, 3))).shape, channels_first(np.zeros((4, 8, 8))).shape
        ((3, 8, 8), (4, 8, 8))
    """
    if image.ndim == 2:
        image = image[None]
    elif _channels_are_last(*image.shape):
        image = np.moveaxis(image, -1, 0)
    return np.ascontiguousarray(image)


def _channels_are_last(first: int, second: int, third: int) -> bool:
    if (first == second) != (second == third):
        return first == second
    return third < first


@lru_cache(maxsize=16)
def _weights(old: int, new: int) -> np.ndarray:
    """``[new, old]``: the share of each old pixel in each new one; rows sum to one."""
    edges = np.arange(new + 1) * (old / new)
    pixels = np.arange(old)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(0) * (new / old)).astype(np.float32)
