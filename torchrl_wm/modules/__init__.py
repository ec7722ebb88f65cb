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
from torchrl_wm.modules.consistency import ConsistencyHead
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
    HyperbolicTwoHot,
    ImageNormal,
    ImageSquaredError,
    SymlogSquaredError,
    TwoHot,
    UnitNormal,
)
from torchrl_wm.modules.dynamics import EnsembleDynamics
from torchrl_wm.modules.encoders import (
    Encoder,
    ImageEncoder,
    PooledImageEncoder,
    StridedImageEncoder,
    VectorEncoder,
    make_encoder,
)
from torchrl_wm.modules.flat_encoder import FlatEncoder
from torchrl_wm.modules.frame_stack import FrameStack, stacking
from torchrl_wm.modules.heads import (
    BernoulliHead,
    Head,
    HyperbolicTwoHotHead,
    NormalHead,
    SymlogHead,
    TwoHotHead,
    actor_head,
)
from torchrl_wm.modules.hidden_dynamics import DenseDynamics, ResidualDynamics
from torchrl_wm.modules.hidden_scaling import HiddenScaling
from torchrl_wm.modules.latent_heads import PosteriorHead, PriorHead
from torchrl_wm.modules.latents import CategoricalLatent, GaussianLatent
from torchrl_wm.modules.networks import MLP, BlockLinear, RMSNorm
from torchrl_wm.modules.normalizers import ReturnNormalizer
from torchrl_wm.modules.outputs import (
    BernoulliOutput,
    BoundedNormalOutput,
    HyperbolicTwoHotOutput,
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
from torchrl_wm.modules.quantization import QuantizeImages
from torchrl_wm.modules.residual import ResidualBlock, ResidualImageEncoder
from torchrl_wm.modules.styles import NETWORKS, SIZES
from torchrl_wm.modules.value_prefix import PrefixReward, ValuePrefix

__all__ = [
    "ActionEncoding",
    "Bernoulli",
    "BernoulliHead",
    "BernoulliOutput",
    "BlockCell",
    "BlockLinear",
    "BoundedNormalOutput",
    "CategoricalLatent",
    "ConsistencyHead",
    "Decoder",
    "DenseCell",
    "DenseDynamics",
    "DiagonalNormal",
    "Encoder",
    "EnsembleDynamics",
    "FlatEncoder",
    "FrameStack",
    "GRU",
    "GaussianLatent",
    "Head",
    "HiddenScaling",
    "HyperbolicTwoHot",
    "HyperbolicTwoHotHead",
    "HyperbolicTwoHotOutput",
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
    "PrefixReward",
    "PriorHead",
    "QuantizeImages",
    "RMSNorm",
    "ResetBeforeGRU",
    "ResidualBlock",
    "ResidualDynamics",
    "ResidualImageEncoder",
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
    "ValuePrefix",
    "VectorDecoder",
    "VectorEncoder",
    "actor_head",
    "make_decoder",
    "make_encoder",
    "stacking",
]
