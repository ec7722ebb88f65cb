import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Composite, Unbounded
from torchrl.envs import EnvBase


class Reach(EnvBase):
    """A stateless environment: the reward of an action is the less, the farther it is from the goal.

    Every row has a goal of its own in ``goal``; ``steps`` counts, and the episode ends after ``length``.
    """

    batch_locked = False

    def __init__(
        self, spec, goal=0.0, *, action_key="action", reward_key="reward", offset=0.0, length=1000
    ):
        super().__init__(batch_size=[])
        self.full_action_spec = Composite({action_key: spec})
        self.observation_spec = Composite(goal=Unbounded(spec.shape), steps=Unbounded((1,)))
        self.full_reward_spec = Composite({reward_key: Unbounded((1,))})
        self.names = action_key, reward_key
        self.goal, self.offset, self.length = torch.as_tensor(goal).float(), offset, length
        self.shape_of_action = spec.shape

    def _reset(self, tensordict):
        batch = () if tensordict is None else tensordict.batch_size
        goal = self.goal.expand((*batch, *self.shape_of_action)).clone()
        return TensorDict(goal=goal, steps=torch.zeros(*batch, 1), batch_size=batch)

    def _step(self, tensordict):
        action_key, reward_key = self.names
        goal, batch = tensordict["goal"], tensordict.batch_size
        away = (tensordict[action_key].float() - goal).square().reshape(*batch, -1).sum(-1, True)
        steps = tensordict["steps"] + 1
        done = steps >= self.length
        out = TensorDict(goal=goal, steps=steps, done=done, terminated=done, batch_size=batch)
        return out.set(reward_key, self.offset - away)

    def _set_seed(self, seed):
        return seed


@pytest.fixture
def reach():
    return Reach


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
