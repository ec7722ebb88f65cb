"""One plan of the cross-entropy method beside TorchRL's planner and the model's bare products.

``python recipes/benchmark.py planners`` measures all candidates in turns, in one run, at three sizes and
two batch sizes. Times are those of the processor, so a busy machine does not show; give ``--wall`` for
those of the clock. bfloat16 is measured where the processor multiplies it, and elsewhere on demand: there
one plan of PlaNet's size takes ten times as long.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from processor import multiplies_bfloat16
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.modules import CEMPlanner as TorchRLPlanner

from torchrl_wm.envs import LearnedEnv
from torchrl_wm.planners import CEMPlanner
from torchrl_wm.ranges import COUNT
from torchrl_wm.world_models import RSSM, make_rssm

PEER, BARE, OURS = "TorchRL's CEMPlanner", "bare products", "CEMPlanner"
ACTIONS, PART = 6, 1024
REST = 0.02  # seconds in which threads of the candidate before stop waiting busily


@dataclass
class Size:
    """Sizes of a model (state and head as PlaNet relates them) and of a planner."""

    belief: int
    state: int
    head: int
    horizon: int
    iterations: int
    candidates: int
    elites: int


SIZES = {
    "PlaNet": Size(200, 30, 300, 12, 10, 1000, 100),
    "small": Size(32, 8, 32, 12, 5, 64, 8),
    "medium": Size(96, 16, 96, 12, 5, 64, 8),
}


def main() -> None:
    """Prints milliseconds per plan of every candidate and the ratios."""
    options = _options()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.wall else time.process_time
    print(f"{platform.processor() or platform.machine()}, {options.threads} thread(s)")
    for name in options.sizes:
        size = SIZES[name]
        for batch in options.batches:
            print(
                f"{name}: {size.belief}/{size.state} units, {size.horizon} x {size.iterations} x "
                f"{size.candidates}, batch {batch}",
                flush=True,
            )
            candidates = _candidates(size, batch, options.compile, options.bfloat16)
            _report(_measure(candidates, options.rounds, clock))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=COUNT.parse, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=COUNT.parse, default=5, help="plans of each candidate")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=COUNT.parse, default=[1, 8])
    parser.add_argument("--compile", action="store_true", help="compiled variants too")
    parser.add_argument(
        "--bfloat16", action=argparse.BooleanOptionalAction, default=multiplies_bfloat16()
    )
    parser.add_argument("--wall", action="store_true", help="measure with the clock")
    return parser.parse_args()


def _candidates(
    size: Size, batch: int, compiled: bool, bfloat16: bool
) -> dict[str, Callable[[], object]]:
    model = make_model(size)
    sizes = (size.horizon, size.iterations, size.candidates, size.elites)
    ours, theirs = CEMPlanner(model, *sizes), TorchRLPlanner(LearnedEnv(model), *sizes)
    start = model.initial([batch])
    found = {
        BARE: bare_products(size, batch * size.candidates),
        PEER: lambda: theirs(start.clone()),
        OURS: lambda: ours(start.clone()),
    }
    if compiled:
        fast = CEMPlanner(model, *sizes).compile_steps()
        found[f"{OURS}, compiled"] = lambda: fast(start.clone())
    if bfloat16:
        found |= {f"{n}, bfloat16": _in_bfloat16(f) for n, f in found.items() if n.startswith(OURS)}
    return {name: torch.no_grad()(function) for name, function in found.items()}


def _in_bfloat16(function: Callable[[], object]) -> Callable[[], object]:
    return torch.autocast("cpu", torch.bfloat16)(function)


def make_model(size: Size) -> RSSM:
    """PlaNet's model of the size, untrained."""
    torch.manual_seed(0)
    return make_rssm(
        Composite(observation=Unbounded(24)),
        Composite(action=Bounded(-1, 1, (ACTIONS,))),
        style="planet",
        latent="gaussian",
        cell="reset_before",
        belief_size=size.belief,
        hidden_size=size.belief,
        state_size=size.state,
        prior_layers=1,
        units=size.head,
        reward_layers=3,
        use_continuation=False,
        use_reconstruction=False,
    )


def bare_products(size: Size, rows: int) -> Callable[[], Tensor]:
    """The matrix products of one plan and nothing else: no activations, no draws, no choice.

    In parts of about 1,000 rows, which is the fastest: they stay in the cache.
    """
    parts = -(-rows // PART)
    rows = -(-rows // parts)
    hidden, belief, head = size.belief, size.belief, size.head
    shapes = [
        (size.state + ACTIONS, hidden),
        (hidden + belief, 2 * belief),
        (hidden + belief, belief),
        (belief, hidden),
        (hidden, 2 * size.state),
        (belief + size.state, head),
        (head, head),
        (head, head),
        (head, 1),
    ]
    layers = [(torch.randn(rows, i), nn.Linear(i, o)) for i, o in shapes]

    def plan() -> Tensor:
        for _ in range(size.iterations * size.horizon * parts):
            for inputs, layer in layers:
                out = layer(inputs)
        return out

    return plan


def _measure(candidates: dict[str, Callable], rounds: int, clock) -> dict[str, float]:
    seconds = {name: [] for name in candidates}
    for function in candidates.values():
        function()
    for _ in range(rounds):
        for name, function in candidates.items():
            time.sleep(REST)
            began = clock()
            function()
            seconds[name].append(clock() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _report(medians: dict[str, float]) -> None:
    for name, seconds in medians.items():
        print(
            f"  {name:>30}: {1000 * seconds:8.1f} ms, {seconds / medians[BARE]:5.2f} x the bare products, "
            f"{medians[PEER] / seconds:5.2f} x as fast as TorchRL's",
            flush=True,
        )


if __name__ == "__main__":
    main()
