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
from functools import partial

import acting
import replay
import torch
import torchrl_dreamer_v3
from processor import multiplies_bfloat16
from tensordict import TensorDict
from torch.utils.flop_counter import FlopCounterMode
from torchrl.data import Bounded, Composite, Unbounded

from torchrl_wm.algorithms import DreamerV3
from torchrl_wm.ranges import COUNT

OBSERVATIONS, ACTIONS, BATCH, STEPS, HORIZON = 24, 6, 16, 64, 15
PEER = "TorchRL's parts"


def main() -> None:
    """Prints seconds per update of every candidate and the ratios."""
    options = _options()
    torch.set_num_threads(options.threads)
    print(f"{_processor(options.device)}, {options.threads} threads")
    print(f"size1m, {OBSERVATIONS} observations, {ACTIONS} actions, {BATCH} x {STEPS}, H={HORIZON}")
    candidates = {}
    for name, make in _candidates(options).items():
        began = time.perf_counter()
        try:
            candidates[name] = _warmed_up(make, options.device)
        except RuntimeError as error:
            if not name.startswith(PEER):
                raise
            print(f"{name} does not run here: {error}")
            continue
        print(f"warm-up of {name}: {time.perf_counter() - began:.1f} s", flush=True)
    medians = _medians(candidates, options.rounds)
    floor = _report_floor(candidates["float32 eager"], options.device)
    peers = [name for name in medians if name.startswith(PEER)]
    peer = min(peers or medians, key=medians.get)
    for name, seconds in medians.items():
        ratios = (
            f"{medians[peer] / seconds:5.2f} x as fast as {peer}, {seconds / floor:5.2f} x floor"
        )
        print(f"{name:>28}: {seconds:.3f} s per update, {ratios}", flush=True)
    if not options.only_updates and options.device == "cpu":
        acting.report()
        replay.report()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=COUNT.parse, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=COUNT.parse, default=9, help="updates of each candidate")
    parser.add_argument("--only-updates", action="store_true")
    parser.add_argument(
        "--compiled-peer", action="store_true", help=f"compile {PEER}, too: minutes, on a GPU"
    )
    parser.add_argument(
        "--bfloat16", action=argparse.BooleanOptionalAction, default=multiplies_bfloat16()
    )
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU; leave it out to measure on the CPU")
    return options


def _candidates(options: argparse.Namespace) -> dict[str, Callable[..., Callable[[], None]]]:
    """By name, what makes the function that does one update, on a ``device``."""
    peer = partial(torchrl_dreamer_v3.make_update, OBSERVATIONS, ACTIONS, BATCH, STEPS, HORIZON)
    candidates = {PEER: peer, "float32 eager": make_update}
    fast, label = {"compile": True}, "compiled"
    if options.device == "cuda":
        candidates[f"{PEER}, captured"] = partial(peer, captured=True)
        candidates["float32 captured"] = partial(make_update, cuda_graph=True)
        fast, label = fast | {"cuda_graph": True}, "compiled, captured"
    candidates[f"float32 {label}"] = partial(make_update, **fast)
    if options.bfloat16:
        candidates[f"bfloat16 {label}"] = partial(make_update, precision="bfloat16", **fast)
    if options.compiled_peer:
        captured = options.device == "cuda"
        candidates[f"{PEER}, {label}"] = partial(peer, compiled=True, captured=captured)
    return candidates


def _warmed_up(make: Callable[..., Callable[[], None]], device: str) -> Callable[[], None]:
    update = make(device=device)
    for _ in range(4):
        update()
    return update


def _processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def make_update(device: str = "cpu", **options) -> Callable[[], None]:
    """A function that does one full update of our DreamerV3."""
    torch.manual_seed(0)
    observation_spec = Composite(observation=Unbounded(OBSERVATIONS))
    action_spec = Composite(action=Bounded(-1, 1, (ACTIONS,)))
    options |= {"imagination_horizon": HORIZON, "device": device}
    agent = DreamerV3(observation_spec, action_spec, **options)
    sample = make_sample(agent).to(device)
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
            times[name].append(_seconds(update))
    return {name: sorted(values)[rounds // 2] for name, values in times.items()}


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


class OperationCounter(FlopCounterMode):
    """Counts operations without telling modules apart, which fails where a module holds a TensorDict."""

    def __init__(self, **options):
        super().__init__(**options)
        self.mod_tracker = _OneModule()


class _OneModule(contextlib.nullcontext):
    parents = {"Global"}


def _report_floor(update: Callable[[], None], device: str) -> float:
    """Seconds of the update's matrix products at the rate of one large float32 product."""
    with OperationCounter(display=False) as counter:  # the modules do all the work while it counts
        update()
    operations = counter.get_total_flops()
    rate, other = (_product_rate(dtype, device) for dtype in (torch.float32, torch.bfloat16))
    print(f"{operations / 1e9:.1f} GFLOP an update; float32 products {rate / 1e9:.0f} GFLOP/s,")
    print(f"bfloat16 products {other / 1e9:.0f} GFLOP/s")
    print(f"arithmetic floor in float32: {operations / rate:.3f} s", flush=True)
    return operations / rate


def _product_rate(dtype: torch.dtype, device: str) -> float:
    size = 1024 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(20):
        times.append(_seconds(lambda: left @ right))
    return 2 * size**3 / sorted(times)[len(times) // 2]


if __name__ == "__main__":
    main()
