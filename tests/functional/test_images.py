from __future__ import annotations

import pytest
import torch

from torchrl_wm.functional.images import centre_image, image_to_uint8, quantize_image


@pytest.mark.golden("planet_preprocess")
def test_quantized_pictures_equal_the_reference(golden):
    bits = golden.cfg["bits"]
    image = quantize_image(golden["in/image"], bits, noise=golden["in/uniform"])
    golden.close(centre_image(image), "out/image")
    golden.close(image_to_uint8(golden["out/image"] + 0.5, bits), "out/postprocess_uint8")


def test_noise_is_drawn_within_one_step():
    image = quantize_image(torch.zeros(10000, dtype=torch.uint8))
    assert image.min() >= 0 and image.max() < 1 / 32
    assert image.mean().item() == pytest.approx(1 / 64, rel=0.05)


def test_bytes_and_floats_are_centred_alike():
    image = torch.arange(256, dtype=torch.uint8)
    torch.testing.assert_close(centre_image(image), centre_image(image.float() / 255))


def test_a_float_picture_cannot_be_quantized():
    with pytest.raises(TypeError, match="uint8"):
        quantize_image(torch.zeros(3))


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits={bits}"):
        quantize_image(torch.zeros(3, dtype=torch.uint8), bits)
