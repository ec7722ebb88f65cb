"""DreamerV3 (https://arxiv.org/abs/2301.04104), as in the authors' current code.

Differs from the paper: the return scale starts at 0 and the policy has no uniform share, as in the code.
Differs from the code: sequences are drawn uniformly, without first training on the newest ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import CudaGraphModule
from torchrl.data import Composite

from torchrl_wm import keys
from torchrl_wm.algorithms.algorithm import results, total
from torchrl_wm.algorithms.dreamer import Dreamer
from torchrl_wm.algorithms.optimizers import DecayingDreamerV3Optimizer
from torchrl_wm.algorithms.options import checks_options, preset
from torchrl_wm.algorithms.world_model_factory import WorldModelFactory, build_world_model
from torchrl_wm.modules.heads import TwoHotHead, actor_head
from torchrl_wm.modules.normalizers import ReturnNormalizer
from torchrl_wm.objectives import (
    ActorLoss,
    CriticLoss,
    Imagination,
    Reinforce,
    ReplayCriticLoss,
    WorldModelLoss,
    align_v3,
    make_divergence,
)
from torchrl_wm.policies import FilteringActor

_SIZES = {  # belief, units of all layers, classes of a categorical, channels of images
    "tiny": (128, 64, 4, 4),  # not among the published ones: for classic control on a CPU
    "size1m": (512, 64, 4, 4),
    "size12m": (2048, 256, 16, 16),
    "size25m": (3072, 384, 24, 24),
    "size50m": (4096, 512, 32, 32),
    "size100m": (6144, 768, 48, 48),
    "size200m": (8192, 1024, 64, 64),
    "size400m": (12288, 1536, 96, 96),
}


def sizes(name: str) -> dict[str, int]:
    """The options of :func:`~torchrl_wm.world_models.make_rssm` for a preset.

    Raises:
        ValueError: for an unknown preset; the message lists the valid ones.

    Examples:
        >>> sizes("size1m")["belief_size"]
        512
    """
    belief, units, classes, depth = preset(_SIZES, name)
    return {
        "belief_size": belief,
        "hidden_size": units,
        "units": units,
        "classes": classes,
        "depth": depth,
    }


def autocast_dtype(precision: str) -> torch.dtype:
    """The dtype of matrix products in a precision, ``"float32"`` or ``"bfloat16"``.

    Raises:
        ValueError: for another precision.
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"Unknown precision {precision!r}; expected 'float32' or 'bfloat16'.")
    return getattr(torch, precision)


class DreamerV3(Dreamer):
    """One loss and one optimiser for world model, actor and critic.

    Args:
        observation_spec, action_spec (Composite): unbatched specs.

    Keyword Args:
        world_model (callable, optional): makes the world model from the specs; parameters that it names
            and does not set are those of DreamerV3. Defaults to
            :func:`~torchrl_wm.world_models.make_rssm`.
        size (str, optional): preset of all sizes, ``"tiny"``, ``"size1m"`` to ``"size400m"``.
        imagination_horizon (int, optional): imagined steps. Defaults to ``15``.
        imagination_starts (int, optional): number of last steps of each sequence that imagination starts
            from; ``0`` for all. Defaults to ``0``.
        discount (float, optional): discount of one step. Defaults to ``1 - 1 / 333``.
        contdisc (bool, optional): learn the discount as part of the continuation, as the published
            runs do; otherwise it multiplies the predicted continuations. Defaults to ``True``.
        lambda_ (float, optional): mixture of the lambda return. Defaults to ``0.95``.
        free_bits (float, optional): free nats of both divergence terms. Defaults to ``1.0``.
        kl (dict, optional): options of :func:`~torchrl_wm.objectives.make_divergence`.
        reconstruction_scale (float, optional): weight of the observations; above 1 for small vectors,
            such as angles in radians. Defaults to ``1.0``.
        reward_scale, continuation_scale, actor_scale, critic_scale (float, optional): weights of these
            terms. Default to ``1.0``.
        use_reconstruction, use_symlog (bool, optional): see ``make_rssm``. Default to ``True``.
        use_ema_critic (bool, optional): regularise towards a slow critic. Defaults to ``True``.
        critic_ema_decay (float, optional): share of the slow critic kept when it moves. Defaults to
            ``0.98``.
        critic_update_every (int, optional): updates from one move to the next. Defaults to ``1``.
        replay_critic_scale (float, optional): weight of the critic's loss on replayed states.
        entropy (float, optional): weight of the policy's entropy. Defaults to ``3e-4``.
        return_rate (float, optional): rate of the return normaliser. Defaults to ``0.01``.
        lr (float, optional): learning rate after a linear warm-up. Defaults to ``4e-5``.
        agc (float, optional): adaptive gradient clipping. Defaults to ``0.3``.
        lr_warmup (int, optional): updates of the warm-up. Defaults to ``1000``.
        weight_decay (float, optional): decoupled decay of matrices. Defaults to ``0.0``.
        units (int, optional): size of the layers of actor and critic; that of the preset where
            ``None``. Defaults to ``None``.
        actor_layers, critic_layers (int, optional): their numbers of layers. Default to ``3``.
        bins (int, optional): bins of rewards and values. Defaults to ``255``.
        precision (str, optional): ``"float32"``, or ``"bfloat16"`` for the matrix products; on a CPU those
            of observed steps stay in float32, which is faster there.
        compile (bool, optional): compile the steps of the loops. Defaults to ``False``.
        cuda_graph (bool, optional): on a GPU, capture losses and gradients in a CUDA graph in the third
            update, which then launches their thousands of small operations at once. All batches must have
            the shape and entries of the first; padded ones (with a mask) are not captured. No effect on a
            CPU. Defaults to ``False``.
        device (torch.device, optional): where the parameters live.

    Examples:
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> agent = DreamerV3(Composite(observation=Unbounded(4)), Composite(action=OneHot(2)))
        >>> sample = agent.world_model.initial([2, 9]).update(
        ...     {"observation": torch.randn(2, 9, 4), "reward": torch.randn(2, 9, 1)}
        ... )
        >>> flags = {k: torch.zeros(2, 9, 1).bool() for k in ("is_init", "is_last", "terminated")}
        >>> sample = sample.update(flags).set("previous_action", torch.zeros(2, 9, 2))
        >>> metrics, latents = agent.update(sample)
        >>> latents["belief"].shape
        torch.Size([2, 8, 512])
    """

    @checks_options
    def __init__(
        self,
        observation_spec: Composite,
        action_spec: Composite,
        *,
        world_model: WorldModelFactory | None = None,
        size: str = "size1m",
        imagination_horizon: int = 15,
        imagination_starts: int = 0,
        discount: float = 1 - 1 / 333,
        contdisc: bool = True,
        lambda_: float = 0.95,
        free_bits: float = 1.0,
        kl: Mapping[str, Any] = {"strategy": "separate"},  # noqa: B006 (read only)
        reconstruction_scale: float = 1.0,
        reward_scale: float = 1.0,
        continuation_scale: float = 1.0,
        actor_scale: float = 1.0,
        critic_scale: float = 1.0,
        use_reconstruction: bool = True,
        use_symlog: bool = True,
        use_ema_critic: bool = True,
        critic_ema_decay: float = 0.98,
        critic_update_every: int = 1,
        replay_critic_scale: float = 0.3,
        entropy: float = 3e-4,
        return_rate: float = 0.01,
        lr: float = 4e-5,
        agc: float = 0.3,
        lr_warmup: int = 1000,
        weight_decay: float = 0.0,
        units: int | None = None,
        actor_layers: int = 3,
        critic_layers: int = 3,
        bins: int = 255,
        precision: str = "float32",
        compile: bool = False,
        cuda_graph: bool = False,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        # The critic learns from a replayed state by what it led to.
        self.shortest_sequence = 2 if replay_critic_scale else 1
        if 0 < imagination_starts < self.shortest_sequence:
            raise ValueError(
                f"imagination_starts={imagination_starts} leaves the critic's loss on replayed states no "
                "state to learn from: give 0 (all steps) or at least 2, or replay_critic_scale=0."
            )
        flags = {"use_reconstruction": use_reconstruction, "use_symlog": use_symlog, "bins": bins}
        chosen = {"style": "v3", **sizes(size), **flags}
        model = build_world_model(world_model, observation_spec, action_spec, chosen)
        units = chosen["units"] if units is None else units
        features = model.feature_size
        self.world_model = model
        self.actor = actor_head(
            action_spec, features, out_scale=0.01, layers=actor_layers, units=units
        )
        self.critic = TwoHotHead(features, bins=bins, layers=critic_layers, units=units)
        self.policy = FilteringActor(model, self.actor)
        self.evaluation_policy = FilteringActor(model, self.actor)  # v3 samples in evaluation too
        self.to(device)
        # The discount is either learned as part of the continuation or applied to what it predicts.
        learned, self.applied_discount = (discount, 1.0) if contdisc else (1.0, discount)
        self.world_model_loss = WorldModelLoss(
            model,
            make_divergence(free_bits=free_bits, **kl),
            reconstruction_scale=reconstruction_scale,
            reward_scale=reward_scale,
            continuation_scale=continuation_scale,
            continuation_discount=learned,
        )
        options = {"discount": learned, "rounded_features": True}
        self.imagination = Imagination(model, self.actor, None, imagination_horizon, **options)
        self.normalizer = ReturnNormalizer(rate=return_rate).to(device)
        self.actor_loss = ActorLoss(
            self.actor, Reinforce(), entropy_scale=entropy, normalizer=self.normalizer
        )
        self.critic_loss = CriticLoss(
            self.critic,
            use_ema_critic=use_ema_critic,
            slow_regularization=1.0 if use_ema_critic else 0.0,
        )
        self.replay_critic_loss = ReplayCriticLoss(
            self.critic_loss, discount=discount, lambda_=lambda_, scale=replay_critic_scale
        )
        self.slow_update = self._slow_update(1 - critic_ema_decay, critic_update_every)
        self.imagination_starts, self.lambda_ = imagination_starts, lambda_
        self.actor_scale, self.critic_scale = actor_scale, critic_scale
        self.precision = autocast_dtype(precision)
        if compile:
            for part in (model, self.imagination, self.actor_loss, self.critic_loss):
                part.compile_steps(dynamic=False)
        parts = (model, self.actor, self.critic)
        groups = [{"params": list(part.parameters())} for part in parts]
        optimizer = DecayingDreamerV3Optimizer(
            groups, lr=lr, agc=agc, warmup_steps=lr_warmup, weight_decay=weight_decay
        )
        self.optimizers = {"all": optimizer}
        self.cuda_graph = cuda_graph
        self._captured: CudaGraphModule | None = None

    def update(self, sample: TensorDictBase) -> tuple[TensorDict, TensorDict]:
        """One update of everything on step records ``[B, T + 1]``.

        Raises:
            RuntimeError: with ``cuda_graph``, for what cannot be captured and batches of another shape.
        """
        if self.cuda_graph and self._device.type == "cuda" and keys.MASK not in sample.keys(True):
            found = self._replay(sample)
        else:  # what is padded differs from batch to batch
            found = self._differentiate(sample)
        self.optimizers["all"].step()
        if self.slow_update is not None:
            self.slow_update.step()
        return found["metrics"], found["latents"]

    def _differentiate(self, sample: TensorDictBase) -> TensorDict:
        """Writes the gradients; returns what :meth:`update` does."""
        with self._autocast():
            losses = self._losses(sample)
        self._backward(sum(total(part) for part in losses))
        metrics, latents = results(*losses)
        return TensorDict(metrics=metrics, latents=latents)

    def _replay(self, sample: TensorDictBase) -> TensorDict:
        """The same from a CUDA graph, which the third call captures."""
        if self._captured is None:
            options = {"in_keys": [], "out_keys": [], "device": self._device}
            self._captured = CudaGraphModule(self._differentiate, warmup=3, **options)
        try:
            return self._captured(sample)
        except (KeyError, RuntimeError) as error:
            raise RuntimeError(
                f"The update cannot be captured as a CUDA graph, or its batch {list(sample.batch_size)} "
                "differs from the captured one in entries or shapes. Without cuda_graph=True it may be done."
            ) from error

    def _backward(self, loss: torch.Tensor) -> None:
        # A replay writes where the capture wrote: the memory of the gradients must stay.
        self.optimizers["all"].zero_grad(set_to_none=self._captured is None)
        loss.backward()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_captured": None}  # copies capture their own

    def pretrain(self, sample: TensorDictBase) -> tuple[TensorDict, TensorDict]:
        """One update of the world model alone."""
        with self._autocast():
            losses = self.world_model_loss(sample)
        self._backward(total(losses))
        self.optimizers["all"].step()
        return results(losses)

    @property
    def _device(self) -> torch.device:
        return next(self.actor.parameters()).device

    def _autocast(self) -> torch.autocast:
        reduced = self.precision != torch.float32
        return torch.autocast(
            self._device.type, self.precision if reduced else None, enabled=reduced
        )

    def _losses(self, sample: TensorDictBase) -> list[TensorDict]:
        model_losses = self.world_model_loss(sample)
        latents, records = self._starts(model_losses["latents"], sample[:, 1:])
        trajectory = self.imagination(latents)
        value_units = self.critic_loss.evaluate(trajectory)
        rows, _ = align_v3(trajectory, self.lambda_, self.applied_discount)
        if value_units is not None:
            rows.set(keys.VALUE_UNITS, value_units)
        self.start_mask(records, rows)
        actor, critic = self.actor_loss(rows), self.critic_loss(rows)
        actor.set("loss_actor", self.actor_scale * actor["loss_actor"])
        critic.set("loss_critic", self.critic_scale * critic["loss_critic"])
        losses = [model_losses, actor, critic]
        if self.replay_critic_loss.scale:
            bootstrap = rows["lambda_target"][0].view(*latents.batch_size, 1)
            losses.append(self._replay_critic(latents, records, bootstrap))
        return losses

    def _replay_critic(
        self, latents: TensorDictBase, records: TensorDictBase, bootstrap: torch.Tensor
    ) -> TensorDict:
        entries = [*self.replay_critic_loss.in_keys, keys.MASK]
        replayed = records.select(*entries, strict=False)
        replayed.set("features", self.world_model.features(latents)).set("bootstrap", bootstrap)
        return self.replay_critic_loss(replayed)
