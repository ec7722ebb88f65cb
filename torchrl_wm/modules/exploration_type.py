"""TorchRL's exploration type, as all policies here read it."""

from __future__ import annotations

from torchrl.envs.utils import ExplorationType, exploration_type


def wants_mode() -> bool:
    """Whether TorchRL's exploration type asks for the most probable action.

    Examples:
        >>> from torchrl.envs.utils import set_exploration_type
        >>> with set_exploration_type(ExplorationType.MODE):
        ...     wants_mode()
        True
    """
    modes = (ExplorationType.MODE, ExplorationType.MEAN, ExplorationType.DETERMINISTIC)
    return exploration_type() in modes
