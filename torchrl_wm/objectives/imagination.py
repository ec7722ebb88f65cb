"""Imagined trajectories with the rewards, continuations and values of their states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.distributions import Distribution

from torchrl_wm import keys
from torchrl_wm.modules.compilation import compile_function
from torchrl_wm.objectives.critic_loss import CriticLoss
from torchrl_wm.objectives.pieces import in_pieces
from torchrl_wm.objectives.rollout import Rollout
from torchrl_wm.programs.followed_rows import FollowedRows
from torchrl_wm.ranges import COUNT
from torchrl_wm.world_models import WorldModel


@contextmanager
def _held_out(module: nn.Module) -> Iterator[None]:
    """Inside, no parameter of ``module`` is trained; those that were frozen before stay frozen."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class Imagination(nn.Module):
    """Rolls an actor through a world model and asks the heads about every imagined state.

    The world model is not trained by the result: its parameters only pass gradients on.

    Args:
        world_model (WorldModel): the model; without a continuation head the discount is constant.
        actor (Head): features to a distribution over encoded actions.
        critic (callable, optional): features to a distribution over returns; the slow critic where it
            makes the targets. ``None`` where :meth:`CriticLoss.evaluate` supplies the values.
        horizon (int): number of imagined steps ``H``.

    Keyword Args:
        discount (float): continuation where the model does not predict one.
        through_dynamics (bool, optional): keep the graph from values to actions (actors trained through
            the dynamics). Without it only the actor's own graph is kept. Defaults to ``False``.
        rounded_features (bool, optional): under autocast give the features its type, where everything
            that reads them begins with a product and would round them anew. Defaults to ``False``.

    Raises:
        ValueError: for a horizon below 1.

    Examples:
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> from torchrl_wm.modules import TwoHotHead, actor_head
        >>> from torchrl_wm.world_models import make_rssm
        >>> specs = Composite(joints=Unbounded(6)), Composite(action=OneHot(2))
        >>> model = make_rssm(*specs, belief_size=16, hidden_size=16, units=16)
        >>> actor = actor_head(specs[1], model.feature_size, layers=1, units=16)
        >>> critic = TwoHotHead(model.feature_size, layers=1, units=16)
        >>> imagine = Imagination(model, actor, critic, 15, discount=0.99)
        >>> trajectory = imagine(model.initial([8]))
        >>> trajectory["state_value"].shape, trajectory["action"].shape
        (torch.Size([16, 8, 1]), torch.Size([16, 8, 2]))
    """

    def __init__(
        self,
        world_model: WorldModel,
        actor: nn.Module,
        critic: Callable[[Tensor], Distribution] | None,
        horizon: int,
        *,
        discount: float,
        through_dynamics: bool = False,
        rounded_features: bool = False,
    ):
        super().__init__()
        COUNT.check(imagination_horizon=horizon)
        self.world_model, self.actor, self.critic = world_model, actor, critic
        self.horizon, self.discount = horizon, discount
        self.through_dynamics, self.rounded_features = through_dynamics, rounded_features
        self._follow()

    def forward(
        self,
        latents: TensorDictBase,
        *,
        start_continuation: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> TensorDict:
        """Imagines from latents ``[...]`` (``N`` in all), which are detached.

        Keyword Args:
            start_continuation (Tensor, optional): the known continuation of the start states,
                ``[..., 1]``, instead of the predicted one (Dreamer v2).
            noise (Tensor, optional): noise of the model's draws, ``[N, H, noise size]``.

        Returns:
            TensorDict: ``[H + 1, N]``, time first, with ``features``, ``action`` (encoded; zeros in the last
            row), ``reward``, ``continuation`` and, with a critic, ``state_value``, ``[..., 1]`` each. Where
            the actor ran in torch, and not in a program on the CPU, also its outputs ``raw_policy``, with
            their graph (zeros in the last row).
        """
        if self._parts() != self._followed_parts:
            self._follow()
        policies: list[Tensor] = []
        act = self._acting(policies)
        with torch.set_grad_enabled(self.through_dynamics), _held_out(self.world_model):
            start = latents.select(*self.world_model.latent_keys).detach()
            features = self.world_model.features(start).reshape(-1, self.world_model.feature_size)
            if noise is None:
                noise = self.world_model.noise((self.horizon, len(features)), features.device)
                noise = noise.transpose(0, 1)
            trajectory = self._roll_out(features, noise)
            if trajectory is None:
                trajectory = self.world_model.imagine(start, act, self.horizon, noise=noise)
                trajectory = trajectory.select("features", keys.ACTION).transpose(0, 1)
                trajectory.set("features", trajectory["features"].to(self._dtype(features)))
            judged = self._judged(trajectory["features"])
            reward, continuation, *value = judged.split(1, -1)
        if start_continuation is not None:
            continuation = torch.cat([start_continuation.reshape(1, -1, 1), continuation[1:]])
        trajectory.set(keys.REWARD, reward).set(keys.CONTINUATION, continuation)
        if policies:
            policies = torch.stack([*policies, torch.zeros_like(policies[0])])
            trajectory.set(keys.RAW_POLICY, policies)
        if value:
            trajectory.set(keys.STATE_VALUE, value[0])
        return trajectory

    def _roll_out(self, features: Tensor, noise: Tensor) -> TensorDict | None:
        """``features`` and ``action``, ``[H + 1, N]``, where a program can predict them."""
        if self.through_dynamics:
            return None
        found = self._rollout(features, noise.transpose(0, 1), self._dtype(features))
        if found is None:
            return None
        features, actions = found
        actions = torch.cat([actions, torch.zeros_like(actions[:1])])
        return TensorDict({"features": features, keys.ACTION: actions}, features.shape[:2])

    def _dtype(self, features: Tensor) -> torch.dtype:
        kind = features.device.type
        rounded = self.rounded_features and torch.is_autocast_enabled(kind)
        return torch.get_autocast_dtype(kind) if rounded else features.dtype

    def compile_steps(self, **options) -> None:
        """Compiles the actor, and the heads on the imagined states.

        Args:
            **options: keyword arguments of :func:`torch.compile`.
        """
        self._policy = compile_function(self._policy, **options)
        self._judge = compile_function(self._judge, **options)

    def _acting(self, policies: list[Tensor]) -> Callable[[Tensor], Tensor]:
        """Features ``[N, F]`` to actions ``[N, A]``; the actor's raw outputs are appended to ``policies``.

        The features are detached, as in every Dreamer. The actor's graph is kept, so that its loss needs
        no second pass.
        """
        learning = torch.is_grad_enabled()

        def act(features: Tensor) -> Tensor:
            with torch.set_grad_enabled(learning):
                raw = self._policy(features.detach())
            policies.append(raw)
            return self.actor.output(raw if self.through_dynamics else raw.detach()).rsample()

        return act

    def _policy(self, features: Tensor) -> Tensor:
        return self.actor.raw(features)

    def _follow(self) -> None:
        """Programs for the parts that there are now."""
        self._followed_parts = model, actor, critic = self._parts()
        self._rollout = Rollout(model, actor)
        owner = getattr(critic, "__self__", None)
        parts = [] if critic is None else [critic]
        if isinstance(owner, CriticLoss):  # its slow critic
            slow = owner.target_critic_params if owner.use_ema_critic else owner.critic_params
            parts = [owner.critic, slow]
        known = all(isinstance(part, nn.Module) for part in parts)
        judge = type(self)._judge.__get__(self)  # not what was compiled of it
        self._judging = FollowedRows(judge, model, *parts) if known else None

    def _parts(self) -> tuple:
        return self.world_model, self.actor, self.critic

    def _judged(self, features: Tensor) -> Tensor:
        known = self._judging is not None and self.world_model.continuation_head is not None
        found = self._judging(features) if known and not torch.is_grad_enabled() else None
        return in_pieces(self._judge, features) if found is None else found

    def _judge(self, features: Tensor) -> Tensor:
        """Reward, continuation and, with a critic, value of states: ``[..., 2 or 3]``."""
        model = self.world_model
        reward = model.reward_head(features).mean
        if model.continuation_head is None:
            continuation = torch.full_like(reward, self.discount)
        else:
            continuation = model.continuation_head(features).mean
        if self.critic is None:
            return torch.cat([reward, continuation], -1)
        return torch.cat([reward, continuation, self.critic(features).mean], -1)
