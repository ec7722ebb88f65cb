import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from torchrl_wm.training import EvaluationResult, MetricLog
from torchrl_wm.training.logging import CsvFile


def test_files_are_written_and_readable(tmp_path):
    log = MetricLog(tmp_path)
    log.write_metrics(10, 1.0, {"loss": 0.5})
    log.write_metrics(20, 2.0, {"loss": 0.25, "episode_return": 3.0})
    log.write_evaluation(20, 2.5, EvaluationResult([1.0, 3.0], [4, 6]))
    log.close()
    rows = CsvFile(tmp_path / "metrics.csv").rows()
    assert [row["loss"] for row in rows] == ["0.5", "0.25"]
    assert [row["episode_return"] for row in rows] == ["", "3.0"]
    (row,) = CsvFile(tmp_path / "evaluation.csv").rows()
    assert (row["mean"], row["std"], row["min"], row["max"]) == ("2.0", "1.0", "1.0", "3.0")
    assert (row["episodes"], row["returns"], row["step"]) == ("2", "1 3", "20")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 0.5), (20, 0.25)]
    assert events.Scalars("evaluation/mean")[0].value == 2.0


def test_resumed_log_drops_what_will_be_written_again(tmp_path):
    log = MetricLog(tmp_path, tensorboard=False)
    log.write_metrics(10, 1.0, {"loss": 1.0})
    state = log.state_dict()
    log.write_metrics(20, 2.0, {"loss": 2.0})
    log.write_evaluation(20, 2.0, EvaluationResult([1.0], [4]))
    again = MetricLog(tmp_path, tensorboard=False)
    again.load_state_dict(state)
    again.write_metrics(20, 2.0, {"loss": 3.0})
    assert [row["loss"] for row in CsvFile(tmp_path / "metrics.csv").rows()] == ["1.0", "3.0"]
    assert CsvFile(tmp_path / "evaluation.csv").rows() == []


@pytest.mark.parametrize("evaluated_before", [False, True])
def test_resumed_events_are_those_of_an_uninterrupted_run(tmp_path, evaluated_before):
    def go_on(log, evaluates):
        if evaluates:
            log.write_evaluation(20, 2.0, EvaluationResult([1.0, 2.0], [4, 4]))
        log.write_metrics(30, 3.0, {"loss": 0.5})

    log = MetricLog(tmp_path)
    log.write_metrics(10, 1.0, {"loss": 2.0})
    log.write_metrics(20, 2.0, {"loss": 1.0, "episodes": 4})
    if evaluated_before:
        log.write_evaluation(20, 2.0, EvaluationResult([1.0, 2.0], [4, 4]))
    state = log.state_dict()
    go_on(log, not evaluated_before)  # and is killed: not closed
    again = MetricLog(tmp_path)
    again.load_state_dict(state)
    go_on(again, not evaluated_before)

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    assert found.pop("loss") == [(10, 2.0), (20, 1.0), (30, 0.5)]
    assert found.pop("episodes") == [(20, 4.0)]
    assert found["evaluation/mean"] == [(20, 1.5)]
    assert all(tag.startswith("evaluation/") and len(e) == 1 for tag, e in found.items())


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    file = CsvFile(tmp_path / "a.csv")
    file.write({"step": 1, "loss": 0.5})
    with file.path.open("a") as stream:
        stream.write("2,0.")
    assert [row["step"] for row in CsvFile(file.path).rows()] == ["1"]
