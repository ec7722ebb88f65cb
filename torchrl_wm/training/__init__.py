"""Running a training: the loop, its update ratio, evaluation, checkpoints and logs."""

from torchrl_wm.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from torchrl_wm.training.evaluation import EvaluationResult, Evaluator
from torchrl_wm.training.logging import MetricLog
from torchrl_wm.training.loop import Trainer, with_latents
from torchrl_wm.training.progress import describe_run
from torchrl_wm.training.randomness import seed_everything
from torchrl_wm.training.ratio import UpdateRatio
from torchrl_wm.training.run_folder import RunFolder

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "EvaluationResult",
    "Evaluator",
    "MetricLog",
    "RunFolder",
    "Trainer",
    "UpdateRatio",
    "describe_run",
    "latest_checkpoint",
    "read_checkpoint",
    "seed_everything",
    "with_latents",
    "write_checkpoint",
]
