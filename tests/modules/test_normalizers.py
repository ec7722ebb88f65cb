from __future__ import annotations

import pytest
import torch
from torchrl.modules import PercentileValueNorm

from torchrl_wm.modules.normalizers import ReturnNormalizer


@pytest.mark.golden("v3_norm")
def test_statistics_equal_the_reference(golden):
    cfg = golden.cfg
    normalizer = ReturnNormalizer(
        "percentile" if cfg["is_perc"] else "mean_std",
        rate=cfg["rate"],
        limit=cfg["limit"],
        percentiles=(cfg["perclo"], cfg["perchi"]),
        debias=bool(cfg["debias"]),
    )
    golden.close(normalizer.offset(), "out/offset_before")
    golden.close(normalizer.scale(), "out/scale_before")
    offsets, scales = [], []
    for returns in golden["in/x"]:
        normalizer.update(returns)
        offsets.append(normalizer.offset())
        scales.append(normalizer.scale())
    golden.close(torch.stack(offsets), "out/offset")
    golden.close(torch.stack(scales), "out/scale")


def test_percentiles_equal_those_of_torchrl():
    ours, theirs = ReturnNormalizer(), PercentileValueNorm()
    for _ in range(3):
        returns = 50 * torch.randn(8, 5, 1)
        ours.update(returns)
        theirs.update(returns)
    torch.testing.assert_close(ours.scale(), theirs.scale()[0])


@pytest.mark.parametrize("statistic", ["percentile", "mean_std"])
def test_normalizing_is_undone_and_saved(statistic):
    normalizer = ReturnNormalizer(statistic, debias=True)
    returns = 3 * torch.randn(100, 4) + 7
    normalizer.update(returns)
    again = ReturnNormalizer(statistic, debias=True)
    again.load_state_dict(normalizer.state_dict())
    torch.testing.assert_close(again.denormalize(normalizer.normalize(returns)), returns)


def test_an_unknown_statistic_is_named():
    with pytest.raises(ValueError, match="'median'"):
        ReturnNormalizer("median")
