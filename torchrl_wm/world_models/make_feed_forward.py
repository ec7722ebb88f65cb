"""Building feed-forward world models from specs and sizes."""

from __future__ import annotations

from torch import nn
from torchrl.data import Composite

from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.modules.decoders import make_decoder
from torchrl_wm.modules.dynamics import EnsembleDynamics
from torchrl_wm.modules.encoders import Encoder, make_encoder
from torchrl_wm.modules.flat_encoder import FlatEncoder
from torchrl_wm.modules.networks import dense
from torchrl_wm.modules.styles import NETWORKS, Style, check_style
from torchrl_wm.world_models.feed_forward import FeedForward, Identity
from torchrl_wm.world_models.prediction_heads import prediction_heads


def make_identity(
    observation_spec: Composite,
    action_spec: Composite,
    *,
    style: Style = "v3",
    members: int = 1,
    posterior_std: float = 0.01,
    units: int = 64,
    dynamics_layers: int = 2,
    reward_layers: int = 1,
    continuation_layers: int = 1,
    bins: int = 255,
    use_continuation: bool = True,
    **keys,
) -> Identity:
    """A world model whose latent is the observation, for any spec.

    Numbers are always in symlog, in which ``posterior_std`` and the bounds of the predicted widths are
    meant: the ``use_symlog`` of an algorithm is one of models with encoders and does not reach it.

    Args:
        observation_spec (Composite): unbatched specs of the observations. Every pixel of an image becomes
            a number of the latent; for all but tiny images use :func:`make_autoencoder`.
        action_spec (Composite): unbatched specs of the actions.

    Keyword Args:
        style (str, optional): networks and likelihoods of ``"planet"``, ``"v1"``, ``"v2"`` or ``"v3"``.
            Defaults to ``"v3"``.
        members (int, optional): dynamics networks; each prediction is made by one of them. Defaults
            to ``1``.
        posterior_std (float, optional): prediction errors below it, in symlog units, do not matter.
            Defaults to ``0.01``.
        units (int, optional): size of all hidden layers. Defaults to ``64``.
        dynamics_layers (int, optional): hidden layers of the dynamics. Defaults to ``2``.
        reward_layers (int, optional): hidden layers of the reward head. Defaults to ``1``.
        continuation_layers (int, optional): hidden layers of that head. Defaults to ``1``.
        bins (int, optional): bins of the two-hot reward in style v3. Defaults to ``255``.
        use_continuation (bool, optional): predict whether the episode goes on. Defaults to
            ``True``.
        **keys: ``state_key``, ``is_init_key``, ``previous_action_key``.

    Raises:
        ValueError: for an unknown style or sizes out of range.
        TypeError: for ``use_symlog``, which is no choice here, and for a spec that is not supported; the
            message names the entry.

    Examples:
        >>> import torch
        >>> from torchrl.data import Bounded, Unbounded
        >>> specs = Composite(joints=Unbounded(6)), Composite(action=Bounded(-1, 1, (2,)))
        >>> model = make_identity(*specs, members=5)
        >>> td = model.initial([3]).update({"action": torch.zeros(3, 2)})
        >>> model.step(td)["next", "state"].shape
        torch.Size([3, 6])
    """
    check_style(style)
    if "use_symlog" in keys:
        raise TypeError(
            f"use_symlog={keys['use_symlog']} is no choice of an identity model, whose numbers are always in "
            "symlog: leave it out, or take make_autoencoder (world_model=autoencoder)."
        )
    encoder, encoding = FlatEncoder(observation_spec), ActionEncoding(action_spec)
    network = {**NETWORKS[style], "units": units}
    dynamics = _dynamics(encoder, encoding, members, dynamics_layers, posterior_std, network)
    heads = prediction_heads(
        style,
        encoder.out_features,
        reward_layers=reward_layers,
        continuation_layers=continuation_layers,
        use_continuation=use_continuation,
        bins=bins,
        **network,
    )
    return Identity(encoder, encoding, dynamics, posterior_std=posterior_std, **heads, **keys)


def make_autoencoder(
    observation_spec: Composite,
    action_spec: Composite,
    *,
    style: Style = "v3",
    state_size: int = 32,
    members: int = 1,
    posterior_std: float = 0.03,
    units: int = 64,
    depth: int = 4,
    vector_layers: int = 3,
    dynamics_layers: int = 2,
    reward_layers: int = 1,
    continuation_layers: int = 1,
    bins: int = 255,
    use_continuation: bool = True,
    use_reconstruction: bool = True,
    use_symlog: bool | None = None,
    **keys,
) -> FeedForward:
    """A world model whose latent is a learned code of the observation, for any spec.

    Args:
        observation_spec (Composite): unbatched specs of the observations.
        action_spec (Composite): unbatched specs of the actions.

    Keyword Args:
        style (str, optional): networks, normalisations, initialisers and likelihoods of
            ``"planet"`` or Dreamer ``"v1"``, ``"v2"`` or ``"v3"``. Defaults to ``"v3"``.
        state_size (int, optional): size of the code. Defaults to ``32``.
        members (int, optional): dynamics networks; each prediction is made by one of them. Defaults
            to ``1``.
        posterior_std (float, optional): errors of the predicted code below it do not matter.
            Defaults to ``0.03``.
        units (int, optional): size of all hidden layers. Defaults to ``64``.
        vector_layers (int, optional): layers for vectors. Defaults to ``3``.
        depth (int, optional): channels of the image networks. Defaults to ``4``.
        dynamics_layers (int, optional): hidden layers of the dynamics. Defaults to ``2``.
        reward_layers (int, optional): hidden layers of the reward head. Defaults to ``1``.
        continuation_layers (int, optional): hidden layers of that head. Defaults to ``1``.
        bins (int, optional): bins of the two-hot reward in style v3. Defaults to ``255``.
        use_continuation (bool, optional): predict whether the episode goes on. Defaults to
            ``True``.
        use_reconstruction (bool, optional): decode observations. Defaults to ``True``.
        use_symlog (bool, optional): squash vector observations. Defaults to that of the style.
        **keys: ``state_key``, ``is_init_key``, ``previous_action_key``.

    Raises:
        ValueError: for an unknown style or sizes out of range.
        TypeError: for a spec that is not supported; the message names the entry.

    Examples:
        >>> import torch
        >>> from torchrl.data import Bounded, Unbounded
        >>> specs = Composite(pixels=Unbounded((3, 64, 64))), Composite(action=Bounded(-1, 1, (2,)))
        >>> model = make_autoencoder(*specs)
        >>> model.decode(model.initial([3]))["decoded", "pixels"].shape
        torch.Size([3, 3, 64, 64])
    """
    check_style(style)
    encoding, network = ActionEncoding(action_spec), {**NETWORKS[style], "units": units}
    options = {"depth": depth, "layers": vector_layers, "units": units, "use_symlog": use_symlog}
    code = Code(make_encoder(observation_spec, style, **options), state_size)
    decoder = None
    if use_reconstruction:
        decoder = make_decoder(observation_spec, 0, state_size, style, blocks=1, **options)
    dynamics = _dynamics(code, encoding, members, dynamics_layers, posterior_std, network)
    heads = prediction_heads(
        style,
        state_size,
        reward_layers=reward_layers,
        continuation_layers=continuation_layers,
        use_continuation=use_continuation,
        bins=bins,
        **network,
    )
    parts = {"decoder": decoder, **heads}
    return FeedForward(code, encoding, dynamics, posterior_std=posterior_std, **parts, **keys)


class Code(nn.Module):
    """An encoder and a linear layer to a code of the given size.

    Args:
        encoder (Encoder): observations to tokens.
        size (int): size of the code.
    """

    def __init__(self, encoder: Encoder, size: int):
        super().__init__()
        self.encoder, self.out_features = encoder, size
        self.in_keys, self.shapes = encoder.in_keys, encoder.shapes
        self.out = dense(encoder.out_features, size)

    def forward(self, observations):
        """Observations with any leading dimensions to the code ``[..., size]``."""
        return self.out(self.encoder(observations))


def _dynamics(encoder, encoding, members, layers, posterior_std, network) -> EnsembleDynamics:
    sizes = encoder.out_features, encoding.size
    return EnsembleDynamics(
        *sizes, members=members, layers=layers, min_std=posterior_std, **network
    )
