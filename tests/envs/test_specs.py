from __future__ import annotations

import pytest
import torch
from torchrl.data import Binary, Composite, NonTensor, Unbounded
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.transforms import TensorDictPrimer

from torchrl_wm.envs import gymnasium, model_specs


class Observes(EnvBase):
    """Has specs and nothing else."""

    def __init__(self, action=None, **observation):
        super().__init__()
        self.observation_spec = Composite(**observation)
        self.action_spec = Unbounded((1,)) if action is None else action
        self.reward_spec = Unbounded((1,))

    def _reset(self, tensordict):
        raise NotImplementedError

    _step = _set_seed = _reset


def test_leaves_out_bookkeeping_and_primed_latents():
    env = gymnasium("CartPole-v1", num_envs=3)
    primer = TensorDictPrimer(belief=Unbounded((8,)), expand_specs=True)
    env.append_transform(primer)
    observation_spec, action_spec = model_specs(env)
    assert set(observation_spec.keys(True, True)) == {"observation"}
    assert observation_spec.batch_size == action_spec.batch_size == torch.Size([])
    assert observation_spec["observation"].shape == (4,)
    assert action_spec["action"].shape == (2,)


def test_outer_primers_are_found_as_well():
    env = gymnasium("CartPole-v1")
    primed = TransformedEnv(
        env, TensorDictPrimer(h=Unbounded((8,)), expand_specs=True), auto_unwrap=False
    )
    assert set(model_specs(primed)[0].keys(True, True)) == {"observation"}


def test_keeps_nested_entries_and_images():
    env = Observes(robot=Composite(arm=Unbounded((2,)), eye=Unbounded((3, 8, 8))))
    keys = set(model_specs(env)[0].keys(True, True))
    assert keys == {("robot", "arm"), ("robot", "eye")}


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        (NonTensor((), example_data="a"), TypeError, "'bad' is no tensor"),
        (Unbounded((2,), dtype=torch.int64), TypeError, "'bad' has the dtype torch.int64"),
        (Unbounded((2, 3, 8, 8)), ValueError, r"'bad' has the shape \(2, 3, 8, 8\)"),
        (Unbounded((2, 3)), ValueError, r"'bad' has the shape \(2, 3\)"),
        (Unbounded(()), ValueError, r"'bad' has the shape \(\)"),
    ],
)
def test_unsupported_observations_are_named(spec, error, words):
    with pytest.raises(error, match=words) as caught:
        model_specs(Observes(good=Unbounded((2,)), bad=spec))
    assert "float vectors [D] and images [C, H, W]" in str(caught.value)


def test_unsupported_actions_are_named():
    action = NonTensor((), example_data="left")
    with pytest.raises(TypeError, match="'action'.*supported are OneHot"):
        model_specs(Observes(action=action, good=Unbounded((2,))))


def test_binary_actions_are_supported():
    assert model_specs(Observes(action=Binary(3), good=Unbounded((2,))))[1]["action"].shape == (3,)


def test_nothing_observed_is_an_error():
    with pytest.raises(ValueError, match="observes nothing"):
        model_specs(Observes(step_count=Unbounded((1,))))
