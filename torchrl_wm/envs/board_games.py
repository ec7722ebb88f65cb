"""Board games for two players as stateless environments: for self-play, and for searching true dynamics."""

from __future__ import annotations

from itertools import product

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_wm import keys


def winning_lines(height: int, width: int, length: int) -> Tensor:
    """All straight and diagonal lines of a board, ``[L, H * W]``, with ones at their squares.

    Examples:
        >>> winning_lines(3, 3, 3).shape, winning_lines(6, 7, 4).shape
        (torch.Size([8, 9]), torch.Size([69, 42]))
    """
    lines = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        for row, column in product(range(height), range(width)):
            last_row, last = row + (length - 1) * down, column + (length - 1) * right
            if last_row < height and 0 <= last < width:
                steps = torch.arange(length)
                squares = (row + steps * down) * width + column + steps * right
                lines.append(torch.zeros(height * width).index_fill(0, squares, 1.0))
    return torch.stack(lines)


class LineGame(EnvBase):
    """Whoever first has a number of stones in a line wins: TicTacToe, Gomoku, Connect-Four.

    The two sides take turns in one environment. The observations are ``board`` bool ``[2, H, W]`` (the
    stones of the side to move, then those of the other), ``to_play [1]`` and ``action_mask [A]``. The
    reward is the mover's: 1 for a line, and -1 for an illegal move, which loses. A full board is a draw.

    A step depends on its input alone, so games of any batch size can be stepped at once.

    Args:
        height, width (int): of the board.
        line (int): number of stones in a winning line.

    Keyword Args:
        gravity (bool, optional): an action is a column, and the stone falls to its lowest free square.
            Otherwise actions are squares, row by row. Defaults to ``False``.
        device (torch.device, optional): where the boards live.

    Raises:
        ValueError: for a line that does not fit on the board.

    Examples:
        >>> env = LineGame(3, 3, 3)
        >>> games = env.reset(TensorDict(batch_size=[5]))
        >>> games["board"].shape, games["action_mask"].shape
        (torch.Size([5, 2, 3, 3]), torch.Size([5, 9]))
        >>> for square in (0, 3, 1, 4, 2):
        ...     stepped = env.step(games.set("action", torch.full((5,), square)))["next"]
        ...     games = stepped.exclude("reward")
        >>> stepped["reward"].flatten(), games["done"].all()
        (tensor([1., 1., 1., 1., 1.]), tensor(True))
    """

    batch_locked = False

    def __init__(self, height: int, width: int, line: int, *, gravity: bool = False, device=None):
        super().__init__(device=device)
        if not 1 <= line <= max(height, width):
            raise ValueError(f"A line of {line} does not fit on a board of {height} x {width}.")
        self.board_shape, self.line, self.gravity = (height, width), line, gravity
        lines = winning_lines(height, width, line).to(device)
        self.register_buffer("lines", lines, persistent=False)
        actions = width if gravity else height * width
        self.observation_spec = Composite(
            {
                "board": Unbounded((2, height, width), dtype=torch.bool, device=device),
                keys.TO_PLAY: Categorical(2, (1,), dtype=torch.int64, device=device),
                keys.ACTION_MASK: Binary(actions, dtype=torch.bool, device=device),
            }
        )
        self.state_spec = self.observation_spec.clone()
        self.action_spec = Categorical(actions, (), device=device)
        self.reward_spec = Unbounded((1,), device=device)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs) -> TensorDictBase:
        batch = self.batch_size if tensordict is None else tensordict.batch_size
        out = self.observation_spec.zero(batch).update(self.full_done_spec.zero(batch))
        return out.set(keys.ACTION_MASK, torch.ones_like(out[keys.ACTION_MASK]))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        batch = tensordict.batch_size
        mine, other = tensordict["board"].reshape(-1, 2, *self.board_shape).unbind(1)
        action = tensordict["action"].reshape(-1)
        allowed = tensordict[keys.ACTION_MASK].reshape(len(action), -1)
        allowed = allowed.gather(1, action.unsqueeze(1))
        square = self._square(mine | other, action).unsqueeze(1)
        mine = mine.flatten(1).scatter(1, square, True).view_as(mine)
        won = self._has_line(mine) & allowed
        taken = mine | other
        mask = ~taken[:, 0] if self.gravity else ~taken.flatten(1)
        ended = won | ~allowed | ~mask.any(1, keepdim=True)
        out = {
            "board": torch.stack([other, mine], 1),
            keys.TO_PLAY: 1 - tensordict[keys.TO_PLAY].reshape(-1, 1),
            keys.ACTION_MASK: mask,
            "reward": won.float() - (~allowed).float(),
            "terminated": ended,
            "done": ended.clone(),
        }
        return TensorDict({k: v.reshape(*batch, *v.shape[1:]) for k, v in out.items()}, batch)

    def _square(self, taken: Tensor, action: Tensor) -> Tensor:
        """Index ``[N]`` of the square where each stone ends up."""
        if not self.gravity:
            return action
        height, width = self.board_shape
        free = height - taken.sum(1).gather(1, action.unsqueeze(1)).squeeze(1).long()
        return (free - 1).clamp_min(0) * width + action

    def _has_line(self, stones: Tensor) -> Tensor:
        """Whether one side's stones ``[N, H, W]`` hold a line, ``[N, 1]`` bool."""
        most = (stones.flatten(1).float() @ self.lines.T).amax(1, keepdim=True)
        return most > self.line - 0.5

    def _set_seed(self, seed: int | None) -> None:
        """Nothing is drawn."""


class TicTacToe(LineGame):
    """Three in a line on 3 x 3 squares; see :class:`LineGame`.

    Examples:
        >>> TicTacToe().action_spec.n
        9
    """

    def __init__(self, *, device=None):
        super().__init__(3, 3, 3, device=device)


class ConnectFour(LineGame):
    """Four in a line on 6 x 7 squares, with falling stones; see :class:`LineGame`.

    Examples:
        >>> ConnectFour().action_spec.n
        7
    """

    def __init__(self, *, device=None):
        super().__init__(6, 7, 4, gravity=True, device=device)
