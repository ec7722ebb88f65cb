"""Bricks of world models, plain modules: networks, encoders, decoders, cells, latents, heads."""

from torchrl_wm.modules.action_distributions import (
    DiagonalNormal,
    Joint,
    OneHotCategorical,
    TanhNormal,
    TruncatedNormal,
)
from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.modules.cells import GRU, BlockCell, DenseCell, LayerNormGRU, ResetBeforeGRU
from torchrl_wm.modules.decoders import (
    Decoder,
    ImageDecoder,
    StridedImageDecoder,
    UpsamplingImageDecoder,
    VectorDecoder,
    make_decoder,
)
from torchrl_wm.modules.distributions import (
    Bernoulli,
    ImageNormal,
    ImageSquaredError,
    SymlogSquaredError,
    TwoHot,
    UnitNormal,
)
from torchrl_wm.modules.encoders import (
    Encoder,
    ImageEncoder,
    PooledImageEncoder,
    StridedImageEncoder,
    VectorEncoder,
    make_encoder,
)
from torchrl_wm.modules.heads import (
    BernoulliHead,
    Head,
    NormalHead,
    SymlogHead,
    TwoHotHead,
    actor_head,
)
from torchrl_wm.modules.latent_heads import PosteriorHead, PriorHead
from torchrl_wm.modules.latents import CategoricalLatent, GaussianLatent
from torchrl_wm.modules.networks import MLP, BlockLinear, RMSNorm
from torchrl_wm.modules.normalizers import ReturnNormalizer
from torchrl_wm.modules.outputs import (
    BernoulliOutput,
    BoundedNormalOutput,
    IndexOutput,
    Indices,
    JointOutput,
    NormalOutput,
    OneHotOutput,
    Output,
    SymlogOutput,
    TanhNormalOutput,
    TruncatedNormalOutput,
    TwoHotOutput,
)
from torchrl_wm.modules.styles import NETWORKS, SIZES

__all__ = [
    "ActionEncoding",
    "Bernoulli",
    "BernoulliHead",
    "BernoulliOutput",
    "BlockCell",
    "BlockLinear",
    "BoundedNormalOutput",
    "CategoricalLatent",
    "Decoder",
    "DenseCell",
    "DiagonalNormal",
    "Encoder",
    "GRU",
    "GaussianLatent",
    "Head",
    "ImageDecoder",
    "ImageEncoder",
    "ImageNormal",
    "ImageSquaredError",
    "IndexOutput",
    "Indices",
    "Joint",
    "JointOutput",
    "LayerNormGRU",
    "MLP",
    "NETWORKS",
    "NormalHead",
    "NormalOutput",
    "OneHotCategorical",
    "OneHotOutput",
    "Output",
    "PooledImageEncoder",
    "PosteriorHead",
    "PriorHead",
    "RMSNorm",
    "ResetBeforeGRU",
    "ReturnNormalizer",
    "SIZES",
    "StridedImageDecoder",
    "StridedImageEncoder",
    "SymlogHead",
    "SymlogOutput",
    "SymlogSquaredError",
    "TanhNormal",
    "TanhNormalOutput",
    "TruncatedNormal",
    "TruncatedNormalOutput",
    "TwoHot",
    "TwoHotHead",
    "TwoHotOutput",
    "UnitNormal",
    "UpsamplingImageDecoder",
    "VectorDecoder",
    "VectorEncoder",
    "actor_head",
    "make_decoder",
    "make_encoder",
]
