"""Samples per second of the replay, beside raw indexing of the same memory."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable

import torch
from tensordict import TensorDict
from torchrl.data import OneHot

from torchrl_wm.data import StepReplay

ROWS, BATCH, STEPS, BELIEF, VARIABLES, CLASSES = 20_000, 16, 64, 512, 32, 4


def report() -> None:
    """Prints samples of 16 x 64 images of 3 x 64 x 64 bytes per second."""
    with tempfile.TemporaryDirectory() as folder:
        replay = filled_replay(folder)
        rows = replay.buffer.storage.get(slice(None))["pixels"]

        def raw() -> torch.Tensor:
            return rows[torch.randint(ROWS, (BATCH * (STEPS + 1),))]

        rates = {"replay": [], "raw": []}
        for _ in range(15):
            rates["replay"].append(_rate(replay.sample))
            rates["raw"].append(_rate(raw))
        replayed, indexed = (sorted(values)[7] for values in rates.values())
    print(f"sampling {BATCH} x {STEPS} images of 3 x 64 x 64 bytes with latents, per second:")
    print(f"  replay {replayed:.1f}, raw indexing of the images alone {indexed:.1f}")


def filled_replay(folder: str) -> StepReplay:
    """A memory-mapped replay full of images."""
    replay = StepReplay(
        ROWS,
        num_envs=1,
        batch_size=BATCH,
        slice_length=STEPS,
        action_spec=OneHot(4),
        observation_keys=["pixels"],
        latents={"belief": torch.float16, "state": CLASSES},
        scratch_dir=folder,
    )
    while len(replay) < ROWS:
        replay.extend(_batch(1000))
    return replay


def _batch(steps: int) -> TensorDict:
    shape = (1, steps)
    flag = torch.zeros(*shape, 1, dtype=torch.bool)
    choice = torch.randint(CLASSES, (*shape, VARIABLES))
    latents = {
        "belief": torch.rand(*shape, BELIEF),
        "state": torch.nn.functional.one_hot(choice, CLASSES).float().flatten(-2),
    }
    arrived = {
        "pixels": torch.randint(256, (*shape, 3, 64, 64), dtype=torch.uint8),
        "previous_action": torch.zeros(*shape, 4),
        "previous_reward": torch.zeros(*shape, 1),
        "is_init": flag,
    }
    ends = {"done": flag, "terminated": flag, "reward": torch.zeros(*shape, 1)}
    own = {"action": torch.zeros(*shape, 4, dtype=torch.bool), **arrived, **latents}
    return TensorDict({**own, "next": TensorDict({**arrived, **ends}, shape)}, shape)


def _rate(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1 / (time.perf_counter() - began)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    report()
