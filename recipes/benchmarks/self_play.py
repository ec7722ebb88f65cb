"""What the search is for: self-play and updates of Gumbel MuZero on CartPole, in rates."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from torchrl_wm.training import seed_everything
from torchrl_wm.training.assembly import build_trainer

CONFIG_DIR = str(Path(__file__).resolve().parents[1] / "config")
NUM_ENVS, ROUNDS, BATCHES, UPDATES = 8, 5, 25, 3


def report(threads: int) -> None:
    """Prints environment steps and updates per second; the two take turns, medians are printed."""
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        choices = {
            "algorithm": "gumbel_muzero",
            "env": "cartpole",
            "env.num_envs": NUM_ENVS,
            "threads": threads,
            "run_dir": f"{folder}/run",
            "training.warmup_steps": 1_200,
            "training.first_updates": 1 + ROUNDS * UPDATES,
            "training.checkpoint_every": 0,
            "training.progress": False,
        }
        with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
            config = compose("train", [f"{key}={value}" for key, value in choices.items()])
        seed_everything(config.seed)
        trainer = build_trainer(config, torch.device("cpu"))
        while trainer.steps < trainer.warmup_steps:
            trainer.collect()
        trainer.update()
        acting, learning = [], []
        for _ in range(ROUNDS):
            acting.append(BATCHES * NUM_ENVS / _seconds(trainer.collect, BATCHES))
            learning.append(UPDATES / _seconds(trainer.update, UPDATES))
        trainer.close()
    simulations, batch = config.planner.num_simulations, config.replay.batch_size
    print(
        f"self-play of Gumbel MuZero, CartPole, {NUM_ENVS} environments, {simulations} simulations: "
        f"{sorted(acting)[ROUNDS // 2]:.0f} environment steps per second\n"
        f"updates of it, {batch} sequences each: {sorted(learning)[ROUNDS // 2]:.1f} per second",
        flush=True,
    )


def _seconds(work: Callable[[], object], number: int) -> float:
    began = time.perf_counter()
    for _ in range(number):
        work()
    return time.perf_counter() - began
