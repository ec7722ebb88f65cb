import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from tested_device import DEVICE

from torchrl_wm.algorithms import PlaNet
from torchrl_wm.training import latest_checkpoint, read_checkpoint


def _final(run_dir):
    checkpoint = read_checkpoint(latest_checkpoint(run_dir / "checkpoints"))
    return checkpoint.step, checkpoint.state("algorithm")


def _carried(run_dir):
    return read_checkpoint(latest_checkpoint(run_dir / "checkpoints")).state("experience")[
        "carrier"
    ]


def _check_resume(command, tmp_path, options, stop, total):
    """A run that was stopped and resumed ends with the parameters of one that was not."""
    command("train", *options, "run_dir=whole", f"total_steps={total}")
    command("train", *options, "run_dir=part", f"total_steps={stop}")
    (stopped, before) = _final(tmp_path / "part")
    command("train", "resume=part", f"total_steps={total}")
    (step, whole), (_, part) = _final(tmp_path / "whole"), _final(tmp_path / "part")
    assert stopped == stop and step == total
    assert [name for name, value in whole.items() if not torch.equal(part[name], value)] == []
    assert any(not torch.equal(before[name], value) for name, value in whole.items())


def test_run_resume_and_evaluate(command, tmp_path):
    output = command.tiny("run_dir=whole", "total_steps=100")
    assert "device: cpu" in output and "parameters:" in output and "run folder: whole" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole"]
    config = OmegaConf.load(tmp_path / "whole" / "config.yaml")
    assert (config.seed, config.env.id, config.algorithm.lr) == (0, "CartPole-v1", 0.01)
    start = json.loads((tmp_path / "whole" / "starts.jsonl").read_text())
    assert "run_dir=whole" in start["command"] and start["torch"] == torch.__version__

    command.tiny("run_dir=part", "total_steps=70")
    output = command("train", "resume=part", "total_steps=100")
    assert "at step 100" in output
    (step, whole), (_, part) = _final(tmp_path / "whole"), _final(tmp_path / "part")
    assert step == 100 and all(torch.equal(part[name], value) for name, value in whole.items())
    assert len((tmp_path / "part" / "starts.jsonl").read_text().splitlines()) == 2
    with (tmp_path / "part" / "evaluation.csv").open() as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["60", "70", "100"]
    assert list((tmp_path / "part" / "tensorboard").glob("events*"))

    assert OmegaConf.load(tmp_path / "part" / "config.yaml").total_steps == 100
    output = command("train", "resume=part")
    assert "at its end, step 100" in output and "total_steps=" in output
    output = command("evaluate", "part", "--episodes", "3", "--envs", "2")
    assert output.count("episode ") == 3 and "step 100: return" in output


def test_existing_folder_is_not_overwritten(command, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes.txt").write_text("mine")
    output = command.tiny("run_dir=old", fails=True)
    assert "resume=" not in output and "run_dir=" in output  # nothing there can be resumed
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["notes.txt"]


def test_a_run_that_could_not_begin_leaves_its_name_free(command, tmp_path):
    output = command.tiny("run_dir=new", "training.warmup_steps=1", fails=True)
    assert "warmup_steps=1 is too short" in output and not (tmp_path / "new").exists()
    command.tiny("run_dir=new", "total_steps=30")
    assert (tmp_path / "new" / "checkpoints").exists()
    assert "resume=new" in command.tiny("run_dir=new", fails=True)


def test_a_resume_that_fails_deletes_nothing(command, tmp_path):
    command.tiny("run_dir=part", "total_steps=40")
    before = sorted((tmp_path / "part").rglob("*"))
    for path in (tmp_path / "part" / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    command("train", "resume=part", "total_steps=50", fails=True)
    assert set(before) <= set((tmp_path / "part").rglob("*"))


_HOLD = """
import sys, time
from torchrl_wm.training import RunFolder
held = RunFolder.open(sys.argv[1]).lock()
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows locks no run folders")
def test_a_folder_in_which_another_process_trains_is_left_alone(command, tmp_path):
    command.tiny("run_dir=part", "total_steps=40")
    paths = os.pathsep.join(path for path in sys.path if path)
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "part")],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        before = _final(tmp_path / "part")[0]
        output = command("train", "resume=part", "total_steps=50", fails=True)
        assert "Another process trains in" in output and "part" in output
        assert _final(tmp_path / "part")[0] == before
    finally:
        other.kill()  # as abruptly as it may happen: nothing is left behind
        other.wait()
    command("train", "resume=part", "total_steps=50")
    assert _final(tmp_path / "part")[0] == 50


def test_help_says_how_it_is_used(command):
    assert "Usage: torchrl-wm {" in command("--help")
    assert "Unknown recipe 'trian'. Usage" in command("trian", fails=True)


def test_benchmarks_are_listed(command):
    for arguments, fails in ((["--help"], False), (["-h"], False), ([], True)):
        output = command("benchmark", *arguments, fails=fails)
        assert "Usage: benchmark.py {acting|dreamer_update|planners|replay|" in output
    output = command("benchmark", "serach", fails=True)
    assert "Unknown benchmark 'serach'. Usage: benchmark.py {acting|" in output


def test_a_run_that_cannot_begin_leaves_no_workers(command, tmp_path):
    command.tiny("run_dir=part", "total_steps=40")
    path = tmp_path / "part" / "config.yaml"
    config = OmegaConf.load(path)
    config.env.id, config.env.vectorization = "Acrobot-v1", "parallel"  # weights of other shapes
    config.env.observation_scale = None
    path.write_text(OmegaConf.to_yaml(config))
    arguments = ["train", "resume=part", "total_steps=50", *command.config]
    paths = os.pathsep.join(path for path in sys.path if path)
    ended = subprocess.run(  # which workers that go on would keep from ending
        [sys.executable, "-m", "torchrl_wm", *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1 and "size mismatch" in ended.stderr


def test_resume_refuses_other_options_and_other_folders(command, tmp_path):
    command.tiny("run_dir=part", "total_steps=40")
    output = command("train", "resume=part", "seed=3", fails=True)
    assert "seed=3" in output and "total_steps, device, threads" in output
    assert "is not a run folder" in command("train", "resume=.", fails=True)
    assert "algorithm=alphazero" in command("arena", "part", fails=True)
    output = command("train", "resume=part", "total_steps=abc", fails=True)
    assert "total_steps=abc must be a number" in output
    output = command("train", "resume=part", "total_steps=30", fails=True)
    assert "total_steps=30 lies behind the run, which is at step 40" in output
    assert OmegaConf.load(tmp_path / "part" / "config.yaml").total_steps == 40


@pytest.mark.parametrize("beside", [["++env.max_episode_steps=5"], ["-m"]])
def test_wrong_names_list_the_valid_ones_beside_added_options_and_sweeps(command, tmp_path, beside):
    value = "1,2" if beside == ["-m"] else "1"
    output = command("train", *beside, f"algorithm.free_bit={value}", "total_steps=1", fails=True)
    assert "did you mean 'free_bits'" in output and not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["written", "config", "empty"])
def test_what_is_damaged_in_a_run_folder_is_named(command, tmp_path, damage):
    command.tiny("run_dir=part", "total_steps=40")
    (written,) = (tmp_path / "part").rglob("written.npy")
    config = tmp_path / "part" / "config.yaml"
    if damage == "written":
        written.write_bytes(written.read_bytes()[:60])
    else:
        config.write_text("seed: [1\n" if damage == "config" else "")
    output = command("train", "resume=part", "total_steps=50", fails=True)
    expected = {
        "written": "written.npy is damaged",
        "config": "cannot be read",
        "empty": "is empty",
    }
    assert expected[damage] in output
    assert damage != "written" or "CheckpointError" in output


def test_sweep_gets_a_folder_for_each_run(command, tmp_path):
    command.tiny("-m", "seed=1,2", "run_dir=sweep", "total_steps=30", "logger=csv")
    found = {path.name for path in tmp_path.iterdir()}
    assert {"sweep_0", "sweep_1"} <= found and "outputs" not in found and "multirun" not in found


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("algorithm=dreamer_v9", ["dreamer_v1", "dreamer_v2", "dreamer_v3"]),
        ("env=cart", ["cartpole", "walker_walk_pixels", "gymnasium"]),
        ("world_model=rssm", ["rssm_gaussian", "rssm_discrete", "identity", "autoencoder"]),
        ("algorithm.free_bit=2", ["'free_bit'", "did you mean 'free_bits'", "lambda_"]),
        ("total_step=2", ["'total_step'", "did you mean 'total_steps'", "run_dir"]),
        ("planner.dirichlet_alpha=1", ["did you mean 'planner.rule.dirichlet_alpha'"]),
        ("planner.c_puct=1", ["did you mean 'planner.rule.c_init'"]),
        ("algorithm.num_simulations=8", ["did you mean 'planner.num_simulations'"]),
        ("env=gymnasium", ["gymnasium needs id", "env.id="]),
        ("env.id=5", ["id=5 must be the name", "env.id=CartPole-v1"]),
        ("planner=null", ["planner=null chooses nothing", "~planner"]),
        ("~planner", ["~planner leaves", "MuZero"]),
        ("threads=-1", ["threads=-1 must be a whole number of at least 1"]),
        ("algorithm.bins=2.5", ["bins=2.5 must be a whole number of at least 2"]),
        ("algoritm=dreamer_v3", ["'algoritm'", "did you mean 'algorithm'"]),
        ("algorithm.kl.strategi=x", ["did you mean 'strategy'"]),
        ("env.vectorization=threads", ["'serial', 'parallel', 'gymnasium'"]),
        ("+env.max_steps=3", ["max_steps"]),
    ],
)
def test_wrong_names_list_the_valid_ones(command, tmp_path, argument, expected):
    chosen = ["algorithm=muzero"] * ("planner" in argument or "simulations" in argument)
    output = command("train", *chosen, argument, "total_steps=1", fails=True)
    assert all(part in output for part in expected), output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("algorithm", ["dreamer_v1", "dreamer_v3"])
def test_sequences_too_short_for_the_losses_are_refused_before_a_step_is_taken(
    command, tmp_path, algorithm
):
    options = [f"algorithm={algorithm}", "env=cartpole", "device=cpu", "replay.slice_length=1"]
    output = command("train", *options, "run_dir=new", fails=True)
    assert "replay.slice_length=1 is too short" in output and "at least 2 steps" in output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("algorithm", "size"), [("dreamer_v2", 64), ("dreamer_v3", 64), ("muzero_atari", 96)]
)
def test_pictures_of_a_wrong_size_name_the_option(command, tmp_path, algorithm, size):
    options = ["env=atari", "env.game=pong", "env.image_size=84", "run_dir=new"]
    output = command("train", f"algorithm={algorithm}", *options, fails=True)
    assert f"env.image_size={size}" in output and not list(tmp_path.iterdir())


def test_games_of_two_players_are_not_played_as_if_by_one(command, tmp_path):
    output = command("train", "algorithm=muzero", "env=tictactoe", fails=True)
    assert "algorithm.two_players=true" in output and not list(tmp_path.iterdir())
    options = ["algorithm=muzero", "env=cartpole", "algorithm.two_players=true"]
    output = command("train", *options, fails=True)
    assert "to_play" in output and not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_an_error(command):
    output = command.tiny("device=gpu", fails=True)
    assert "device=gpu" in output and "auto, cpu, cuda" in output
    output = command.tiny("device=cuda", fails=True)
    assert "device=cuda" in output and "device=cpu" in output


def test_command_lists_its_recipes(command):
    assert "train" in command("evaluation", fails=True)


def test_environment_of_an_own_function(command, tmp_path):
    output = command.tiny("env=factory", "env.factory=tiny_run:make_env", "total_steps=30")
    assert "at step 30" in output


def test_benchmark_measures_loop_and_update(command, tmp_path):
    output = command("benchmark", "training_loop", "algorithm=tiny", "device=cpu", *command.config)
    assert all(name in output for name in ("bare collector", "without updates", "update: "))
    assert not list(tmp_path.iterdir())


SMALL = [
    *("replay.batch_size=2", "replay.slice_length=4", "replay.capacity=200", "logger=csv"),
    *("algorithm.imagination_horizon=3", "training.warmup_steps=12", "training.updates=1"),
    *("training.first_updates=0", "training.steps_per_batch=1", "training.progress=false"),
    *("training.evaluation_episodes=1", "env.max_episode_steps=10", f"device={DEVICE}"),
    *("+world_model.belief_size=16", "+world_model.hidden_size=8", "+world_model.units=8"),
    *("+world_model.state_size=4", "threads=1"),
]
DREAMERS = {
    "dreamer_v1": ["algorithm.units=8", "training.every=4"],
    "dreamer_v2": ["algorithm.units=8", "training.every=4", "algorithm.critic_update_every=3"],
    "dreamer_v3": [
        *("algorithm.lr_warmup=2", "training.train_ratio=2", "algorithm.lr=1e-2"),
        f"algorithm.cuda_graph={torch.cuda.is_available()}",  # an emulated device has no graphs
    ],
}


@pytest.mark.usefixtures("tested_device")
@pytest.mark.parametrize(
    ("algorithm", "env"),
    [
        ("dreamer_v1", "pendulum"),
        ("dreamer_v2", "cartpole"),
        ("dreamer_v3", "cartpole"),
        ("dreamer_v3", "pendulum"),
    ],
)
def test_resumed_dreamer_is_bitwise_equal(command, tmp_path, algorithm, env):
    options = [f"algorithm={algorithm}", f"env={env}", *SMALL, *DREAMERS[algorithm]]
    _check_resume(command, tmp_path, options, stop=31, total=50)


SEARCHED = {
    # Priorities, fresh searches of old positions and the target network.
    "muzero": [
        *("env=cartpole", "env.num_envs=2", "algorithm.reanalyze_ratio=0.5"),
        *("algorithm.priority_alpha=1.0", "algorithm.target_update_every=5"),
    ],
    "alphazero": ["env=tictactoe", "env.num_envs=2"],
    # Screens that are carried from step to step, two of them past the resume.
    "muzero_atari": [
        *("algorithm.td_steps=2", "algorithm.unroll_steps=2", "world_model.channels=4"),
        "env.max_episode_steps=200",
    ],
}
SMALL_SEARCHED = [
    *("replay.batch_size=4", "replay.capacity=400", "logger=csv", "training.every=2"),
    *("training.warmup_steps=100", "training.progress=false", "training.evaluation_episodes=1"),
    *("planner.num_simulations=4", "threads=1", f"device={DEVICE}"),
]


@pytest.mark.usefixtures("tested_device")
@pytest.mark.parametrize("algorithm", SEARCHED)
def test_an_agent_that_searches_is_resumed_bitwise_equal(command, tmp_path, algorithm):
    options = [f"algorithm={algorithm}", *SMALL_SEARCHED, *SEARCHED[algorithm]]
    _check_resume(command, tmp_path, options, stop=116, total=124)
    # What is carried to the next step, and what the last search found.
    whole, part = (_carried(tmp_path / name) for name in ("whole", "part"))
    torch.testing.assert_close(part, whole, rtol=0, atol=0, equal_nan=True)
    assert algorithm != "muzero_atari" or whole["frames"]["pixels"].any()


SMALL_PLANNED = [
    *("replay.batch_size=2", "replay.slice_length=4", "replay.capacity=200", "logger=csv"),
    *("training.warmup_steps=12", "training.updates=2", "training.every=4"),
    *("training.every_episodes=null", "training.progress=false", "training.evaluation_episodes=1"),
    "training.world_model_pretrain_steps=0",
    *(
        "env=pendulum",
        "env.max_episode_steps=10",
        f"device={DEVICE}",
        "threads=1",
        "total_steps=40",
    ),
    *("planner.planning_horizon=3", "planner.optim_steps=2", "planner.num_candidates=8"),
    *("planner.top_k=4", "algorithm.exploration_noise=0.3", "+world_model.units=8"),
]
PLANNED = {
    "planet_small": ["+world_model.belief_size=16", "+world_model.state_size=4"],
    "pets": ["+world_model.members=2"],
}


@pytest.mark.usefixtures("tested_device")
@pytest.mark.parametrize("algorithm", PLANNED)
def test_an_agent_that_plans_goes_on_after_sigterm_bitwise_equal(
    command, tmp_path, monkeypatch, algorithm
):
    options = [f"algorithm={algorithm}", *SMALL_PLANNED, *PLANNED[algorithm]]
    command("train", *options, "run_dir=whole")
    calls, update = [], PlaNet.update

    def interrupted(agent, sample):
        calls.append(len(calls))
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(agent, sample)

    with monkeypatch.context() as patch:
        patch.setattr(PlaNet, "update", interrupted)
        command("train", *options, "run_dir=part", fails=True)
    step, before = _final(tmp_path / "part")
    assert 12 < step < 40 and step % 10  # in the middle of an episode: the plan is carried over
    command("train", "resume=part")
    (step, whole), (_, part) = _final(tmp_path / "whole"), _final(tmp_path / "part")
    assert step == 40
    assert [name for name, value in whole.items() if not torch.equal(part[name], value)] == []
    assert any(not torch.equal(before[name], value) for name, value in whole.items())


@pytest.mark.parametrize("algorithm", [*DREAMERS, *PLANNED, *SEARCHED, "sampled_muzero"])
def test_a_run_moves_to_another_device(command, tmp_path, cuda, algorithm):
    if algorithm in DREAMERS:
        options = [*SMALL, *DREAMERS[algorithm]]
    elif algorithm in PLANNED:
        options = [*SMALL_PLANNED, *PLANNED[algorithm]]
    else:
        options = [*SMALL_SEARCHED, *SEARCHED.get(algorithm, ["env=pendulum"])]
    first, second = (120, 140) if algorithm in SEARCHED else (40, 50)
    output = command(
        *("train", f"algorithm={algorithm}", *options, "run_dir=run", "device=cuda"),
        *(f"total_steps={first}", *["training.warmup_steps=30"] * (algorithm == "sampled_muzero")),
    )
    assert "device: cuda" in output
    command("evaluate", "run", "--episodes", "1", "--device", "cpu")
    output = command("train", "resume=run", "device=cpu", f"total_steps={second}")
    assert "device: cpu" in output
    command("evaluate", "run", "--episodes", "1", "--device", "cuda")
    command("train", "resume=run", "device=cuda", f"total_steps={second + 10}")
