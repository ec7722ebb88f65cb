import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import Composite, OneHot, Unbounded
from torchrl.envs import EnvBase, SerialEnv

from torchrl_wm.training import Evaluator


class Countdown(EnvBase):
    """Episodes of a length that depends on the environment and grows with the episode."""

    def __init__(self, base):
        super().__init__()
        self.base, self.episode, self.time = base, 0, 0
        self.observation_spec = Composite(observation=Unbounded(1))
        self.action_spec = OneHot(2)
        self.reward_spec = Unbounded(1)

    def _reset(self, tensordict=None, **_):
        self.episode += 1
        self.time = 0
        return TensorDict(observation=torch.zeros(1))

    def _step(self, tensordict):
        self.time += 1
        done = torch.tensor([self.time == self.base + self.episode])
        reward = torch.ones(1)
        return TensorDict(observation=torch.zeros(1), reward=reward, done=done, terminated=done)

    def _set_seed(self, seed):
        self.episode = 0


def _policy():
    act = lambda o: torch.nn.functional.one_hot(torch.randint(2, o.shape[:-1]), 2)
    return TensorDictModule(act, ["observation"], ["action"])


def _envs(*bases):
    return SerialEnv(len(bases), [lambda b=b: Countdown(b) for b in bases])


@pytest.mark.parametrize("episodes", [1, 2, 3, 7])
def test_each_environment_plays_its_quota_once(episodes):
    # Counting the first episodes that end would take nearly all from the short environment.
    result = Evaluator(_envs(0, 50, 5), _policy(), episodes).evaluate()
    expected = []
    for base, number in zip(
        (0, 50, 5), (len(range(e, episodes, 3)) for e in range(3)), strict=True
    ):
        expected += [base + k + 1 for k in range(number)]
    assert result.lengths == expected
    assert result.returns == [float(length) for length in expected]


def test_summary():
    summary = Evaluator(_envs(1, 3), _policy(), 2).evaluate().summary()
    assert summary == {"mean": 3.0, "std": 1.0, "min": 2.0, "max": 4.0, "length": 3.0}


def test_leaves_the_global_generators_alone_and_repeats_itself():
    evaluator = Evaluator(_envs(2), _policy(), 2, seed=4)
    seen = []
    record = lambda td: seen.append(td["action"].clone())
    torch.manual_seed(0)
    evaluator.evaluate(10, on_step=record)
    first = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(first, torch.rand(3))
    again, seen[:] = torch.stack(seen), []
    evaluator.evaluate(10, on_step=record)
    assert torch.equal(again, torch.stack(seen))


def test_stops_when_asked():
    assert Evaluator(_envs(50), _policy(), 2).evaluate(stopped=lambda: True) is None


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="episodes=0"):
        Evaluator(_envs(1), _policy(), 0)
    with pytest.raises(ValueError, match="batch size"):
        Evaluator(Countdown(1), _policy(), 1)
