"""What the last layer of a head or decoder means: raw numbers to a distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F
from torchrl.data import TensorSpec

from torchrl_wm.functional.transforms import symexp_bins
from torchrl_wm.modules.action_distributions import (
    DiagonalNormal,
    Joint,
    OneHotCategorical,
    TanhNormal,
    TruncatedNormal,
)
from torchrl_wm.modules.distributions import (
    Bernoulli,
    HyperbolicTwoHot,
    SymlogSquaredError,
    TwoHot,
    UnitNormal,
)
from torchrl_wm.modules.encoding import decode_leaf, encode_leaf
from torchrl_wm.modules.networks import Init, dense
from torchrl_wm.ranges import COUNT


class Output(nn.Module):
    """Base: ``layers`` are the sizes of the raw parts, ``size`` their sum.

    Args:
        *layers (int): sizes of the parts that a reference code computes with separate layers.
    """

    def __init__(self, *layers: int):
        super().__init__()
        self.layers, self.size = list(layers), sum(layers)

    def forward(self, raw: Tensor) -> Distribution:
        """Raw numbers ``[..., size]`` to a distribution of batch shape ``[...]``."""
        raise NotImplementedError


class SideBySide(nn.Module):
    """Linear layers that read the same features and whose results are joined.

    Initialisers depend on a layer's size, and DreamerV3 clips the gradient of each weight by the norm of
    that weight: a single layer for means and deviations would learn differently.

    Args:
        in_features (int): size of the features.
        sizes (sequence of int): outputs of each layer.
        init (str): initialiser of all layers.
        scale (float): factor on the initial weights.

    Examples:
        >>> SideBySide(4, [2, 3], init="glorot", scale=1.0)(torch.zeros(1, 4)).shape
        torch.Size([1, 5])
    """

    def __init__(self, in_features: int, sizes: Sequence[int], *, init: Init, scale: float):
        super().__init__()
        self.parts = nn.ModuleList(dense(in_features, n, init=init, scale=scale) for n in sizes)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``[..., in_features]`` to ``[..., sum(sizes)]``."""
        return torch.cat([part(features) for part in self.parts], -1)


def output_layer(in_features: int, output: Output, *, init: Init, scale: float) -> nn.Module:
    """The linear layer before an output, or a layer for each of its parts."""
    if len(output.layers) > 1:
        return SideBySide(in_features, output.layers, init=init, scale=scale)
    return dense(in_features, output.size, init=init, scale=scale)


class _Shaped(Output):
    distribution: type[Distribution]

    def __init__(self, shape: Sequence[int] = (1,)):
        super().__init__(math.prod(shape))
        self.shape = tuple(shape)

    def forward(self, raw: Tensor) -> Distribution:
        """Raw numbers ``[..., size]`` to a distribution with events of the shape."""
        raw = raw.float().reshape((*raw.shape[:-1], *self.shape))
        return self.distribution(raw, len(self.shape))


class NormalOutput(_Shaped):
    """A unit normal with events of ``shape``.

    Examples:
        >>> NormalOutput((2, 3))(torch.zeros(5, 6)).mean.shape
        torch.Size([5, 2, 3])
    """

    distribution = UnitNormal


class SymlogOutput(_Shaped):
    """A squared error in symlog space with events of ``shape`` (DreamerV3).

    Examples:
        >>> SymlogOutput((3,))(torch.zeros(5, 3)).log_prob(torch.zeros(5, 3))
        tensor([-0., -0., -0., -0., -0.])
    """

    distribution = SymlogSquaredError


class BernoulliOutput(_Shaped):
    """Binary events of ``shape``.

    Examples:
        >>> BernoulliOutput()(torch.zeros(2, 1)).mean
        tensor([[0.5000],
                [0.5000]])
    """

    distribution = Bernoulli


class TwoHotOutput(Output):
    """A two-hot code of a scalar (DreamerV3); targets and predictions are ``[..., 1]``.

    Args:
        bins (int, optional): number of bins. Defaults to ``255``.

    Examples:
        >>> TwoHotOutput(41)(torch.zeros(2, 41)).mean.shape
        torch.Size([2, 1])
    """

    def __init__(self, bins: int = 255):
        super().__init__(bins)
        self.register_buffer("bins", symexp_bins(bins), persistent=False)

    def forward(self, raw: Tensor) -> TwoHot:
        """Logits ``[..., bins]`` to a distribution over a scalar ``[..., 1]``."""
        return TwoHot(raw.float(), self.bins)


class HyperbolicTwoHotOutput(Output):
    """A categorical over a transformed scalar (MuZero); targets and predictions are ``[..., 1]``.

    Args:
        support (int, optional): the largest atom of the squashed scalar; the atoms are the integers
            from ``-support`` to ``support``. 300 covers scalars up to 58,000. Defaults to ``300``.

    Raises:
        ValueError: for a support below 1.

    Examples:
        >>> HyperbolicTwoHotOutput(10)(torch.zeros(2, 21)).mean.shape
        torch.Size([2, 1])
    """

    def __init__(self, support: int = 300):
        COUNT.check(support=support)
        super().__init__(2 * support + 1)
        atoms = torch.arange(-support, support + 1, dtype=torch.float32)
        self.register_buffer("atoms", atoms, persistent=False)

    def forward(self, raw: Tensor) -> HyperbolicTwoHot:
        """Logits ``[..., 2 * support + 1]`` to a distribution over a scalar ``[..., 1]``."""
        return HyperbolicTwoHot(raw.float(), self.atoms)


class OneHotOutput(Output):
    """A choice among ``classes`` as a one-hot vector.

    Args:
        classes (int): number of classes.
        unimix (float, optional): share of the uniform distribution. Defaults to ``0.0``.
    """

    def __init__(self, classes: int, *, unimix: float = 0.0):
        super().__init__(classes)
        self.unimix = unimix

    def forward(self, raw: Tensor) -> OneHotCategorical:
        """Logits ``[..., classes]`` to a distribution over one-hot vectors."""
        return OneHotCategorical(raw.float(), unimix=self.unimix)


class IndexOutput(Output):
    """An output over the flat form of an entry that itself consists of one or several indices.

    Args:
        base (Output): over the flat form.
        spec (TensorSpec): of the entry.
    """

    def __init__(self, base: Output, spec: TensorSpec):
        super().__init__(*base.layers)
        self.base, self.spec = base, spec

    def forward(self, raw: Tensor) -> Indices:
        """Logits ``[..., size]`` to a distribution over the entry."""
        return Indices(self.base(raw), self.spec)


class Indices(Distribution):
    """A one-hot distribution in terms of a spec's indices: targets and mode are indices."""

    arg_constraints = {}

    def __init__(self, flat: Distribution, spec: TensorSpec):
        super().__init__(flat.batch_shape, spec.shape, validate_args=False)
        self.flat, self.spec = flat, spec

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the indices ``[..., *spec.shape]``: ``[...]``."""
        return self.flat.log_prob(encode_leaf(self.spec, value))

    @property
    def mode(self) -> Tensor:
        """The most probable indices ``[..., *spec.shape]``."""
        return decode_leaf(self.spec, self.flat.mode)

    @property
    def mean(self) -> Tensor:
        """The mode: indices have no mean."""
        return self.mode


class TanhNormalOutput(Output):
    """Dreamer v1's continuous policy (https://arxiv.org/abs/1912.01603).

    Args:
        size (int): number of actions.
        mean_scale (float, optional): bound of the mean before the tanh. Defaults to ``5.0``.
        init_std (float, optional): standard deviation for a raw output of 0, before ``min_std`` is
            added. Defaults to ``5.0``.
        min_std (float, optional): smallest standard deviation. Defaults to ``1e-4``.

    Examples:
        >>> TanhNormalOutput(1)(torch.zeros(1, 2)).stddev
        tensor([[5.0001]])
    """

    def __init__(
        self, size: int, *, mean_scale: float = 5.0, init_std: float = 5.0, min_std: float = 1e-4
    ):
        super().__init__(2 * size)
        self.mean_scale, self.min_std = mean_scale, min_std
        self.raw_std = math.log(math.expm1(init_std))

    def forward(self, raw: Tensor) -> TanhNormal:
        """Means and standard deviations ``[..., 2 A]`` to a distribution over ``[..., A]``."""
        mean, std = raw.float().chunk(2, -1)
        mean = self.mean_scale * torch.tanh(mean / self.mean_scale)
        return TanhNormal(mean, F.softplus(std + self.raw_std) + self.min_std)


class TruncatedNormalOutput(Output):
    """Dreamer v2's continuous policy (https://arxiv.org/abs/2010.02193).

    Args:
        size (int): number of actions.
        init_std (float, optional): offset of the raw standard deviation. Defaults to ``0.0``.
        min_std (float, optional): smallest standard deviation. Defaults to ``0.1``.
    """

    def __init__(self, size: int, *, init_std: float = 0.0, min_std: float = 0.1):
        super().__init__(size, size)
        self.init_std, self.min_std = init_std, min_std

    def forward(self, raw: Tensor) -> TruncatedNormal:
        """Means and standard deviations ``[..., 2 A]`` to a distribution over ``[..., A]``."""
        mean, std = raw.float().chunk(2, -1)
        std = 2 * torch.sigmoid((std + self.init_std) / 2) + self.min_std
        return TruncatedNormal(torch.tanh(mean), std)


class BoundedNormalOutput(Output):
    """DreamerV3's continuous policy: a plain normal with a bounded mean and standard deviation.

    Samples are neither squashed nor clipped; log-probabilities are those of the raw samples.

    Args:
        size (int): number of actions.
        min_std (float, optional): smallest standard deviation. Defaults to ``0.1``.
        max_std (float, optional): largest standard deviation. Defaults to ``1.0``.
    """

    def __init__(self, size: int, *, min_std: float = 0.1, max_std: float = 1.0):
        super().__init__(size, size)
        self.min_std, self.max_std = min_std, max_std

    def forward(self, raw: Tensor) -> DiagonalNormal:
        """Means and standard deviations ``[..., 2 A]`` to a distribution over ``[..., A]``."""
        mean, std = raw.float().chunk(2, -1)
        std = (self.max_std - self.min_std) * torch.sigmoid(std + 2) + self.min_std
        return DiagonalNormal(torch.tanh(mean), std)


class JointOutput(Output):
    """Several outputs side by side, over the joined vector.

    Args:
        parts (list of Output): each over a vector.

    Examples:
        >>> JointOutput([OneHotOutput(3), BoundedNormalOutput(2)])(torch.zeros(1, 7)).event_shape
        torch.Size([5])
    """

    def __init__(self, parts: Sequence[Output]):
        super().__init__(*(size for part in parts for size in part.layers))
        self.parts = nn.ModuleList(parts)
        self.part_sizes = [part.size for part in parts]

    def forward(self, raw: Tensor) -> Joint:
        """Raw numbers ``[..., size]`` to a joint distribution."""
        raws = raw.split(self.part_sizes, -1)
        return Joint([part(r) for part, r in zip(self.parts, raws, strict=True)])


def one_hot_groups(counts: Sequence[int], *, unimix: float = 0.0) -> Output:
    """The output over one or several one-hot groups of the given sizes."""
    parts = [OneHotOutput(count, unimix=unimix) for count in counts]
    return parts[0] if len(parts) == 1 else JointOutput(parts)
