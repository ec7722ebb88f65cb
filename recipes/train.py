"""Trains: ``python recipes/train.py algorithm=dreamer_v3 env=cartpole``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from torchrl_wm.ranges import COUNT
from torchrl_wm.training import RunFolder, describe_run, seed_everything
from torchrl_wm.training.assembly import build_trainer
from torchrl_wm.training.configuration import (
    OptionError,
    check_overrides,
    default_threads,
    resolve_device,
    saved_config,
)

CONFIG_DIR = str(Path(__file__).resolve().parent / "config")
MAY_CHANGE = ("total_steps", "device", "threads")


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train")
def main(config: DictConfig) -> float | None:
    """Starts or resumes one run; returns the mean of its last evaluation."""
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    run = None
    if config.resume:
        run = RunFolder.open(config.resume)
        config = saved_config(run.config, HydraConfig.get().overrides.task, MAY_CHANGE)
    elif HydraConfig.get().mode == RunMode.MULTIRUN:
        config.run_dir = f"{config.run_dir}_{HydraConfig.get().job.num}"
    device = resolve_device(config.device)
    threads = default_threads() if config.threads is None else config.threads
    COUNT.check(threads=threads)
    torch.set_num_threads(threads)
    seed_everything(config.seed)
    trainer = build_trainer(config, device, run)
    # A resumed run otherwise has the number it was started with.
    if any(option.startswith("threads=") for option in HydraConfig.get().overrides.task):
        torch.set_num_threads(threads)
    print(f"run folder: {trainer.run_dir}\n{describe_run(trainer.algorithm, device)}", flush=True)
    if run and trainer.steps >= trainer.total_steps:
        print(
            f"the run is at its end, step {trainer.steps:,}: give more, total_steps=...", flush=True
        )
    try:
        result = trainer.run()
    finally:
        trainer.close()
    if result is None:
        return None
    summary = result.summary()
    print(f"return {summary['mean']:.1f} +- {summary['std']:.1f} at step {trainer.steps:,}")
    return summary["mean"]


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument not in ("-m", "--multirun")]
    if not any(argument.startswith("-") for argument in given):  # other flags are Hydra's own
        try:
            check_overrides(CONFIG_DIR, "train", given)
        except OptionError as error:
            sys.exit(str(error))
    main()
