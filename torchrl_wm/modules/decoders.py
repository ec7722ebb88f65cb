"""Decoders: from the features of an RSSM to its observations, one distribution per entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.distributions import Distribution
from torchrl.data import (
    Binary,
    Composite,
    MultiOneHot,
    OneHot,
    TensorSpec,
)

from torchrl_wm.modules.convolutions import over_channels, upsampling_conv
from torchrl_wm.modules.distributions import ImageNormal, ImageSquaredError
from torchrl_wm.modules.encoding import groups
from torchrl_wm.modules.networks import (
    MLP,
    Activation,
    BlockLinear,
    Init,
    Norm,
    dense,
    get_activation,
    make_norm,
)
from torchrl_wm.modules.observations import (
    check_size_64,
    final_size,
    image_shape,
    split_observations,
)
from torchrl_wm.modules.outputs import (
    BernoulliOutput,
    IndexOutput,
    NormalOutput,
    Output,
    SymlogOutput,
    one_hot_groups,
    output_layer,
)
from torchrl_wm.modules.styles import NETWORKS, SIZES, Style, check_style

Predictions = dict[NestedKey, Distribution]


class VectorDecoder(nn.Module):
    """An MLP with one linear layer per vector, number or class of the observation.

    Args:
        specs (dict): leaf specs by key.
        in_features (int): size of belief and state together.
        layers (int): number of hidden layers.
        units (int): their size.
        use_symlog (bool, optional): squared errors in symlog space (DreamerV3) instead of unit normals
            for plain numbers. Defaults to ``True``.
        activation (str, optional): Defaults to ``"silu"``.
        norm (str, optional): Defaults to ``"rms"``.
        init (str, optional): Defaults to ``"trunc_normal"``.
    """

    def __init__(
        self,
        specs: Mapping[NestedKey, TensorSpec],
        in_features: int,
        *,
        layers: int,
        units: int,
        use_symlog: bool = True,
        activation: Activation = "silu",
        norm: Norm | None = "rms",
        init: Init = "trunc_normal",
    ):
        super().__init__()
        self.keys = list(specs)
        self.mlp = MLP(in_features, units, layers, activation=activation, norm=norm, init=init)
        self.outputs = nn.ModuleList(_vector_output(spec, use_symlog) for spec in specs.values())
        size = self.mlp.out_features
        self.outs = nn.ModuleList(
            output_layer(size, output, init=init, scale=1.0) for output in self.outputs
        )

    def forward(self, belief: Tensor, state: Tensor) -> Predictions:
        """Belief ``[..., D]`` and state ``[..., S]`` to a distribution per key."""
        x = self.mlp(torch.cat([state, belief], -1))
        parts = zip(self.keys, self.outs, self.outputs, strict=True)
        return {key: output(out(x)) for key, out, output in parts}


def _vector_output(spec: TensorSpec, use_symlog: bool) -> Output:
    counts = groups(spec)
    if counts is not None:
        output = one_hot_groups(counts)
        flat = isinstance(spec, OneHot | MultiOneHot) and len(spec.shape) == 1
        return output if flat else IndexOutput(output, spec)
    if isinstance(spec, Binary):
        return BernoulliOutput(spec.shape)
    return SymlogOutput(spec.shape) if use_symlog else NormalOutput(spec.shape)


class ImageDecoder(nn.Module):
    """Base of the convolutional decoders, whose output channels are split among the entries in order.

    Args:
        specs (dict): image specs ``[C, H, W]`` of equal height and width, by key.
    """

    distribution: type[Distribution]

    def __init__(self, specs: Mapping[NestedKey, TensorSpec]):
        super().__init__()
        self.keys = list(specs)
        self.channels = [spec.shape[0] for spec in specs.values()]
        self.image_shape = image_shape(specs)

    def forward(self, belief: Tensor, state: Tensor) -> Predictions:
        """Belief ``[..., D]`` and state ``[..., S]`` to a distribution over images per key."""
        lead = belief.shape[:-1]
        belief, state = (x.reshape(lead.numel(), x.shape[-1]) for x in (belief, state))
        x = self.convolve(belief, state).float().reshape(*lead, *self.image_shape)
        parts = zip(self.keys, x.split(self.channels, -3), strict=True)
        return {key: self.distribution(part) for key, part in parts}

    def convolve(self, belief: Tensor, state: Tensor) -> Tensor:
        """Belief ``[N, D]`` and state ``[N, S]`` to ``[N, C, H, W]``."""
        raise NotImplementedError


class StridedImageDecoder(ImageDecoder):
    """Transposed convolutions to 64x64: PlaNet, Dreamer v1 (ReLU) and v2 (ELU).

    Args:
        specs (dict): image specs ``[C, 64, 64]`` by key.
        in_features (int): size of belief and state together.
        depth (int, optional): unit of channels. Defaults to ``32``.
        activation (str, optional): Defaults to ``"relu"``.
        norm (str, optional): over the channels. Defaults to ``None``.

    Raises:
        ValueError: for images of another size.
    """

    distribution = ImageNormal

    def __init__(
        self,
        specs: Mapping[NestedKey, TensorSpec],
        in_features: int,
        *,
        depth: int = 32,
        activation: Activation = "relu",
        norm: Norm | None = None,
    ):
        super().__init__(specs)
        check_size_64(specs)
        sizes = [32 * depth, 4 * depth, 2 * depth, depth, self.image_shape[0]]
        self.inputs = dense(in_features, sizes[0], init="glorot")
        layers = zip(sizes[:-1], sizes[1:], (5, 5, 6, 6), strict=True)
        self.convs = nn.ModuleList(nn.ConvTranspose2d(i, o, k, stride=2) for i, o, k in layers)
        self.norms = nn.ModuleList(make_norm(norm, size) for size in sizes[1:-1])
        self.activation = get_activation(activation)
        for conv in self.convs:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def convolve(self, belief: Tensor, state: Tensor) -> Tensor:
        """Belief ``[N, D]`` and state ``[N, S]`` to centred images ``[N, C, 64, 64]``."""
        x = _from_one_pixel(self.convs[0], self.inputs(torch.cat([state, belief], -1)))
        for conv, norm in zip(self.convs[1:], self.norms, strict=True):
            x = conv(self.activation(over_channels(norm, x)))
        return x


def _from_one_pixel(conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """``conv(x[:, :, None, None])`` as one matrix product: ten times faster on a CPU."""
    inputs, outputs, height, width = conv.weight.shape
    weight = conv.weight.permute(0, 2, 3, 1).reshape(inputs, -1)
    x = (x @ weight).view(-1, height, width, outputs) + conv.bias
    return x.permute(0, 3, 1, 2)


class UpsamplingImageDecoder(ImageDecoder):
    """DreamerV3's decoder: a small image of blocks, then nearest upsampling and convolutions.

    Args:
        specs (dict): image specs ``[C, H, W]`` by key.
        belief_size (int): size of the belief, a multiple of ``blocks``; 0 where there is none.
        state_size (int): size of the state.
        depth (int, optional): unit of channels. Defaults to ``64``.
        mults (sequence of int, optional): channels of the layers in units of ``depth``, as in the
            encoder. Defaults to ``(2, 3, 4, 4)``.
        kernel (int, optional): odd size of the filters. Defaults to ``5``.
        units (int, optional): half the size of the state's hidden layer. Defaults to ``1024``.
        blocks (int, optional): groups of the belief, each of which owns a group of channels.
            Defaults to ``8``.
        activation (str, optional): Defaults to ``"silu"``.
        norm (str, optional): Defaults to ``"rms"``.

    Raises:
        ValueError: where the image's size does not fit, or ``blocks`` does not divide the belief
            and the ``depth * mults[-1]`` channels.
    """

    distribution = ImageSquaredError

    def __init__(
        self,
        specs: Mapping[NestedKey, TensorSpec],
        belief_size: int,
        state_size: int,
        *,
        depth: int = 64,
        mults: Sequence[int] = (2, 3, 4, 4),
        kernel: int = 5,
        units: int = 1024,
        blocks: int = 8,
        activation: Activation = "silu",
        norm: Norm | None = "rms",
    ):
        super().__init__(specs)
        self.size = final_size(specs, len(mults))
        sizes = [depth * mult for mult in mults][::-1]
        if sizes[0] % blocks:
            raise ValueError(
                f"blocks={blocks} must divide the depth * mults[-1] = {sizes[0]} channels."
            )
        self.blocks, self.activation = blocks, get_activation(activation)
        start = self.size[0] * self.size[1] * sizes[0]
        self.from_belief = BlockLinear(belief_size, start, blocks) if belief_size else None
        self.from_state = MLP(state_size, 2 * units, 1, activation=activation, norm=norm)
        self.from_hidden = dense(2 * units, start)
        self.norm = make_norm(norm, sizes[0])
        pairs = zip(sizes, [*sizes[1:], self.image_shape[0]], strict=True)
        self.convs = nn.ModuleList(upsampling_conv(i, o, kernel) for i, o in pairs)
        self.norms = nn.ModuleList(make_norm(norm, size) for size in sizes[1:])

    def convolve(self, belief: Tensor, state: Tensor) -> Tensor:
        """Belief ``[N, D]`` and state ``[N, S]`` to images ``[N, C, H, W]`` in [0, 1]."""
        x = self.from_hidden(self.from_state(state)).unflatten(-1, (*self.size, -1))
        if self.from_belief is not None:
            blocks = self.from_belief(belief).unflatten(-1, (self.blocks, *self.size, -1))
            x = x + blocks.permute(0, 2, 3, 1, 4).flatten(-2)
        x = self.activation(self.norm(x)).permute(0, 3, 1, 2)
        for conv, norm in zip(self.convs[:-1], self.norms, strict=True):
            x = self.activation(over_channels(norm, conv(x)))
        return torch.sigmoid(self.convs[-1](x).float())


class Decoder(nn.Module):
    """All entries of an observation from the features of an RSSM.

    Args:
        belief_size (int): size of the belief, which comes first in the features.
        state_size (int): size of the state.
        vector (VectorDecoder, optional): for everything that is not an image.
        image (ImageDecoder, optional): for the images.
    """

    def __init__(
        self,
        belief_size: int,
        state_size: int,
        vector: VectorDecoder | None,
        image: ImageDecoder | None,
    ):
        super().__init__()
        self.sizes = [belief_size, state_size]
        self.vector, self.image = vector, image

    @property
    def out_keys(self) -> list[NestedKey]:
        """The entries that are predicted."""
        return [k for part in (self.vector, self.image) if part is not None for k in part.keys]

    def forward(self, features: Tensor) -> Predictions:
        """Features ``[..., D + S]`` (belief, state) to a distribution per entry."""
        belief, state = features.split(self.sizes, -1)
        parts = [part for part in (self.vector, self.image) if part is not None]
        return {key: value for part in parts for key, value in part(belief, state).items()}


def make_decoder(
    observation_spec: Composite,
    belief_size: int,
    state_size: int,
    style: Style = "v3",
    *,
    depth: int | None = None,
    layers: int | None = None,
    units: int | None = None,
    use_symlog: bool | None = None,
    norm: Norm | None = None,
    mults: Sequence[int] = (2, 3, 4, 4),
    kernel: int = 5,
    blocks: int = 8,
) -> Decoder:
    """The decoder of one of the Dreamers for any observation spec.

    The features are belief, then state. Arguments are those of :func:`make_encoder`; ``blocks`` is
    that of :class:`UpsamplingImageDecoder`.

    Args:
        observation_spec (Composite): unbatched, nested or not.
        belief_size (int): size of the belief.
        state_size (int): size of the state.
        style (str, optional): ``"planet"``, ``"v1"``, ``"v2"`` or ``"v3"``. Defaults to ``"v3"``.
        depth (int, optional): unit of channels. Defaults to that of the style: 32, 32, 48 or 64.
        layers (int, optional): layers for vectors. Defaults to that of the style: 3, 4, 4 or 3.
        units (int, optional): their size. Defaults to that of the style: 300, 400, 400 or 1024.
        use_symlog (bool, optional): squared errors in symlog space. Defaults to whether the style
            is ``"v3"``.
        norm (str, optional): normalisation in styles v1 and v2. Defaults to ``None``.
        mults (sequence of int, optional): channels in units of ``depth``; v3 only.
        kernel (int, optional): size of the filters; v3 only.
        blocks (int, optional): groups of the belief; v3 only.

    Raises:
        ValueError: for an unknown style, no entries, or an image size that the style cannot make.
        TypeError: for a spec without an encoding.

    Examples:
        >>> from torchrl.data import Categorical, Unbounded
        >>> spec = Composite(joints=Unbounded((4,)), gear=Categorical(3))
        >>> predictions = make_decoder(spec, 16, 8, units=16)(torch.randn(2, 24))
        >>> predictions["joints"].mean.shape
        torch.Size([2, 4])
        >>> predictions["gear"].log_prob(torch.tensor([0, 2])).shape
        torch.Size([2])
    """
    check_style(style)
    vectors, images = split_observations(observation_spec)
    v3, features = style == "v3", belief_size + state_size
    network = NETWORKS[style] if v3 else {**NETWORKS[style], "norm": norm}
    defaults = SIZES[style]
    depth = defaults["depth"] if depth is None else depth
    units = defaults["units"] if units is None else units
    vector = image = None
    if vectors:
        squash = v3 if use_symlog is None else use_symlog
        layers = defaults["layers"] if layers is None else layers
        vector = VectorDecoder(
            vectors, features, layers=layers, units=units, use_symlog=squash, **network
        )
    if images and v3:
        sizes = {"depth": depth, "mults": mults, "kernel": kernel, "units": units}
        image = UpsamplingImageDecoder(images, belief_size, state_size, blocks=blocks, **sizes)
    elif images:
        activation = "elu" if style == "v2" else "relu"
        image = StridedImageDecoder(images, features, depth=depth, activation=activation, norm=norm)
    return Decoder(belief_size, state_size, vector, image)
