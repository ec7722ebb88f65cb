"""How many gradient updates are due for the data collected so far."""

from __future__ import annotations

from math import floor

from torchrl_wm.ranges import NUMBER, RATE, WEIGHT


class UpdateRatio:
    """Counts collected decisions and tells how many updates are due, without rounding errors.

    A decision is one row of experience of one environment (an action repeat counts once). Every
    published schedule is a case of "``updates`` updates for each ``every`` decisions":

    - Dreamer v1: ``UpdateRatio(updates=100, every=500)``, a burst after each 500 decisions;
    - PlaNet: ``UpdateRatio(updates=100, every_episodes=1)``, a burst after each episode;
    - Dreamer v2: ``UpdateRatio(updates=1, every=16)``;
    - Dreamer v3: ``UpdateRatio(train_ratio=32, batch_steps=16 * 64)``, where the train ratio is the
      number of replayed rows for each collected row: one update per ``batch_steps / train_ratio``, or
      bursts of several as much more rarely.

    Args:
        updates (int, optional): updates of one burst. Defaults to 1.
        every (float, optional): decisions between two bursts.

    Keyword Args:
        every_episodes (float, optional): episodes that end between two bursts.
        train_ratio (float, optional): replayed rows for each collected row.
        batch_steps (int, optional): rows of one training batch; needed with ``train_ratio``.
        first (int, optional): updates due as soon as updating starts. Defaults to 0.

    Raises:
        ValueError: if not exactly one of ``every``, ``every_episodes`` and ``train_ratio`` is given, a
            number is negative, or ``updates`` is not an integer.

    Examples:
        >>> ratio = UpdateRatio(train_ratio=3, batch_steps=8)
        >>> due = []
        >>> for _ in range(8):
        ...     ratio.add(1)
        ...     due.append(ratio.due)
        ...     while ratio.due:
        ...         ratio.take()
        >>> due
        [0, 0, 1, 0, 0, 1, 0, 1]
    """

    def __init__(
        self,
        updates: int = 1,
        every: float | None = None,
        *,
        every_episodes: float | None = None,
        train_ratio: float | None = None,
        batch_steps: int | None = None,
        first: int = 0,
    ):
        if sum(option is not None for option in (every, every_episodes, train_ratio)) != 1:
            raise ValueError(
                "Give exactly one of train_ratio (replayed rows per collected row), every (decisions "
                "between two bursts of updates) and every_episodes (ends of episodes between them); "
                f"got {train_ratio=}, {every=} and {every_episodes=}."
            )
        if train_ratio is not None and not batch_steps:
            raise ValueError("train_ratio needs batch_steps, the rows of one training batch.")
        for name, value in (("every", every), ("every_episodes", every_episodes)):
            if value is not None:
                RATE.check(**{name: value})
        NUMBER.check(updates=updates, first=first)
        if train_ratio is not None:
            WEIGHT.check(train_ratio=train_ratio)
        self.updates, self.first = updates, first
        self._gain, self._cost = 1, every
        if train_ratio is not None:
            self._gain, self._cost = train_ratio, batch_steps * max(updates, 1)
        self._by_episodes = every_episodes is not None
        if self._by_episodes:
            self._cost = every_episodes
        self.counted = 0  # decisions, or episodes
        self.granted = 0
        self.due = first

    def add(self, decisions: int, episodes: int = 0) -> None:
        """Counts newly collected rows and the episodes that ended in them."""
        self.counted += episodes if self._by_episodes else decisions
        # From the total, not from a running remainder: sums of floats would drift.
        granted = floor(self.counted * self._gain / self._cost)
        self.due += (granted - self.granted) * self.updates
        self.granted = granted

    def take(self) -> None:
        """Marks one due update as done.

        Raises:
            RuntimeError: if none is due.
        """
        if not self.due:
            raise RuntimeError("No update is due: call take() once for each update counted in due.")
        self.due -= 1

    def state_dict(self) -> dict[str, int]:
        """The counts, as plain integers."""
        return {"counted": self.counted, "granted": self.granted, "due": self.due}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores the counts of :meth:`state_dict`."""
        self.counted, self.granted = state["counted"], state["granted"]
        self.due = state["due"]
