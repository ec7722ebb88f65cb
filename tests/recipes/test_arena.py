"""The opponents of the arena: exact play, random play, and a search by rollouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_wm.envs import ConnectFour, TicTacToe


@pytest.fixture(scope="module")
def arena(recipe):
    return recipe("arena")


def test_perfect_players_always_draw_and_never_lose_to_chance(arena):
    torch.manual_seed(0)
    np.random.seed(0)
    game = TicTacToe()
    perfect, random = arena.Minimax(game), arena.Random(game)
    assert (arena.play(game, perfect, perfect, 10) == 0).all()
    assert (arena.play(game, perfect, random, 40) >= 0).all()
    second = arena.play(game, random, perfect, 40)
    assert (second <= 0).all() and (second < 0).any()


def test_games_between_random_players_favour_the_first(arena):
    torch.manual_seed(0)
    game = TicTacToe()
    result = arena.play(game, arena.Random(game), arena.Random(game), 2000)
    shares = [(result == value).float().mean().item() for value in (1, 0, -1)]
    assert shares == pytest.approx([0.585, 0.127, 0.288], abs=0.04)  # known for TicTacToe


def test_rollouts_find_a_win(arena):
    torch.manual_seed(0)
    game = ConnectFour()
    td = game.reset()
    for move in (3, 0, 3, 0, 3, 1):
        td = game.step(td.set("action", torch.tensor(move)))["next"].exclude("reward")
    assert arena.UCT(game, rollouts=40)(td.unsqueeze(0)).tolist() == [3]


def test_large_boards_have_no_exact_opponent(arena):
    with pytest.raises(SystemExit, match="uct"):
        arena.Minimax(ConnectFour())
