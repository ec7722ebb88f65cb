"""A world model as an environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import unravel_key
from torchrl.data import Composite, ReplayBuffer, Unbounded
from torchrl.envs import ModelBasedEnvBase

from torchrl_wm import keys
from torchrl_wm.data import (
    LatentCompression,
    PrioritizedSequenceSampler,
    RingWriter,
    StepReplay,
)
from torchrl_wm.world_models import WorldModel

Start = Callable[[int], TensorDictBase] | TensorDictBase | ReplayBuffer | StepReplay

FEATURES = "features"
"""``[..., F]`` float: all latent entries joined, what a policy reads."""


class LearnedEnv(ModelBasedEnvBase):
    """Any world model as a TorchRL environment of any batch shape, for policies, losses and collectors.

    The state is the latent. A step writes the next latents, ``features``, the predicted ``reward`` and,
    where the model has that head, ``continuation``, a probability to weight later rewards with (1 after
    a reset). Gradients flow from the predictions back to actions, latents and parameters.

    Episodes end only through ``terminate_below``; for a horizon append
    :class:`torchrl.envs.StepCounter` with ``max_steps``.

    Args:
        world_model (WorldModel): the model; its step must predict rewards. It stays on its device.

    Keyword Args:
        start (callable, TensorDictBase, ReplayBuffer or StepReplay, optional): where episodes begin: a
            function of a number of rows that returns latents ``[n]``, latents ``[...]`` from which rows
            are drawn uniformly, or a replay that stores latents, whose rows are drawn uniformly too
            (except the final ones of step records, which no policy filtered). Defaults to zeros, the latents
            before any observation. Latents passed to ``reset`` take precedence.
        write_observations (bool, optional): decode the latents and write the observations under their
            own names, so that a policy of the real environment acts here: images as floats in [0, 1],
            and probabilities in place of binary numbers. Defaults to ``False``.
        terminate_below (float, optional): a continuation below it ends the episode. Defaults to
            episodes that never end.
        batch_size (sequence of int, optional): of a reset without a TensorDict. Defaults to ``()``.

    Raises:
        ValueError: for a model that predicts no rewards, or ``terminate_below`` for one that predicts
            no continuation.
        RuntimeError: for ``write_observations`` with a model that cannot decode.
            In a step or reset, for a model that was moved to another device since.
        KeyError: at a reset, where the start lacks a latent.

    Examples:
        >>> from torchrl.data import Bounded
        >>> from torchrl.envs import StepCounter, TransformedEnv
        >>> from torchrl_wm.world_models import make_rssm
        >>> specs = Composite(joints=Unbounded(6)), Composite(action=Bounded(-1, 1, (2,)))
        >>> env = LearnedEnv(make_rssm(*specs, belief_size=16, units=8), batch_size=[5])
        >>> env.rollout(3)["next", "reward"].shape
        torch.Size([5, 3, 1])
        >>> env = TransformedEnv(env, StepCounter(max_steps=15))
        >>> env.rollout(100)["next", "truncated"].sum().item()
        5
    """

    def __init__(
        self,
        world_model: WorldModel,
        *,
        start: Start | None = None,
        write_observations: bool = False,
        terminate_below: float | None = None,
        batch_size: Sequence[int] = (),
    ):
        device = next(world_model.parameters()).device
        super().__init__(world_model, device=device, batch_size=torch.Size(batch_size))
        self.start, self.terminate_below = _rows_of(start), terminate_below
        self.write_observations = write_observations
        self._make_specs()

    def _make_specs(self) -> None:
        model, batch = self.world_model, self.batch_size
        actions = Composite()
        for key, spec in model.action_encoding.leaves.items():
            actions[key] = spec.clone().to(self.device)
        with torch.no_grad():
            example = model.initial((), self.device).update(actions.zero())
            example = self._describe(model.step(example).get("next"))
        if example.pop(keys.REWARD, None) is None:
            raise ValueError(
                f"An environment needs rewards, but the step of this {type(model).__name__} "
                f"predicts only {sorted(map(str, example.keys(True, True)))}: it has no reward head."
            )
        self._goes_on = keys.CONTINUATION in example.keys()
        if self.terminate_below is not None and not self._goes_on:
            raise ValueError(
                "terminate_below needs a model that predicts a continuation (use_continuation=True)."
            )
        observed = Composite()
        for key, value in example.items(True, True):
            observed[key] = Unbounded(value.shape, dtype=value.dtype, device=self.device)
        self.observation_spec = observed.expand(batch)
        self.state_spec = model.latent_spec.to(self.device).expand(batch)
        self.action_spec = actions.expand(batch)
        self.reward_spec = Unbounded((*batch, 1), device=self.device)

    def _check_device(self) -> None:
        # Not followed in silence: collectors and transforms were made for the device of the specs.
        found = next(self.world_model.parameters()).device
        same = found.type == self.device.type and self.device.index in (None, found.index)
        if not same:
            raise RuntimeError(
                f"The world model is on {found}, but its environment was made on {self.device}: move the "
                f"environment too, env.to({str(found)!r}), or make it after moving the model."
            )

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._check_device()
        inputs = (*self.world_model.latent_keys, *self.world_model.action_encoding.in_keys)
        stepped = self.world_model.step(tensordict.select(*inputs, strict=False)).get("next")
        out = self._describe(stepped)
        if self.terminate_below is not None:
            out.set("terminated", out.get(keys.CONTINUATION) < self.terminate_below)
            out.set("done", out.get("terminated").clone())
        return out

    def _reset(self, tensordict: TensorDictBase | None, **kwargs) -> TensorDictBase:
        self._check_device()
        model = self.world_model
        batch = self.batch_size if tensordict is None else tensordict.batch_size
        latents = None
        if tensordict is not None and "_reset" not in tensordict.keys():
            latents = tensordict.select(*model.latent_keys, strict=False)
        if latents is None or latents.is_empty():
            latents = self._draw(batch)
        out = TensorDict(batch_size=batch, device=self.device)
        for key, size in model.latent_sizes.items():
            value = latents.get(key, None)
            if value is None:
                found = sorted(map(str, latents.keys(True, True)))
                raise KeyError(f"A start needs the latent {key!r}; found {found}.")
            out.set(key, value.to(self.device).reshape(*batch, size))
        self._describe(out)
        if self._goes_on:
            out.set(keys.CONTINUATION, torch.ones(*batch, 1, device=self.device))
        return out

    def _draw(self, batch: torch.Size) -> TensorDictBase:
        if self.start is None:
            return self.world_model.initial(batch, self.device)
        return self.start(batch.numel())

    def _describe(self, latents: TensorDictBase) -> TensorDictBase:
        """Adds what is computed from the latents: features and, if requested, observations."""
        latents.set(FEATURES, self.world_model.features(latents))
        if self.write_observations:
            decoded = self.world_model.decode(latents).pop("decoded")
            for key, value in decoded.items(True, True):
                latents.set(unravel_key(key), value)
        return latents

    def _set_seed(self, seed: int | None) -> None:
        torch.manual_seed(seed)


def _stored_rows(buffer: ReplayBuffer, count: int) -> TensorDictBase:
    """Rows of a buffer: of step records drawn evenly, but for final ones, which hold no latents."""
    if not isinstance(buffer.writer, RingWriter):
        return buffer.sample(count)
    roots = PrioritizedSequenceSampler(buffer.writer, 1, alpha=0.0)
    index, _ = roots.sample(buffer.storage, max(count, 1))
    rows = buffer.storage.get(index[:count])
    for transform in buffer._transform:  # the others may need whole sequences
        if isinstance(transform, LatentCompression):
            rows = transform(rows)
    return rows


def _rows_of(start: Start | None) -> Callable[[int], TensorDictBase] | None:
    if isinstance(start, StepReplay):
        start = start.buffer
    if isinstance(start, ReplayBuffer):
        return partial(_stored_rows, start)
    if isinstance(start, TensorDictBase):
        rows = start.reshape(-1)
        return lambda count: rows[torch.randint(len(rows), (count,), device=rows.device)]
    return start
