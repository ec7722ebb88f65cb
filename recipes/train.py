"""Trains: ``python recipes/train.py algorithm=dreamer_v3 env=cartpole``."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchrl.envs import EnvBase

from torchrl_wm.data import StepReplay
from torchrl_wm.envs import action_repeat, model_specs
from torchrl_wm.training import (
    Evaluator,
    RunFolder,
    Trainer,
    UpdateRatio,
    describe_run,
    latest_checkpoint,
    read_checkpoint,
    seed_everything,
    with_latents,
)
from torchrl_wm.training.configuration import (
    OptionError,
    check_overrides,
    instantiate,
    resolve_device,
    saved_config,
)

CONFIG_DIR = str(Path(__file__).resolve().parent / "config")
MAY_CHANGE = ("total_steps", "device", "threads")


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train")
def main(config: DictConfig) -> float | None:
    """Starts or resumes one run; returns the mean of its last evaluation."""
    run = None
    if config.resume:
        run = RunFolder.open(config.resume)
        config = saved_config(run.config, HydraConfig.get().overrides.task, MAY_CHANGE)
    elif HydraConfig.get().mode == RunMode.MULTIRUN:
        config.run_dir = f"{config.run_dir}_{HydraConfig.get().job.num}"
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    device = resolve_device(config.device)
    torch.set_num_threads(config.threads or _threads())
    seed_everything(config.seed)
    trainer = _build(config, device, run)
    result = trainer.run()
    trainer.close()
    if result is None:
        return None
    summary = result.summary()
    print(f"return {summary['mean']:.1f} +- {summary['std']:.1f} at step {trainer.steps:,}")
    return summary["mean"]


def _build(config: DictConfig, device: torch.device, resumed: RunFolder | None) -> Trainer:
    """Assembles the run that ``config`` describes and prints what it is."""
    options = dict(config.training)
    env = instantiate(config.env, seed=config.seed)
    evaluation_env = instantiate(
        config.env, seed=config.seed + 1, num_envs=options.pop("evaluation_envs")
    )
    algorithm = instantiate(
        config.algorithm,
        *model_specs(env),
        world_model=instantiate(config.world_model),
        device=device,
    )
    evaluator = Evaluator(
        with_latents(evaluation_env, algorithm.policy),
        algorithm.evaluation_policy,
        options.pop("evaluation_episodes"),
        seed=config.seed,
    )
    ratio = UpdateRatio(
        options.pop("updates"),
        options.pop("every"),
        train_ratio=options.pop("train_ratio"),
        batch_steps=config.replay.batch_size * config.replay.slice_length,
        first=options.pop("first_updates"),
    )
    run = resumed or RunFolder.create(config.run_dir, OmegaConf.to_yaml(config, resolve=True))
    replay = _replay(config, env, algorithm, run)
    trainer = Trainer(
        env,
        algorithm,
        replay,
        ratio,
        total_steps=config.total_steps,
        run_dir=run.path,
        log=instantiate(config.logger, run.path),
        evaluator=evaluator,
        seed=config.seed,
        device=device,
        **options,
    )
    if resumed:
        trainer.load(read_checkpoint(latest_checkpoint(run.checkpoints)))
        if config.threads:
            torch.set_num_threads(config.threads)
        run.note_start(resumed_at=trainer.steps)
    print(f"run folder: {run.path}\n{describe_run(algorithm, device)}", flush=True)
    return trainer


def _replay(config: DictConfig, env: EnvBase, algorithm: nn.Module, run: RunFolder) -> StepReplay:
    """The replay, with enough spare rows that a checkpoint never has to copy observations."""
    observation_spec, action_spec = model_specs(env)
    decisions = config.training.checkpoint_every // action_repeat(env)
    return instantiate(
        config.replay,
        num_envs=env.batch_size[0],
        action_spec=action_spec,
        observation_keys=list(observation_spec.keys(True, True)),
        latents=dict.fromkeys(algorithm.world_model.latent_keys, torch.float16),
        scratch_dir=run.replay,
        slack=max(2 * decisions, 10_000),
    )


def _threads() -> int:
    """All cores this process may use, but no more than small models can keep busy."""
    return min(len(os.sched_getaffinity(0)), 8)


if __name__ == "__main__":
    if not any(argument.startswith("-") for argument in sys.argv[1:]):  # flags are Hydra's own
        try:
            check_overrides(CONFIG_DIR, "train", sys.argv[1:])
        except OptionError as error:
            sys.exit(str(error))
    main()
