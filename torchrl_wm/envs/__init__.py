"""Real environments: those of the usual suites, and the entries that a world model reads from them."""

from torchrl_wm.envs.board_games import ConnectFour, LineGame, TicTacToe
from torchrl_wm.envs.custom import factory_of, resolve_factory, wrap
from torchrl_wm.envs.episodes import (
    NotReproducibleError,
    episode_state,
    restore_episode_state,
)
from torchrl_wm.envs.learned import LearnedEnv
from torchrl_wm.envs.specs import model_specs, recorded_keys
from torchrl_wm.envs.suites import atari, dm_control, gymnasium
from torchrl_wm.envs.transforms import PreviousStep
from torchrl_wm.envs.vectorize import action_repeat

__all__ = [
    "ConnectFour",
    "LearnedEnv",
    "LineGame",
    "NotReproducibleError",
    "PreviousStep",
    "TicTacToe",
    "action_repeat",
    "atari",
    "dm_control",
    "episode_state",
    "gymnasium",
    "model_specs",
    "recorded_keys",
    "factory_of",
    "resolve_factory",
    "restore_episode_state",
    "wrap",
]
