"""One full DreamerV3 update (size1m) beside TorchRL's parts and the arithmetic floor.

``python recipes/benchmark.py dreamer_update`` measures all candidates in turns, in one run, and then what
acting and sampling cost (``--only-updates`` leaves those out). bfloat16 is measured where the processor
multiplies it, and elsewhere on demand.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import time
from collections.abc import Callable

import acting
import replay
import torch
import torchrl_dreamer_v3
from processor import multiplies_bfloat16
from tensordict import TensorDict
from torch.utils.flop_counter import FlopCounterMode
from torchrl.data import Bounded, Composite, Unbounded

from torchrl_wm.algorithms import DreamerV3

OBSERVATIONS, ACTIONS, BATCH, STEPS, HORIZON = 24, 6, 16, 64, 15
PEER = "TorchRL's parts"


def main() -> None:
    """Prints seconds per update of every candidate and the ratios."""
    options = _options()
    torch.set_num_threads(options.threads)
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads")
    print(f"size1m, {OBSERVATIONS} observations, {ACTIONS} actions, {BATCH} x {STEPS}, H={HORIZON}")
    candidates = {
        PEER: torchrl_dreamer_v3.make_update(OBSERVATIONS, ACTIONS, BATCH, STEPS, HORIZON),
        "float32 eager": make_update(),
        "float32 compiled": make_update(compile=True),
    }
    if options.bfloat16:
        candidates["bfloat16 compiled"] = make_update(compile=True, precision="bfloat16")
    for name, update in candidates.items():
        began = time.perf_counter()
        update(), update()
        print(f"warm-up of {name}: {time.perf_counter() - began:.1f} s", flush=True)
    medians = _medians(candidates, options.rounds)
    floor = _report_floor(candidates["float32 eager"])
    for name, seconds in medians.items():
        ratios = (
            f"{medians[PEER] / seconds:5.2f} x as fast as {PEER}, {seconds / floor:5.2f} x floor"
        )
        print(f"{name:>18}: {seconds:.3f} s per update, {ratios}", flush=True)
    if not options.only_updates:
        acting.report()
        replay.report()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9, help="updates of each candidate")
    parser.add_argument("--only-updates", action="store_true")
    parser.add_argument(
        "--bfloat16", action=argparse.BooleanOptionalAction, default=multiplies_bfloat16()
    )
    return parser.parse_args()


def make_update(**options) -> Callable[[], None]:
    """A function that does one full update of our DreamerV3."""
    torch.manual_seed(0)
    observation_spec = Composite(observation=Unbounded(OBSERVATIONS))
    action_spec = Composite(action=Bounded(-1, 1, (ACTIONS,)))
    agent = DreamerV3(observation_spec, action_spec, imagination_horizon=HORIZON, **options)
    sample = make_sample(agent)
    return lambda: agent.update(sample)


def make_sample(agent: DreamerV3) -> TensorDict:
    """Step records ``[B, T + 1]`` of one endless episode."""
    shape = (BATCH, STEPS + 1)
    records = agent.world_model.initial(shape)
    records["observation"] = torch.randn(*shape, OBSERVATIONS)
    records["reward"] = torch.randn(*shape, 1)
    records["previous_action"] = torch.rand(*shape, ACTIONS) * 2 - 1
    for flag in ("is_init", "is_last", "terminated"):
        records[flag] = torch.zeros(*shape, 1, dtype=torch.bool)
    return records


def _medians(candidates: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each candidate; they take turns, so that a busy moment hits all."""
    times = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, update in candidates.items():
            began = time.perf_counter()
            update()
            times[name].append(time.perf_counter() - began)
    return {name: sorted(values)[rounds // 2] for name, values in times.items()}


class OperationCounter(FlopCounterMode):
    """Counts operations without telling modules apart, which fails where a module holds a TensorDict."""

    def __init__(self, **options):
        super().__init__(**options)
        self.mod_tracker = _OneModule()


class _OneModule(contextlib.nullcontext):
    parents = {"Global"}


def _report_floor(update: Callable[[], None]) -> float:
    """Seconds of the update's matrix products at the rate of one large float32 product."""
    with OperationCounter(display=False) as counter:
        update()
    operations = counter.get_total_flops()
    rate = _product_rate(torch.float32)
    print(f"{operations / 1e9:.1f} GFLOP an update; float32 products {rate / 1e9:.0f} GFLOP/s,")
    print(f"bfloat16 products {_product_rate(torch.bfloat16) / 1e9:.0f} GFLOP/s")
    print(f"arithmetic floor in float32: {operations / rate:.3f} s", flush=True)
    return operations / rate


def _product_rate(dtype: torch.dtype, size: int = 1024) -> float:
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - began)
    return 2 * size**3 / sorted(times)[len(times) // 2]


if __name__ == "__main__":
    main()
