"""Encoders: from the observations of any spec to one vector of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Binary, Composite, TensorSpec

from torchrl_wm.functional.images import centre_image, scale_image
from torchrl_wm.functional.transforms import symlog
from torchrl_wm.modules.convolutions import over_channels, same_conv
from torchrl_wm.modules.encoding import encode_leaf, encoded_size, groups
from torchrl_wm.modules.networks import MLP, Activation, Init, Norm, get_activation, make_norm
from torchrl_wm.modules.observations import (
    Observations,
    check_size_64,
    final_size,
    image_shape,
    read,
    split_observations,
)
from torchrl_wm.modules.styles import NETWORKS, SIZES, Style, check_style


class VectorEncoder(nn.Module):
    """Joins all vectors, numbers and classes of an observation and sends them through an MLP.

    Args:
        specs (dict): leaf specs by key, read in this order.
        layers (int): number of layers.
        units (int): size of the layers.
        use_symlog (bool, optional): squash plain numbers, but not one-hot vectors, as DreamerV3 does.
            Defaults to ``True``.
        activation (str, optional): Defaults to ``"silu"``.
        norm (str, optional): Defaults to ``"rms"``.
        init (str, optional): Defaults to ``"trunc_normal"``.

    Examples:
        >>> from torchrl.data import Categorical, Unbounded
        >>> specs = dict(gear=Categorical(3), speed=Unbounded(()))
        >>> encoder = VectorEncoder(specs, layers=1, units=8)
        >>> encoder(dict(gear=torch.tensor([1, 2]), speed=torch.zeros(2))).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        specs: Mapping[NestedKey, TensorSpec],
        *,
        layers: int,
        units: int,
        use_symlog: bool = True,
        activation: Activation = "silu",
        norm: Norm | None = "rms",
        init: Init = "trunc_normal",
    ):
        super().__init__()
        self.specs, self.use_symlog = dict(specs), use_symlog
        self.shapes = {key: spec.shape for key, spec in specs.items()}
        size = sum(encoded_size(key, spec) for key, spec in specs.items())
        self.mlp = MLP(size, units, layers, activation=activation, norm=norm, init=init)
        self.out_features = self.mlp.out_features

    def forward(self, observations: Observations) -> Tensor:
        """Entries ``[..., *shape]`` to features ``[..., units]``."""
        return self.mlp(torch.cat([self._encode(k, observations) for k in self.specs], -1))

    def _encode(self, key: NestedKey, observations: Observations) -> Tensor:
        spec = self.specs[key]
        flat = encode_leaf(spec, read(observations, key))
        plain = groups(spec) is None and not isinstance(spec, Binary)
        return symlog(flat) if plain and self.use_symlog else flat


class ImageEncoder(nn.Module):
    """Base of the convolutional encoders: images of several entries joined along the channels.

    Args:
        specs (dict): image specs ``[C, H, W]`` of equal height and width, by key.
    """

    def __init__(self, specs: Mapping[NestedKey, TensorSpec]):
        super().__init__()
        self.keys = list(specs)
        self.shapes = {key: spec.shape for key, spec in specs.items()}
        self.image_shape = image_shape(specs)

    def forward(self, observations: Observations) -> Tensor:
        """Images ``[..., C, H, W]``, bytes or floats in [0, 1], to features ``[..., F]``."""
        images = [read(observations, key) for key in self.keys]
        if len({image.dtype for image in images}) > 1:
            images = [scale_image(image) for image in images]
        image = torch.cat(images, -3)
        x = image.reshape(-1, *image.shape[-3:])
        # Channels last: faster convolutions on the CPU, and a norm over channels without copies.
        x = self.convolve(centre_image(x.contiguous(memory_format=torch.channels_last)))
        # Features are flattened as height, width, channel, the order of the reference codes.
        return x.permute(0, 2, 3, 1).flatten(1).reshape(*image.shape[:-3], self.out_features)

    def convolve(self, x: Tensor) -> Tensor:
        """Centred images ``[N, C, H, W]`` to feature maps."""
        raise NotImplementedError


class StridedImageEncoder(ImageEncoder):
    """Four strided convolutions for 64x64 images: PlaNet, Dreamer v1 (ReLU) and v2 (ELU).

    Args:
        specs (dict): image specs ``[C, 64, 64]`` by key.
        depth (int, optional): channels of the first layer, doubled in each further one. Defaults to
            ``32``.
        activation (str, optional): Defaults to ``"relu"``.
        norm (str, optional): over the channels. Defaults to ``None``.

    Raises:
        ValueError: for images of another size.

    Examples:
        >>> from torchrl.data import Unbounded
        >>> pixels = Unbounded((3, 64, 64), dtype=torch.uint8)
        >>> StridedImageEncoder(dict(pixels=pixels), depth=2).out_features
        64
    """

    def __init__(
        self,
        specs: Mapping[NestedKey, TensorSpec],
        *,
        depth: int = 32,
        activation: Activation = "relu",
        norm: Norm | None = None,
    ):
        super().__init__(specs)
        check_size_64(specs)
        sizes = [self.image_shape[0], depth, 2 * depth, 4 * depth, 8 * depth]
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 4, stride=2) for i, o in pairs)
        self.norms = nn.ModuleList(make_norm(norm, size) for size in sizes[1:])
        self.activation = get_activation(activation)
        self.out_features = 4 * sizes[-1]
        for conv in self.convs:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def convolve(self, x: Tensor) -> Tensor:
        """Centred images ``[N, C, 64, 64]`` to ``[N, 8 * depth, 2, 2]``."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.activation(over_channels(norm, conv(x)))
        return x


class PooledImageEncoder(ImageEncoder):
    """DreamerV3's encoder: convolution, 2x2 maximum, normalisation over channels, activation.

    Args:
        specs (dict): image specs ``[C, H, W]`` by key.
        depth (int, optional): unit of channels. Defaults to ``64``.
        mults (sequence of int, optional): channels of the layers in units of ``depth``. Defaults to
            ``(2, 3, 4, 4)``.
        kernel (int, optional): odd size of the filters. Defaults to ``5``.
        activation (str, optional): Defaults to ``"silu"``.
        norm (str, optional): Defaults to ``"rms"``.

    Raises:
        ValueError: where halving the size once per layer leaves a remainder or ends outside 3 to 16.

    Examples:
        >>> from torchrl.data import Unbounded
        >>> pixels = Unbounded((3, 96, 96), dtype=torch.uint8)
        >>> PooledImageEncoder(dict(pixels=pixels), depth=4).out_features
        576
    """

    def __init__(
        self,
        specs: Mapping[NestedKey, TensorSpec],
        *,
        depth: int = 64,
        mults: Sequence[int] = (2, 3, 4, 4),
        kernel: int = 5,
        activation: Activation = "silu",
        norm: Norm | None = "rms",
    ):
        super().__init__(specs)
        height, width = final_size(specs, len(mults))
        sizes = [self.image_shape[0], *(depth * mult for mult in mults)]
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.convs = nn.ModuleList(same_conv(i, o, kernel) for i, o in pairs)
        self.norms = nn.ModuleList(make_norm(norm, size) for size in sizes[1:])
        self.activation = get_activation(activation)
        self.out_features = height * width * sizes[-1]

    def convolve(self, x: Tensor) -> Tensor:
        """Centred images ``[N, C, H, W]`` to ``[N, depth * mults[-1], h, w]``."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool2d(conv(x), 2)
            x = self.activation(over_channels(norm, x))
        return x


class Encoder(nn.Module):
    """Vector features followed by image features.

    Args:
        vector (VectorEncoder, optional): for everything that is not an image.
        image (ImageEncoder, optional): for the images.
    """

    def __init__(self, vector: VectorEncoder | None, image: ImageEncoder | None):
        super().__init__()
        self.vector, self.image = vector, image
        self.out_features = sum(part.out_features for part in (vector, image) if part is not None)

    @property
    def shapes(self) -> dict[NestedKey, torch.Size]:
        """The shape of one unbatched observation, for every entry read."""
        parts = [part for part in (self.vector, self.image) if part is not None]
        return {key: shape for part in parts for key, shape in part.shapes.items()}

    @property
    def in_keys(self) -> list[NestedKey]:
        """The entries that are read."""
        vector = [] if self.vector is None else list(self.vector.specs)
        return vector + ([] if self.image is None else self.image.keys)

    def forward(self, observations: Observations) -> Tensor:
        """Observations with any leading dimensions to tokens ``[..., out_features]``."""
        parts = [part(observations) for part in (self.vector, self.image) if part is not None]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def make_encoder(
    observation_spec: Composite,
    style: Style = "v3",
    *,
    depth: int | None = None,
    layers: int | None = None,
    units: int | None = None,
    use_symlog: bool | None = None,
    norm: Norm | None = None,
    mults: Sequence[int] = (2, 3, 4, 4),
    kernel: int = 5,
) -> Encoder:
    """The encoder of one of the Dreamers for any observation spec.

    Images are three-dimensional entries ``[C, H, W]`` of bytes, or of floats in [0, 1] with at
    least 8 rows and columns; all else is a vector.

    Args:
        observation_spec (Composite): unbatched, nested or not.
        style (str, optional): ``"planet"``, ``"v1"``, ``"v2"`` or ``"v3"``. Defaults to ``"v3"``.
        depth (int, optional): unit of channels. Defaults to that of the style: 32, 32, 48 or 64.
        layers (int, optional): layers for vectors. Defaults to that of the style: 3, 4, 4 or 3.
        units (int, optional): their size. Defaults to that of the style: 300, 400, 400 or 1024.
        use_symlog (bool, optional): squash numbers. Defaults to whether the style is ``"v3"``.
        norm (str, optional): normalisation in styles v1 and v2; v3 always uses RMS. Defaults to
            ``None``.
        mults (sequence of int, optional): channels in units of ``depth``; v3 only.
        kernel (int, optional): size of the filters; v3 only.

    Raises:
        ValueError: for an unknown style, no entries, or an image size that the style cannot read.
        TypeError: for a spec without an encoding.

    Examples:
        >>> from torchrl.data import Unbounded
        >>> pixels = Unbounded((3, 64, 64), dtype=torch.uint8)
        >>> spec = Composite(pixels=pixels, joints=Unbounded((4,)))
        >>> encoder = make_encoder(spec, depth=4, units=16)
        >>> encoder(spec.rand()).shape, encoder.in_keys
        (torch.Size([272]), ['joints', 'pixels'])
    """
    check_style(style)
    vectors, images = split_observations(observation_spec)
    v3, sizes = style == "v3", SIZES[style]
    depth = sizes["depth"] if depth is None else depth
    network = NETWORKS[style] if v3 else {**NETWORKS[style], "norm": norm}
    vector = image = None
    if vectors:
        squash = v3 if use_symlog is None else use_symlog
        layers = sizes["layers"] if layers is None else layers
        units = sizes["units"] if units is None else units
        vector = VectorEncoder(vectors, layers=layers, units=units, use_symlog=squash, **network)
    if images and v3:
        image = PooledImageEncoder(images, depth=depth, mults=mults, kernel=kernel)
    elif images:
        activation = "elu" if style == "v2" else "relu"
        image = StridedImageEncoder(images, depth=depth, activation=activation, norm=norm)
    return Encoder(vector, image)
