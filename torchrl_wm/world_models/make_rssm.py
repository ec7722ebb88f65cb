"""Building an RSSM from specs and sizes."""

from __future__ import annotations

from typing import Literal, get_args

from torchrl.data import Composite

from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.modules.cells import GRUS, BlockCell, Cell, DenseCell
from torchrl_wm.modules.decoders import make_decoder
from torchrl_wm.modules.encoders import make_encoder
from torchrl_wm.modules.latent_heads import PosteriorHead, PriorHead
from torchrl_wm.modules.latents import (
    CategoricalLatent,
    GaussianLatent,
    Latent,
    StandardDeviation,
)
from torchrl_wm.modules.styles import NETWORKS, Style, check_style
from torchrl_wm.world_models.prediction_heads import prediction_heads
from torchrl_wm.world_models.rssm import RSSM

CELLS = (*GRUS, "block")


def make_rssm(
    observation_spec: Composite,
    action_spec: Composite,
    *,
    style: Style = "v3",
    latent: Literal["gaussian", "categorical"] = "categorical",
    cell: Literal["gru", "reset_before", "layer_norm", "block"] = "block",
    belief_size: int = 512,
    hidden_size: int = 64,
    state_size: int = 32,
    classes: int = 4,
    blocks: int = 8,
    unimix: float = 0.01,
    min_std: float = 0.1,
    std: StandardDeviation = "softplus",
    prior_layers: int = 2,
    posterior_layers: int = 1,
    absolute: bool = False,
    activation: str | None = None,
    units: int = 64,
    depth: int = 4,
    vector_layers: int = 3,
    reward_layers: int = 1,
    continuation_layers: int = 1,
    bins: int = 255,
    use_continuation: bool = True,
    use_reconstruction: bool = True,
    use_symlog: bool | None = None,
    **keys,
) -> RSSM:
    """An RSSM with encoder, decoder and heads for the given specs.

    Args:
        observation_spec (Composite): unbatched specs of the observations.
        action_spec (Composite): unbatched specs of the actions.

    Keyword Args:
        style (str, optional): networks, normalisations, initialisers and likelihoods of
            ``"planet"`` or Dreamer ``"v1"``, ``"v2"`` or ``"v3"``. Defaults to ``"v3"``.
        latent (str, optional): ``"gaussian"`` or ``"categorical"``. Defaults to ``"categorical"``.
        cell (str, optional): ``"gru"``, ``"reset_before"``, ``"layer_norm"`` or ``"block"``.
            Defaults to ``"block"``, which divides an action above 1 by its magnitude, as DreamerV3 does:
            have the environment scale its actions to -1 and 1, as :mod:`torchrl_wm.envs` does.
        belief_size, hidden_size (int, optional): size of the belief and of the layers around it.
        state_size (int, optional): number of Gaussian or categorical variables. Defaults to ``32``.
        classes (int, optional): classes of a categorical variable. Defaults to ``4``.
        blocks (int, optional): blocks of the block cell. Defaults to ``8``.
        unimix (float, optional): uniform share of categorical latents. Defaults to ``0.01``.
        min_std, std (optional): see :class:`~torchrl_wm.modules.latents.GaussianLatent`.
        prior_layers, posterior_layers (int, optional): hidden layers. Default to ``2`` and ``1``.
        absolute (bool, optional): the posterior reads the observation alone, not the belief, an option of
            DreamerV3's reference code. Defaults to ``False``.
        activation (str, optional): of the layers around the cell. Defaults to that of the style.
        units, vector_layers (int, optional): networks of vectors and heads. Default to ``64``, ``3``.
        depth (int, optional): channels of the image networks. Defaults to ``4``.
        reward_layers, continuation_layers (int, optional): hidden layers of the heads.
        bins (int, optional): bins of the two-hot reward in style v3. Defaults to ``255``.
        use_continuation (bool, optional): predict whether the episode goes on. Defaults to ``True``.
        use_reconstruction (bool, optional): decode observations. Defaults to ``True``.
        use_symlog (bool, optional): squash vector observations; the default of the style if ``None``.
        **keys: ``belief_key``, ``state_key``, ``is_init_key``, ``previous_action_key``.

    Raises:
        ValueError: for an unknown style, latent, cell, std or activation; the message lists the valid
            ones.
        TypeError: for a spec that is not supported; the message names the entry.

    Examples:
        >>> import torch
        >>> from torchrl.data import Bounded, Composite, Unbounded
        >>> observations = Composite(joints=Unbounded(6), pixels=Unbounded((3, 64, 64)))
        >>> model = make_rssm(observations, Composite(action=Bounded(-1, 1, (2,))))
        >>> td = model.initial([5]).update(observations.rand([5]))
        >>> td = td.update({"is_init": torch.ones(5, 1, dtype=torch.bool)})
        >>> model(td.set("previous_action", torch.zeros(5, 2)))["belief"].shape
        torch.Size([5, 512])
    """
    check_style(style)
    encoding = ActionEncoding(action_spec)
    variables = _latent(latent, state_size, classes, unimix, min_std, std)
    network = NETWORKS[style]
    around = network if activation is None else {**network, "activation": activation}
    sizes = (variables.flat_size, encoding.size, belief_size, hidden_size)
    encoder = make_encoder(
        observation_spec,
        style,
        depth=depth,
        layers=vector_layers,
        units=units,
        use_symlog=use_symlog,
    )
    features = belief_size + variables.flat_size
    decoder = None
    if use_reconstruction:
        decoder = make_decoder(
            observation_spec,
            belief_size,
            variables.flat_size,
            style,
            depth=depth,
            layers=vector_layers,
            units=units,
            use_symlog=use_symlog,
            blocks=blocks,
        )
    heads = prediction_heads(
        style,
        features,
        reward_layers=reward_layers,
        continuation_layers=continuation_layers,
        use_continuation=use_continuation,
        bins=bins,
        **{**network, "units": units},
    )
    raw, hidden = variables.raw_size, hidden_size
    return RSSM(
        encoder,
        encoding,
        _cell(cell, sizes, blocks, around),
        variables,
        PriorHead(belief_size, raw, hidden, prior_layers, **around),
        PosteriorHead(
            0 if absolute else belief_size,
            encoder.out_features,
            raw,
            hidden,
            posterior_layers,
            **around,
        ),
        decoder=decoder,
        **heads,
        **keys,
    )


def _check(option: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"Unknown {option} {value!r}; expected one of {sorted(valid)}.")


def _latent(kind, size, classes, unimix, min_std, std) -> Latent:
    _check("latent", kind, ("gaussian", "categorical"))
    _check("std", std, get_args(StandardDeviation))  # by categorical latents too, which have none
    if kind == "gaussian":
        return GaussianLatent(size, min_std=min_std, std=std)
    return CategoricalLatent(size, classes, unimix=unimix)


def _cell(kind: str, sizes: tuple[int, ...], blocks: int, network: dict) -> Cell:
    _check("cell", kind, CELLS)
    if kind == "block":
        return BlockCell(
            *sizes, blocks=blocks, activation=network["activation"], norm=network["norm"]
        )
    return DenseCell(*sizes, gru=kind, **network)
