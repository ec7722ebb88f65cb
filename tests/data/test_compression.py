from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch.nn import functional as F

from torchrl_wm.data import LatentCompression


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(2, torch.uint8), (32, torch.uint8), (255, torch.uint8), (256, torch.int16)],
)
def test_one_hot_comes_back_exactly(classes, dtype):
    torch.manual_seed(0)
    state = F.one_hot(torch.randint(classes, (5, 7, 3)), classes).float().flatten(-2)
    state[1] = 0
    compression = LatentCompression({("model", "state"): classes})
    stored = compression.encode(("model", "state"), state)
    assert stored.shape == (5, 7, 3) and stored.dtype == dtype
    assert stored.dtype == compression.stored_dtype(("model", "state"))
    back = compression.decode(("model", "state"), stored)
    assert back.dtype == torch.float32 and torch.equal(back, state)


def test_straight_through_sample_becomes_its_one_hot():
    hard = torch.eye(4)
    soft = torch.rand(4, 4).softmax(-1)
    compression = LatentCompression({"state": 4})
    assert torch.equal(
        compression.decode("state", compression.encode("state", hard + soft - soft)), hard
    )


def test_half_precision_is_close_and_float32_is_equal():
    latents = TensorDict(a=torch.randn(9, 5), b=torch.randn(9, 5), c=torch.randn(9), batch_size=[9])
    compression = LatentCompression({"a": torch.float16, "b": torch.float32})
    stored = compression.inv(latents)
    assert stored["a"].dtype == torch.float16 and latents["a"].dtype == torch.float32
    back = compression(stored.clone())
    torch.testing.assert_close(back["a"], latents["a"], rtol=1e-3, atol=1e-3)
    assert torch.equal(back["b"], latents["b"]) and torch.equal(back["c"], latents["c"])


@pytest.mark.parametrize(
    "state",
    [
        [0.5, 0.5, 0.0],
        [1.0, 1.0, 0.0],
        [0.0, 2.0, 0.0],
        [1.0, -1.0, 0.0],
        [0.3, 0.0, 0.0],
        [-1.0, 0.0, 0.0],
    ],
)
def test_what_is_not_one_hot_is_refused(state):
    with pytest.raises(ValueError, match="'state' is not one-hot in groups of 3"):
        LatentCompression({"state": 3}).encode("state", torch.tensor([state]))


def test_wrong_number_of_classes():
    with pytest.raises(ValueError, match="'state' has 4 entries.*3 classes"):
        LatentCompression({"state": 3}).encode("state", torch.eye(4))


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_overflow_and_nan_are_refused(value):
    with pytest.raises(ValueError, match="'belief' is not finite as torch.float16"):
        LatentCompression({"belief": torch.float16}).encode("belief", torch.tensor([[value]]))


def test_classes_that_are_no_numbers_are_not_blamed_on_their_codec():
    with pytest.raises(ValueError, match="'state' is not finite"):
        LatentCompression({"state": 3}).encode("state", torch.full((1, 3), float("nan")))


@pytest.mark.parametrize("codec", [torch.int64, 1, True, "half", 2.0])
def test_bad_codec(codec):
    with pytest.raises(TypeError, match="'belief' needs a float dtype"):
        LatentCompression({"belief": codec})
