"""Replay: step records in rings, sequence sampling, storage of latents, checkpoints."""

from torchrl_wm.data.bootstrap_values import BootstrapValues
from torchrl_wm.data.checkpoint import ReplayCheckpoint
from torchrl_wm.data.compression import LatentCompression
from torchrl_wm.data.frames import StackedFrames
from torchrl_wm.data.interruptions import InterruptedEpisodes
from torchrl_wm.data.prioritized import PrioritizedSequenceSampler
from torchrl_wm.data.reanalyze import Reanalyze
from torchrl_wm.data.records import step_records
from torchrl_wm.data.replay import StepReplay
from torchrl_wm.data.rings import RingWriter
from torchrl_wm.data.samplers import SequenceSampler
from torchrl_wm.data.targets import UnrolledTargets
from torchrl_wm.data.transitions import StepRecords, gather_step_records

__all__ = [
    "BootstrapValues",
    "InterruptedEpisodes",
    "LatentCompression",
    "PrioritizedSequenceSampler",
    "Reanalyze",
    "ReplayCheckpoint",
    "RingWriter",
    "SequenceSampler",
    "StackedFrames",
    "StepRecords",
    "StepReplay",
    "UnrolledTargets",
    "gather_step_records",
    "step_records",
]
