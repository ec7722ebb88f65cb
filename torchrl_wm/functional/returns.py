"""Lambda returns with an explicit time dimension, and a discount that suits the length of episodes."""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_return(
    reward: Tensor,
    next_value: Tensor,
    discount: Tensor | float,
    lambda_: Tensor | float,
    *,
    time_dim: int,
) -> Tensor:
    r"""TD(:math:`\lambda`) returns; all arguments of a step have the same index.

    .. math::
        R_t = r_t + \gamma_t \big((1 - \lambda_t) v_t + \lambda_t R_{t+1}\big),
        \qquad R_T = v_{T-1}

    with :math:`v_t` the value of the state that step ``t`` leads to. The Dreamers differ only in what
    they call step ``t``: v1 and v2 pair a state's own reward with the value of the next state, v3 the
    reward that arrives with the next state. A termination is ``discount = 0``; a truncation is
    ``lambda_ = 0``, which bootstraps fully.

    Args:
        reward (Tensor): ``[..., T, ...]``.
        next_value (Tensor): same shape; the last one bootstraps the tail.
        discount (Tensor or float): same shape, or one number.
        lambda_ (Tensor or float): same shape, or one number.

    Keyword Args:
        time_dim (int): the dimension of length ``T``.

    Returns:
        Tensor: the returns, shaped as ``reward``.

    Raises:
        ValueError: where the shapes differ, since broadcasting would silently mix time and batch.

    Examples:
        >>> r = torch.ones(3)
        >>> lambda_return(r, torch.zeros(3), 0.5, 1.0, time_dim=0)
        tensor([1.7500, 1.5000, 1.0000])
    """
    for name, value in (("next_value", next_value), ("discount", discount), ("lambda_", lambda_)):
        if isinstance(value, Tensor) and value.shape != reward.shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; reward has {tuple(reward.shape)}."
            )
    if not reward.is_floating_point():
        reward = reward.float()
    decay = torch.as_tensor(discount * lambda_, dtype=reward.dtype, device=reward.device)
    decay = decay.expand_as(reward).unbind(time_dim)
    immediate = (reward + discount * (1 - lambda_) * next_value).unbind(time_dim)
    tail = next_value.select(time_dim, -1)
    returns = []
    for step, factor in zip(reversed(immediate), reversed(decay), strict=True):
        tail = step + factor * tail
        returns.append(tail)
    return torch.stack(returns[::-1], time_dim)


def discount_of_length(episode_length: float) -> float:
    """The discount with which TD-MPC2 plans in episodes of a given length (arXiv:2310.16828, appendix).

    The effective horizon, ``1 / (1 - discount)``, is a fifth of the episode, but at least 20 and at most
    200 steps.

    Args:
        episode_length (float): decisions in an episode, after any action repeat.

    Raises:
        ValueError: for a length that is not positive.

    Examples:
        >>> [discount_of_length(n) for n in (50, 500, 5000)]
        [0.95, 0.99, 0.995]
    """
    if episode_length <= 0:
        raise ValueError(f"episode_length={episode_length} must be positive.")
    return min(max(1 - 5 / episode_length, 0.95), 0.995)
