"""The projections that hidden states are compared in (EfficientZero, https://arxiv.org/abs/2111.00210)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_wm.modules.networks import MLP, Activation, Init, Norm, dense


class ConsistencyHead(nn.Module):
    """How well a predicted hidden state agrees with that of the observation that followed.

    As in SimSiam (arXiv:2011.10566), both are projected, the predicted one goes through a further
    network, and no gradient flows into the other.

    Args:
        in_features (int): size of the hidden state.

    Keyword Args:
        size (int, optional): of the projections. Defaults to ``128``.
        units (int, optional): of the hidden layers. Defaults to ``128``.
        activation, norm, init: see :class:`~torchrl_wm.modules.networks.MLP`.

    Examples:
        >>> import torch
        >>> head = ConsistencyHead(8)
        >>> head(torch.randn(5, 8), torch.randn(5, 8)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        in_features: int,
        *,
        size: int = 128,
        units: int = 128,
        activation: Activation = "relu",
        norm: Norm | None = "layer",
        init: Init = "glorot",
    ):
        super().__init__()
        network = {"activation": activation, "norm": norm, "init": init}
        self.project = nn.Sequential(
            MLP(in_features, units, 2, **network), dense(units, size, init=init)
        )
        self.predict = nn.Sequential(MLP(size, units, 1, **network), dense(units, size, init=init))

    def forward(self, predicted: Tensor, observed: Tensor) -> Tensor:
        """Cosine ``[...]`` of two hidden states ``[..., in_features]``; 1 where they agree."""
        target = self.project(observed).detach()
        return F.cosine_similarity(self.predict(self.project(predicted)), target, dim=-1)
