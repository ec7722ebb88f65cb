from __future__ import annotations

import math
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from torchrl.data import Bounded, Categorical, OneHot
from torchrl.envs import check_env_specs

from torchrl_wm.envs import action_repeat, atari, dm_control, gymnasium, model_specs, suites, wrap

ROOT = {"is_init", "step_count", "previous_action", "previous_reward"}


@pytest.mark.parametrize(
    ("make", "args", "options"),
    [
        (gymnasium, ("CartPole-v1",), {}),
        (gymnasium, ("CartPole-v1",), {"num_envs": 2, "vectorization": "gymnasium"}),
        (gymnasium, ("Pendulum-v1",), {"num_envs": 2, "action_repeat": 2}),
        (gymnasium, ("LunarLander-v3",), {"continuous": True}),
        (gymnasium, ("FrozenLake-v1",), {"categorical_actions": True}),
        (gymnasium, ("CartPole-v1",), {"from_pixels": True}),
        (atari, ("Pong",), {"num_envs": 2}),
        (dm_control, ("cartpole", "balance"), {"num_envs": 2, "action_repeat": 2}),
        (dm_control, ("manipulator", "bring_ball"), {}),
        (dm_control, ("cartpole", "balance"), {"from_pixels": True}),
    ],
)
def test_specs_and_root_entries(make, args, options):
    env = make(*args, **options)
    check_env_specs(env)
    count = options.get("num_envs", 1)
    reset = env.reset()
    assert env.batch_size == reset.batch_size == torch.Size([count])
    assert ROOT <= set(reset.keys())
    observation_spec, action_spec = model_specs(env)
    if options.get("from_pixels") or make is atari:
        assert set(observation_spec.keys()) == {"pixels"}
        assert reset["pixels"].shape == (count, 3, 64, 64)
        assert reset["pixels"].dtype == torch.uint8
        assert reset["pixels"].float().std() > 0
    else:
        for key in observation_spec.keys(True, True):
            assert reset[key].dtype == torch.float32
            assert reset[key].ndim == 2
    action = action_spec["action"]
    if isinstance(action, Bounded):
        assert action.dtype == torch.float32
        assert (action.space.low == -1).all() and (action.space.high == 1).all()
    else:
        assert isinstance(action, Categorical if "categorical_actions" in options else OneHot)
    env.close()


@pytest.mark.parametrize("vectorization", ["serial", "gymnasium"])
def test_observations_are_scaled_everywhere(vectorization):
    options = {"num_envs": 2, "vectorization": vectorization, "seed": 3}
    plain = gymnasium("CartPole-v1", **options)
    scaled = gymnasium("CartPole-v1", **options, observation_scale=[1.0, 2.0, 10.0, 2.0])
    factors, action = torch.tensor([1.0, 2.0, 10.0, 2.0]), plain.rand_action()["action"]
    one, two = (env.step(env.reset().set("action", action)) for env in (plain, scaled))
    torch.testing.assert_close(two["observation"], one["observation"] * factors)
    torch.testing.assert_close(two["next", "observation"], one["next", "observation"] * factors)
    check_env_specs(scaled)


@pytest.mark.parametrize(
    "options",
    [{"observation_scale": [1.0, 2.0]}, {"observation_scale": [2.0], "from_pixels": True}],
)
def test_a_scale_that_does_not_fit_is_named(options):
    with pytest.raises(ValueError, match="observation_scale"):
        gymnasium("CartPole-v1", **options)


@pytest.mark.parametrize(
    ("make", "args", "package"),
    [
        (gymnasium, ("CartPole-v1",), "gymnasium"),
        (atari, ("Pong",), "ale_py"),
        (dm_control, ("cartpole", "balance"), "dm_control"),
    ],
)
def test_a_suite_that_is_not_installed_is_named(make, args, package, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(ModuleNotFoundError, match=rf"needs '{package}.*torchrl_wm\[envs\]"):
        make(*args)


def test_actions_are_rescaled_to_the_bounds():
    env = gymnasium("Pendulum-v1")
    reset = env.reset()
    simulator = env.base_env._envs[0]._env.unwrapped
    for action, torque in ((1.0, 2.0), (-1.0, -2.0), (0.5, 1.0)):
        env.step(reset.clone().set("action", torch.full((1, 1), action)))
        assert simulator.last_u == pytest.approx(torque)
    env = dm_control("quadruped", "walk")
    env.reset()
    inner = env.base_env._envs[0]
    low, high = inner._bounds.minimum, inner._bounds.maximum
    assert not np.allclose(high, 1.0)
    assert np.allclose(inner.read_action(torch.ones(len(high))), high)
    assert np.allclose(inner.read_action(-torch.ones(len(low))), low)


@pytest.mark.parametrize("vectorization", ["serial", "gymnasium"])
def test_repeat_sums_rewards_and_stops_at_the_end(vectorization):
    # 13 steps by 4: three whole decisions and one of a single step.
    env = gymnasium(
        "Pendulum-v1", action_repeat=4, max_episode_steps=13, vectorization=vectorization
    )
    single = gymnasium("Pendulum-v1", max_episode_steps=13, vectorization=vectorization)
    actions = env.rollout(20, break_when_any_done=True)
    assert actions.shape == (1, 4)
    assert action_repeat(env) == 4 and action_repeat(single) == 1
    td, total = single.reset(), []
    env = gymnasium("Pendulum-v1", action_repeat=4, max_episode_steps=13)
    repeated = env.reset()
    assert torch.equal(td["observation"], repeated["observation"])
    for decision in range(4):
        action = actions["action"][:, decision]
        repeated = env.step(repeated.set("action", action))["next"]
        total = 0.0
        for _ in range(4 if decision < 3 else 1):
            td = single.step(td.set("action", action))["next"]
            total += td["reward"].item()
        assert repeated["reward"].item() == pytest.approx(total, rel=1e-6)
        assert torch.equal(repeated["observation"], td["observation"])


def test_time_limits_truncate_and_do_not_terminate():
    env = gymnasium("CartPole-v1", max_episode_steps=3)
    last = env.rollout(10)[:, -1]["next"]
    assert last["step_count"].item() == 3
    assert last["truncated"].all() and not last["terminated"].any()
    last = gymnasium("CartPole-v1").rollout(500)[:, -1]["next"]
    assert last["terminated"].all() and not last["truncated"].any()
    env = dm_control("cartpole", "balance", action_repeat=4, max_episode_steps=10)
    last = env.rollout(10)[:, -1]["next"]
    assert last["step_count"].item() == 3
    assert last["truncated"].all() and not last["terminated"].any()


def test_dm_control_episodes_have_a_thousand_steps():
    env = dm_control("cartpole", "balance", action_repeat=10)
    last = env.rollout(200)[:, -1]["next"]
    assert last["step_count"].item() == 100 and last["truncated"].all()


def test_a_dropped_renderer_does_not_hang():
    program = """if True:
        import gc
        from torchrl_wm.envs import dm_control
        gc.disable()
        for _ in range(2):
            env = dm_control("cartpole", "balance", from_pixels=True)
            env.reset()
            del env
            gc.collect()
    """
    # In a process of its own, since it hung rather than failed.
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_registered_time_limit_of_cartpole():
    env = gymnasium("CartPole-v1")
    env.reset()
    assert env.base_env._envs[0]._env.spec.max_episode_steps == 500


def test_atari_options():
    env = atari(
        "ms_pacman", grayscale=True, image_size=96, full_action_set=True, sticky_actions=0.25
    )
    assert env.reset()["pixels"].shape == (1, 1, 96, 96)
    assert env.action_spec.shape == (1, 18)
    assert action_repeat(env) == 4
    ale = env.base_env._envs[0]._env.unwrapped.ale
    assert ale.getFloat("repeat_action_probability") == 0.25


def test_atari_starts_with_a_random_number_of_noops():
    env = atari("Pong", noop_max=5)
    env.reset()
    ale = env.base_env._envs[0]._env.unwrapped.ale
    frames = set()
    for _ in range(20):
        env.reset()
        frames.add(ale.getEpisodeFrameNumber())
    assert len(frames) > 2 and max(frames) - min(frames) <= 5
    first = {atari("Pong", noop_max=0, seed=s).reset()["pixels"].sum().item() for s in range(3)}
    assert len(first) == 1


def test_atari_skips_four_frames_and_keeps_lives():
    env = atari("Breakout", noop_max=0)
    td = env.reset()
    ale = env.base_env._envs[0]._env.unwrapped.ale
    before = ale.getEpisodeFrameNumber()
    td = env.rand_step(td)
    assert ale.getEpisodeFrameNumber() == before + 4
    lives = ale.lives()
    for _ in range(300):
        td = env.rand_step(td["next"])
        if ale.lives() < lives:
            break
    assert ale.lives() < lives and not td["next", "done"].any()


def test_atari_time_limit_truncates():
    last = atari("Pong", max_episode_steps=80, noop_max=0).rollout(100)[:, -1]["next"]
    assert last["truncated"].all() and not last["terminated"].any()
    assert last["step_count"].item() <= 21


@pytest.mark.parametrize(
    ("make", "args", "options", "words"),
    [
        (gymnasium, ("CartPol-v1",), {}, "Unknown gymnasium environment 'CartPol-v1'.*CartPole-v1"),
        (
            gymnasium,
            ("CartPole-v1",),
            {"vectorization": "foo"},
            "'serial', 'parallel', 'gymnasium'",
        ),
        (gymnasium, ("CartPole-v1",), {"num_envs": 0}, "num_envs=0 must be"),
        (gymnasium, ("CartPole-v1",), {"action_repeat": 1.5}, "action_repeat=1.5 must be"),
        (gymnasium, ("CartPole-v1",), {"max_episode_steps": 0}, "max_episode_steps=0 must be"),
        (atari, ("Pongg",), {}, "Unknown Atari game 'Pongg'.*'Pong'"),
        (atari, ("Pong",), {"sticky_actions": 1.0}, r"probability in \[0, 1\)"),
        (atari, ("Pong",), {"noop_max": -1}, "noop_max=-1 must be"),
        (dm_control, ("cartpol", "balance"), {}, "Unknown dm_control domain.*'cartpole'"),
        (dm_control, ("cartpole", "fly"), {}, "Unknown task 'fly'.*'balance'"),
        (dm_control, ("cartpole", "balance"), {"vectorization": "gymnasium"}, "'serial' or"),
    ],
)
def test_wrong_options_are_named(make, args, options, words):
    with pytest.raises(ValueError, match=words):
        make(*args, **options)


@pytest.mark.parametrize("factor", [0, -2.0, math.inf, math.nan, "2"])
def test_a_factor_of_observations_is_a_number_above_zero(factor):
    message = rf"observation_scale\[2\]={factor!r} must be a number above 0"
    with pytest.raises(ValueError, match=message):
        gymnasium("CartPole-v1", observation_scale=[1.0, 2, factor, 2.0])
    with pytest.raises(TypeError, match=f"observation_scale={factor!r} must be a list of numbers"):
        gymnasium("CartPole-v1", observation_scale=factor)


@pytest.mark.parametrize("value", [5, True, None, ["CartPole-v1"]])
@pytest.mark.parametrize(("make", "option"), [(gymnasium, "id"), (atari, "game")])
def test_what_is_no_name_of_an_environment_is_named(make, option, value):
    with pytest.raises(TypeError, match=rf"^{option}=.* must be the name .*env\.{option}="):
        make(value)


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [(["EGL", "OSMesa"], "osmesa"), (["EGL"], "egl"), (["OSMesa"], "osmesa"), ([], "disable")],
)
def test_the_renderer_is_one_that_is_installed(monkeypatch, installed, chosen):
    for name in ("MUJOCO_GL", "DISPLAY"):
        monkeypatch.setenv(name, "")  # so that the end of the test puts back what there was
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "dm_control", raising=False)
    monkeypatch.setattr(suites, "find_library", lambda name: name if name in installed else None)
    monkeypatch.setattr(suites.os.path, "exists", lambda path: False)  # no GPU
    if not installed:  # vectors need no renderer, pixels do
        with pytest.raises(RuntimeError, match="apt-get install libosmesa6"):
            suites._choose_renderer(True)
    suites._choose_renderer(False)
    assert os.environ["MUJOCO_GL"] == chosen


class Actions(gym.Env):
    """Remembers its last action."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)

    def __init__(self, space):
        self.action_space, self.last = space, None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.last = action
        assert self.action_space.contains(action), action
        return np.zeros(3, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("space", "vectorization"),
    [
        (gym.spaces.Discrete(3, start=-1), "serial"),
        (gym.spaces.Discrete(3, start=-1), "gymnasium"),
        (gym.spaces.MultiDiscrete([2, 3], start=[1, 2]), "serial"),
        (gym.spaces.Box(-1, 1, (), np.float32), "serial"),
        (gym.spaces.Box(-1, 1, (), np.float32), "gymnasium"),
    ],
)
def test_actions_arrive_as_their_space_has_them(space, vectorization):
    made = []

    def factory():
        made.append(Actions(space))
        return made[-1]

    env = wrap(factory, vectorization=vectorization)
    td, seen = env.reset(), set()
    for _ in range(20):
        td = env.step_mdp(env.rand_step(td))
        seen.add(str(made[-1].last))
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("space", "error", "message"),
    [
        (gym.spaces.Box(0, 5, (2,), np.int64), ValueError, "whole numbers.*Discrete"),
        (gym.spaces.MultiBinary((2, 2)), TypeError, "MultiBinary.*no tensor form"),
        (gym.spaces.Tuple([gym.spaces.Discrete(2)]), TypeError, "Tuple.*no tensor form"),
        (
            gym.spaces.Dict(a=gym.spaces.Discrete(2, start=1)),
            TypeError,
            "action.a.*begin at 0",
        ),
    ],
)
def test_actions_that_tensors_cannot_be_are_named(space, error, message):
    with pytest.raises(error, match=message):
        wrap(lambda: Actions(space))
