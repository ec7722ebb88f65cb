from __future__ import annotations

import pytest
import torch

from torchrl_wm.functional import min_max_scale, simnorm


@pytest.mark.golden("misc*")
def test_scaling_equals_the_recorded_one(golden):
    golden.close(min_max_scale(golden["minmax_in"]), "minmax_out", 1e-9)
    golden.close(min_max_scale(golden["minmax_conv_in"], (-2, -1)), "minmax_conv_out", 1e-9)
    golden.close(simnorm(golden["simnorm_in"], int(golden["simnorm_group"])), "simnorm_out", 1e-6)


def test_equal_numbers_have_a_finite_gradient():
    x = torch.ones(3, 4, requires_grad=True)
    min_max_scale(x).sum().backward()
    assert x.grad.isfinite().all()


def test_groups_must_divide_the_size():
    with pytest.raises(ValueError, match="group=8 must divide the size 12"):
        simnorm(torch.zeros(12))
