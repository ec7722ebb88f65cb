"""Noise added to actions while collecting."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrl.data import Composite

from torchrl_wm.modules.encoding import groups, sorted_leaves


class GaussianNoise(nn.Module):
    """Normal noise on continuous actions, clipped to their bounds (PlaNet and Dreamer v1).

    Args:
        std (float): standard deviation of the noise.
        low, high (Tensor or float, optional): bounds ``[A]``. Default to -1 and 1.

    Raises:
        ValueError: for a negative ``std``.

    Examples:
        >>> GaussianNoise(0.0)(torch.tensor([0.5, 2.0]))
        tensor([0.5000, 1.0000])
    """

    def __init__(self, std: float, low: Tensor | float = -1.0, high: Tensor | float = 1.0):
        super().__init__()
        if std < 0:
            raise ValueError(f"std={std} must not be negative.")
        self.std = std
        for name, bound in (("low", low), ("high", high)):
            self.register_buffer(name, torch.as_tensor(bound).clone(), persistent=False)

    def forward(self, action: Tensor) -> Tensor:
        """The noisy action, shaped as the action."""
        return (action + self.std * torch.randn_like(action)).clamp(self.low, self.high)


class RandomChoice(nn.Module):
    """Replaces one-hot actions by uniformly drawn ones with some probability (epsilon-greedy).

    Args:
        probability (float): of replacing the class of each group, between 0 and 1.
        classes (list of int): sizes of the one-hot groups of the flat action.

    Raises:
        ValueError: for a probability outside [0, 1].

    Examples:
        >>> RandomChoice(0.0, [2])(torch.tensor([[0.0, 1.0]]))
        tensor([[0., 1.]])
    """

    def __init__(self, probability: float, classes: list[int]):
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"probability={probability} must lie between 0 and 1.")
        self.probability, self.classes = probability, classes

    def forward(self, action: Tensor) -> Tensor:
        """The action with some groups replaced, shaped as the action."""
        groups = [self._explore(group) for group in action.split(self.classes, -1)]
        return torch.cat(groups, -1)

    def _explore(self, group: Tensor) -> Tensor:
        index = torch.randint(group.shape[-1], group.shape[:-1], device=group.device)
        random = nn.functional.one_hot(index, group.shape[-1]).to(group.dtype)
        replace = torch.rand(*group.shape[:-1], 1, device=group.device) < self.probability
        return torch.where(replace, random, group)


def make_exploration(
    action_spec: Composite, amount: float, **bounds: Tensor | float
) -> nn.Module | None:
    """Noise for an action spec: normal for continuous actions, random choices for discrete ones.

    Binary actions count as continuous: they are split at 0.5 after the noise.

    Args:
        action_spec (Composite): unbatched specs of the actions.
        amount (float): standard deviation, or probability of a random choice; 0 for no noise.

    Keyword Args:
        **bounds: ``low`` and ``high`` of :class:`GaussianNoise`.

    Returns:
        nn.Module or None: a module on flat actions ``[..., A]``; None for an amount of 0.

    Raises:
        TypeError: where continuous and discrete actions are mixed, for which no noise is defined.
        ValueError: for a negative amount, or a probability above 1.

    Examples:
        >>> from torchrl.data import OneHot
        >>> make_exploration(Composite(action=OneHot(3)), 0.1)
        RandomChoice()
    """
    if not amount:
        return None
    counts = [groups(spec) for spec in sorted_leaves(action_spec, "action").values()]
    if all(count is None for count in counts):
        return GaussianNoise(amount, **bounds)
    if any(count is None for count in counts):
        raise TypeError(
            "exploration_noise is not defined for a mixture of continuous and discrete actions; "
            "set exploration_noise=0."
        )
    return RandomChoice(amount, [size for count in counts for size in count])
