"""Returns and lengths of the episodes that training collects."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_wm import keys


def episode_rewards(steps: TensorDictBase) -> Tensor:
    """Rewards ``[...]`` of steps ``[...]``; with two players (``to_play``) those of the first.

    In a zero-sum game the sum of both movers' rewards would not tell who won.

    Examples:
        >>> from tensordict import TensorDict
        >>> following = TensorDict(reward=torch.ones(2, 1), batch_size=[2])
        >>> steps = TensorDict(next=following, to_play=torch.tensor([[0], [1]]), batch_size=[2])
        >>> episode_rewards(steps)
        tensor([ 1., -1.])
    """
    reward = steps["next", keys.REWARD].reshape(steps.batch_size)
    turn = steps.get(keys.TO_PLAY, None)
    return reward if turn is None else torch.where(turn.reshape(reward.shape) == 0, reward, -reward)


class EpisodeStatistics:
    """Sums rewards across batches and reports the episodes that ended.

    Args:
        num_envs (int): E, the number of environments.

    Examples:
        >>> from tensordict import TensorDict
        >>> reward, done = torch.ones(1, 3, 1), torch.tensor([[[False], [True], [False]]])
        >>> statistics = EpisodeStatistics(1)
        >>> statistics.add(TensorDict(next=dict(reward=reward, done=done), batch_size=[1, 3]))
        >>> statistics.close()
        {'episode_return': 2.0, 'episode_length': 2.0}
    """

    def __init__(self, num_envs: int):
        self.returns = torch.zeros(num_envs, dtype=torch.float64)
        self.lengths = torch.zeros(num_envs, dtype=torch.int64)
        self.count = 0
        self.ended: list[tuple[float, int]] = []

    def add(self, batch: TensorDictBase) -> None:
        """Counts the rewards of a batch ``[E, T]``."""
        rewards, dones = episode_rewards(batch), batch["next", "done"].reshape(batch.shape)
        for t in range(batch.shape[1]):
            self.returns += rewards[:, t]
            self.lengths += 1
            if dones[:, t].any():
                self._end(dones[:, t])

    def _end(self, done: torch.Tensor) -> None:
        for e in done.nonzero().flatten().tolist():
            self.ended.append((float(self.returns[e]), int(self.lengths[e])))
        self.count += int(done.sum())
        self.returns[done], self.lengths[done] = 0.0, 0

    def close(self) -> dict[str, float]:
        """Mean return and length (in decisions) of the episodes that ended since the last call."""
        if not self.ended:
            return {}
        returns, lengths = zip(*self.ended, strict=True)
        number, self.ended = len(self.ended), []
        return {"episode_return": sum(returns) / number, "episode_length": sum(lengths) / number}

    def restart(self) -> None:
        """Starts new episodes everywhere, as after a resume that could not continue the old ones."""
        self.returns.zero_()
        self.lengths.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The running sums and the episodes not yet reported."""
        return {
            "returns": self.returns,
            "lengths": self.lengths,
            "count": self.count,
            "ended": [list(episode) for episode in self.ended],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.returns, self.lengths = state["returns"].clone(), state["lengths"].clone()
        self.count, self.ended = state["count"], [(r, n) for r, n in state["ended"]]
