"""Heads: from features to distributions over rewards, values, ends of episodes and actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.distributions import Distribution
from torchrl.data import Binary, Bounded, TensorSpec

from torchrl_wm import keys
from torchrl_wm.modules.encoding import encoded_size, groups, sorted_leaves
from torchrl_wm.modules.networks import MLP, Activation, Init, Norm
from torchrl_wm.modules.outputs import (
    BernoulliOutput,
    BoundedNormalOutput,
    HyperbolicTwoHotOutput,
    JointOutput,
    NormalOutput,
    Output,
    SymlogOutput,
    TanhNormalOutput,
    TruncatedNormalOutput,
    TwoHotOutput,
    one_hot_groups,
    output_layer,
)

CONTINUOUS = {
    "tanh_normal": TanhNormalOutput,
    "truncated_normal": TruncatedNormalOutput,
    "bounded_normal": BoundedNormalOutput,
}


class Head(nn.Module):
    """An MLP, a linear layer and the distribution that its outputs parametrise.

    Args:
        in_features (int): size of the features.
        output (Output): turns the last layer's numbers into a distribution.
        layers (int): number of hidden layers.
        units (int): size of the hidden layers.
        activation (str, optional): of the hidden layers. Defaults to ``"silu"``.
        norm (str, optional): of the hidden layers. Defaults to ``"rms"``.
        init (str, optional): initialiser of all layers. Defaults to ``"trunc_normal"``.
        out_scale (float, optional): factor on the initial weights of the last layer. DreamerV3 uses
            0 for rewards and values, 0.01 for policies. Defaults to ``1.0``.

    Examples:
        >>> import torch
        >>> head = Head(8, TwoHotOutput(255), layers=1, units=16, out_scale=0.0)
        >>> head(torch.randn(2, 3, 8)).mean.shape
        torch.Size([2, 3, 1])
    """

    def __init__(
        self,
        in_features: int,
        output: Output,
        *,
        layers: int,
        units: int,
        activation: Activation = "silu",
        norm: Norm | None = "rms",
        init: Init = "trunc_normal",
        out_scale: float = 1.0,
    ):
        super().__init__()
        self.mlp = MLP(in_features, units, layers, activation=activation, norm=norm, init=init)
        self.out = output_layer(self.mlp.out_features, output, init=init, scale=out_scale)
        self.output = output
        self.in_features = in_features

    def raw(self, features: Tensor) -> Tensor:
        """Features ``[..., in_features]`` to the numbers of the last layer ``[..., output.size]``."""
        return self.out(self.mlp(features))

    def conclude(self, hidden: Tensor) -> Distribution:
        """The last hidden layer ``[..., units]``, as ``mlp`` gives it, to a distribution."""
        return self.output(self.out(hidden))

    def forward(self, features: Tensor) -> Distribution:
        """Features ``[..., in_features]`` to a distribution of batch shape ``[...]``."""
        return self.conclude(self.mlp(features))


class NormalHead(Head):
    """A head with a unit normal over a scalar ``[..., 1]``: PlaNet, Dreamer v1 and v2.

    Takes the arguments of :class:`Head` without ``output``.
    """

    def __init__(self, in_features: int, **network):
        super().__init__(in_features, NormalOutput((1,)), **network)


class BernoulliHead(Head):
    """A head with the probability of one event ``[..., 1]``, such as the episode going on.

    Takes the arguments of :class:`Head` without ``output``.
    """

    def __init__(self, in_features: int, **network):
        super().__init__(in_features, BernoulliOutput((1,)), **network)


class SymlogHead(Head):
    """A head with a squared error in symlog space over a vector ``[..., size]``.

    Takes ``size`` and the arguments of :class:`Head` without ``output``.
    """

    def __init__(self, in_features: int, *, size: int = 1, **network):
        super().__init__(in_features, SymlogOutput((size,)), **network)


class TwoHotHead(Head):
    """A head with a two-hot code of a scalar ``[..., 1]``: rewards and values of DreamerV3.

    Takes ``bins`` and the arguments of :class:`Head` without ``output``; ``out_scale`` is 0 by
    default, so an untrained head predicts exactly 0.
    """

    def __init__(self, in_features: int, *, bins: int = 255, out_scale: float = 0.0, **network):
        super().__init__(in_features, TwoHotOutput(bins), out_scale=out_scale, **network)


class HyperbolicTwoHotHead(Head):
    """A head with a categorical over a transformed scalar ``[..., 1]``: rewards and values of MuZero.

    Takes ``support`` and the arguments of :class:`Head` without ``output``; ``out_scale`` is 0 by
    default, so an untrained head predicts exactly 0.
    """

    def __init__(self, in_features: int, *, support: int = 300, out_scale: float = 0.0, **network):
        super().__init__(
            in_features, HyperbolicTwoHotOutput(support), out_scale=out_scale, **network
        )


def actor_head(
    action_spec: TensorSpec,
    in_features: int,
    *,
    continuous: Literal["tanh_normal", "truncated_normal", "bounded_normal"]
    | Callable[[int], Output] = "bounded_normal",
    unimix: float = 0.0,
    action_key: NestedKey = keys.ACTION,
    **network,
) -> Head:
    """A policy head for any action spec, over flat actions as ``ActionEncoding`` orders them.

    Args:
        action_spec (TensorSpec): spec of one unbatched action, or a Composite of several, which are
            drawn independently given the features.
        in_features (int): size of the features.
        continuous (str or callable, optional): policy of continuous entries: ``"tanh_normal"``
            (Dreamer v1), ``"truncated_normal"`` (v2), ``"bounded_normal"`` (v3), or a function from the
            number of actions to an output. Defaults to ``"bounded_normal"``.
        unimix (float, optional): share of the uniform distribution in discrete entries. Defaults to
            ``0.0``.
        action_key (NestedKey, optional): name of a single leaf in messages. Defaults to
            ``"action"``.
        **network: arguments of :class:`Head`.

    Raises:
        TypeError: for an entry that no policy here can act on.
        ValueError: for an unknown ``continuous`` or for bounds other than -1 and 1.

    Examples:
        >>> import torch
        >>> from torchrl.data import Categorical, Composite
        >>> spec = Composite(arm=Bounded(-1, 1, (2,)), gear=Categorical(3))
        >>> actor = actor_head(spec, 8, layers=1, units=16)
        >>> policy = actor(torch.randn(4, 8))
        >>> policy.sample().shape, policy.entropy().shape
        (torch.Size([4, 5]), torch.Size([4]))
    """
    if isinstance(continuous, str):
        if continuous not in CONTINUOUS:
            raise ValueError(
                f"Unknown policy {continuous!r}; expected one of {sorted(CONTINUOUS)}."
            )
        continuous = CONTINUOUS[continuous]
    leaves = sorted_leaves(action_spec, action_key)
    parts = [_action_output(k, spec, continuous, unimix) for k, spec in leaves.items()]
    return Head(in_features, parts[0] if len(parts) == 1 else JointOutput(parts), **network)


def _action_output(
    key: NestedKey, spec: TensorSpec, continuous: Callable[[int], Output], unimix: float
) -> Output:
    size = encoded_size(key, spec)
    counts = groups(spec)
    if counts is not None:
        return one_hot_groups(counts, unimix=unimix)
    if isinstance(spec, Binary):
        return BernoulliOutput((size,))
    if not spec.dtype.is_floating_point:
        raise TypeError(
            f"The action {key!r} holds numbers of type {spec.dtype}; a policy needs a float spec, "
            "Categorical, OneHot or their multi forms."
        )
    if isinstance(spec, Bounded):
        low, high = spec.space.low, spec.space.high
        if (low != -1).any() or (high != 1).any():
            raise ValueError(
                f"The action {key!r} is bounded by {low.min().item():g} and {high.max().item():g}; "
                "policies act within -1 and 1. Rescale the environment's actions."
            )
    return continuous(size)
