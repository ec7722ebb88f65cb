"""The cross-entropy method."""

from __future__ import annotations

from torchrl_wm.planners.planner import Planner


class CEMPlanner(Planner):
    """Cross-entropy method: refits the distribution to the best sequences, all with equal weight.

    By default the planner of PlaNet (https://arxiv.org/abs/1811.04551): it starts afresh in every step,
    refits mean and population variance to the clipped sequences, and acts on the mean. PlaNet draws 1000
    candidates in each of 10 iterations, with 100 elites and a horizon of 12.

    Takes the arguments of :class:`~torchrl_wm.planners.Planner`; the first seven are those of
    :class:`torchrl.modules.CEMPlanner`.

    Examples:
        >>> from torchrl.envs import PendulumEnv
        >>> env = PendulumEnv()
        >>> planner = CEMPlanner(env, planning_horizon=5, optim_steps=3, num_candidates=16, top_k=4)
        >>> env.rollout(2, planner)["action"].shape
        torch.Size([2, 1])

        In a world model, for any number of rows:

        >>> from torchrl.data import Bounded, Composite, Unbounded
        >>> from torchrl_wm.world_models import make_rssm
        >>> specs = Composite(joints=Unbounded(6)), Composite(action=Bounded(-1, 1, (2,)))
        >>> model = make_rssm(*specs, belief_size=16, units=8)
        >>> planner = CEMPlanner(model, 5, optim_steps=3, num_candidates=16, top_k=4)
        >>> planner(model.initial([7]))["action"].shape
        torch.Size([7, 2])
    """
