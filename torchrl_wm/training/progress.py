"""The console output of a run: its sizes at the start, then speed and remaining time."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torchrl_wm.training.loop import Trainer


class ProgressBar:
    """A bar over environment steps with steps per second and the remaining time.

    Args:
        trainer (Trainer): whose counts are shown.
        shown (bool): False shows nothing.
    """

    def __init__(self, trainer: Trainer, shown: bool):
        self.trainer, self.shown, self.bar = trainer, shown, None
        self._next = 0.0

    def __enter__(self) -> ProgressBar:
        if self.shown:
            from tqdm import tqdm

            self._pause = 0.5 if sys.stderr.isatty() else 30.0
            self.bar = tqdm(
                total=self.trainer.total_steps,
                initial=self.trainer.steps,
                unit="step",
                dynamic_ncols=True,
                mininterval=self._pause,
            )
        return self

    def show(self) -> None:
        """Moves the bar to the trainer's counts, at most twice a second."""
        now = time.perf_counter()
        if self.bar is None or now < self._next:
            return
        if not self._next and len(self.trainer.replay):
            sizes = self.trainer.replay.sizes().items()
            parts = ", ".join(f"{name} {size:,}" for name, size in sizes)
            self.bar.write(f"replay, bytes per record: {parts}")
        self._next = now + self._pause
        counts = {"updates": self.trainer.updates, "episodes": self.trainer.episodes.count}
        self.bar.set_postfix(counts, refresh=False)  # it is drawn with the steps, not before
        self.bar.update(self.trainer.steps - self.bar.n)

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self._next = 1.0
            self.show()
            self.bar.close()


def describe_run(algorithm: nn.Module, device: torch.device) -> str:
    """Device, threads and the number of parameters of every part.

    Examples:
        >>> print(describe_run(nn.ModuleDict({"head": nn.Linear(2, 3)}), torch.device("cpu")))
        device: cpu, ... thread...
        parameters: head 9, together 9
    """
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device
    counts, seen = {}, set()
    for part, module in algorithm.named_children():  # a shared parameter counts where it is first
        new = {p: p.numel() for p in module.parameters() if p not in seen}
        counts[part] = sum(new.values())
        seen.update(new)
    parts = "".join(f"{part} {number:,}, " for part, number in counts.items() if number)
    together = sum(p.numel() for p in algorithm.parameters())
    return (
        f"device: {name}, {torch.get_num_threads()} thread(s)\n"
        f"parameters: {parts}together {together:,}"
    )
