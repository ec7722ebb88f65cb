"""Model predictive path integral control."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_wm.planners.planner import Planner
from torchrl_wm.ranges import RATE
from torchrl_wm.world_models import WorldModel


class MPPIPlanner(Planner):
    """MPPI: refits the distribution to the best sequences, weighted by ``exp(temperature * return)``.

    Returns are taken relative to the best one, so their level does not matter and nothing overflows.
    The refit is that of TD-MPC2 (https://arxiv.org/abs/2310.16828), which plans 3 steps with 512
    candidates, 24 of them proposals, 64 elites, 6 iterations, ``temperature=0.5``, ``init_std=2``,
    ``min_std=0.05``, ``max_std=2``, a warm start and a terminal value. (There a NaN return counts as
    0, which is a good one where rewards are negative.)

    Args:
        env (EnvBase or WorldModel): where sequences are evaluated.
        advantage_module (callable, optional): a TorchRL value estimator; sequences in an environment
            are then judged by the ``advantage`` that it writes for their first step.
        temperature (float, optional): multiplies the returns. Defaults to ``1.0``.
        planning_horizon, optim_steps, num_candidates, top_k, reward_key, action_key: see
            :class:`~torchrl_wm.planners.Planner`; all nine are those of
            :class:`torchrl.modules.MPPIPlanner`.

    Keyword Args:
        **options: those of :class:`~torchrl_wm.planners.Planner`.

    Raises:
        ValueError: for a temperature that is not positive, and what the base class raises.

    Examples:
        >>> from torchrl.envs import PendulumEnv
        >>> sizes = dict(planning_horizon=5, optim_steps=3, num_candidates=16, top_k=8)
        >>> planner = MPPIPlanner(PendulumEnv(), temperature=0.5, **sizes)
        >>> planner(PendulumEnv().reset())["action"].shape
        torch.Size([1])
    """

    def __init__(
        self,
        env: EnvBase | WorldModel,
        advantage_module: Callable | None = None,
        temperature: float = 1.0,
        planning_horizon: int = 3,
        optim_steps: int = 6,
        num_candidates: int = 512,
        top_k: int = 64,
        reward_key: NestedKey | None = None,
        action_key: NestedKey | None = None,
        **options,
    ):
        sizes = (planning_horizon, optim_steps, num_candidates, top_k)
        options["advantage_module"] = advantage_module
        super().__init__(env, *sizes, reward_key, action_key, **options)
        RATE.check(temperature=temperature)
        self.temperature = temperature

    def _weights(self, returns: Tensor) -> Tensor:
        usable = returns[:, :1] > -torch.inf
        returns = torch.where(usable, returns, 0)  # where all are unusable, all count the same
        return torch.softmax(self.temperature * returns, 1)
