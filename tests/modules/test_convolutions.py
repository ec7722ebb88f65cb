"""The upsampling convolution beside upsampling and a convolution."""

import pytest
import torch
from torch.nn import functional as F

from torchrl_wm.modules.convolutions import UpsamplingConv2d, upsampling_conv


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_one_convolution_does_both(kernel):
    conv = UpsamplingConv2d(2, 3, kernel).double()
    image = torch.randn(2, 2, 3, 5, dtype=torch.double, requires_grad=True)
    weight = torch.randn(2, 3, 6, 10, dtype=torch.double)
    plain = F.conv2d(
        F.interpolate(image, scale_factor=2), conv.weight, conv.bias, padding=kernel // 2
    )
    inputs = (image, conv.weight, conv.bias)
    expected = [plain, *torch.autograd.grad((plain * weight).sum(), inputs)]
    found = conv(image)
    torch.testing.assert_close(
        [found, *torch.autograd.grad((found * weight).sum(), inputs)], expected
    )


def test_it_keeps_the_parameters_of_a_convolution():
    conv = upsampling_conv(2, 3, 5)
    assert {key: value.shape for key, value in conv.state_dict().items()} == {
        "weight": (3, 2, 5, 5),
        "bias": (3,),
    }
    with pytest.raises(ValueError, match="kernel=4 must be odd"):
        upsampling_conv(2, 3, 4)
