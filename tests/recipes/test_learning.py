"""Shortened runs of ``recipes/results``: what learned once goes on learning. Minutes each, on one core."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest

RUNS = {
    "dreamer_v1": (
        "env=cartpole total_steps=4000 training.evaluate_every=2000 training.every=2"
        " training.steps_per_batch=2 algorithm.imagination_starts=4 algorithm.free_bits=0.1"
        " algorithm.use_ema_critic=true algorithm.critic_ema_decay=0.95 algorithm.critic_lr=3e-4",
        150,
    ),
    "dreamer_v2": (
        "env=cartpole total_steps=4000 training.evaluate_every=2000 training.every=2"
        " training.steps_per_batch=2 algorithm.imagination_starts=4 algorithm.free_bits=0.1"
        " algorithm.critic_ema_decay=0.95 algorithm.critic_update_every=1 algorithm.entropy=1e-2",
        150,
    ),
    "dreamer_v3": (
        "env=cartpole total_steps=5000 training.evaluate_every=2500 algorithm.compile=true"
        " algorithm.entropy=1e-2",
        100,
    ),
    "planet_small": (
        "env=cartpole_balance env.action_repeat=8 total_steps=10000 training.evaluate_every=5000",
        700,
    ),
    "pets": (
        "env=pendulum total_steps=2000 training.evaluate_every=1000 planner.planning_horizon=20"
        " training.updates=200",
        -400,
    ),
    "muzero": ("env=cartpole total_steps=10000 training.evaluate_every=2500", 200),
    "gumbel_muzero": (
        "env=cartpole env.num_envs=4 total_steps=10000 training.evaluate_every=2500",
        200,
    ),
    "sampled_muzero": (
        "planner=gumbel_mcts env=pendulum env.num_envs=4 env.action_repeat=2"
        " planner.num_simulations=20 planner.num_sampled_actions=8 algorithm.discount=0.97"
        " algorithm.support=30 algorithm.td_steps=5 algorithm.entropy=0.02 training.every=4"
        " training.warmup_steps=2400 training.evaluate_every=5000 total_steps=25000",
        -500,
    ),
}
"""Options, and a return between that of an untrained policy and what the results have."""


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", RUNS)
def test_learns(algorithm, tmp_path):
    options, floor = RUNS[algorithm]
    command = [
        sys.executable,
        "-m",
        "torchrl_wm",
        "train",
        f"algorithm={algorithm}",
        *options.split(),
    ]
    fixed = ["threads=1", "seed=0", "training.progress=false", "training.evaluation_envs=10"]
    subprocess.run([*command, *fixed, "run_dir=run"], check=True, cwd=tmp_path)
    with (tmp_path / "run" / "evaluation.csv").open(newline="") as stream:
        returns = [float(row["mean"]) for row in csv.DictReader(stream)]
    assert max(returns) >= floor
