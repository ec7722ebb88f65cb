"""MuZero's model: the contract as far as nothing is recurrent, what it predicts, any spec."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite, MultiOneHot, OneHot, Unbounded

from torchrl_wm.modules.distributions import SymlogSquaredError
from torchrl_wm.world_models import make_muzero

VECTOR = Composite(observation=Unbounded(4))
DISCRETE = Composite(action=OneHot(3))
BOARD = Composite(board=Unbounded((2, 3, 3), dtype=torch.bool))
ATARI = Composite(pixels=Unbounded((4, 96, 96), dtype=torch.uint8))
OBSERVATIONS = {
    "vector": VECTOR,
    "board": BOARD,
    "atari": ATARI,
    "mixed": Composite(eye=Composite(pixels=ATARI["pixels"].clone()), joints=Unbounded(3)),
}
ACTIONS = {
    "one_hot": DISCRETE,
    "index": Composite(action=Categorical(3)),
    "multi_one_hot": Composite(action=MultiOneHot([2, 3])),
    "continuous": Composite(action=Bounded(-1, 1, (2,))),
    "nested": Composite(arm=Composite(turn=Bounded(-1, 1, (2,))), gear=Categorical(3)),
}
SMALL = {"hidden_size": 6, "units": 8, "channels": 4, "support": 10}


def build(observations=VECTOR, actions=DISCRETE, **options):
    torch.manual_seed(0)
    model = make_muzero(observations, actions, **{**SMALL, **options})
    for parameter in model.parameters():  # heads of zeros would hide mistakes
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def records(model, observations, batch):
    out = observations.expand(batch).rand().update(model.initial(batch))
    out["is_init"] = torch.rand(*batch, 1) < 0.3
    out["previous_action"] = torch.rand(*batch, model.action_encoding.size)
    return out


@pytest.mark.parametrize("observations", OBSERVATIONS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_any_spec_and_any_leading_dimensions(observations, actions):
    observations, actions = OBSERVATIONS[observations], ACTIONS[actions]
    model = build(observations, actions)
    td = records(model, observations, [2, 3])
    with torch.no_grad():
        filtered = model.filter(td.clone())
        td.update(actions.expand([2, 3]).rand()).update(filtered.select("hidden"))
        stepped = model.predict(model.step(td))
        flat = model.predict(model.step(td.reshape(6)))
    assert stepped["next", "reward"].shape == (2, 3, 1)
    assert stepped["state_value"].shape == (2, 3, 1)
    for key in (("next", "hidden"), ("next", "reward"), "state_value", "policy_logits"):
        torch.testing.assert_close(stepped[key].reshape(6, -1), flat[key], rtol=1e-4, atol=1e-5)


def test_filtering_a_sequence_is_filtering_each_record():
    model = build()
    td = records(model, VECTOR, [3, 5])
    with torch.no_grad():
        observed = model.observe(td)
        torch.testing.assert_close(observed["hidden"], model.filter(td.clone())["hidden"])
        torch.testing.assert_close(observed["hidden"], model.represent(td))


def test_the_fast_path_is_step_and_predict():
    model = build()
    hidden, action = torch.rand(5, 6), torch.eye(3)[torch.randint(3, (5,))]
    td = TensorDict(hidden=hidden, action=action, batch_size=[5])
    with torch.no_grad():
        (following,), reward, value, logits = model.search_tensors((hidden,), action)
        after = model.step(td)["next"]
        assert torch.equal(following, after["hidden"])
        assert torch.equal(reward, after["reward"][:, 0])
        predicted = model.predict(after)
        assert torch.equal(value, predicted["state_value"][:, 0])
        assert torch.equal(logits, predicted["policy_logits"])


@pytest.mark.parametrize("observations", [VECTOR, BOARD], ids=["vector", "board"])
def test_hidden_states_stay_in_range(observations):
    model = build(observations)
    td = records(model, observations, [4]).set("action", torch.eye(3)[[0, 1, 2, 0]])
    with torch.no_grad():
        hidden = model.filter(td)["hidden"]
        for _ in range(20):
            hidden = model.advance(hidden, td["action"])
            channels = hidden if model.scaling.shape is None else hidden.unflatten(-1, (-1, 4))
            assert hidden.min() == 0 and hidden.max() == 1
            low = channels.amin(1) if channels.ndim == 3 else channels.amin(-1)
            assert (low == 0).all()


def test_every_channel_of_a_map_is_scaled_by_itself():
    model = build(BOARD)
    hidden = torch.rand(2, 36)
    louder = hidden.unflatten(-1, (9, 4)).clone()
    louder[..., 1] *= 100
    quiet, loud = model.scaling(hidden), model.scaling(louder.flatten(1))
    torch.testing.assert_close(quiet, loud, rtol=1e-4, atol=1e-4)


PREFIX = {"use_value_prefix": True, "value_prefix_horizon": 2}


@pytest.mark.parametrize("observations", ["vector", "board"])
def test_a_value_prefix_is_carried_in_the_latent(observations):
    decodes, observations = observations == "vector", OBSERVATIONS[observations]
    model = build(observations, use_reconstruction=decodes, **PREFIX)
    td = records(model, observations, [2, 3])
    td["reward_memory"] += 7.0  # what was carried is not read
    with torch.no_grad():
        td = model.filter(td)
        assert (td["reward_memory"] == 0).all()
        assert torch.equal(model.roots(td)["hidden"], td["hidden"])
        if decodes:
            assert model.decode(td)["decoded", "observation"].shape == (2, 3, 4)
        hidden, rewards, resets = [td["hidden"]], [], []
        for _ in range(5):
            td.update(DISCRETE.expand([2, 3]).rand())
            stepped = model.step(td)["next"]
            rewards.append(stepped["reward"])
            resets.append(stepped["reward_memory"][..., -1:])
            hidden.append(stepped["hidden"])
            td = stepped.select(*model.latent_keys).clone()
        sums = model.reward_distribution(torch.stack(hidden, 2).flatten(0, 1)).mean
    rewards = torch.stack(rewards, 2).flatten(0, 1)
    for start in (0, 2, 4):
        end = min(start + 2, 5)
        expected = sums[:, start + 1 : end + 1]
        summed = rewards[:, start:end].cumsum(1)
        torch.testing.assert_close(summed, expected, rtol=1e-3, atol=1e-3)
    assert torch.stack(resets)[:, 0, 0, 0].tolist() == [1, 2, 1, 2, 1]


def test_the_fast_path_carries_the_value_prefix():
    model = build(**PREFIX)
    td = model.roots(records(model, VECTOR, [5])).set("action", torch.eye(3)[[0, 1, 2, 0, 1]])
    with torch.no_grad():
        for _ in range(3):
            latents, reward, _, _ = model.search_tensors(
                tuple(td[key] for key in model.latent_keys), td["action"]
            )
            after = model.step(td)["next"]
            assert torch.equal(reward, after["reward"][:, 0])
            for key, value in zip(model.latent_keys, latents, strict=True):
                assert torch.equal(value, after[key])
                td[key] = value


def test_keys_are_configurable_and_may_be_nested():
    names = {"hidden_key": ("wm", "h"), "value_key": ("wm", "v"), "logits_key": ("wm", "p")}
    model = build(**names)
    td = model.predict(model.filter(records(model, VECTOR, [2])))
    assert td["wm", "v"].shape == (2, 1) and td["wm", "p"].shape == (2, 3)
    stepped = model.step(td.set("action", torch.eye(3)[:2]))
    assert stepped["next", "wm", "h"].shape == (2, 6)


def test_missing_entries_are_named():
    model = build()
    td = records(model, VECTOR, [2])
    with pytest.raises(KeyError, match="observation"):
        model.represent(td.exclude("observation"))
    with pytest.raises(KeyError, match=r"(?s)hidden.*make_tensordict_primer"):
        model.step(td.exclude("hidden").set("action", torch.eye(3)[:2]))
    with pytest.raises(TypeError, match="MuZeroLoss"):
        model.statistics(td)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": "norm"}, "'norm'.*minmax.*simnorm.*none"),
        ({"support": 0}, "support=0 must be a whole number of at least 1"),
        ({"scaling": "simnorm", "hidden_size": 6}, "group=8 must divide the size 6"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        model = build(**options)
        model.represent(records(model, VECTOR, [2]))


def test_pictures_of_an_odd_size_are_named():
    with pytest.raises(ValueError, match="100 x 100.*multiples of 16.*env.image_size=96.*Resize"):
        build(Composite(pixels=Unbounded((3, 100, 100), dtype=torch.uint8)))


@pytest.mark.parametrize("use_symlog", [False, True])
def test_symlog_is_for_what_is_read_and_decoded(use_symlog):
    specs = Composite(observation=Unbounded(3)), Composite(action=OneHot(2))
    model = make_muzero(*specs, use_reconstruction=True, use_symlog=use_symlog)
    predicted = model.decoder(torch.zeros(1, model.feature_size))["observation"]
    assert isinstance(predicted, SymlogSquaredError) == use_symlog
    assert model.encoder.vector.use_symlog == use_symlog
