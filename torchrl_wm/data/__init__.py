"""Replay: step records in rings, sequence sampling, storage of latents, checkpoints."""

from torchrl_wm.data.checkpoint import ReplayCheckpoint
from torchrl_wm.data.compression import LatentCompression
from torchrl_wm.data.records import step_records
from torchrl_wm.data.replay import StepReplay
from torchrl_wm.data.rings import RingWriter
from torchrl_wm.data.samplers import SequenceSampler
from torchrl_wm.data.transitions import StepRecords, gather_step_records

__all__ = [
    "LatentCompression",
    "ReplayCheckpoint",
    "RingWriter",
    "SequenceSampler",
    "StepRecords",
    "StepReplay",
    "gather_step_records",
    "step_records",
]
