"""Games of lines: rules, both sides, forbidden moves, any batch shape, self-play environments."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Composite, OneHot
from torchrl.envs import check_env_specs

from torchrl_wm.envs import ConnectFour, LineGame, TicTacToe, model_specs, wrap
from torchrl_wm.world_models import make_muzero


def play(game, moves, batch=()):
    """The last step of a game."""
    td = game.reset(TensorDict(batch_size=batch))
    for move in moves:
        after = game.step(td.set("action", torch.full(batch, move)))["next"]
        td = after.exclude("reward")
    return after


@pytest.mark.parametrize(
    ("game", "moves"),
    [
        (TicTacToe(), [0, 3, 1, 4, 2]),
        (TicTacToe(), [0, 1, 3, 4, 6]),
        (TicTacToe(), [0, 1, 4, 2, 8]),
        (TicTacToe(), [2, 1, 4, 0, 6]),
        (TicTacToe(), [8, 0, 7, 1, 3, 2]),  # the second side wins
        (ConnectFour(), [0, 1, 0, 1, 0, 1, 0]),
        (ConnectFour(), [0, 0, 1, 1, 2, 2, 3]),
        (ConnectFour(), [0, 1, 1, 2, 2, 3, 2, 3, 3, 6, 3]),
    ],
)
def test_a_line_wins_for_the_mover(game, moves):
    assert not play(game, moves[:-1])["done"]
    after = play(game, moves)
    assert after["reward"] == 1 and after["terminated"]


def test_a_full_board_is_a_draw():
    after = play(TicTacToe(), [0, 1, 2, 4, 3, 5, 7, 6, 8])
    assert after["reward"] == 0 and after["done"] and not after["action_mask"].any()


def test_stones_fall_and_columns_fill():
    after = play(ConnectFour(), [3, 3, 3, 3, 3, 3])
    assert after["action_mask"].tolist() == [True, True, True, False, True, True, True]
    mine, other = after["board"][:, :, 3]
    assert mine.tolist() == [0, 1, 0, 1, 0, 1] and other.tolist() == [1, 0, 1, 0, 1, 0]


def test_each_side_sees_its_own_stones_first():
    after = play(TicTacToe(), [4])
    assert after["to_play"] == 1
    assert after["board"][0].sum() == 0 and after["board"][1, 1, 1] == 1


def test_a_forbidden_move_loses():
    for game, moves in ((TicTacToe(), [4, 4]), (ConnectFour(), [3] * 7)):
        after = play(game, moves)
        assert after["reward"] == -1 and after["terminated"]


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_any_batch_shape(batch):
    after = play(ConnectFour(), [0, 1, 0, 1, 0, 1, 0], batch)
    assert after.batch_size == batch and (after["reward"] == 1).all()


def test_a_step_depends_on_its_input_alone():
    game = TicTacToe()
    first = game.reset(TensorDict(batch_size=[2]))
    kept = first.clone()
    play(game, [0, 1, 2])
    assert (first == kept).all()
    after = game.step(first.set("action", torch.tensor([4, 8])))["next"]
    assert after["board"][:, 1].flatten(1).int().argmax(1).tolist() == [4, 8]


@pytest.mark.parametrize("factory", [TicTacToe, ConnectFour])
def test_self_play_environments(factory):
    check_env_specs(factory())
    env = wrap(factory, num_envs=2)
    observations, actions = model_specs(env)
    assert list(observations.keys()) == ["board"]
    assert actions["action"].n == factory().action_spec.n
    td = env.reset()
    assert td["action_mask"].all() and (td["to_play"] == 0).all()


def test_a_line_must_fit():
    with pytest.raises(ValueError, match="line of 5 does not fit on a board of 3 x 4"):
        LineGame(3, 4, 5)


def test_a_network_sees_the_stones():
    """Planes of a board are not bytes of a screen: a stone is 1, not 1 / 255."""
    spec = Composite(board=TicTacToe().observation_spec["board"])
    encoder = make_muzero(spec, Composite(action=OneHot(9))).encoder
    seen = []
    encoder.image.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder(play(TicTacToe(), [4]))
    assert seen[0].max() - seen[0].min() == 1
