from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import GymEnv

from torchrl_wm.envs import (
    NotReproducibleError,
    atari,
    dm_control,
    episode_state,
    gymnasium,
    restore_episode_state,
)

CASES = [
    (gymnasium, ("CartPole-v1",), {"num_envs": 1}),
    (gymnasium, ("CartPole-v1",), {"num_envs": 2, "action_repeat": 2}),
    (gymnasium, ("CartPole-v1",), {"num_envs": 2, "vectorization": "gymnasium"}),
    (gymnasium, ("Pendulum-v1",), {"num_envs": 2, "max_episode_steps": 9}),
    (gymnasium, ("LunarLander-v3",), {"num_envs": 2, "max_episode_steps": 20}),
    (gymnasium, ("BipedalWalker-v3",), {"max_episode_steps": 20}),
    (dm_control, ("cartpole", "balance"), {"num_envs": 2, "max_episode_steps": 9}),
    (dm_control, ("lqr", "lqr_2_1"), {"max_episode_steps": 9}),
    (atari, ("Pong",), {"sticky_actions": 0.25}),
]


def advance(env, tensordict, actions):
    """Steps with the given actions and resets what is done; returns rows and root."""
    rows = []
    for action in actions:
        row, tensordict = env.step_and_maybe_reset(tensordict.set("action", action))
        rows.append(row.clone())
        tensordict = tensordict.clone()
    return torch.stack(rows, 1), tensordict


def assert_continues(env, make_other, ends):
    """Fifty decisions after a checkpoint are bitwise the same in another environment."""
    actions = [env.action_spec.rand() for _ in range(70)]
    _, carried = advance(env, env.reset(), actions[:25])
    state = {name: value.clone() for name, value in episode_state(env).items()}
    carried, kept = carried.clone(), carried.clone()
    expected, _ = advance(env, carried, actions[25:])
    env.close()

    other = make_other()
    other.rollout(4)
    restore_episode_state(other, state)
    found, _ = advance(other, kept, actions[25:])
    other.close()
    assert not ends or expected["is_init"].any()
    for key, value in expected.items(True, True):
        assert torch.equal(value, found[key]), key


@pytest.mark.parametrize(("make", "args", "options"), CASES)
def test_continues_bitwise_in_a_new_environment(make, args, options):
    new = partial(make, *args, **options, seed=3)
    assert_continues(new(), new, ends=make is not atari)


@pytest.mark.parametrize(
    ("make", "args", "first", "second"),
    [
        (gymnasium, ("Pendulum-v1",), "parallel", "gymnasium"),
        (dm_control, ("cartpole", "balance"), "serial", "parallel"),
    ],
)
def test_continues_bitwise_in_another_process(make, args, first, second):
    threads = torch.get_num_threads()
    new = partial(make, *args, num_envs=2, max_episode_steps=9)
    assert_continues(new(vectorization=first), partial(new, vectorization=second), ends=True)
    assert torch.get_num_threads() == threads


def test_the_seed_decides_the_episodes():
    first, same, other = (gymnasium("CartPole-v1", num_envs=2, seed=s) for s in (0, 0, 1))
    for _ in range(2):
        a, b, c = (env.reset()["observation"] for env in (first, same, other))
        assert torch.equal(a, b) and not torch.equal(a, c)
    assert not torch.equal(a, first.reset()["observation"])
    first.set_seed(5)
    same.set_seed(5)
    assert torch.equal(first.reset()["observation"], same.reset()["observation"])


def test_the_state_is_plain_tensors(tmp_path):
    env = gymnasium("Pendulum-v1", num_envs=2)
    env.rollout(3)
    torch.save(episode_state(env), tmp_path / "episodes.pt")
    state = torch.load(tmp_path / "episodes.pt", weights_only=True)
    assert state["1.actions"].shape == (3, 1)
    restore_episode_state(env, state)


def test_restores_before_the_first_reset():
    state = episode_state(gymnasium("CartPole-v1"))
    assert int(state["0.episode"]) == 0
    env = gymnasium("CartPole-v1", seed=4)
    restore_episode_state(env, state)
    assert torch.equal(env.reset()["observation"], gymnasium("CartPole-v1").reset()["observation"])


def test_another_number_of_environments_is_refused():
    state = episode_state(gymnasium("CartPole-v1", num_envs=2))
    with pytest.raises(ValueError, match="of 2 environments, but there are 3"):
        restore_episode_state(gymnasium("CartPole-v1", num_envs=3), state)


def test_a_different_replay_is_named():
    env = gymnasium("CartPole-v1")
    env.rollout(3)
    state = episode_state(env)
    other = gymnasium("CartPole-v1", max_episode_steps=2, action_repeat=2)
    with pytest.raises(NotReproducibleError, match="CartPole-v1.*not deterministic.*episode 1"):
        restore_episode_state(other, state)


def test_foreign_environments_are_named():
    with pytest.raises(NotReproducibleError, match="GymEnv was not made by a factory"):
        episode_state(GymEnv("CartPole-v1"))


def test_the_carried_entries_survive_as_well():
    """What the transforms write comes from the carried TensorDict, not from hidden state."""
    env = gymnasium("Pendulum-v1")
    actions = [env.action_spec.rand() for _ in range(3)]
    _, carried = advance(env, env.reset(), actions)
    other = gymnasium("Pendulum-v1", seed=1)
    restore_episode_state(other, episode_state(env))
    carried = TensorDict(carried.to_dict(), carried.batch_size)
    row = other.step(carried.set("action", actions[0]))
    assert row["next", "step_count"].item() == 4
    assert torch.equal(row["previous_action"], actions[2])


def test_storing_leaves_the_random_state_alone():
    env = gymnasium("Pendulum-v1")
    env.reset()
    before = torch.get_rng_state()
    episode_state(env)
    assert torch.equal(before, torch.get_rng_state())
