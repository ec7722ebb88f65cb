"""What every world model of PlaNet and the Dreamers predicts beside observations."""

from __future__ import annotations

from typing import Any

from torchrl_wm.modules.heads import BernoulliHead, Head, NormalHead, TwoHotHead
from torchrl_wm.modules.styles import Style


def prediction_heads(
    style: Style,
    features: int,
    *,
    reward_layers: int,
    continuation_layers: int,
    use_continuation: bool,
    bins: int,
    **network: Any,
) -> dict[str, Head]:
    """Heads of rewards and, where they are used, continuations: arguments of ``WorldModel``.

    DreamerV3 has two-hot rewards of ``bins``, the others a normal of variance 1. ``network`` are
    arguments of :class:`~torchrl_wm.modules.Head`.
    """
    heads: dict[str, Head] = {}
    if style == "v3":
        heads["reward_head"] = TwoHotHead(features, bins=bins, layers=reward_layers, **network)
    else:
        heads["reward_head"] = NormalHead(features, layers=reward_layers, **network)
    if use_continuation:
        heads["continuation_head"] = BernoulliHead(features, layers=continuation_layers, **network)
    return heads
