import pytest

from torchrl_wm.training import UpdateRatio


def _drain(ratio, additions):
    due = []
    for count in additions:
        ratio.add(count)
        due.append(ratio.due)
        while ratio.due:
            ratio.take()
    return due


def test_train_ratio_counts_replayed_rows_per_collected_row():
    ratio = UpdateRatio(train_ratio=32, batch_steps=16 * 64)
    assert sum(_drain(ratio, [1] * 320)) == 10
    ratio = UpdateRatio(train_ratio=1024, batch_steps=16 * 64)
    assert _drain(ratio, [1] * 5) == [1] * 5
    ratio = UpdateRatio(train_ratio=2560, batch_steps=16 * 64)
    assert _drain(ratio, [1] * 4) == [2, 3, 2, 3]


def test_remainder_is_kept_whatever_the_size_of_a_batch():
    for size in (1, 3, 7, 16):
        ratio = UpdateRatio(train_ratio=0.3, batch_steps=1)
        assert sum(_drain(ratio, [size] * (1680 // size))) == 504


def test_burst_cadence():
    ratio = UpdateRatio(100, 500)
    assert _drain(ratio, [25] * 41)[19:41:20] == [100, 100]
    assert sum(_drain(ratio, [25])) == 0


def test_first_updates_are_due_at_once():
    ratio = UpdateRatio(1, 5, first=100)
    assert ratio.due == 100


def test_state_continues_in_the_middle():
    ratio, other = (
        UpdateRatio(train_ratio=3, batch_steps=8),
        UpdateRatio(train_ratio=3, batch_steps=8),
    )
    ratio.add(5)
    other.load_state_dict(ratio.state_dict())
    assert _drain(ratio, [1] * 9) == _drain(other, [1] * 9)


@pytest.mark.parametrize(
    "options",
    [{}, {"every": 5, "train_ratio": 2.0, "batch_steps": 4}, {"train_ratio": 1.0}, {"every": 0}]
    + [{"every": 5, "updates": -1}, {"every": 5, "updates": 2.5}, {"every": 5, "first": -1}],
)
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match="train_ratio|every|batch_steps|updates|first"):
        UpdateRatio(**options)


def test_taking_what_is_not_due_raises():
    with pytest.raises(RuntimeError, match="No update is due"):
        UpdateRatio(1, 5).take()


def test_bursts_keep_the_train_ratio():
    ratio = UpdateRatio(4, train_ratio=32, batch_steps=16 * 64)
    due = _drain(ratio, [1] * 320)
    assert sum(due) == 8 and set(due) == {0, 4}  # 10, if the last burst were complete
