"""Plays a trained agent against other opponents: ``python recipes/arena.py RUN_DIR --opponent minimax``."""

from __future__ import annotations

import argparse
import sys
from functools import lru_cache

import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from torchrl_wm import keys
from torchrl_wm.envs import LineGame, factory_of
from torchrl_wm.planners import EnvModel, MuZeroRule, SearchPolicy
from torchrl_wm.ranges import COUNT, NUMBER
from torchrl_wm.training import CheckpointError, RunFolder, seed_everything
from torchrl_wm.training.assembly import load_agent

Line = tuple[int, ...]


class Random:
    """Any allowed move."""

    def __init__(self, game: LineGame):
        self.game = game

    def __call__(self, games: TensorDict) -> torch.Tensor:
        """Actions ``[N]`` for positions ``[N]``."""
        return games[keys.ACTION_MASK].float().multinomial(1).squeeze(1)


class Minimax(Random):
    """Perfect play, ties broken at random; for games as small as TicTacToe."""

    def __init__(self, game: LineGame):
        super().__init__(game)
        height, width = game.board_shape
        if game.gravity or height * width > 9:
            raise SystemExit("minimax is exact for boards of at most nine squares; take uct.")
        self.lines = tuple(bits(line) for line in game.lines.bool().tolist())

    def __call__(self, games: TensorDict) -> torch.Tensor:
        """Actions ``[N]`` for positions ``[N]``."""
        boards = games["board"].flatten(2).bool().tolist()
        return torch.tensor([self._best(*map(bits, board)) for board in boards])

    def _best(self, mine: int, other: int) -> int:
        squares = self.game.action_spec.n
        free = [s for s in range(squares) if not (mine | other) >> s & 1]
        worth = [self._after(mine | 1 << s, other) for s in free]
        best = [s for s, w in zip(free, worth, strict=True) if w == max(worth)]
        return int(np.random.choice(best))

    def _after(self, mine: int, other: int) -> int:
        """Worth, for who has just moved, of the position that the move led to."""
        return negamax(mine, other, self.lines, self.game.action_spec.n)


@lru_cache(None)
def negamax(mine: int, other: int, lines: Line, squares: int) -> int:
    """1, 0 or -1 for the side of ``mine``, which has just moved; boards are bit sets."""
    if any(mine & line == line for line in lines):
        return 1
    free = [s for s in range(squares) if not (mine | other) >> s & 1]
    return -max((negamax(other | 1 << s, mine, lines, squares) for s in free), default=0)


def bits(stones: list[bool]) -> int:
    """A bit set of the squares with a stone.

    Examples:
        >>> bits([True, False, True])
        5
    """
    return sum(1 << s for s, stone in enumerate(stones) if stone)


class Rollouts(torch.nn.Module):
    """Judges positions by one random game to the end; every move is equally likely."""

    def __init__(self, game: LineGame):
        super().__init__()
        self.game, self.random = game, Random(game)
        self.in_keys = ["board", keys.TO_PLAY, keys.ACTION_MASK]
        self.out_keys = [keys.STATE_VALUE, keys.POLICY_LOGITS]

    def forward(self, rows: TensorDict) -> TensorDict:
        """Writes value and logits, in place, to positions ``[N]``."""
        value = torch.zeros(len(rows))
        side, games = torch.ones(len(rows)), rows.select(*self.in_keys)
        live = games[keys.ACTION_MASK].any(1)
        index, games = live.nonzero()[:, 0], games[live]
        while len(games):
            after = self.game.step(games.set("action", self.random(games)))["next"]
            value[index] += side[index] * after["reward"][:, 0]
            side[index] *= -1
            going = ~after["done"][:, 0]
            index, games = index[going], after[going].select(*self.in_keys)
        rows.set(keys.STATE_VALUE, value.unsqueeze(1))
        return rows.set(keys.POLICY_LOGITS, torch.zeros_like(rows[keys.ACTION_MASK].float()))


class UCT(Random):
    """Tree search with random rollouts instead of a network."""

    def __init__(self, game: LineGame, rollouts: int = 200):
        super().__init__(game)
        options = {"turn_key": keys.TO_PLAY, "mask_key": keys.ACTION_MASK}
        model = EnvModel(game, Rollouts(game), **options)
        rule = MuZeroRule(c_init=1.4 * game.action_spec.n**0.5, dirichlet_fraction=0.0)
        self.search = SearchPolicy(
            model, rule=rule, num_simulations=rollouts, greedy=True, trace=False
        )

    def __call__(self, games: TensorDict) -> torch.Tensor:
        """Actions ``[N]`` for positions ``[N]``."""
        return self.search(games.clone())["action"]


OPPONENTS = {"random": Random, "minimax": Minimax, "uct": UCT}


@torch.no_grad()
def play(game: LineGame, first, second, count: int) -> torch.Tensor:
    """Results ``[count]`` of games for the first player: 1, 0 or -1."""
    games = game.reset(TensorDict(batch_size=[count]))
    result, index, players, sign = torch.zeros(count), torch.arange(count), (first, second), 1
    while len(index):
        action = players[0](games)
        after = game.step(games.set("action", action))["next"]
        result[index] += sign * after["reward"][:, 0]
        going = ~after["done"][:, 0]
        index, games = index[going], after[going].exclude("reward")
        players, sign = players[::-1], -sign
    return result


def main(arguments: list[str] | None = None) -> None:
    """Prints wins, draws and losses as first and as second player."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", help="the folder that a training run printed")
    parser.add_argument("--opponent", choices=OPPONENTS, default="random")
    parser.add_argument("--games", type=COUNT.parse, default=500, help="on each side")
    parser.add_argument(
        "--simulations", type=COUNT.parse, help="of the agent; default: as in its training"
    )
    parser.add_argument("--checkpoint", help="a checkpoint folder; default: the newest of the run")
    parser.add_argument("--seed", type=NUMBER.parse, default=1000)
    options = parser.parse_args(arguments)
    run = RunFolder.open(options.run_dir)
    seed_everything(options.seed)
    device = torch.device("cpu")
    algorithm, _, step = load_agent(run, device, checkpoint=options.checkpoint, num_envs=1)
    if options.simulations is not None:
        algorithm.evaluation_policy.search.num_simulations = options.simulations
    make = factory_of(OmegaConf.to_container(OmegaConf.create(run.config).env))
    game = None if make is None else make()
    if not (isinstance(game, LineGame) and hasattr(algorithm, "plan")):
        raise SystemExit(
            f"{options.run_dir} is no run of self-play: the arena is for those of algorithm=alphazero "
            "with env=tictactoe or env=connect_four."
        )
    opponent = OPPONENTS[options.opponent](game)
    agent = lambda games: algorithm.plan(games.clone())["action"]
    for side, pair, sign in (("first", (agent, opponent), 1), ("second", (opponent, agent), -1)):
        result = sign * play(game, *pair, options.games)
        counts = [int((result == value).sum()) for value in (1, 0, -1)]
        wins, draws, losses = counts
        print(
            f"step {step:,}, {side} against {options.opponent}: "
            f"{wins} wins, {draws} draws, {losses} losses"
        )


if __name__ == "__main__":
    try:
        main()
    except (CheckpointError, FileNotFoundError) as error:
        sys.exit(str(error))
