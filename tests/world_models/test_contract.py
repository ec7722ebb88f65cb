"""What every world model keeps: shapes, resets, recurrence, keys, specs, and one meaning of time."""

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
    OneHot,
    Unbounded,
)
from torchrl.envs import TransformedEnv
from torchrl.envs.libs.gym import GymEnv

from torchrl_wm.modules.heads import actor_head
from torchrl_wm.world_models import RSSM, make_autoencoder, make_identity, make_rssm

VECTOR = Composite(observation=Unbounded(4))
CONTINUOUS = Composite(action=Bounded(-1, 1, (2,)))
SIZES = {"belief_size": 16, "hidden_size": 8, "state_size": 4, "units": 8, "depth": 2}
GAUSSIAN = {"latent": "gaussian", "style": "v1", **SIZES}
MODELS = {
    "gaussian_gru": (make_rssm, {"cell": "gru", **GAUSSIAN}),
    "gaussian_reset_before": (make_rssm, {"cell": "reset_before", **GAUSSIAN}),
    "gaussian_layer_norm": (make_rssm, {"cell": "layer_norm", **GAUSSIAN}),
    "gaussian_block": (make_rssm, {"cell": "block", **GAUSSIAN}),
    "categorical_block": (make_rssm, {"cell": "block", **SIZES}),
    "identity": (make_identity, {"units": 8, "members": 2}),
    "autoencoder": (make_autoencoder, {"units": 8, "state_size": 4, "depth": 2}),
}


@pytest.fixture(params=MODELS)
def build(request):
    """Makes the model: ``build(observations, actions, **keys)``."""
    factory, options = MODELS[request.param]

    def make(observations=VECTOR, actions=CONTINUOUS, **keys):
        torch.manual_seed(0)
        if factory is not make_rssm:
            keys.pop("belief_key", None)
        model = factory(observations, actions, **options, **keys)
        for parameter in model.parameters():  # zero biases would hide mistakes
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


def records(model, spec, batch, resets=False):
    """Random step records and noise."""
    out = TensorDict(batch_size=batch)
    for key, leaf in spec.items(True, True):
        value = leaf.rand(batch)
        out.set(
            key, value.sigmoid() if len(leaf.shape) == 3 and value.is_floating_point() else value
        )
    is_init = torch.rand(*batch, 1) < 0.3 if resets else torch.zeros(*batch, 1, dtype=torch.bool)
    out.set(model.is_init_key, is_init)
    out.set(model.previous_action_key, torch.rand(*batch, model.action_encoding.size) * 2 - 1)
    return out, model.noise(batch)


def latents(model, batch):
    return model.initial(batch).apply(torch.randn_like)


def equal(actual, expected, **tolerance):
    assert set(actual.keys(True, True)) == set(expected.keys(True, True))
    for key, value in expected.items(True, True):
        torch.testing.assert_close(actual[key], value, **tolerance)


# -- batch dimensions -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 2)])
def test_any_leading_dimensions(build, shape):
    model, rows = build(), torch.Size(shape).numel()
    td, noise = records(model, VECTOR, (*shape, 5), resets=True)
    carry = latents(model, shape)
    close = {"rtol": 1e-5, "atol": 1e-5}
    with torch.no_grad():
        observed = model.observe(td, carry, noise=noise)
        flat_noise = noise.reshape(rows, 5, -1)
        flat = model.observe(td.reshape(rows, 5), carry.reshape(rows), noise=flat_noise)
        assert observed.shape == (*shape, 5)
        equal(observed.reshape(rows, 5), flat, **close)

        row, draw = td[..., 0].clone().update(carry), noise[..., 0, :]
        row["action"] = torch.rand(*shape, 2)
        flat_row, flat_draw = row.reshape(rows), draw.reshape(rows, -1)
        for method in (model.filter, model.step):
            out = method(row.clone(), noise=draw)
            flat_out = method(flat_row.clone(), noise=flat_draw)
            assert out.shape == shape
            equal(out.reshape(rows), flat_out, **close)
        equal(model.decode(row.clone()).reshape(rows), model.decode(flat_row.clone()), **close)


# -- resets -----------------------------------------------------------------------------------


def test_nothing_passes_a_reset(build):
    model = build()
    td, noise = records(model, VECTOR, (3, 8))
    td["is_init"][:, 4] = True
    other, other_noise = records(model, VECTOR, (3, 8))
    other["is_init"][:, 2] = True
    after = {"observation": td["observation"][:, 4:], "is_init": td["is_init"][:, 4:]}
    for key, value in after.items():
        other[key][:, 4:] = value
    other["previous_action"][:, 5:] = td["previous_action"][:, 5:]  # not 4: a reset has no action
    other_noise[:, 4:] = noise[:, 4:]
    with torch.no_grad():
        first = model.observe(td, latents(model, [3]), noise=noise)
        second = model.observe(other, latents(model, [3]), noise=other_noise)
    assert not torch.equal(first["state"][:, 3], second["state"][:, 3])
    equal(first[:, 4:], second[:, 4:], rtol=0, atol=0)


def test_what_is_not_a_number_does_not_pass_a_reset(build):
    model = build()
    td, noise = records(model, VECTOR, (3, 8))
    td["is_init"][:, 4] = True
    with torch.no_grad():
        clean = model.observe(td, noise=noise)[:, 4:]
        td["observation"][:, 2] = torch.nan
        td["previous_action"][:, 4] = torch.nan
        equal(model.observe(td, noise=noise)[:, 4:], clean, rtol=0, atol=0)
        row = td[:, 4].update(latents(model, [3]) * torch.nan)
        assert all(
            x.isfinite().all() for x in model.filter(row).select(*model.latent_keys).values()
        )


def test_no_gradient_passes_a_reset(build):
    model = build()
    td, noise = records(model, VECTOR, (3, 8))
    td["is_init"][:, 4] = True
    carry = latents(model, [3]).apply(lambda x: x.requires_grad_())
    inputs = [td["observation"].requires_grad_(), td["previous_action"].requires_grad_()]
    observed = model.observe(td, carry, noise=noise)
    late = [value[:, 4:].square().sum() for value in observed.values(True, True)]
    gradients = torch.autograd.grad(
        sum(late), [*inputs, *carry.values(True, True)], allow_unused=True, materialize_grads=True
    )
    assert (gradients[0][:, :4] == 0).all()
    assert (gradients[1][:, :5] == 0).all()
    assert all((gradient == 0).all() for gradient in gradients[2:])


# -- one meaning of time ----------------------------------------------------------------------


def test_observing_a_sequence_is_filtering_it_step_by_step(build):
    model = build()
    td, noise = records(model, VECTOR, (4, 9), resets=True)
    carry = latents(model, [4])
    with torch.no_grad():
        observed = model.observe(td, carry, noise=noise).select(*model.latent_keys)
        steps, row = [], carry
        for t in range(9):
            row = model.filter(td[:, t].clone().update(row), noise=noise[:, t])
            row = row.select(*model.latent_keys)
            steps.append(row)
    equal(torch.stack(steps, 1), observed, rtol=1e-5, atol=1e-5)


def test_compiled_steps_give_the_same_latents_and_gradients():
    model = make_rssm(VECTOR, CONTINUOUS, **SIZES)
    td, noise = records(model, VECTOR, (4, 19), resets=True)  # neither one nor only full pieces

    def observed():
        model.zero_grad()
        out = model.observe(td, latents(model, [4]), noise=noise)
        sum(value.square().sum() for value in out.values(True, True)).backward()
        return out.detach(), [p.grad for p in model.parameters() if p.grad is not None]

    torch.manual_seed(0)
    plain = observed()
    model.compile_steps(backend="eager", fullgraph=True)
    torch.manual_seed(0)
    compiled = observed()
    equal(compiled[0], plain[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled[1], plain[1])
    with torch.no_grad():
        row = td[:, 0].clone().update(latents(model, [4]))
        filtered = model.filter(row.clone(), noise=noise[:, 0]).select(*model.latent_keys)
        equal(
            filtered,
            model.observe(td[:, :1], row, noise=noise[:, :1])[:, 0].select(*filtered.keys()),
            rtol=1e-5,
            atol=1e-5,
        )


def test_a_sequence_goes_on_from_stored_latents(build):
    model = build()
    td, noise = records(model, VECTOR, (4, 9), resets=True)
    with torch.no_grad():
        whole = model.observe(td, latents(model, [4]), noise=noise)
        stored = whole[:, 3].select(*model.latent_keys)
        rest = model.observe(td[:, 4:], stored, noise=noise[:, 4:])
    equal(rest, whole[:, 4:], rtol=1e-5, atol=1e-5)


def test_imagining_is_stepping(build):
    model = build()
    start, noise = latents(model, [3]), model.noise([3, 6])
    weights = torch.randn(model.feature_size, 2)
    policy = lambda features: (features @ weights).tanh()
    with torch.no_grad():
        imagined = model.imagine(start, policy, 6, noise=noise)
        assert imagined.shape == (3, 7)
        row = start
        for t in range(6):
            equal(imagined[:, t].select(*model.latent_keys), row, rtol=1e-5, atol=1e-5)
            action = policy(model.features(row))
            torch.testing.assert_close(imagined["action"][:, t], action)
            after = model.step(row.clone().set("action", action), noise=noise[:, t])["next"]
            row = after.select(*model.latent_keys)
        equal(imagined[:, 6].select(*model.latent_keys), row, rtol=1e-5, atol=1e-5)
        assert (imagined["action"][:, 6] == 0).all()


def test_the_prior_of_a_row_is_the_prediction_from_the_row_before(build):
    model = build()
    td, noise = records(model, VECTOR, (3, 5))
    with torch.no_grad():
        observed = model.observe(td, latents(model, [3]), noise=noise)
        prior = tuple(v[:, 4] for v in model.statistics(observed)[1])
        row = observed[:, 3].select(*model.latent_keys)
        row["action"] = td["previous_action"][:, 4]
        predicted = model.step(row, noise=noise[:, 4])["next"]
    drawn = model.latent.rsample(prior, noise[:, 4, : model.latent.noise_size])
    torch.testing.assert_close(predicted["state"], drawn, rtol=1e-5, atol=1e-5)


def test_the_first_action_is_not_lost(build):
    model = build()
    td, noise = records(model, VECTOR, (3, 6))
    td["is_init"][:, 0] = True
    other = td.clone()
    other["previous_action"][:, 1] = -td["previous_action"][:, 1]
    with torch.no_grad():
        first, second = (model.observe(x, model.initial([3]), noise=noise) for x in (td, other))
    changed = lambda key: (first[key] != second[key]).flatten(2).any(-1).all(0).tolist()
    if isinstance(model, RSSM):
        assert changed("belief") == [False] + [True] * 5
    else:  # what is observed says all; the action tells only what follows
        assert changed(("prior", "mean")) == [False, True] + [False] * 4
        assert not any(changed("state"))


# -- keys -------------------------------------------------------------------------------------


def test_all_keys_are_configurable_and_may_be_nested(build):
    names = {
        "belief_key": ("wm", "deep", "h"),
        "state_key": ("wm", "z"),
        "is_init_key": ("flags", "first"),
        "previous_action_key": ("did", "action"),
    }
    nested_spec = Composite(eyes=Composite(left=Unbounded(4)))
    plain, nested = build(), build(nested_spec, **names)
    nested.load_state_dict(plain.state_dict())
    td, noise = records(plain, VECTOR, (3, 5), resets=True)
    carry = latents(plain, [3])
    pairs = list(zip(plain.latent_keys, nested.latent_keys, strict=True))
    assert {key for _, key in pairs} <= {names["belief_key"], names["state_key"]}
    entries = [
        ("observation", ("eyes", "left")),
        ("is_init", names["is_init_key"]),
        ("previous_action", names["previous_action_key"]),
    ]
    td2, carry2 = rename(td, entries), rename(carry, pairs)
    with torch.no_grad():
        expected = plain.observe(td, carry, noise=noise)
        actual = nested.observe(td2, carry2, noise=noise)
        for old, new in pairs:
            assert torch.equal(actual[new], expected[old])
        row = nested.filter(td2[:, 0].clone().update(carry2), noise=noise[:, 0])
        torch.testing.assert_close(row[pairs[-1][1]], expected["state"][:, 0])
        row = nested.step(row.set("action", torch.zeros(3, 2)))
        for _, new in pairs:
            assert row[("next", *new)].shape == row[new].shape
        decoded = nested.decode(row)["decoded", "eyes", "left"]
        assert decoded.shape == (3, 4)


def rename(source, keys):
    out = TensorDict(batch_size=source.batch_size)
    for old, new in keys:
        out.set(new, source.get(old))
    return out


def test_the_primer_adds_the_latents_to_an_environment(build):
    model = build()
    env = TransformedEnv(GymEnv("Pendulum-v1"), model.make_tensordict_primer())
    td = env.reset()
    for key, size in model.latent_sizes.items():
        assert td[key].shape == (size,)
        assert (td[key] == 0).all()


def test_the_replay_knows_how_to_store_every_latent(build):
    model = build()
    assert list(model.latent_codecs) == model.latent_keys


REMEDIES = {
    "observation": "observation spec",
    "is_init": "InitTracker",
    "previous_action": "PreviousStep",
    "belief": "make_tensordict_primer",
    "state": "make_tensordict_primer",
}


def test_a_missing_entry_raises_with_the_remedy(build):
    model = build()
    td, _ = records(model, VECTOR, (3, 4))
    full = td.clone().update(latents(model, [3, 4]))
    for missing in model.in_keys:
        message = f"(?s){missing}.*{REMEDIES[missing]}"
        with pytest.raises(KeyError, match=message):
            model.filter(full[:, 0].exclude(missing))
        if missing not in model.latent_keys:
            with pytest.raises(KeyError, match=message):
                model.observe(td.exclude(missing))
            continue
        lacking = latents(model, [3]).exclude(missing)
        with pytest.raises(KeyError, match=message):
            model.observe(td, lacking)
        with pytest.raises(KeyError, match=message):
            model.step(lacking.clone().set("action", torch.zeros(3, 2)))
        with pytest.raises(KeyError, match=message):
            model.imagine(lacking, lambda features: features[:, :2], 2)


def test_a_missing_action_raises(build):
    model = build()
    with pytest.raises(KeyError, match="'action' is missing"):
        model.step(latents(model, [3]))


def test_actions_of_another_shape_are_named(build):
    model, row = build(), latents(build(), [2])
    with pytest.raises(ValueError, match=r"'action' has the shape \[2\]; expected \[2\] after"):
        model.step(row.set("action", torch.zeros(2)))


def test_numbers_are_no_flags(build):
    model = build()
    td, noise = records(model, VECTOR, (2, 3))
    td["is_init"] = td["is_init"].float()
    with pytest.raises(TypeError, match="'is_init' holds torch.float32; expected truth values"):
        model.observe(td, noise=noise)


def test_imagined_actions_act_as_they_would_after_clipping(build):
    model = build()
    start, noise = latents(model, [3]), model.noise([3, 2])
    far = model.imagine(start, lambda features: torch.full((3, 2), 2.5), 2, noise=noise)
    near = model.imagine(start, lambda features: torch.ones(3, 2), 2, noise=noise)
    assert (far["action"][:, :2] == 2.5).all()  # the policy's own, for its log-probability
    torch.testing.assert_close(far["features"], near["features"])


# -- specs ------------------------------------------------------------------------------------

ACTIONS = {
    "one_hot": OneHot(3),
    "index": Categorical(3),
    "multi_one_hot": MultiOneHot([2, 3]),
    "multi_index": MultiCategorical([2, 3]),
    "binary": Binary(2),
    "continuous": Bounded(-1, 1, (2,)),
    "matrix": Bounded(-1, 1, (2, 2)),
    "nested": Composite(arm=Composite(turn=Bounded(-1, 1, (2,))), gear=Categorical(3)),
}
IMAGE = (3, 64, 64)
OBSERVATIONS = {
    "number": Composite(observation=Unbounded(1)),
    "bytes": Composite(pixels=Unbounded(IMAGE, dtype=torch.uint8)),
    "float_image": Composite(pixels=Unbounded(IMAGE)),
    "one_hot_rows": Composite(grid=OneHot(3, shape=(2, 3)), seen=Unbounded(4, dtype=torch.bool)),
    "mixed": Composite(
        eye=Composite(pixels=Unbounded(IMAGE, dtype=torch.uint8)),
        joints=Unbounded(3),
        gear=OneHot(3),
    ),
}


def exercise(model, observations, actions):
    """Filters, acts, predicts, decodes and trains; every gradient is finite."""
    td, noise = records(model, observations, (2, 3))
    observed = model.observe(td, model.initial([2]), noise=noise)
    features = model.features(observed)
    loss = model.kl(*model.statistics(observed)).mean() + features.square().mean()
    policy = actor_head(actions, model.feature_size, layers=1, units=8)
    row = observed[:, -1].select(*model.latent_keys)
    model.action_encoding.decode(policy(features[:, -1]).sample(), row)
    for key, spec in actions.items(True, True):
        assert spec.expand(2, *spec.shape).is_in(row[key])
    after = model.step(row)["next"]
    decoded = model.decode(after)["decoded"]
    for key, spec in observations.items(True, True):
        assert decoded[key].shape == (2, *spec.shape)
    if model.decoder is not None:
        predicted = model.decoder(model.features(observed))
        loss = loss - sum(p.log_prob(td[key]).sum() for key, p in predicted.items())
    (loss + after["reward"].sum() + after["continuation"].sum()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ACTIONS)
def test_action_specs(build, name):
    actions = ACTIONS[name] if name == "nested" else Composite(action=ACTIONS[name])
    exercise(build(actions=actions), VECTOR, actions)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observation_specs(build, name):
    exercise(build(OBSERVATIONS[name]), OBSERVATIONS[name], CONTINUOUS)
