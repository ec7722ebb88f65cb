import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import make_trainer, resumed_trainer

from torchrl_wm.envs import NotReproducibleError
from torchrl_wm.training import CheckpointError, UpdateRatio, snapshot
from torchrl_wm.training.logging import CsvFile


def _weights(trainer):
    return trainer.algorithm.state_dict()


def _assert_equal(left, right):
    assert (left.steps, left.updates, left.episodes.count) == (
        right.steps,
        right.updates,
        right.episodes.count,
    )
    expected = _weights(left)
    assert all(torch.equal(expected[name], value) for name, value in _weights(right).items())


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("num_envs", [1, 2])
def test_resumed_run_is_bitwise_equal(tmp_path, id, num_envs):
    options = {"id": id, "num_envs": num_envs}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.run()
    for end in (74, 130):  # in the middle of an episode, of a ratio and of an interval
        part = make_trainer if end == 74 else resumed_trainer
        part(tmp_path / "parts", total_steps=end, **options).run()
    resumed = resumed_trainer(tmp_path / "parts", **options)
    resumed.run()
    assert whole.updates > 20
    _assert_equal(whole, resumed)
    names = ("step", "updates", "episodes", "episode_return")
    rows = [CsvFile(tmp_path / run / "metrics.csv").rows()[-1] for run in ("whole", "parts")]
    assert [rows[0][name] for name in names] == [rows[1][name] for name in names]


def test_evaluating_does_not_change_training(tmp_path):
    runs = []
    for every in (0, 10):
        runs.append(make_trainer(tmp_path / str(every), total_steps=120, evaluate_every=every))
        runs[-1].run()
    _assert_equal(*runs)
    assert len(CsvFile(tmp_path / "10" / "evaluation.csv").rows()) == 12


def test_counts_of_a_run(tmp_path):
    trainer = make_trainer(
        tmp_path,
        num_envs=2,
        total_steps=120,
        steps_per_batch=5,
        warmup_steps=40,
        world_model_pretrain_steps=7,
        ratio=UpdateRatio(2, 20, first=3),
    )
    result = trainer.run()
    assert trainer.steps == 120
    assert trainer.updates == 7 + 3 + 2 * (120 - 40) // 20
    assert trainer.algorithm.pretrained == 7
    assert len(result.returns) == 2
    assert [int(row["step"]) for row in CsvFile(tmp_path / "evaluation.csv").rows()] == [70, 120]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert [int(name.split("_")[1]) for name in kept] == [60, 120]


def test_warm_up_acts_at_random_with_real_latents(tmp_path):
    trainer = make_trainer(tmp_path, id="Pendulum-v1", total_steps=60)
    with torch.no_grad():
        trainer.algorithm.world_model.actor.bias.fill_(100.0)
    trainer.run()
    rows = trainer.replay.buffer.storage._storage[: len(trainer.replay)]
    acted = ~rows["is_last"][:, 0]
    actions, beliefs = rows["action"][acted], rows["belief"][acted]
    assert actions[:40].min() < -0.1 and (actions[41:] > 0.99).all()
    assert (beliefs.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_writes_a_checkpoint_that_resumes_exactly(tmp_path, number):
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    part = make_trainer(tmp_path / "part", checkpoint_every=0)
    update = part.algorithm.update

    def update_and_signal(sample):
        if part.updates == 10:
            os.kill(os.getpid(), number)
        return update(sample)

    part.algorithm.update = update_and_signal
    with pytest.raises(SystemExit) as ended:
        part.run()
    assert ended.value.code == 128 + number
    assert part.updates == 11
    resumed = resumed_trainer(tmp_path / "part")
    resumed.run()
    _assert_equal(whole, resumed)


def test_kill_9_then_resume_is_exact(tmp_path):
    script = str(Path(__file__).with_name("tiny_run.py"))
    run = tmp_path / "killed"
    command = [sys.executable, script, str(run), "--total-steps", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while len(list((run / "checkpoints").glob("step_*"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    killed_at = max(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))
    end = killed_at + 50
    resumed = resumed_trainer(run, total_steps=end)
    assert resumed.steps == killed_at
    resumed.run()
    whole = make_trainer(tmp_path / "whole", total_steps=end)
    whole.run()
    _assert_equal(whole, resumed)


def test_nan_stops_the_run_and_names_the_metric(tmp_path):
    trainer = make_trainer(tmp_path, total_steps=400, poison_at=25)
    with pytest.raises(FloatingPointError, match="loss_reward"):
        trainer.run()
    rows = CsvFile(tmp_path / "metrics.csv").rows()
    assert math.isnan(float(rows[-1]["loss_reward"])) and np.isfinite(
        float(rows[-2]["loss_reward"])
    )
    resumed = resumed_trainer(tmp_path)
    assert resumed.updates < 25
    assert all(value.isfinite().all() for value in _weights(resumed).values())


@pytest.mark.parametrize("part", ["update", "policy"])
def test_latents_that_are_no_numbers_are_told_by_their_metric(tmp_path, part):
    trainer = make_trainer(tmp_path, total_steps=400)
    update = trainer.algorithm.update

    def poisoned(sample):
        if trainer.updates == 25:
            trainer.algorithm.world_model.reward.bias.data.fill_(float("nan"))
            if part == "policy":  # not what is written back, but what the next step carries
                results = update(sample)
                trainer.algorithm.world_model.cell.bias.data.fill_(float("nan"))
                return results
        return update(sample)

    trainer.algorithm.update = poisoned
    with pytest.raises(FloatingPointError, match="loss_reward"):
        trainer.run()
    assert math.isnan(float(CsvFile(tmp_path / "metrics.csv").rows()[-1]["loss_reward"]))


def test_new_episodes_after_a_resume_are_counted_from_their_beginning(tmp_path, monkeypatch):
    def none(env):
        raise NotReproducibleError("No episodes are kept here.")

    monkeypatch.setattr(snapshot, "episode_state", none)
    with pytest.warns(UserWarning, match="will begin new episodes"):
        make_trainer(tmp_path, total_steps=50).run()
    resumed = resumed_trainer(tmp_path)
    assert resumed.steps == 50 and resumed.episodes.count > 0
    assert resumed.episodes.lengths.tolist() == [0] and resumed.episodes.returns.tolist() == [0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_all_processes_of_a_run_write_a_checkpoint(tmp_path, number):
    script, run = str(Path(__file__).with_name("tiny_run.py")), tmp_path / "run"
    command = [sys.executable, script, str(run), "--total-steps", "100000", "--parallel"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while len(list((run / "checkpoints").glob("step_*"))) < 1:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)
    assert process.wait(60) == 128 + number


def test_damaged_checkpoint_is_refused_and_the_one_before_works(tmp_path):
    make_trainer(tmp_path, total_steps=140).run()
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    payload = newest / "algorithm.pt"
    payload.write_bytes(payload.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{newest.name}.*algorithm.pt"):
        resumed_trainer(tmp_path)
    shutil.rmtree(newest)
    assert resumed_trainer(tmp_path).steps == 120


def test_checkpoint_of_another_model_is_refused(tmp_path):
    make_trainer(tmp_path, total_steps=60).run()
    with pytest.raises(CheckpointError, match="another model"):
        resumed_trainer(tmp_path, id="Pendulum-v1")


def test_too_short_a_warm_up_is_named(tmp_path):
    with pytest.raises(ValueError, match="warmup_steps=5 .* at least 10"):
        make_trainer(tmp_path, warmup_steps=5)
    # Four sequences may start in two environments: two in each.
    with pytest.raises(ValueError, match="warmup_steps=15 .* at least 16"):
        make_trainer(tmp_path / "two", num_envs=2, warmup_steps=15)


def test_full_rings_are_saved_before_they_are_overwritten(tmp_path):
    trainer = make_trainer(tmp_path, total_steps=2600, checkpoint_every=0, evaluate=False)
    trainer.ratio = UpdateRatio(1, 200)
    trainer.run()
    assert len(trainer.replay) == 2000
    assert resumed_trainer(tmp_path, total_steps=2600, evaluate=False).steps == 2600
