import numpy as np
import pytest

from torchrl_wm.ranges import COUNT, NUMBER, RATE, SHARE, Range


@pytest.mark.parametrize(
    ("range_", "inside", "outside"),
    [
        (COUNT, [1, np.int64(3)], [0, 2.0, True, "1", None, float("nan")]),
        (NUMBER, [0, 7], [-1, 0.5]),
        (SHARE, [0, 0.5, np.float32(1)], [-0.1, 1.1, float("nan"), "0.5"]),
        (RATE, [1e-9, 3], [0, -1, float("nan")]),
    ],
)
def test_numbers_in_and_out_of_a_range(range_: Range, inside, outside):
    for value in inside:
        range_.check(option=value)
    for value in outside:
        with pytest.raises(ValueError, match=f"option=.* must be {range_}"):
            range_.check(option=value)


def test_a_whole_number_in_floating_point_is_told_how_to_be_written():
    with pytest.raises(ValueError, match=r"steps=100000\.0 .*: write 100000\."):
        COUNT.check(steps=1e5)
    with pytest.raises(ValueError, match=r"steps=0\.0 must be a whole number of at least 1\.$"):
        COUNT.check(steps=0.0)
