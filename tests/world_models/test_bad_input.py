"""Entries that are missing or have another shape are named."""

import pytest
import torch
from torchrl.data import Bounded, Composite, OneHot, Unbounded

from torchrl_wm.world_models import make_autoencoder, make_identity, make_muzero, make_rssm


@pytest.fixture
def model():
    spec = Composite(joints=Unbounded(3), pixels=Unbounded((3, 64, 64), dtype=torch.uint8))
    return make_rssm(spec, Composite(action=Bounded(-1, 1, (2,))), belief_size=16, hidden_size=8)


@pytest.fixture
def step(model):
    td = model.initial([4]).update(
        {"joints": torch.zeros(4, 3), "pixels": torch.zeros(4, 3, 64, 64, dtype=torch.uint8)}
    )
    td["is_init"] = torch.ones(4, 1, dtype=torch.bool)
    return td.set("previous_action", torch.zeros(4, 2))


def test_the_right_shapes_pass(model, step):
    assert model(step)["belief"].shape == (4, 16)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("joints", (4, 5)),
        ("pixels", (4, 64, 64, 3)),
        ("belief", (4, 8)),
        ("previous_action", (4, 3)),
        ("is_init", (4,)),
    ],
)
def test_another_shape_is_named(model, step, key, shape):
    step[key] = torch.zeros(shape, dtype=step[key].dtype)
    with pytest.raises(ValueError, match=f"'{key}' has the shape .* was built for"):
        model(step)


@pytest.mark.parametrize("latent", ["categorical", "gaussian"])
@pytest.mark.parametrize(
    ("option", "valid"),
    [("style", "v2"), ("cell", "layer_norm"), ("std", "sigmoid2"), ("activation", "silu")],
)
def test_unknown_parts_list_the_valid_ones(latent, option, valid):
    specs = Composite(joints=Unbounded(3)), Composite(action=Bounded(-1, 1, (2,)))
    with pytest.raises(ValueError, match=f"{option} 'nonsense'.*{valid}"):
        make_rssm(*specs, latent=latent, **{option: "nonsense"})
    with pytest.raises(ValueError, match="latent 'nonsense'.*categorical"):
        make_rssm(*specs, latent="nonsense")


@pytest.mark.parametrize("observation", [Unbounded(3), Unbounded((3, 64, 64))])
@pytest.mark.parametrize(
    ("option", "valid"),
    [("scaling", "minmax"), ("activation", "silu"), ("norm", "rms"), ("init", "glorot")],
)
def test_unknown_parts_of_a_searched_model_list_the_valid_ones(observation, option, valid):
    specs = Composite(seen=observation), Composite(action=OneHot(2))
    with pytest.raises(ValueError, match=f"{option} 'nonsense'.*{valid}"):
        make_muzero(*specs, **{option: "nonsense"})


@pytest.mark.parametrize("make", [make_identity, make_autoencoder])
@pytest.mark.parametrize("shape", [(4, 2), (4, 1), (4, 5, 3)])
def test_another_shape_is_named_by_feed_forward_models_too(make, shape):
    spec = Composite(joints=Unbounded(3))
    model = make(spec, Composite(action=Bounded(-1, 1, (2,))), units=8)
    td = model.initial([4]).update({"joints": torch.zeros(shape)})
    td["is_init"] = torch.ones(4, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="'joints' has the shape .* was built for"):
        model(td.set("previous_action", torch.zeros(4, 2)))


@pytest.mark.parametrize("batch", [(0,), (0, 3)])
def test_no_rows_are_filtered_too(model, step, batch):
    rows = step[:0].reshape(batch)
    assert model(rows)["belief"].shape == (*batch, 16)


@pytest.mark.parametrize("absolute", [False, True])
def test_an_absolute_posterior_reads_the_observation_alone(absolute):
    specs = Composite(joints=Unbounded(3)), Composite(action=Bounded(-1, 1, (2,)))
    model = make_rssm(*specs, belief_size=16, hidden_size=8, units=8, absolute=absolute)
    records = model.initial([2, 3]).update({"joints": torch.randn(2, 3, 3)})
    records["is_init"] = torch.zeros(2, 3, 1, dtype=torch.bool)
    records["previous_action"] = torch.rand(2, 3, 2)
    carries = model.initial([2]), model.initial([2]).set("belief", torch.randn(2, 16))
    one, other = (model.observe(records, carry)["posterior", "logits"] for carry in carries)
    assert torch.equal(one, other) == absolute


def test_a_latent_with_the_name_of_an_observation_is_named():
    specs = Composite(state=Unbounded(3)), Composite(action=Bounded(-1, 1, (2,)))
    with pytest.raises(ValueError, match="'state' has the name of an observation.*state_key="):
        make_rssm(*specs)
    model = make_rssm(*specs, state_key="latent", belief_size=16, hidden_size=8)
    assert "latent" in model.latent_keys
