"""Dense bricks: initialisers, normalisations, block-diagonal layers and the MLP."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_wm.ranges import COUNT, NUMBER

Activation = Literal["relu", "elu", "silu", "tanh"]
Norm = Literal["layer", "rms"]
Init = Literal["trunc_normal", "glorot"]

ACTIVATIONS = {"relu": F.relu, "elu": F.elu, "silu": F.silu, "tanh": torch.tanh}
_TRUNCATION = 0.87962566  # standard deviation of a unit normal truncated to [-2, 2]


def init_trunc_normal_(weight: Tensor, fan_in: int, scale: float = 1.0) -> Tensor:
    """Fills ``weight`` with a truncated normal of standard deviation ``scale / sqrt(fan_in)``.

    The initialiser of DreamerV3 (https://arxiv.org/abs/2301.04104); ``scale=0`` gives zeros.
    """
    if scale == 0:
        return nn.init.zeros_(weight)
    std = scale / math.sqrt(fan_in) / _TRUNCATION
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


class PaddedLinear(nn.Linear):
    """A linear layer that is fast for odd output sizes too, such as the 255 bins of a two-hot code.

    When compiled, the product is padded with zero columns to a multiple of 16: on a CPU 255 columns took
    twice the time of 256. The parameters keep their shapes.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., in_features]`` to ``[..., out_features]``."""
        missing = -self.out_features % 16
        if self.out_features < 64 or not missing or not torch.compiler.is_compiling():
            return super().forward(x)
        weight, bias = F.pad(self.weight, (0, 0, 0, missing)), F.pad(self.bias, (0, missing))
        return F.linear(x, weight, bias)[..., : self.out_features]


def dense(
    in_features: int, out_features: int, *, init: Init = "trunc_normal", scale: float = 1.0
) -> nn.Linear:
    """A linear layer with a zero bias and the weights of an initialiser.

    Args:
        in_features (int): size of the input.
        out_features (int): size of the output.
        init (str, optional): ``"trunc_normal"`` (DreamerV3) or ``"glorot"`` (TensorFlow's default,
            used by PlaNet and Dreamer v1 and v2). Defaults to ``"trunc_normal"``.
        scale (float, optional): factor on the initial weights. Defaults to ``1.0``.

    Raises:
        ValueError: for an unknown initialiser; the message lists the valid ones.
    """
    if init not in ("trunc_normal", "glorot"):
        raise ValueError(f"Unknown init {init!r}; expected 'trunc_normal' or 'glorot'.")
    layer = PaddedLinear(in_features, out_features)
    if init == "glorot":
        nn.init.xavier_uniform_(layer.weight, gain=scale)
    else:
        init_trunc_normal_(layer.weight, in_features, scale)
    nn.init.zeros_(layer.bias)
    return layer


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale, computed in float32.

    Args:
        features (int): size of the last dimension.
        eps (float, optional): added to the mean square. Defaults to ``1e-4``, as in DreamerV3.
    """

    def __init__(self, features: int, eps: float = 1e-4):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``[..., features]`` over its last dimension."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


def make_norm(norm: Norm | None, features: int) -> nn.Module:
    """The normalisation called ``norm`` for the last dimension: layer (eps 1e-3), RMS (eps 1e-4), none.

    Raises:
        ValueError: for an unknown name; the message lists the valid ones.
    """
    if norm is None:
        return nn.Identity()
    if norm == "layer":
        return nn.LayerNorm(features, eps=1e-3)
    if norm == "rms":
        return RMSNorm(features)
    raise ValueError(f"Unknown norm {norm!r}; expected 'layer', 'rms' or None.")


def get_activation(name: Activation):
    """The activation function called ``name``.

    Raises:
        ValueError: for an unknown name; the message lists the valid ones.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"Unknown activation {name!r}; expected one of {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


class BlockLinear(nn.Module):
    """A linear layer whose weight is block diagonal.

    Args:
        in_features (int): size of the input, a multiple of ``blocks``.
        out_features (int): size of the output, a multiple of ``blocks``.
        blocks (int): number of blocks; block ``g`` of the output reads only block ``g`` of the input.

    Raises:
        ValueError: where ``blocks`` does not divide both sizes.

    Examples:
        >>> BlockLinear(8, 16, blocks=4)(torch.zeros(2, 3, 8)).shape
        torch.Size([2, 3, 16])
    """

    def __init__(self, in_features: int, out_features: int, blocks: int):
        super().__init__()
        if in_features % blocks or out_features % blocks:
            raise ValueError(
                f"blocks={blocks} must divide in_features={in_features} and out_features={out_features}."
            )
        self.blocks = blocks
        self.weight = nn.Parameter(
            torch.empty(blocks, in_features // blocks, out_features // blocks)
        )
        self.bias = nn.Parameter(torch.zeros(out_features))
        init_trunc_normal_(self.weight, in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., in_features]`` to ``[..., out_features]``."""
        return block_product(x, self.weight) + self.bias


def block_product(x: Tensor, weight: Tensor) -> Tensor:
    """Multiplies ``x [..., blocks * n]`` with the block-diagonal ``weight [blocks, n, m]``."""
    blocks, size, _ = weight.shape
    rows = x.reshape(-1, blocks, size).transpose(0, 1)
    return torch.bmm(rows, weight).transpose(0, 1).reshape(*x.shape[:-1], -1)


class MLP(nn.Module):
    """``layers`` times linear, normalisation, activation.

    Args:
        in_features (int): size of the input.
        units (int): size of every layer.
        layers (int): number of layers; with 0 the input is returned unchanged.
        activation (str, optional): name of the activation. Defaults to ``"silu"``.
        norm (str, optional): ``"layer"``, ``"rms"`` or ``None``. Defaults to ``None``.
        init (str, optional): initialiser of the weights. Defaults to ``"trunc_normal"``.

    Examples:
        >>> MLP(4, 8, 2, activation="elu")(torch.zeros(5, 4)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        in_features: int,
        units: int,
        layers: int,
        *,
        activation: Activation = "silu",
        norm: Norm | None = None,
        init: Init = "trunc_normal",
    ):
        super().__init__()
        NUMBER.check(layers=layers)
        if layers:
            COUNT.check(units=units)
        sizes = [in_features, *[units] * layers]
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.linears = nn.ModuleList(dense(i, o, init=init) for i, o in pairs)
        self.norms = nn.ModuleList(make_norm(norm, units) for _ in range(layers))
        self.activation = get_activation(activation)
        self.in_features, self.out_features = in_features, sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., in_features]`` to ``[..., out_features]``."""
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = self.activation(norm(linear(x)))
        return x
