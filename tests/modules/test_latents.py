"""Latents: what the raw outputs mean."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_wm.modules import GaussianLatent


@pytest.mark.parametrize(
    "std, at_zero, at_four",
    [("softplus", math.log(2), math.log1p(math.exp(4))), ("sigmoid", 0.5, 1 / (1 + math.exp(-4))),
     ("sigmoid2", 1.0, 2 / (1 + math.exp(-2)))],
)  # fmt: skip
def test_the_ways_of_a_deviation(std, at_zero, at_four):
    latent = GaussianLatent(2, min_std=0.1, std=std)
    mean, found = latent.statistics(torch.tensor([1.0, 2, 0, 4]))
    assert mean.tolist() == [1.0, 2.0]
    torch.testing.assert_close(found, torch.tensor([at_zero + 0.1, at_four + 0.1]))


def test_an_unknown_deviation_is_named():
    with pytest.raises(ValueError, match="'exp'; expected one of .*'sigmoid2'"):
        GaussianLatent(2, std="exp")
