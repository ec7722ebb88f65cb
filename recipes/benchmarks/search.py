"""Searches per second beside mctx, for both rules: ``python recipes/benchmark.py search``.

Needs ``pip install jax mctx``; LightZero's tree stands beside MuZero's rule where it is installed
(``pip install --no-deps LightZero``). The model is the same small network with the same weights on all
sides, 50 simulations, no noise. Candidates take turns of five searches; medians are printed, with the
share of our time that the model's evaluations, in the turn after it, do not explain, and what share it would
be if these were the model's operations in torch, traced once and called in every simulation. ``--clock cpu``
counts processor time, for a machine that does other work too. Then follow rates of a whole agent: self-play
and updates of Gumbel MuZero on CartPole.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Callable

import lightzero_search
import mctx_search
import numpy as np
import self_play
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.data import Categorical

from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.planners import GumbelRule, MuZeroRule, search
from torchrl_wm.planners.recording import traced
from torchrl_wm.planners.tree_search import Dynamics, NodeEvaluator, Root, Step
from torchrl_wm.planners.tree_search.executor import SHARE
from torchrl_wm.ranges import COUNT

POINTS = ((16, 4), (16, 18), (256, 4), (256, 18))
SIMULATIONS, UNITS, DISCOUNT, TURN = 50, 64, 0.997, 5
RULES = {"muzero": MuZeroRule(dirichlet_fraction=0.0), "gumbel": GumbelRule()}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class SmallDynamics(Dynamics):
    """A latent of 64 numbers; dynamics, reward, policy and value with one hidden layer of 64 each."""

    in_keys = ["latent"]
    traceable = True

    def __init__(self, num_actions: int):
        super().__init__(ActionEncoding(Categorical(num_actions)), num_actions, DISCOUNT)
        self.dynamics = _perceptron(UNITS + num_actions, UNITS)
        self.reward = _perceptron(UNITS, 1)
        self.policy_and_value = _perceptron(UNITS, num_actions + 1)
        self.register_buffer("codes", torch.eye(num_actions))

    def root(self, tensordict: TensorDictBase, allowed=None, generator=None) -> Root:
        """Roots with values and policies of their own latents."""
        latent = tensordict["latent"]
        heads = self.policy_and_value(latent)
        return Root((latent,), heads[..., -1], heads[..., :-1])

    def step(self, latents: tuple[Tensor, ...], action: Tensor) -> Step:
        """Latent and action to the next latent, reward, value and logits."""
        joined = torch.cat([latents[0], self.codes.index_select(0, action)], -1)
        latent = self.dynamics(joined).tanh()
        heads = self.policy_and_value(latent)
        return Step((latent,), self.reward(latent)[..., 0], heads[..., -1], heads[..., :-1])


def main() -> None:
    """Prints searches per second at every point, and the ratios."""
    options = _options()
    torch.set_num_threads(options.threads)
    clock = CLOCKS[options.clock]
    print(f"{platform.processor() or platform.machine()}, torch with {options.threads} threads")
    print(
        f"{SIMULATIONS} simulations, model of {UNITS} units, {options.clock} time, searches per second"
    )
    compiled_tree = lightzero_search.load_tree()
    for name, rule in RULES.items():
        ratios = []
        for rows, actions in POINTS:
            torch.manual_seed(0)
            model = SmallDynamics(actions).eval()
            root = model.root({"latent": torch.randn(rows, UNITS)})
            noise = rule.draw_noise(root.logits > -torch.inf) if name == "gumbel" else None
            evaluator = NodeEvaluator(model)
            candidates = {
                "ours": _ours(evaluator, root, rule, noise),
                "model": _model_alone(evaluator, root),
                "traced": _traced_alone(evaluator, root),
                "mctx": mctx_search.make_search(model, root, name, SIMULATIONS, DISCOUNT),
            }
            if compiled_tree is not None and name == "muzero":
                candidates["LightZero"] = lightzero_search.make_search(
                    compiled_tree, model, root, rule, SIMULATIONS
                )
            times = _measure(candidates, options.rounds, clock)
            outside = times["ours"] - times.pop("model")
            whole = times["ours"], outside + times.pop("traced")
            share, beside = (np.median(outside / one) for one in whole)
            rates = {name: rows / np.median(found) for name, found in times.items()}
            ratios.append(rates["ours"] / rates["mctx"])
            found = ", ".join(f"{who} {rate:8,.0f}" for who, rate in rates.items())
            print(
                f"{name} {rows:>3} x {actions:<2}: {found}; {ratios[-1]:5.2f} times as fast as mctx; "
                f"outside the model {share:.0%} of the time, beside its traced calls {beside:.0%}",
                flush=True,
            )
        print(f"{name}: {np.mean(ratios):.2f} times as fast in the mean", flush=True)
    _report_occasions(clock)
    self_play.report(options.threads)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of ours; mctx takes all cores"
    )
    parser.add_argument("--rounds", type=COUNT.parse, default=15, help="turns of each candidate")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    return parser.parse_args()


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, UNITS), nn.ReLU(), nn.Linear(UNITS, outputs))


def _ours(evaluator: NodeEvaluator, root: Root, rule, noise: Tensor | None) -> Callable[[], object]:
    return lambda: search(evaluator, root, rule, num_simulations=SIMULATIONS, noise=noise)


def _model_alone(evaluator: NodeEvaluator, root: Root) -> Callable[[], object]:
    """All evaluations of a search in one call, in as many threads as the search has."""
    threads = torch.get_num_threads() if len(root.value) >= 2 * SHARE else 1
    rows = len(root.value) * SIMULATIONS
    store = evaluator.begin(root.latents, rows + len(root.value))
    index = torch.arange(rows) % len(root.value)
    action = torch.arange(rows) % root.logits.shape[-1]
    places = store.used

    def evaluate():
        store.used, before = places, torch.get_num_threads()
        torch.set_num_threads(threads)
        evaluator(store, index, action)
        torch.set_num_threads(before)

    return evaluate


def _traced_alone(evaluator: NodeEvaluator, root: Root) -> Callable[[], object]:
    """The calls of a search, one for each simulation, of the model's operations in torch."""
    rows = len(root.value)
    store = evaluator.begin(root.latents, 2 * rows)
    index = torch.arange(rows)
    inputs = index, index % root.logits.shape[-1], *store.buffers, *store.reserve(rows)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        call = traced(evaluator.forward, inputs, lambda function: function(*inputs), "the model")

    @torch.inference_mode()
    def evaluate():
        for _ in range(SIMULATIONS):
            call(*inputs)

    return evaluate


def _measure(
    candidates: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, np.ndarray]:
    """Median seconds of each candidate in each of its turns."""
    times = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            candidate()  # warms the caches up again
            turn = []
            for _ in range(TURN):
                began = clock()
                candidate()
                turn.append(clock() - began)
            times[name].append(np.median(turn))
    return {name: np.array(found) for name, found in times.items()}


def _report_occasions(clock: Callable[[], float]) -> None:
    """What the largest search of few actions takes in between other work, and with one thread."""
    torch.manual_seed(0)
    rows, actions = POINTS[2]
    model, threads = SmallDynamics(actions).eval(), torch.get_num_threads()
    root = model.root({"latent": torch.randn(rows, UNITS)})
    ours = _ours(NodeEvaluator(model), root, RULES["muzero"], None)
    inputs, layer = torch.randn(256, 512), nn.Linear(512, 512)
    occasions = {
        "right after another search": lambda: None,
        "right after a product in torch": lambda: layer(inputs),
        "after a pause of 0.02 s": lambda: time.sleep(0.02),
        "after a pause of 0.1 s": lambda: time.sleep(0.1),
    }
    for name, before in occasions.items():
        found = []
        for count in (threads, 1):
            torch.set_num_threads(count)
            found.append(_median_after(before, ours, clock))
        torch.set_num_threads(threads)
        print(
            f"muzero {rows} x {actions}, {name}: {1000 * found[0]:.1f} ms, with one thread "
            f"{1000 * found[1]:.1f} ms",
            flush=True,
        )


def _median_after(before: Callable[[], object], work: Callable[[], object], clock) -> float:
    times = []
    for _ in range(31):
        before()
        began = clock()
        work()
        times.append(clock() - began)
    return float(np.median(times))


if __name__ == "__main__":
    main()
