"""How well a world model predicts without observations: ``python recipes/open_loop.py RUN_DIR``.

Plays episodes, filters a few observations, then predicts with the recorded actions alone, and compares
with repeating the last observation that was filtered.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase

from torchrl_wm import keys
from torchrl_wm.ranges import COUNT, NUMBER
from torchrl_wm.training import CheckpointError, RunFolder, seed_everything
from torchrl_wm.training.assembly import load_agent
from torchrl_wm.world_models import WorldModel


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Writes ``open_loop.csv`` and, for images, ``open_loop.png`` into the run folder."""
    options = _parser().parse_args(arguments)
    run = RunFolder.open(options.run_dir)
    seed_everything(options.seed)
    algorithm, env, step = load_agent(
        run, torch.device("cpu"), seed=options.seed, num_envs=options.sequences
    )
    key = decoded_key(algorithm.world_model, options.key)
    records = play(env, algorithm.evaluation_policy, options.skip + options.context + options.steps)
    env.close()
    truth, predicted = predict(algorithm.world_model, records, key, options.steps)
    if not len(truth):
        raise SystemExit(
            f"An episode ended within the last {options.steps} steps of every sequence: lower --steps or "
            "--skip, or raise --sequences."
        )
    rows = compare(truth, predicted, options.steps)
    write(Path(run.path) / "open_loop.csv", rows)
    for row in rows:
        if row["step"] in (1, 5, 10, options.steps):
            print("step {step}: model {model:.5f}, last frame {last_frame:.5f}".format(**row))
    if truth.ndim == 5:
        draw(Path(run.path) / "open_loop.png", truth, predicted, options.steps)
    print(f"mean squared errors of {key!r} at step {step:,} of the run, {len(truth)} sequences")


def decoded_key(model: WorldModel, wanted: str | None) -> str:
    """The observation to compare: that name, or the first that the model decodes."""
    names = [] if model.decoder is None else list(model.decoder.out_keys)
    if not names:
        raise SystemExit("The world model of this run decodes no observations: nothing to compare.")
    if wanted is not None and wanted not in names:
        raise SystemExit(f"--key {wanted}: the world model decodes {', '.join(map(str, names))}.")
    return names[0] if wanted is None else wanted


def play(env: EnvBase, policy: nn.Module, steps: int) -> TensorDict:
    """Step records ``[E, steps]`` of the policy; episodes that end start again."""
    rows, tensordict = [], env.reset()
    for _ in range(steps):
        tensordict, following = env.step_and_maybe_reset(policy(tensordict))
        rows.append(tensordict.exclude("next").clone())
        tensordict = following
    return torch.stack(rows, 1)


def predict(
    model: WorldModel, records: TensorDictBase, key: str, steps: int
) -> tuple[Tensor, Tensor]:
    """True and predicted entries ``[E', steps + 1, ...]``, from the last filtered row on.

    Sequences with a reset among the predicted rows are left out.
    """
    whole = ~records[:, -steps:].get(keys.IS_INIT).any(1).squeeze(-1)
    records = records[whole]
    start = records[:, -steps - 1]
    latents, decoded = start.select(*model.latent_keys).clone(), []
    for t in range(steps + 1):
        decoded.append(model.decode(latents.clone())["decoded"].get(key))
        if t < steps:
            action = records[:, t - steps - 1].select(*model.action_encoding.in_keys)
            latents = model.step(latents.update(action))["next"].select(*model.latent_keys)
    truth, predicted = as_float(records[:, -steps - 1 :].get(key)), torch.stack(decoded, 1)
    if truth.shape != predicted.shape:  # of stacked frames, the newest is the last
        predicted = predicted[:, :, -truth.shape[2] :]
    return truth, predicted


def as_float(entry: Tensor) -> Tensor:
    """Bytes in [0, 1], floats as they are."""
    return entry.float() / 255 if entry.dtype == torch.uint8 else entry


def compare(truth: Tensor, predicted: Tensor, steps: int) -> list[dict[str, float]]:
    """Mean squared errors of every step ahead."""
    rows = []
    for t in range(1, steps + 1):
        model = (predicted[:, t] - truth[:, t]).square().mean().item()
        last = (truth[:, 0] - truth[:, t]).square().mean().item()
        rows.append({"step": t, "model": model, "last_frame": last})
    return rows


def write(path: Path, rows: list[dict[str, float]]) -> None:
    """The table as CSV."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def draw(path: Path, truth: Tensor, predicted: Tensor, steps: int) -> None:
    """True above predicted images of the first three sequences, every third step."""
    import imageio.v2 as imageio

    times = list(range(0, steps + 1, 3))
    lines = [part[i, times] for i in range(min(3, len(truth))) for part in (truth, predicted)]
    grid = torch.cat([torch.cat(list(line), -1) for line in lines], -2).clamp(0, 1)
    imageio.imwrite(path, (grid.permute(1, 2, 0).numpy() * 255).astype(np.uint8))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", help="the folder that a training run printed")
    parser.add_argument(
        "--sequences", type=COUNT.parse, default=16, help="environments side by side"
    )
    parser.add_argument(
        "--skip", type=NUMBER.parse, default=20, help="steps before the filtered ones"
    )
    parser.add_argument("--context", type=COUNT.parse, default=5, help="filtered steps")
    parser.add_argument("--steps", type=COUNT.parse, default=15, help="predicted steps")
    parser.add_argument("--key", help="the observation to compare; default: the first")
    parser.add_argument("--seed", type=NUMBER.parse, default=1000)
    return parser


if __name__ == "__main__":
    try:
        main()
    except (CheckpointError, FileNotFoundError) as error:
        sys.exit(str(error))
