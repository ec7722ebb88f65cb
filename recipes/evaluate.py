"""Plays episodes with the policy of a run folder: ``python recipes/evaluate.py RUN_DIR``."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from tensordict import TensorDictBase

from torchrl_wm.ranges import COUNT, NUMBER
from torchrl_wm.training import (
    CheckpointError,
    Evaluator,
    RunFolder,
    seed_everything,
)
from torchrl_wm.training.assembly import load_agent
from torchrl_wm.training.configuration import resolve_device


def main(arguments: list[str] | None = None) -> None:
    """Prints the return of every episode and their mean."""
    options = _parser().parse_args(arguments)
    run = RunFolder.open(options.run_dir)
    seed_everything(options.seed)
    algorithm, env, step = load_agent(
        run,
        resolve_device(options.device),
        checkpoint=options.checkpoint,
        seed=options.seed,
        num_envs=options.envs,
    )
    frames = Frames() if options.video else None
    evaluator = Evaluator(env, algorithm.evaluation_policy, options.episodes, seed=options.seed)
    result = evaluator.evaluate(step, on_step=frames)
    for number, (value, length) in enumerate(zip(result.returns, result.lengths, strict=True)):
        print(f"episode {number}: return {value:.2f}, {length} decisions")
    summary = result.summary()
    print(f"step {step:,}: return {summary['mean']:.2f} +- {summary['std']:.2f}")
    if frames is not None:
        frames.save(options.video)
        print(f"first episode: {options.video}")
    env.close()


class Frames:
    """Keeps the images of the first episode of environment 0."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.done = False

    def __call__(self, tensordict: TensorDictBase) -> None:
        """Takes one step."""
        if self.done:
            return
        if "pixels" not in tensordict.keys():
            sys.exit(
                "--video needs an environment that observes pixels, such as env=cartpole_pixels."
            )
        self.images.append(tensordict["pixels"][0].permute(1, 2, 0).cpu().numpy())
        self.done = bool(tensordict["next", "done"][0].any())

    def save(self, path: str) -> None:
        """Writes a .gif or .mp4."""
        import imageio.v2 as imageio

        images = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in self.images]
        imageio.mimwrite(path, images)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", help="the folder that a training run printed")
    parser.add_argument("--episodes", type=COUNT.parse, default=10)
    parser.add_argument("--envs", type=COUNT.parse, default=1, help="environments side by side")
    parser.add_argument("--seed", type=NUMBER.parse, default=1000)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--checkpoint", help="a checkpoint folder; default: the newest of the run")
    parser.add_argument("--video", metavar="FILE", help="first episode as .gif or .mp4")
    return parser


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    try:
        main()
    except (CheckpointError, FileNotFoundError) as error:
        sys.exit(str(error))
