"""Encoders and decoders together: the golden files hold both."""

from __future__ import annotations

import golden_weights
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    NonTensor,
    OneHot,
    Unbounded,
)

from torchrl_wm.modules.decoders import make_decoder
from torchrl_wm.modules.encoders import make_encoder


def image_spec(*shape):
    return Unbounded(shape, dtype=torch.uint8)


def v3_observations(golden):
    """Observations in the package's layout with their spec; pictures are [C, H, W]."""
    observations, spec = golden.group("in/obs"), {}
    lead = golden["in/feat/deter"].ndim - 1
    for key, value in observations.items():
        if value.dtype == torch.uint8:
            observations[key] = value = value.movedim(-1, -3)
        spec[key] = Unbounded(value.shape[lead:], dtype=value.dtype)
    return observations, Composite(spec)


@pytest.mark.golden("v3_encdec")
def test_encoder_equals_the_v3_reference(golden):
    cfg = golden.cfg
    observations, spec = v3_observations(golden)
    sizes = {"depth": cfg["enc_depth"], "mults": cfg["enc_mults"], "kernel": cfg["enc_kernel"]}
    dense = {"layers": cfg["enc_layers"], "units": cfg["enc_units"]}
    encoder = make_encoder(spec, "v3", use_symlog=bool(cfg["enc_symlog"]), **sizes, **dense)
    weights = golden_weights.v3_encoder(golden, encoder)
    golden.load(weights, below="enc/")
    tokens = encoder(observations)
    assert tokens.shape[-1] == encoder.out_features
    golden.close(tokens, "out/tokens")
    (tokens * golden["in/probe_tokens"]).mean().backward()
    golden.gradients(weights)


@pytest.mark.golden("v3_encdec")
def test_decoder_equals_the_v3_reference(golden):
    cfg = golden.cfg
    observations, spec = v3_observations(golden)
    belief, state = golden["in/feat/deter"], golden["in/feat/stoch"]
    features = torch.cat([belief, state.flatten(-2)], -1).requires_grad_()
    sizes = {"depth": cfg["dec_depth"], "mults": cfg["dec_mults"], "kernel": cfg["dec_kernel"]}
    dense = {"layers": cfg["dec_layers"], "units": cfg["dec_units"], "blocks": cfg["dec_bspace"]}
    latent = belief.shape[-1], state.shape[-2:].numel()
    squash = bool(cfg["dec_symlog"])
    decoder = make_decoder(spec, *latent, "v3", use_symlog=squash, **sizes, **dense)
    weights = golden_weights.v3_decoder(golden, decoder)
    golden.load(weights, below="dec/")
    total = 0
    for key, prediction in decoder(features).items():
        if observations[key].dtype == torch.uint8:
            shown = prediction.mean.movedim(-3, -1)
        else:
            shown = prediction.squashed if squash else prediction.mean
        golden.close(shown, f"out/recon/{key}")
        loss = -prediction.log_prob(observations[key])
        golden.close(loss, f"out/loss/{key}")
        total = total + loss.mean()
    total.backward()
    golden.gradients(weights)
    belief, state = features.grad.split(latent, -1)
    golden.close(belief, "grad/feat/deter")
    golden.close(state.unflatten(-1, golden["in/feat/stoch"].shape[-2:]), "grad/feat/stoch")


@pytest.mark.golden("v1_encdec", "v2_encdec")
def test_encoder_and_decoder_equal_the_first_references(golden):
    style = golden.family[:2]
    image, features = golden["in/image"].movedim(-1, -3), golden["in/feat"]
    spec = Composite(pixels=image_spec(*image.shape[-3:]))
    encoder = make_encoder(spec, style, depth=golden.cfg["depth"])
    # The reference's features are state, then belief, so the belief may be the empty rest.
    decoder = make_decoder(spec, 0, features.shape[-1], style, depth=golden.cfg["depth"])
    weights = golden_weights.first_encoder(encoder.image, style=style)
    weights |= golden_weights.first_decoder(decoder.image, style=style)
    golden.load(weights)
    embed = encoder({"pixels": image})
    golden.close(embed, "out/embed")
    prediction = decoder(features)["pixels"]
    golden.close(prediction.loc.movedim(-3, -1), "out/recon")
    golden.close(prediction.log_prob(image), "out/logp")
    torch.testing.assert_close(prediction.mean, prediction.loc + 0.5)
    (embed.square().mean() - prediction.log_prob(image).mean()).backward()
    golden.gradients(weights)


MIXED = Composite(
    {
        "image": image_spec(3, 64, 64),
        "camera": Composite(depth=Bounded(0.0, 1.0, (1, 64, 64))),
        "vector": Unbounded((3,)),
        "scalar": Unbounded(()),
        "matrix": Unbounded((2, 2)),
        "gear": Categorical(3),
        "gears": MultiCategorical([2, 3]),
        "switch": OneHot(2),
        "lights": Binary(4),
    }
)


@pytest.mark.parametrize("style", ["v1", "v2", "v3"])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_any_observation_goes_through_and_back(style, lead):
    sizes = {"depth": 8, "units": 8, "layers": 1}
    encoder = make_encoder(MIXED, style, **sizes)
    decoder = make_decoder(MIXED, 16, 4, style, **sizes)
    assert set(encoder.in_keys) == set(decoder.out_keys) == set(MIXED.keys(True, True))
    observations = MIXED.expand(lead).rand()
    tokens = encoder(observations)
    assert tokens.shape == (*lead, encoder.out_features)
    loss = tokens.sum()
    for key, prediction in decoder(torch.randn(*lead, 20)).items():
        log_prob = prediction.log_prob(observations[key])
        assert log_prob.shape == lead
        assert prediction.mean.shape == observations[key].shape
        loss = loss + log_prob.sum()
    loss.backward()
    for module in (encoder, decoder):
        assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("style", ["v1", "v2", "v3"])
def test_features_do_not_depend_on_the_other_rows(style):
    encoder = make_encoder(MIXED, style, depth=2, units=8, layers=1)
    observations = MIXED.expand(4).rand()
    torch.testing.assert_close(encoder(observations)[1:2], encoder(observations[1:2]))


def test_float_pictures_read_as_bytes_do():
    floats = Composite(image=Bounded(0.0, 1.0, (3, 64, 64)))
    encoder = make_encoder(floats, "v1", depth=2)
    image = image_spec(3, 64, 64).rand((2,))
    close = torch.testing.assert_close
    close(encoder({"image": image}), encoder({"image": image.float() / 255}))


def test_layer_norm_of_dreamer_v2_is_an_option():
    sizes = {"depth": 2, "units": 8, "layers": 1, "norm": "layer"}
    encoder = make_encoder(MIXED, "v2", **sizes)
    decoder = make_decoder(MIXED, 8, 4, "v2", **sizes)
    assert len([m for m in encoder.modules() if isinstance(m, torch.nn.LayerNorm)]) == 5
    assert len([m for m in decoder.modules() if isinstance(m, torch.nn.LayerNorm)]) == 4


@pytest.mark.parametrize("size", [(96, 96), (48, 64), (256, 256)])
def test_v3_takes_every_size_that_ends_within_3_and_16(size):
    spec = Composite(image=image_spec(1, *size))
    encoder = make_encoder(spec, "v3", depth=2)
    decoder = make_decoder(spec, 16, 4, "v3", depth=2, units=8)
    assert encoder(spec.rand()).shape == (encoder.out_features,)
    assert decoder(torch.randn(20))["image"].mean.shape == (1, *size)


@pytest.mark.parametrize(
    "make", [make_encoder, lambda spec, style: make_decoder(spec, 8, 8, style)]
)
@pytest.mark.parametrize(
    ("spec", "style", "error", "message"),
    [
        (image_spec(3, 84, 84), "v2", ValueError, r"'x' .* \(84, 84\).*64x64.*=64\).*Resize"),
        (image_spec(3, 84, 84), "v3", ValueError, r"'x' .* \(84, 84\).* of 16.*=64\).*Resize"),
        (image_spec(3, 32, 32), "v3", ValueError, "from 48 to 256"),
        (image_spec(64, 64, 3), "v3", ValueError, "'x' has the shape.*channels last"),
        (NonTensor(shape=()), "v3", TypeError, "'x' has the unsupported spec NonTensor"),
        (Unbounded((2,)), "v4", ValueError, "Unknown style 'v4'"),
    ],
)
def test_what_a_style_cannot_read_is_named(make, spec, style, error, message):
    with pytest.raises(error, match=message):
        make(Composite(x=spec), style)


def test_pictures_of_different_sizes_are_refused():
    spec = Composite(a=image_spec(3, 64, 64), b=image_spec(3, 96, 96))
    with pytest.raises(ValueError, match="must agree in height and width.*96"):
        make_encoder(spec)


def test_an_empty_spec_is_refused():
    with pytest.raises(ValueError, match="no entry"):
        make_encoder(Composite())


def test_a_missing_entry_is_named():
    encoder = make_encoder(Composite(a=Unbounded((2,))), units=8)
    with pytest.raises(KeyError, match="'a' is missing; found .'b'"):
        encoder(TensorDict(b=torch.zeros(2)))


def test_blocks_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="blocks=8 must divide.* = 12 channels"):
        make_decoder(Composite(image=image_spec(3, 64, 64)), 16, 4, "v3", depth=3)


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel=4 must be odd"):
        make_encoder(Composite(image=image_spec(3, 64, 64)), "v3", depth=2, kernel=4)
