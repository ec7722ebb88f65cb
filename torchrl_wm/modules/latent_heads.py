"""The networks from a belief to the raw parameters of a stochastic latent: prior and posterior."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_wm.modules.networks import MLP, Activation, Init, Norm, dense


class PriorHead(nn.Module):
    """Belief ``[..., belief_size]`` to raw latent parameters ``[..., raw_size]``.

    Args:
        belief_size (int): size of the belief.
        raw_size (int): number of raw parameters of the latent.
        hidden_size (int): units of the hidden layers.
        layers (int, optional): hidden layers. Defaults to ``1``.

    Keyword Args:
        activation, norm, init: see :class:`~torchrl_wm.modules.networks.MLP`.
    """

    def __init__(
        self,
        belief_size: int,
        raw_size: int,
        hidden_size: int,
        layers: int = 1,
        *,
        activation: Activation = "elu",
        norm: Norm | None = None,
        init: Init = "glorot",
    ):
        super().__init__()
        self.mlp = MLP(
            belief_size, hidden_size, layers, activation=activation, norm=norm, init=init
        )
        self.output = dense(self.mlp.out_features, raw_size, init=init)

    def forward(self, belief: Tensor) -> Tensor:
        """Raw parameters of the latent."""
        return self.output(self.mlp(belief))


class PosteriorHead(nn.Module):
    """Belief and tokens of the observation to raw latent parameters ``[..., raw_size]``.

    The product with the tokens does not depend on the carry: ``project_tokens`` does it for a whole
    sequence.

    Args:
        belief_size (int): size of the belief; 0 for a posterior of the tokens alone.
        token_size (int): size of the encoded observation.
        raw_size (int): number of raw parameters of the latent.
        hidden_size (int): units of the hidden layers.
        layers (int, optional): hidden layers, at least one. Defaults to ``1``.

    Keyword Args:
        activation, norm, init: see :class:`~torchrl_wm.modules.networks.MLP`.

    Raises:
        ValueError: without a hidden layer.

    Examples:
        >>> import torch
        >>> head = PosteriorHead(8, 5, 6, hidden_size=4)
        >>> tokens = head.project_tokens(torch.zeros(3, 2, 5))
        >>> head(torch.zeros(3, 2, 8), tokens, head.weights()).shape
        torch.Size([3, 2, 6])
    """

    def __init__(
        self,
        belief_size: int,
        token_size: int,
        raw_size: int,
        hidden_size: int,
        layers: int = 1,
        *,
        activation: Activation = "elu",
        norm: Norm | None = None,
        init: Init = "glorot",
    ):
        super().__init__()
        if layers < 1:
            raise ValueError(f"A posterior needs at least one hidden layer, not layers={layers}.")
        self.mlp = MLP(
            belief_size + token_size,
            hidden_size,
            layers,
            activation=activation,
            norm=norm,
            init=init,
        )
        self.output = dense(hidden_size, raw_size, init=init)
        self.belief_size = belief_size

    def weights(self) -> tuple[Tensor, ...]:
        """The part of the first layer that multiplies the belief."""
        return (self.mlp.linears[0].weight[:, : self.belief_size],)

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """The tokens' share ``[..., hidden_size]`` of the first layer, its bias included."""
        first = self.mlp.linears[0]
        return F.linear(tokens, first.weight[:, self.belief_size :], first.bias)

    def forward(self, belief: Tensor, projected: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """Raw parameters of the latent."""
        mlp = self.mlp
        hidden = mlp.activation(
            mlp.norms[0](F.linear(belief[..., : self.belief_size], weights[0]) + projected)
        )
        for linear, norm in zip(mlp.linears[1:], mlp.norms[1:], strict=True):
            hidden = mlp.activation(norm(linear(hidden)))
        return self.output(hidden)
