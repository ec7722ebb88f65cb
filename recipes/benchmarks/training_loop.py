"""Measures, side by side, what the loop and the updates of a configured run cost.

``python recipes/benchmark.py training_loop algorithm=dreamer_v3 env=cartpole`` takes the options of
``train.py``. Both the time on the wall and that of the processor are given, and what they come to in
environment steps and updates per second; other work on the machine lengthens the first only.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from torchrl_wm.training import describe_run, seed_everything
from torchrl_wm.training.assembly import build_trainer
from torchrl_wm.training.configuration import default_threads, resolve_device

CONFIG_DIR = str(Path(__file__).resolve().parents[1] / "config")
ROUNDS, BATCHES, UPDATES = 5, 40, 3


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train")
def main(config: DictConfig) -> None:
    """Prints the medians of several rounds in which the candidates take turns."""
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    device = resolve_device(config.device)
    torch.set_num_threads(config.threads or default_threads())
    seed_everything(config.seed)
    config.training.update(
        {"first_updates": 1 + ROUNDS * UPDATES, "checkpoint_every": 0, "progress": False}
    )
    with tempfile.TemporaryDirectory() as folder:
        trainers = []
        for name in ("bare", "loop"):
            config.run_dir = str(Path(folder) / name)
            trainers.append(build_trainer(config, device))
        bare, trainer = trainers
        print(describe_run(trainer.algorithm, device))
        while trainer.steps < trainer.warmup_steps:
            trainer.collect()
        trainer.update()
        work = {
            "bare collector, a batch": lambda: _repeat(lambda: next(bare.batches), BATCHES),
            "loop without updates, a batch": lambda: _repeat(trainer.collect, BATCHES),
            "update": lambda: _repeat(trainer.update, UPDATES),
        }
        times = {name: [] for name in work}
        for _ in range(ROUNDS):
            for name, measure in work.items():
                times[name].append(measure())
        bare.close()
        trainer.close()
    frames = trainer.steps_per_batch * trainer.env.batch_size[0] * trainer.action_repeat
    for name, values in times.items():
        wall, processor = (sorted(clock)[ROUNDS // 2] for clock in zip(*values, strict=True))
        count, unit = (1, "updates") if name == "update" else (frames, "environment steps")
        print(
            f"{name}: {wall * 1e3:.2f} ms, {count / wall:.1f} {unit} per second; processor "
            f"{processor * 1e3:.2f} ms, {count / processor:.1f}"
        )


def _repeat(work: Callable[[], object], number: int) -> tuple[float, float]:
    """Mean seconds of one call: on the wall, and of this process's threads."""
    began = time.perf_counter(), time.process_time()
    for _ in range(number):
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    ended = time.perf_counter(), time.process_time()
    return tuple((end - begin) / number for begin, end in zip(began, ended, strict=True))


if __name__ == "__main__":
    main()
