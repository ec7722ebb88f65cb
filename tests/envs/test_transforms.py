from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import (
    ActionScaling,
    Compose,
    EnvBase,
    GymEnv,
    InitTracker,
    ParallelEnv,
    SerialEnv,
    StepCounter,
    TransformedEnv,
    check_env_specs,
)

from torchrl_wm.envs import PreviousStep, gymnasium


def short_cartpole(limit):
    return TransformedEnv(GymEnv("CartPole-v1"), Compose(InitTracker(), StepCounter(limit)))


def assert_chained(rollout):
    """Rows [E, T]: every row carries what the row before did, and zeros where an episode starts."""
    init = rollout["is_init"][:, 1:, 0]
    assert init.any() and not init.all()
    action, reward = rollout["previous_action"], rollout["previous_reward"]
    assert (action[rollout["is_init"][..., 0]] == 0).all()
    assert (reward[rollout["is_init"][..., 0]] == 0).all()
    taken = rollout["action"][:, :-1].float()
    assert torch.equal(action[:, 1:][~init], taken[~init])
    assert torch.equal(reward[:, 1:][~init], rollout["next", "reward"][:, :-1][~init])
    assert torch.equal(rollout["next", "previous_action"], rollout["action"].float())
    assert torch.equal(rollout["next", "previous_reward"], rollout["next", "reward"])


@pytest.mark.parametrize("batched", [SerialEnv, ParallelEnv])
def test_chains_under_asynchronous_resets(batched):
    limits = [{"limit": limit} for limit in (1, 5, 30)]
    base = batched(3, short_cartpole, create_env_kwargs=limits)
    env = TransformedEnv(base, PreviousStep())
    rollout = env.rollout(60, break_when_any_done=False)
    env.close()
    assert rollout["is_init"][0].all()
    assert rollout["is_init"][1].sum() > rollout["is_init"][2].sum()
    assert_chained(rollout)


def test_chains_in_a_gymnasium_vector_environment():
    env = gymnasium("CartPole-v1", num_envs=3, vectorization="gymnasium")
    rollout = env.rollout(80, break_when_any_done=False)
    assert len(set(rollout["is_init"].sum(1).flatten().tolist())) > 1
    assert_chained(rollout)


def test_takes_the_action_before_it_is_rescaled():
    env = TransformedEnv(
        GymEnv("Pendulum-v1"), Compose(ActionScaling(), InitTracker(), PreviousStep())
    )
    rollout = env.rollout(5)
    assert torch.equal(rollout["previous_action"][1:], rollout["action"][:-1])


class DictActions(EnvBase):
    """Two nested action entries, one of them an index; ends after two steps."""

    def __init__(self):
        super().__init__()
        self.observation_spec = Composite(seen=Unbounded((2,)))
        self.full_action_spec = Composite(
            robot=Composite(arm=Bounded(-1, 1, (2,)), gear=Categorical(3))
        )
        self.reward_spec = Unbounded((1,))

    def _reset(self, tensordict):
        return TensorDict({"seen": torch.zeros(2)})

    def _step(self, tensordict):
        end = torch.zeros(1, dtype=torch.bool)
        return TensorDict({"seen": torch.ones(2), "reward": torch.ones(1), "done": end})

    def _set_seed(self, seed):
        pass


def test_encodes_all_actions_under_nested_keys():
    env = TransformedEnv(DictActions(), PreviousStep(("last", "action"), ("last", "reward")))
    check_env_specs(env)
    rollout = env.rollout(4)
    robot = rollout["robot"][:-1]
    gear = torch.nn.functional.one_hot(robot["gear"], 3).float()
    expected = torch.cat([robot["arm"], gear], -1)
    assert torch.equal(rollout["last", "action"][1:], expected)
    assert (rollout["last", "action"][0] == 0).all()
    assert (rollout["last", "reward"][1:] == 1).all()


def test_unknown_reward_is_named():
    with pytest.raises(KeyError, match="'score'.*reward"):
        env = TransformedEnv(GymEnv("CartPole-v1"), PreviousStep(source_reward_key="score"))
        _ = env.observation_spec


def test_needs_an_environment():
    with pytest.raises(RuntimeError, match="StepRecords"):
        PreviousStep()(TensorDict(action=torch.zeros(1)))
    with pytest.raises(RuntimeError, match="append it to a TransformedEnv"):
        _ = PreviousStep().encode
