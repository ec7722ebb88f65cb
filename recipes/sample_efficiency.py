"""Return against the trajectories that a planner tries out: ``python recipes/sample_efficiency.py OUT``.

Plays episodes of Pendulum with every planner at several budgets, planning in the true dynamics
(TorchRL's stateless ``PendulumEnv``) or, with ``--run RUN_DIR``, in the world model of a run and acting in
its environment. All planners begin in the same states. Writes ``OUT.csv``, ``OUT.md`` and ``OUT.png``.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torch import nn
from torchrl.envs import EnvBase, PendulumEnv, step_mdp

from torchrl_wm.planners import CEMPlanner, ICEMPlanner, MPPIPlanner, Planner
from torchrl_wm.policies import FilteringPlanner
from torchrl_wm.ranges import COUNT, NUMBER
from torchrl_wm.training import CheckpointError, Evaluator, RunFolder, seed_everything
from torchrl_wm.training.assembly import load_agent
from torchrl_wm.training.configuration import instantiate
from torchrl_wm.training.loop import with_latents
from torchrl_wm.training.run_folder import code_version

_ELITES = {"CEM": 0.1, "CEM, warm start": 0.1, "iCEM": 0.25, "MPPI": 0.125}  # of the candidates
PLANNERS = {
    "CEM": partial(CEMPlanner, optim_steps=5),
    "CEM, warm start": partial(CEMPlanner, optim_steps=5, warm_start=True),
    "iCEM": partial(ICEMPlanner, optim_steps=3),
    "MPPI": partial(MPPIPlanner, temperature=0.5, min_std=0.05, warm_start=True),
}
CANDIDATES = (4, 8, 16, 32, 64, 128, 200)  # of an iteration
COLUMNS = ("planner", "candidates", "trajectories", "seed", "mean", "std", "episodes")


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Measures every point, then writes the three files."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (table := _file(Path(options.out), "csv")).exists():
        parser.error(f"{table} is there already: give another OUT, or remove it")
    torch.set_num_threads(1)
    play = partial(play_in_pendulum, options)
    if options.run:
        run = RunFolder.open(options.run)
        # The environments that come with the agent carry the plan of its own planner.
        algorithm, _, _ = load_agent(run, torch.device("cpu"), num_envs=1)
        env_config = OmegaConf.create(run.config).env
        play = partial(play_in_model, options, algorithm, env_config)
    rows, version = [], code_version()
    for name in options.planners:
        for candidates in options.candidates:
            returns, trajectories = play(make_planner(name, candidates, options.horizon))
            rows += [describe(name, candidates, trajectories, *item) for item in returns.items()]
            mean = np.mean([row["mean"] for row in rows[-len(returns) :]])
            print(f"{name}, {trajectories:.0f} trajectories: return {mean:.1f}", flush=True)
            write(Path(options.out), rows, version)  # it takes long: what there is, is kept
    print(_file(Path(options.out), "md").read_text())


def write(out: Path, rows: list[dict], version: dict[str, str]) -> None:
    """Writes the three files."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with _file(out, "csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    _file(out, "md").write_text(report(out.name, rows, version))
    draw(_file(out, "png"), out.name, rows)


def _file(out: Path, kind: str) -> Path:
    return out.with_name(f"{out.name}.{kind}")  # the name may have dots


def make_planner(name: str, candidates: int, horizon: int) -> Callable[..., Planner]:
    """What makes the planner from where it plans."""
    elites = max(2, round(_ELITES[name] * candidates))
    if name == "iCEM":
        elites = min(elites, 10)  # the reference code's, however many candidates
    sizes = {"planning_horizon": horizon, "num_candidates": candidates, "top_k": elites}
    return partial(PLANNERS[name], **sizes)


class Counter:
    """Counts the sequences of each start that a planner tries out, kept ones included."""

    def __init__(self, planner: Planner):
        self.count, self.returns = 0, planner.simulator.returns
        planner.simulator.returns = self

    def __call__(self, start, actions: torch.Tensor, generator=None) -> torch.Tensor:
        """What the simulator returns."""
        self.count += actions.shape[1]
        return self.returns(start, actions, generator)


def play_in_pendulum(options, make: Callable[..., Planner]) -> tuple[dict[int, np.ndarray], float]:
    """Returns of the episodes of each seed, and trajectories of one decision, in the true dynamics."""
    env, steps = PendulumEnv(), options.steps
    planner = make(env)
    counter = Counter(planner)
    torch.manual_seed(options.seeds[0])
    starts = torch.cat([start(env, seed, options.episodes) for seed in options.seeds])
    state = starts.set(planner.is_init_key, torch.ones(len(starts), 1, dtype=torch.bool))
    for key, shape in planner.carried.items():
        state.set(key, torch.zeros(len(starts), *shape))
    total = torch.zeros(len(starts), dtype=torch.float64)
    for _ in range(steps):
        row = env.step(planner(state))
        total += row[planner.simulator.reward_key].reshape(-1)
        state = step_mdp(row)  # keeps what the planner carries
        state.set(planner.is_init_key, torch.zeros(len(starts), 1, dtype=torch.bool))
    seeds = total.view(len(options.seeds), options.episodes).numpy()
    return dict(zip(options.seeds, seeds, strict=True)), counter.count / steps


def start(env: EnvBase, seed: int, episodes: int) -> TensorDict:
    """First states ``[episodes]`` of a seed."""
    env.set_seed(seed)
    return env.reset(env.gen_params(batch_size=[episodes]), set_state=False)


def play_in_model(
    options, algorithm: nn.Module, env_config: DictConfig, make: Callable[..., Planner]
) -> tuple[dict[int, np.ndarray], float]:
    """Returns of the episodes of each seed, and trajectories of one decision, in the environment."""
    model, returns, decisions, tried = algorithm.world_model, {}, 0, 0
    for seed in options.seeds:
        planner = make(model)
        counter = Counter(planner)
        policy = FilteringPlanner(model, planner, preprocess=getattr(algorithm, "quantize", None))
        env_config = OmegaConf.merge(env_config, {"num_envs": options.episodes})
        env = with_latents(instantiate(env_config, seed=seed), policy)
        seed_everything(seed)
        result = Evaluator(env, policy, options.episodes, seed=seed).evaluate()
        env.close()
        returns[seed] = np.asarray(result.returns)
        decisions, tried = decisions + max(result.lengths), tried + counter.count
    return returns, tried / decisions


def describe(
    name: str, candidates: int, trajectories: float, seed: int, returns: np.ndarray
) -> dict[str, object]:
    """One row of the table."""
    numbers = (seed, round(returns.mean(), 3), round(returns.std(ddof=1), 3), len(returns))
    return dict(zip(COLUMNS, (name, candidates, round(trajectories, 1), *numbers), strict=True))


def points(rows: list[dict], name: str) -> list[tuple[float, float, float]]:
    """Trajectories, mean return and its standard error over all episodes, by trajectories."""
    found: dict[float, list[dict]] = {}
    for row in rows:
        if row["planner"] == name:
            found.setdefault(row["trajectories"], []).append(row)
    result = []
    for trajectories, own in sorted(found.items()):
        count, mean = sum(row["episodes"] for row in own), np.mean([row["mean"] for row in own])
        spread = sum(
            row["std"] ** 2 * (row["episodes"] - 1) + row["episodes"] * (row["mean"] - mean) ** 2
            for row in own
        )
        result.append((trajectories, mean, (spread / (count - 1) / count) ** 0.5))
    return result


def names(rows: list[dict]) -> list[str]:
    """The planners, in order."""
    return list(dict.fromkeys(row["planner"] for row in rows))


def report(name: str, rows: list[dict], version: dict[str, str]) -> str:
    """Command, returns, and how many trajectories iCEM needs for the mean return of each other."""
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"# {name}",
        "",
        f"`{shlex.join(['python', *sys.argv])}` ({version.get('commit') or version['torchrl_wm']})",
        "",
        "Trajectories tried out for one decision, kept ones included; mean return of "
        f"{rows[0]['episodes']} episodes for each seed, and the standard error over all of them:",
        "",
        "| planner | trajectories | return | " + " | ".join(f"seed {s}" for s in seeds) + " |",
        "|---" * (3 + len(seeds)) + "|",
    ]
    means = {(r["planner"], r["trajectories"], r["seed"]): r["mean"] for r in rows}
    for planner in names(rows):
        for count, mean, error in points(rows, planner):
            cells = " | ".join(f"{means[planner, count, s]:.1f}" for s in seeds)
            lines.append(f"| {planner} | {count:.0f} | {mean:.1f} ± {error:.1f} | {cells} |")
    return "\n".join([*lines, "", *comparison(rows), ""])


def comparison(rows: list[dict]) -> list[str]:
    """For each point of the other planners, the smallest one of iCEM with at least its mean return."""
    if "iCEM" not in names(rows):
        return []
    lines = [
        "The fewest trajectories with which iCEM's mean return is at least that of the other planner:",
        "",
        "| planner | its trajectories | its return | iCEM's trajectories | iCEM's return | share |",
        "|---|---|---|---|---|---|",
    ]
    for other in (name for name in names(rows) if name != "iCEM"):
        for count, mean, _ in points(rows, other):
            enough = [point for point in points(rows, "iCEM") if point[1] >= mean]
            cells = "none | | "
            if enough:
                needed, reached, _ = enough[0]
                cells = f"{needed:.0f} | {reached:.1f} | {needed / count:.2f}"
            lines.append(f"| {other} | {count:.0f} | {mean:.1f} | {cells} |")
    return lines


def draw(path: Path, name: str, rows: list[dict]) -> None:
    """Mean returns with their standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for planner in names(rows):
        count, mean, error = zip(*points(rows, planner), strict=True)
        axes.errorbar(count, mean, error, marker="o", capsize=2, label=planner)
    axes.set(title=name, xlabel="trajectories for one decision", ylabel="return", xscale="log")
    axes.legend()
    figure.savefig(path, dpi=80, bbox_inches="tight")
    pyplot.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="path of the files without their ending")
    parser.add_argument("--run", help="folder of a training run; default: the true dynamics")
    parser.add_argument("--planners", nargs="+", choices=PLANNERS, default=list(PLANNERS))
    parser.add_argument("--candidates", nargs="+", type=COUNT.parse, default=CANDIDATES)
    parser.add_argument("--horizon", type=COUNT.parse, default=20, help="steps of a trajectory")
    parser.add_argument(
        "--steps", type=COUNT.parse, default=200, help="of an episode in the true dynamics"
    )
    parser.add_argument("--episodes", type=COUNT.parse, default=10, help="of each seed")
    parser.add_argument("--seeds", nargs="+", type=NUMBER.parse, default=[0, 1, 2])
    return parser


if __name__ == "__main__":
    try:
        main()
    except (CheckpointError, FileNotFoundError) as error:
        sys.exit(str(error))
