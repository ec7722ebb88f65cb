"""The training loop: collect, replay, update, evaluate, checkpoint, for any algorithm."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from torchrl_wm.data import StepReplay
from torchrl_wm.envs import action_repeat
from torchrl_wm.ranges import COUNT, NUMBER
from torchrl_wm.training.checkpoint import Checkpoint, CheckpointError, write_checkpoint
from torchrl_wm.training.episodes import EpisodeStatistics
from torchrl_wm.training.evaluation import EvaluationResult, Evaluator
from torchrl_wm.training.interruption import Interruption
from torchrl_wm.training.interval import Interval
from torchrl_wm.training.logging import MetricLog
from torchrl_wm.training.metrics import MetricWindow, not_finite
from torchrl_wm.training.progress import ProgressBar
from torchrl_wm.training.randomness import random_state, set_random_state
from torchrl_wm.training.ratio import UpdateRatio
from torchrl_wm.training.run_folder import CHECKPOINTS
from torchrl_wm.training.snapshot import (
    experience_state,
    load_experience_state,
    require_plain,
)

_UPDATES_PER_LINE = 1000


class Trainer:
    """Runs a training, one unit of work at a time, until ``total_steps``.

    A unit is one update, one evaluation or one collected batch; the next one follows from the state
    alone, and between any two units the run can be checkpointed and continued exactly. Steps are
    environment steps: decisions times the action repeat, over all environments.

    Args:
        env (EnvBase): environments with batch size ``[E]``; the latent entries of the algorithm's
            policy are added to it.
        algorithm (Algorithm): what learns and acts, see :class:`torchrl_wm.algorithms.Algorithm`.
        replay (StepReplay): stores what is collected, and supplies the samples of updates.
        ratio (UpdateRatio): decides when updates are due.

    Keyword Args:
        total_steps (int): where the run ends.
        run_dir (str or Path): where checkpoints go.
        log (MetricLog, optional): where metrics and evaluations go.
        evaluator (Evaluator, optional): plays the evaluation episodes.
        seed (int, optional): seeds the environments. Defaults to 0.
        steps_per_batch (int, optional): decisions of one environment in a batch. Defaults to 1.
        warmup_steps (int, optional): steps with random actions and no updates, during which the policy
            still filters. Defaults to 0.
        world_model_pretrain_steps (int, optional): updates of the world model alone, between the
            warm-up and the first full update. Defaults to 0.
        log_every (int, optional): steps between two lines of metrics. Defaults to 1,000.
        evaluate_every (int, optional): steps between two evaluations; 0 for a final one only.
        checkpoint_every (int, optional): steps between two checkpoints; 0 for a final one only.
        device (torch.device, optional): where the algorithm lives. Defaults to the CPU.
        progress (bool, optional): show a progress bar. Defaults to True.

    Raises:
        ValueError: if the warm-up is too short to fill one training batch, a count is out of its range, or a
            tensor of the policy is not on ``device``.

    Examples:
        A run is ``Trainer(env, algorithm, replay, ratio, total_steps=..., run_dir=...).run()``;
        ``recipes/train.py`` is a complete one.
    """

    def __init__(
        self,
        env: EnvBase,
        algorithm: nn.Module,
        replay: StepReplay,
        ratio: UpdateRatio,
        *,
        total_steps: int,
        run_dir: str | Path,
        log: MetricLog | None = None,
        evaluator: Evaluator | None = None,
        seed: int = 0,
        steps_per_batch: int = 1,
        warmup_steps: int = 0,
        world_model_pretrain_steps: int = 0,
        log_every: int = 1_000,
        evaluate_every: int = 10_000,
        checkpoint_every: int = 10_000,
        device: torch.device | str = "cpu",
        progress: bool = True,
    ):
        COUNT.check(total_steps=total_steps, steps_per_batch=steps_per_batch)
        NUMBER.check(warmup_steps=warmup_steps)
        NUMBER.check(world_model_pretrain_steps=world_model_pretrain_steps)
        NUMBER.check(log_every=log_every, evaluate_every=evaluate_every)
        NUMBER.check(checkpoint_every=checkpoint_every)
        _check_warm_up(warmup_steps, replay, action_repeat(env))
        if total_steps < warmup_steps:
            warnings.warn(
                f"total_steps={total_steps} ends within warmup_steps={warmup_steps}: nothing is trained.",
                stacklevel=2,
            )
        self.algorithm, self.replay, self.ratio = algorithm, replay, ratio
        self.total_steps, self.run_dir = total_steps, Path(run_dir)
        self.log, self.evaluator = log, evaluator
        self.lock: IO[str] | None = None  # of the run folder, closed with the run
        self.action_repeat, self.warmup_steps = action_repeat(env), warmup_steps
        self.world_model_pretrain_steps = world_model_pretrain_steps
        self.device, self.progress = torch.device(device), progress
        _check_device(algorithm.policy, self.device)
        self.logging, self.evaluating = Interval(log_every), Interval(evaluate_every)
        self.checkpointing = Interval(checkpoint_every)
        self.steps, self.updates, self.pretrained, self.seconds = 0, 0, 0, 0.0
        self.logged_updates = 0
        self.metrics = MetricWindow()
        self.env = with_latents(env, algorithm.policy)
        self.episodes = EpisodeStatistics(self.env.batch_size[0])
        self.env.set_seed(seed)  # before the collector, which resets in its constructor
        self.steps_per_batch = steps_per_batch
        self.collector = self._make_collector()
        self.batches = iter(self.collector)

    def _make_collector(self) -> Collector:
        devices = {}
        if self.device.type != "cpu":
            devices = {"policy_device": self.device, "env_device": "cpu", "storing_device": "cpu"}
        return Collector(
            self.env,
            self.algorithm.policy,
            frames_per_batch=self.steps_per_batch * self.env.batch_size[0],
            total_frames=-1,
            track_traj_ids=False,
            auto_register_policy_transforms=False,
            **devices,
        )

    # The loop ----------------------------------------------------------------------------------

    def run(self) -> EvaluationResult | None:
        """Runs to ``total_steps`` and returns the last evaluation.

        Raises:
            SystemExit: after SIGTERM or SIGINT, once the checkpoint is written (code 128 + signal).
            FloatingPointError: if a metric is NaN or infinite, once everything is logged; the message
                names the metric, and the last checkpoint is kept.
        """
        result = None
        with Interruption() as interruption, ProgressBar(self, self.progress) as bar:
            while not (interruption.signal or self._finished()):
                began = time.perf_counter()
                result = self._turn(interruption) or result
                self.seconds += time.perf_counter() - began
                bar.show()
            if not interruption.signal:
                self._write_line()
            self.save()
        if interruption.signal:
            raise SystemExit(128 + interruption.signal)
        return result

    def _finished(self) -> bool:
        return self.steps >= self.total_steps and not (self._work_due() or self._evaluation_due())

    def _turn(self, interruption: Interruption) -> EvaluationResult | None:
        """One unit of work, and the log lines and checkpoints that are due after it."""
        if self._work_due():
            self.update()
        elif self._evaluation_due():
            return self._evaluate(interruption)
        else:
            self.collect()
        if self.logging.passed(self.steps) or self._long_silence():
            self._write_line()
        if self.checkpointing.passed(self.steps):
            self.save()
        return None

    def _long_silence(self) -> bool:
        return self.updates - self.logged_updates >= _UPDATES_PER_LINE

    def _pretraining(self) -> bool:
        return self.pretrained < self.world_model_pretrain_steps

    def _work_due(self) -> bool:
        warm = self.steps >= self.warmup_steps
        return warm and bool(self.ratio.due or self._pretraining())

    def _evaluation_due(self) -> bool:
        if self.evaluator is None or not self.steps:
            return False
        final = self.steps >= self.total_steps and self.evaluating.last < self.steps
        return final or self.evaluating.due(self.steps)

    def collect(self) -> None:
        """Collects one batch and stores it."""
        warm_up = self.steps < self.warmup_steps
        self.algorithm.policy.random_actions = warm_up
        room = self.replay.room()
        if room is not None and room < 2 * self.steps_per_batch:
            self.save()  # otherwise rows that the last checkpoint refers to would be overwritten
        batch: TensorDictBase = next(self.batches)
        with self._naming_metrics():
            self.replay.extend(batch)
        self.episodes.add(batch)
        self.steps += batch.numel() * self.action_repeat
        if not warm_up:
            self.ratio.add(batch.numel(), int(batch["next", "done"].sum()))

    def update(self) -> None:
        """Samples one batch and trains on it."""
        sample = self.replay.sample()
        if self.device.type != "cpu":
            sample = sample.to(self.device, non_blocking=True)
        if self._pretraining():
            metrics, latents = self.algorithm.pretrain(sample)
            self.pretrained += 1
        else:
            metrics, latents = self.algorithm.update(sample)
            self.ratio.take()
        self.updates += 1
        self.metrics.add(metrics)
        if latents is not None:
            with self._naming_metrics():
                self.replay.write_back(sample, latents)

    @contextmanager
    def _naming_metrics(self) -> Iterator[None]:
        """If storing fails because a metric is already NaN or infinite, raises the error that names it."""
        try:
            yield
        except ValueError:
            if not_finite(self.metrics.means()):
                self._write_line()  # which raises
            raise

    def _evaluate(self, interruption: Interruption) -> EvaluationResult | None:
        self.algorithm.policy.random_actions = False
        result = self.evaluator.evaluate(self.steps, stopped=lambda: bool(interruption.signal))
        if result is not None:  # otherwise it was aborted, and a resumed run restarts it
            self.evaluating.done(self.steps)
            if self.log is not None:
                self.log.write_evaluation(self.steps, self.seconds, result)
        return result

    def _write_line(self) -> None:
        """Logs the averages since the last line; raises if one of them is NaN or infinite."""
        self.logged_updates = self.updates
        values = self.metrics.close() | self.episodes.close()
        if values and self.log is not None:
            counts = {"updates": self.updates, "episodes": self.episodes.count}
            self.log.write_metrics(self.steps, self.seconds, counts | values)
        if bad := not_finite(values):
            raise FloatingPointError(
                f"Not finite at step {self.steps}, update {self.updates}: {', '.join(bad)}. The "
                f"checkpoints in {self.run_dir} are from before; metrics.csv has the line."
            )

    # Checkpoints -------------------------------------------------------------------------------

    def save(self) -> Path:
        """Writes a checkpoint of the run as it is now and returns its folder."""
        if not_finite(self.metrics.means()):
            self._write_line()  # which raises
        states = {
            "algorithm": dict(self.algorithm.state_dict()),
            "optimizers": {k: o.state_dict() for k, o in self.algorithm.optimizers.items()},
            "experience": experience_state(self.env, self.collector),
            "run": self._run_state(),
        }
        require_plain(states)
        writers = {"replay": self.replay.save}
        return write_checkpoint(self.run_dir / CHECKPOINTS, self.steps, states, writers=writers)

    def load(self, checkpoint: Checkpoint) -> None:
        """Continues from ``checkpoint``; all parts must have been built as for that run.

        Raises:
            CheckpointError: if the parameters are not those of this algorithm, or the replay is damaged.
        """
        try:
            self.algorithm.load_state_dict(checkpoint.state("algorithm"))
            for name, state in checkpoint.state("optimizers").items():
                self.algorithm.optimizers[name].load_state_dict(state)
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"The checkpoint {checkpoint.path} belongs to another model than the one built "
                f"from this config: {error}"
            ) from error
        try:
            self.replay.load(checkpoint.folder("replay"))
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise CheckpointError(
                f"The replay of the checkpoint {checkpoint.path} cannot be used: {error} Delete that folder "
                "to resume from the checkpoint before it, if there is one; what it left in the replay's "
                "folder belongs to all."
            ) from error
        goes_on = load_experience_state(self.env, self.collector, checkpoint.state("experience"))
        self._load_run_state(checkpoint.state("run"))
        if not goes_on:
            self.episodes.restart()

    def _run_state(self) -> dict[str, Any]:
        intervals = (self.logging, self.evaluating, self.checkpointing)
        return {
            "counts": [self.steps, self.updates, self.pretrained, self.logged_updates],
            "seconds": self.seconds,
            "intervals": [interval.last for interval in intervals],
            "ratio": self.ratio.state_dict(),
            "metrics": self.metrics.state_dict(),
            "episodes": self.episodes.state_dict(),
            "log": None if self.log is None else self.log.state_dict(),
            "threads": torch.get_num_threads(),
            "random": random_state(),
        }

    def _load_run_state(self, state: dict[str, Any]) -> None:
        self.steps, self.updates, self.pretrained, self.logged_updates = state["counts"]
        self.seconds = state["seconds"]
        intervals = (self.logging, self.evaluating, self.checkpointing)
        for interval, last in zip(intervals, state["intervals"], strict=True):
            interval.last = last
        self.ratio.load_state_dict(state["ratio"])
        self.metrics.load_state_dict(state["metrics"])
        self.episodes.load_state_dict(state["episodes"])
        if self.log is not None and state["log"] is not None:
            self.log.load_state_dict(state["log"])
        torch.set_num_threads(state["threads"])
        set_random_state(state["random"])

    def close(self) -> None:
        """Shuts the environments and the log down, and leaves the run folder to others."""
        self.collector.shutdown()
        if self.evaluator is not None and not self.evaluator.env.is_closed:
            self.evaluator.env.close()
        if self.log is not None:
            self.log.close()
        if self.lock is not None:
            self.lock.close()


def _check_device(policy: nn.Module, device: torch.device) -> None:
    """Checks that the policy is where the collector acts: it copies one of which a tensor is elsewhere."""
    for name, tensor in (*policy.named_parameters(), *policy.named_buffers()):
        if tensor.device.type != device.type:
            raise ValueError(
                f"device={device}, but {name} of the policy is on {tensor.device}: a collector would act "
                "with a copy, which no warm-up reaches. Move the whole algorithm before the training."
            )


def _check_warm_up(warmup_steps: int, replay: StepReplay, repeat: int) -> None:
    """Checks that the warm-up collects enough to sample from: updates begin right after it."""
    starts = -(-replay.batch_size // replay.num_envs)
    least = replay.num_envs * (replay.slice_length + starts) * repeat
    if warmup_steps < least:
        raise ValueError(
            f"warmup_steps={warmup_steps} is too short to fill one batch of {replay.batch_size} "
            f"sequences of {replay.slice_length} + 1 records: give at least {least}."
        )


def with_latents(env: EnvBase, policy: nn.Module) -> EnvBase:
    """Adds the entries that ``policy`` carries from step to step to ``env``."""
    return env.append_transform(policy.make_tensordict_primer())
