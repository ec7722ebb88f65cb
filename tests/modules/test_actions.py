from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    NonTensor,
    OneHot,
    Unbounded,
)

from torchrl_wm.modules.actions import ActionEncoding

SPECS = {
    "one_hot": (OneHot(4), 4),
    "one_hot_float": (OneHot(4, dtype=torch.float32), 4),
    "multi_one_hot": (MultiOneHot([2, 3]), 5),
    "categorical": (Categorical(3), 3),
    "categorical_one": (Categorical(3, shape=(1,)), 3),
    "categorical_row": (Categorical(3, shape=(2,)), 6),
    "multi_categorical": (MultiCategorical([3, 2]), 5),
    "binary": (Binary(3), 3),
    "bounded": (Bounded(-1.0, 1.0, (3,)), 3),
    "bounded_scalar": (Bounded(-1.0, 1.0, ()), 1),
    "bounded_matrix": (Bounded(-1.0, 1.0, (2, 3)), 6),
    "bounded_integers": (Bounded(0, 5, (2,), dtype=torch.int64), 2),
    "unbounded": (Unbounded((2,)), 2),
    "composite": (
        Composite({"b": Categorical(3), "a": Composite(x=Bounded(-1, 1, (2,)), c=OneHot(2))}),
        7,
    ),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_decoding_an_encoding_gives_the_action_back(name, batch):
    spec, size = SPECS[name]
    wrapped = spec if isinstance(spec, Composite) else Composite(action=spec)
    encoding = ActionEncoding(spec)
    action = wrapped.expand(*batch, *wrapped.shape).rand()
    flat = encoding(action)
    assert flat.shape == (*batch, size) and flat.dtype == torch.float32 and encoding.size == size
    decoded = encoding.decode(flat, TensorDict(batch_size=batch))
    for key in encoding.in_keys:
        assert decoded[key].dtype == action[key].dtype
        torch.testing.assert_close(decoded[key], action[key])
    assert wrapped.expand(*batch, *wrapped.shape).is_in(decoded)


def test_entries_are_joined_in_sorted_order():
    encoding = ActionEncoding(SPECS["composite"][0])
    assert encoding.in_keys == [("a", "c"), ("a", "x"), "b"]


def test_values_out_of_bounds_are_clipped():
    encoding = ActionEncoding(Bounded(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 2.0])))
    decoded = encoding.decode(torch.tensor([[-3.0, 3.0]]), TensorDict(batch_size=1))
    assert decoded["action"].tolist() == [[-1.0, 2.0]]


def test_a_nested_action_key_is_set():
    encoding = ActionEncoding(OneHot(2), ("agent", "action"))
    decoded = encoding.decode(torch.tensor([0.1, 0.9]), TensorDict())
    assert decoded["agent", "action"].tolist() == [False, True]


def test_a_missing_action_is_named():
    with pytest.raises(KeyError, match="'action' is missing; found .'other'"):
        ActionEncoding(OneHot(2))(TensorDict(other=torch.zeros(1)))


def test_an_unsupported_spec_is_named():
    with pytest.raises(TypeError, match="'words' has the unsupported spec NonTensor"):
        ActionEncoding(Composite(words=NonTensor(shape=())))


def test_a_composite_without_entries_is_refused():
    with pytest.raises(TypeError, match="no entry"):
        ActionEncoding(Composite())


def test_a_flat_action_of_another_size_is_refused():
    with pytest.raises(ValueError, match="3 numbers; 2 are expected"):
        ActionEncoding(OneHot(2)).decode(torch.zeros(3), TensorDict())


def test_clip_reaches_bounded_entries_only():
    spec = Composite(arm=Bounded(-1, 2, (2, 1)), gear=Categorical(2), push=Unbounded(1))
    flat = torch.tensor([[-5.0, 5.0, 0.0, 1.0, 9.0], [0.5, 1.5, 1.0, 0.0, -9.0]])
    expected = torch.tensor([[-1.0, 2.0, 0.0, 1.0, 9.0], [0.5, 1.5, 1.0, 0.0, -9.0]])
    assert torch.equal(ActionEncoding(spec).clip(flat), expected)
