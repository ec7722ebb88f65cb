from __future__ import annotations

import numpy as np
import pytest

from torchrl_wm.envs.images import area_resize, channels_first


@pytest.mark.parametrize("shape", [(210, 160, 3), (64, 100, 1), (7, 5, 3)])
def test_area_resize_equals_the_mean_over_a_fine_grid(shape):
    size = 4
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    # Blown up to a common multiple, every new pixel is the plain mean of whole blocks.
    fine = image.repeat(size, 0).repeat(size, 1).astype(np.float64)
    blocks = fine.reshape(size, shape[0], size, shape[1], shape[2]).mean((1, 3))
    found = area_resize(image, size)
    assert found.dtype == np.uint8
    assert np.abs(found - blocks).max() <= 0.5 + 1e-3


def test_equal_size_is_copied():
    image = np.ones((8, 8, 3), np.uint8)
    assert not np.shares_memory(area_resize(image, 8), image)


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 3), (3, 8, 9)])
def test_channels_come_first(shape):
    found = channels_first(np.zeros(shape))
    assert found.shape == (1 if len(shape) == 2 else 3, 8, 9)
    assert found.flags.c_contiguous


@pytest.mark.parametrize(
    ("shape", "channels"), [((17, 8, 8), 17), ((8, 8, 17), 17), ((8, 8, 8), 8), ((9, 6, 2), 2)]
)
def test_planes_of_boards_may_be_more_than_their_columns(shape, channels):
    assert channels_first(np.zeros(shape)).shape[0] == channels
