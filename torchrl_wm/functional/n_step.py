"""Targets of MuZero (n-step returns) and of EfficientZero (sums of rewards)."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_wm.ranges import COUNT


def n_step_returns(
    reward: Tensor,
    value: Tensor,
    is_last: Tensor,
    terminated: Tensor,
    *,
    td_steps: int | Tensor,
    discount: float,
    to_play: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The return of ``td_steps`` rewards and a bootstrapped value, for every record of a sequence.

    .. math::
        z_t = \sum_{i=1}^{n} \gamma^{i-1} r_{t+i} + \gamma^n v_{t+n}

    Rewards are stored with the observation they arrived with. A return stops at the end of its episode:
    a termination adds nothing more, a truncation the value of the final observation. The next episode
    of a sequence is never read.

    With two players (arXiv:1911.08265, appendix B) values are those of the side to move, rewards those of
    the side that moved, and the return is that of the side to move at ``t``, whatever the order of
    turns.

    Args:
        reward (Tensor): ``[..., T]``, arrived with each record.
        value (Tensor): ``[..., T]``, estimates for each record.
        is_last (Tensor): ``[..., T]`` bool, the final record of an episode.
        terminated (Tensor): ``[..., T]`` bool, the episode ended in the record.

    Keyword Args:
        td_steps (int or Tensor): rewards before the bootstrap; more than the longest episode has for
            Monte Carlo returns. An int64 Tensor ``[..., T]`` has one number for each record.
        discount (float): discount of one step.
        to_play (Tensor, optional): ``[..., T]``, whose turn it is. Defaults to a single player.

    Returns:
        The returns ``[..., T]``, and whether the sequence was long enough to know them, bool.

    Raises:
        ValueError: for ``td_steps`` below 1.

    Examples:
        >>> ends = torch.tensor([False, False, False, True])
        >>> n_step_returns(torch.ones(4), torch.full((4,), 8.0), ends, ends, td_steps=2, discount=0.5)
        (tensor([3.5000, 1.5000, 1.0000, 0.0000]), tensor([True, True, True, True]))
    """
    COUNT.check(td_steps=int(td_steps.min()) if isinstance(td_steps, Tensor) else td_steps)
    steps = torch.as_tensor(td_steps, device=reward.device)
    final = torch.where(terminated, torch.zeros_like(value), value)
    factor = torch.full_like(value, discount)[..., 1:]
    if to_play is not None:
        factor = torch.where(to_play[..., 1:] == to_play[..., :-1], factor, -factor)
    target, known = returns, all_known = final, torch.ones_like(is_last)
    for step in range(1, int(steps.max()) + 1):
        further = reward[..., 1:] + factor * target[..., 1:]
        further = torch.cat([further, torch.zeros_like(final[..., :1])], -1)
        after = torch.cat([known[..., 1:], torch.zeros_like(known[..., :1])], -1)
        target, known = torch.where(is_last, final, further), is_last | after
        returns = torch.where(steps >= step, target, returns)
        all_known = torch.where(steps >= step, known, all_known)
    return returns, all_known


def steps_of_age(td_steps: int, age: Tensor, every: int) -> Tensor:
    r"""EfficientZero's shorter returns for older, more off-policy records (arXiv:2111.00210).

    .. math::
        n = \max(1, n_0 - \lfloor \mathrm{age} / \mathrm{every} \rfloor)

    Args:
        td_steps (int): :math:`n_0`, rewards in the return of the newest record.
        age (Tensor): ``[...]`` int64, updates made since; records of a later policy, such as another
            agent's, count as new.
        every (int): updates after which returns are one reward shorter; in the paper's runs three
            tenths of all updates.

    Returns:
        Tensor: ``[...]`` int64, for :func:`n_step_returns`.

    Examples:
        >>> steps_of_age(5, torch.tensor([-1, 0, 99, 100, 10_000]), every=100)
        tensor([5, 5, 5, 4, 1])
    """
    return (td_steps - age.clamp_min(0) // every).clamp_min(1)


def value_prefixes(reward: Tensor, horizon: int) -> Tensor:
    """Running sums of rewards along an unroll, restarted every ``horizon`` steps (arXiv:2111.00210).

    They are not discounted, so the difference of two successive sums is a reward.

    Args:
        reward (Tensor): ``[..., K]``, of the steps of an unroll, from its root.
        horizon (int): steps between two resets.

    Returns:
        Tensor: ``[..., K]``.

    Raises:
        ValueError: for a horizon below 1.

    Examples:
        >>> value_prefixes(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), 3)
        tensor([ 1.,  3.,  7.,  8., 24.])
    """
    COUNT.check(value_prefix_horizon=horizon)
    return torch.cat([part.cumsum(-1) for part in reward.split(horizon, -1)], -1)
