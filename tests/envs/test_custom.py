from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from torchrl.envs import PendulumEnv, SerialEnv, StepCounter, TransformedEnv, check_env_specs

from torchrl_wm.envs import (
    NotReproducibleError,
    action_repeat,
    episode_state,
    model_specs,
    restore_episode_state,
    wrap,
)


class Maze(gym.Env):
    """Dict observation of every kind, one-step episodes after even resets."""

    observation_space = gym.spaces.Dict(
        cell=gym.spaces.Discrete(3),
        speed=gym.spaces.Box(-1, 1, (), np.float64),
        view=gym.spaces.Box(0, 255, (9, 8, 3), np.uint8),
    )
    action_space = gym.spaces.MultiDiscrete([2, 3])

    def observe(self):
        view = self.np_random.integers(0, 256, (9, 8, 3), np.uint8)
        return {"cell": 1, "speed": np.float64(0.5), "view": view}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 5))
        return self.observe(), {}

    def step(self, action):
        self.left -= 1
        return self.observe(), float(np.sum(action)), self.left == 0, False, {}


class Person(Maze):
    """Draws from outside its seeded generator."""

    def observe(self):
        return dict(super().observe(), speed=np.random.default_rng().random())


class Letters(Maze):
    observation_space = gym.spaces.Dict(word=gym.spaces.Text(5))


class Endless(Maze):
    action_space = gym.spaces.Box(-np.inf, np.inf, (2,))


class Corridor(Maze):
    action_space = gym.spaces.Discrete(2)


@pytest.mark.parametrize("categorical", [False, True])
@pytest.mark.parametrize(
    ("maze", "vectorization", "size", "ones"),
    [(Maze, "serial", 5, 2), (Corridor, "serial", 2, 1), (Corridor, "gymnasium", 2, 1)],
)
def test_a_gymnasium_environment_of_ones_own(maze, vectorization, size, ones, categorical):
    env = wrap(maze, num_envs=3, vectorization=vectorization, categorical_actions=categorical)
    check_env_specs(env)
    observation_spec, _ = model_specs(env)
    shapes = {key: tuple(spec.shape) for key, spec in observation_spec.items()}
    assert shapes == {"cell": (3,), "speed": (1,), "view": (3, 9, 8)}
    rollout = env.rollout(40, break_when_any_done=False)
    init = rollout["is_init"][:, 1:, 0]
    assert torch.equal(init, rollout["next", "done"][:, :-1, 0])
    assert rollout["previous_action"].shape == (3, 40, size)
    assert (rollout["previous_action"][rollout["is_init"][..., 0]] == 0).all()
    assert (rollout["previous_action"][:, 1:][~init].sum(-1) == ones).all()
    state = episode_state(env)
    restore_episode_state(env, state)
    assert all(torch.equal(value, state[name]) for name, value in episode_state(env).items())


def test_an_import_path():
    env = wrap("gymnasium:make", id="CartPole-v1", num_envs=2, action_repeat=2)
    assert env.reset()["observation"].shape == (2, 4)
    assert action_repeat(env) == 2


def test_a_torchrl_environment_continues_exactly():
    make = lambda seed: wrap(PendulumEnv, num_envs=2, seed=seed)
    env, other = make(0), make(1)
    check_env_specs(make(0))
    assert env.reset()["th"].shape == (2, 1)
    assert (env.action_spec.space.high == 1).all()
    rollout = env.rollout(5)
    root = rollout[:, -1]["next"].clone()
    restore_episode_state(other, episode_state(env))
    root["action"] = env.action_spec.rand()
    assert torch.equal(env.step(root.clone())["next", "th"], other.step(root)["next", "th"])
    assert torch.equal(env.reset()["th"], other.reset()["th"])


def test_what_is_not_deterministic_is_named_when_it_is_stored():
    env = wrap(Person)
    env.rollout(3)
    with pytest.raises(NotReproducibleError, match="Person.*not deterministic"):
        episode_state(env)


@pytest.mark.parametrize(
    ("factory", "options", "error", "words"),
    [
        (Letters, {}, TypeError, "'observation.word' is a Text space"),
        (Endless, {}, ValueError, "not bounded"),
        (object, {}, TypeError, "returned a object; supported are gymnasium.Env"),
        (3, {}, TypeError, "takes a function"),
        ("gymnasium.make", {}, ValueError, "'package.module:function'"),
        ("gymnasiun:make", {}, ImportError, "no module 'gymnasiun' for 'gymnasiun:make'"),
        ("gymnasium:mak", {}, ImportError, "'gymnasium' has no 'mak'"),
        (PendulumEnv, {"action_repeat": 2}, ValueError, "action_repeat must be 1"),
        (PendulumEnv, {"vectorization": "gymnasium"}, ValueError, "needs a gymnasium.Env"),
        (Maze, {"vectorization": "gymnasium"}, ValueError, "supports Box and Discrete actions"),
        (Maze, {"vectorization": "threads"}, ValueError, "'serial', 'parallel'"),
    ],
)
def test_wrong_factories_are_named(factory, options, error, words):
    with pytest.raises(error, match=words):
        wrap(factory, **options)


def test_batched_environments_are_refused():
    with pytest.raises(ValueError, match="num_envs="):
        wrap(lambda: SerialEnv(2, PendulumEnv))


def test_an_import_path_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "own_maze.py").write_text("from torchrl.envs import PendulumEnv as make\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert wrap("own_maze:make").reset()["th"].shape == (1, 1)


class Seen(gym.Env):
    """Observes draws of a space."""

    def __init__(self, space):
        self.observation_space, self.action_space = space, gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        (gym.spaces.Box(0, 1, (3, 32, 32), np.float32), (3, 32, 32)),
        (gym.spaces.Box(0, 1, (32, 48, 3), np.float64), (3, 32, 48)),
        (gym.spaces.Box(0, 1, (10, 10, 4), np.bool_), (400,)),
        (gym.spaces.Box(0, 1, (3, 16, 16), np.float32), (768,)),
        (gym.spaces.Box(-1, 1, (3, 32, 32), np.float32), (3072,)),
    ],
)
def test_images_of_floats_keep_their_form_and_small_planes_are_vectors(space, shape):
    env = wrap(Seen, space=space)
    observed = env.rollout(3)["observation"]
    assert observed.shape[2:] == shape and observed.dtype == torch.float32
    assert space.low.min() <= observed.min() < observed.max() <= 1


def test_a_torchrl_environment_with_transforms_and_bounds_of_its_own():
    env = wrap(lambda: TransformedEnv(PendulumEnv(), StepCounter(3)), num_envs=2)
    rollout = env.rollout(7, break_when_any_done=False)
    assert rollout["action"].abs().max() <= 1
    assert rollout["next", "truncated"][:, :, 0].nonzero()[:, 1].tolist() == [2, 5, 2, 5]
