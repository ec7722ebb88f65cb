"""Playing whole episodes with the evaluation policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_wm.ranges import COUNT
from torchrl_wm.training.episodes import episode_rewards
from torchrl_wm.training.randomness import separate_randomness


@dataclass
class EvaluationResult:
    """Returns and lengths of the episodes of one evaluation, environment by environment."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Mean, standard deviation (of the population), minimum and maximum of the returns."""
        returns = np.asarray(self.returns, dtype=np.float64)
        return {
            "mean": float(returns.mean()),
            "std": float(returns.std()),
            "min": float(returns.min()),
            "max": float(returns.max()),
            "length": float(np.mean(self.lengths)),
        }


class Evaluator:
    """Plays exactly ``episodes`` episodes on its own environments and counts each of them once.

    With several environments each has a fixed quota: counting whichever episodes end first would favour
    short ones. Seeds follow from ``seed`` and the step, and the global random state is left untouched, so
    evaluating more often never changes a training run.

    Args:
        env (EnvBase): environments with batch size ``[E]`` and the latent entries of the policy.
        policy (TensorDictModuleBase): the evaluation policy, which itself decides how greedy to be.
        episodes (int, optional): episodes of one evaluation. Defaults to 10.

    Keyword Args:
        seed (int, optional): from which all seeds are derived. Defaults to 0.

    Raises:
        ValueError: if ``episodes`` is below 1.
    """

    def __init__(
        self, env: EnvBase, policy: TensorDictModuleBase, episodes: int = 10, *, seed: int = 0
    ):
        COUNT.check(episodes=episodes)
        if len(env.batch_size) != 1:
            raise ValueError(
                f"The evaluation environment must have batch size [E], one of them [1]; "
                f"got {list(env.batch_size)}."
            )
        self.env, self.policy, self.episodes, self.seed = env, policy, episodes, seed
        self._device = torch.device("cpu") if env.device is None else env.device

    @torch.no_grad()
    def evaluate(
        self,
        step: int = 0,
        *,
        stopped: Callable[[], bool] = lambda: False,
        on_step: Callable[[TensorDictBase], None] | None = None,
    ) -> EvaluationResult | None:
        """Plays the episodes.

        Args:
            step (int, optional): the environment step of the run, mixed into the seeds.

        Keyword Args:
            stopped (Callable, optional): called after every step; True aborts the evaluation.
            on_step (Callable, optional): called with the TensorDict of every step (for videos).

        Returns:
            EvaluationResult, or None if it was aborted.
        """
        exploration = set_exploration_type(ExplorationType.RANDOM)  # the policy decides, not we
        with separate_randomness(self.seed, step), exploration:
            self.env.set_seed(int(torch.randint(2**31 - 1, ())))
            return self._play(stopped, on_step)

    def _play(self, stopped, on_step) -> EvaluationResult | None:
        num_envs = self.env.batch_size[0]
        quota = [len(range(e, self.episodes, num_envs)) for e in range(num_envs)]
        finished: list[list[tuple[float, int]]] = [[] for _ in range(num_envs)]
        returns, lengths = torch.zeros(num_envs, dtype=torch.float64), torch.zeros(num_envs)
        tensordict = self.env.reset()
        while any(len(done) < due for done, due in zip(finished, quota, strict=True)):
            if stopped():
                return None
            tensordict, following = self.env.step_and_maybe_reset(self._act(tensordict))
            if on_step is not None:
                on_step(tensordict)
            returns += episode_rewards(tensordict).cpu()
            lengths += 1
            for e in tensordict["next", "done"].reshape(num_envs).nonzero().flatten().tolist():
                if len(finished[e]) < quota[e]:
                    finished[e].append((float(returns[e]), int(lengths[e])))
                returns[e], lengths[e] = 0.0, 0.0
            tensordict = following
        episodes = [episode for env in finished for episode in env]
        return EvaluationResult([r for r, _ in episodes], [n for _, n in episodes])

    def _act(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The policy's answer, where the environment is; the policy may live elsewhere."""
        policy = next(self.policy.parameters(), None)
        if policy is None or policy.device == self._device:
            return self.policy(tensordict)
        return self.policy(tensordict.to(policy.device)).to(self._device)
