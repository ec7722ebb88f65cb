"""Draws are those of their generator, whatever draws them, and have the distributions that they name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from torchrl_wm.functional import coloured_noise
from torchrl_wm.modules.latents import CategoricalLatent
from torchrl_wm.programs import draws
from torchrl_wm.programs.draws import FEWEST, unit_exponential, unit_normal

MANY = 200_003  # not a multiple of four, and worth several threads
DRAWS = unit_normal, unit_exponential
CDF = {unit_normal: torch.special.ndtr, unit_exponential: lambda x: 1 - (-x).exp()}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """In the words of the paper, section 3.3: ten rounds of multiplications whose halves are mixed."""
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (second >> 32) ^ counter[1] ^ key[0],
            second % 2**32,
            (first >> 32) ^ counter[3] ^ key[1],
            first % 2**32,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def test_words_are_those_of_philox():
    known = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # of nothing but zeros, as published
    assert philox([0] * 4, [0] * 2) == known
    rng = np.random.default_rng(0)
    for place, low, high in [(0, 0, 0), *rng.integers(2**32, size=(20, 3)).tolist()]:
        found = draws.words(place, np.uint32(low), np.uint32(high))
        assert [int(word) for word in found] == philox([place, 0, 0, 0], [low, high])


def test_numbers_are_transformed_words():
    found = np.empty((4, 100), np.float32)
    draws.fill_normal(found, 0, 100, np.uint32(1), np.uint32(2))
    waits = np.empty((4, 100), np.float32)
    draws.fill_exponential(waits, 0, 100, np.uint32(1), np.uint32(2))
    for place in range(100):
        words = np.array(philox([place, 0, 0, 0], [1, 2]), np.uint32)
        uniform = ((words >> 9) + 0.5) / 2**23
        assert waits[:, place] == pytest.approx(-np.log(uniform), rel=1e-6, abs=1e-7)
        radius = np.sqrt(-2 * np.log(uniform[[0, 2]]))
        assert np.hypot(*found[:2, place]) == pytest.approx(radius[0], rel=2e-6)
        assert np.hypot(*found[2:, place]) == pytest.approx(radius[1], rel=2e-6)
        eighth = np.tan(words[[1, 3]].view(np.int32) / 2**31 * np.pi / 4)
        tangent = np.abs(found[[0, 2], place] / found[[1, 3], place])
        assert np.minimum(tangent, 1 / tangent) == pytest.approx(np.abs(eighth), rel=1e-5)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("count", [FEWEST // 2, MANY], ids=["torch", "program"])
def test_distributions(draw, count):
    found = draw([count], generator=seeded()).double()
    # Kolmogorov and Smirnov: 1.95 is exceeded once in a thousand.
    levels = CDF[draw](found.sort().values)
    places = torch.arange(count) / count
    assert (levels - places).abs().max() * count**0.5 < 1.95
    assert found.isfinite().all() and (draw is unit_normal or found.min() > 0)


@pytest.mark.parametrize("draw", DRAWS)
def test_numbers_are_independent_of_their_neighbours(draw):
    found = draw([4 * MANY], generator=seeded())
    levels = 12**0.5 * (CDF[draw](found.double()) - 0.5)  # mean 0, variance 1
    other = 12**0.5 * (CDF[draw](draw([4 * MANY], generator=seeded(1)).double()) - 0.5)
    pairs = [(levels[lag:], levels[:-lag]) for lag in (1, 2, 4, 16, MANY)] + [(levels, other)]
    for one, another in pairs:
        for power in (1, 2):
            a, b = one**power - one.pow(power).mean(), another**power - another.pow(power).mean()
            assert (a * b).mean().abs() / (a.std() * b.std()) * len(a) ** 0.5 < 4


@pytest.mark.parametrize("draw", DRAWS)
def test_the_generator_decides(draw):
    def twice(generator: torch.Generator) -> Tensor:
        return torch.stack([draw([3, MANY], generator=generator) for _ in range(2)])

    found = twice(seeded())
    assert torch.equal(found, twice(seeded())) and not torch.equal(found, twice(seeded(1)))
    assert not (found[0] == found[1]).float().mean() > 0.01
    torch.manual_seed(0)
    expected = draw([MANY])
    torch.manual_seed(0)
    assert torch.equal(draw([MANY]), expected)


@pytest.mark.parametrize("draw", DRAWS)
def test_threads_do_not_matter(draw, monkeypatch):
    monkeypatch.setattr(draws, "_SHARE", 1000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = draw([MANY], generator=seeded())
        torch.set_num_threads(3)
        assert torch.equal(draw([MANY], generator=seeded()), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("draw", DRAWS)
def test_torch_draws_where_a_program_cannot(draw):
    shape = (2, MANY)
    assert draw(shape, dtype=torch.float64).dtype == torch.float64
    assert draw(shape, device="meta").is_meta
    compiled = torch.compile(lambda: draw(shape), backend="eager", fullgraph=True)
    assert compiled().shape == shape
    mapped = torch.vmap(lambda x: x + draw(shape), randomness="different")(torch.zeros(3, 1, 1))
    assert mapped.shape == (3, *shape) and not torch.equal(mapped[0], mapped[1])
    with FlopCounterMode(display=False):
        assert draw(shape).shape == shape
    with torch.inference_mode():
        assert draw(shape).shape == shape


def test_latents_and_coloured_noise_draw_so():
    torch.manual_seed(0)
    expected = unit_exponential([1000, 96]).reciprocal_()
    torch.manual_seed(0)
    assert torch.equal(CategoricalLatent(8, 12).noise((1000,)), expected)
    expected = unit_normal([1000, 96], generator=seeded())
    assert torch.equal(coloured_noise([1000, 96], 0.0, generator=seeded()), expected)
