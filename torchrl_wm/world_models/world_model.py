"""The interface of every world model to the rest of TorchRL: a module on TensorDict entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.data import Composite, Unbounded
from torchrl.envs import TensorDictPrimer

from torchrl_wm import keys
from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.modules.latents import Latent, Statistics

LatentTensors = tuple[Tensor, ...]


class WorldModel(TensorDictModuleBase):
    """Filters observations into latents, predicts latents from actions, decodes them.

    A latent at row ``t`` is always the posterior after observation ``t``: :meth:`filter` overwrites the
    root entry, :meth:`observe` does so for a sequence, and only :meth:`step` writes ``("next", latent)``,
    the prior one step on. Families implement three functions of plain tensors: ``_filter_tensors``,
    ``_observe_tensors`` and ``predict_tensors``.

    Called as a module (``world_model(tensordict)``) it filters, so that an actor can follow it.

    Args:
        encoder (nn.Module): from a TensorDict of observations to tokens ``[..., E]``, with ``in_keys``.
        action_encoding (ActionEncoding): how actions become vectors.
        latent (nn.Module): a latent of :mod:`torchrl_wm.modules.latents`, sampled in each step.
        latent_sizes (dict): latent entry to its size, in the order of :meth:`features`.

    Keyword Args:
        decoder (nn.Module, optional): from features to ``{entry: distribution}``.
        reward_head (nn.Module, optional): from features to a distribution over rewards.
        continuation_head (nn.Module, optional): from features to a Bernoulli over the episode going on.
        is_init_key, previous_action_key (NestedKey, optional): entries of :mod:`torchrl_wm.keys`.
    """

    latent_is_observation = False
    """Whether a latent is a code of its observation alone: nothing predicts the first of an episode, and a
    loss of predictions must not train the code."""

    def __init__(
        self,
        encoder: nn.Module,
        action_encoding: ActionEncoding,
        latent: Latent,
        latent_sizes: dict[NestedKey, int],
        *,
        decoder: nn.Module | None = None,
        reward_head: nn.Module | None = None,
        continuation_head: nn.Module | None = None,
        is_init_key: NestedKey = keys.IS_INIT,
        previous_action_key: NestedKey = keys.PREVIOUS_ACTION,
    ):
        super().__init__()
        if taken := [key for key in latent_sizes if key in encoder.in_keys]:
            raise ValueError(
                f"The latent {taken[0]!r} has the name of an observation. Name the latent otherwise, as with "
                "state_key=..., or rename the observation with torchrl.envs.RenameTransform."
            )
        self.encoder, self.action_encoding, self.latent = encoder, action_encoding, latent
        self.decoder, self.reward_head = decoder, reward_head
        self.continuation_head = continuation_head
        self.latent_sizes = {unravel_key(key): size for key, size in latent_sizes.items()}
        self.is_init_key, self.previous_action_key = is_init_key, previous_action_key
        self.in_keys = [*encoder.in_keys, is_init_key, previous_action_key, *self.latent_keys]
        self.out_keys = list(self.latent_keys)

    # -- carried entries ---------------------------------------------------------------------
    @property
    def latent_keys(self) -> list[NestedKey]:
        """The entries carried from step to step."""
        return list(self.latent_sizes)

    @property
    def latent_spec(self) -> Composite:
        """Spec of one unbatched latent."""
        spec = Composite()
        for key, size in self.latent_sizes.items():
            spec[key] = Unbounded(size)
        return spec

    @property
    def latent_codecs(self) -> dict[NestedKey, torch.dtype | int]:
        """How a replay stores the latents: floats in half precision, one-hot states by class index."""
        return dict.fromkeys(self.latent_keys, torch.float16)

    @property
    def members(self) -> int:
        """Number of dynamics models: more than 1 in an ensemble."""
        return 1

    @property
    def feature_size(self) -> int:
        """Size of :meth:`features`."""
        return sum(self.latent_sizes.values())

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform with which a TorchRL environment or collector carries the latents."""
        return TensorDictPrimer(self.latent_spec, default_value=0.0, expand_specs=True)

    def initial(self, batch_size: Sequence[int], device=None) -> TensorDict:
        """Zero latents ``[*batch_size]``, those before the first observation of an episode."""
        return self._latent_td(
            tuple(torch.zeros(*batch_size, n, device=device) for n in self.latent_sizes.values()),
            batch_size,
        )

    def features(self, latents: TensorDictBase) -> Tensor:
        """All latent entries joined, the input of actors, critics and heads: ``[..., feature_size]``."""
        return torch.cat([latents.get(key) for key in self.latent_keys], -1)

    # -- the interface -------------------------------------------------------------------------
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Same as :meth:`filter`."""
        return self.filter(tensordict)

    def filter(self, tensordict: TensorDictBase, *, noise: Tensor | None = None) -> TensorDictBase:
        """One step of filtering ``[...]``: overwrites the root latents by the posterior.

        Reads the observations, ``is_init`` (where True the latents and the previous action count as
        zero), ``previous_action`` and the latents of the step before.

        Raises:
            KeyError: for a missing entry, carried latents included.
            ValueError: for an entry of another shape than in the specs.
        """
        batch = tensordict.batch_size
        carry = self._carry(tensordict)
        action = self._require(tensordict, self.previous_action_key, (self.action_encoding.size,))
        is_init = self._is_init(tensordict)
        noise = self.noise(batch, action.device) if noise is None else noise
        latents = self._filter_tensors(self._encode(tensordict), action, is_init, carry, noise)
        return tensordict.update(self._latent_td(latents, batch))

    def observe(
        self,
        records: TensorDictBase,
        carry: TensorDictBase | None = None,
        *,
        noise: Tensor | None = None,
    ) -> TensorDict:
        """Filters step records ``[..., T]`` into posterior latents.

        Args:
            records (TensorDictBase): observations, ``is_init`` and ``previous_action``, ``[..., T]``.
                Resets in mid-sequence are handled exactly.
            carry (TensorDictBase, optional): latents ``[...]`` of the row before the first one.
                Defaults to zeros.

        Keyword Args:
            noise (Tensor, optional): standard noise ``[..., T, noise size]``. Drawn by default.

        Returns:
            TensorDict: latents ``[..., T]``, and below ``"prior"`` and ``"posterior"`` the statistics that
            the divergence needs.
        """
        batch, steps = records.batch_size[:-1], records.batch_size[-1]
        action = self._require(records, self.previous_action_key, (self.action_encoding.size,))
        is_init = self._is_init(records)
        carry = self.initial(batch, action.device) if carry is None else carry
        carry = tuple(value.reshape(-1, value.shape[-1]) for value in self._carry(carry))
        noise = self.noise((*batch, steps), action.device) if noise is None else noise
        flat = [
            x.reshape(batch.numel(), *x.shape[len(batch) :])
            for x in (self._encode(records), action, is_init, noise)
        ]
        latents, statistics = self._observe_tensors(*flat[:3], carry, flat[3])
        restore = lambda x: x.reshape(*batch, *x.shape[1:])
        out = self._latent_td(tuple(map(restore, latents)), (*batch, steps))
        for name, entries in statistics.items():
            for key, value in entries.items():
                out.set((name, key), restore(value))
        return out

    def step(self, tensordict: TensorDictBase, *, noise: Tensor | None = None) -> TensorDictBase:
        """One step of prediction ``[...]``: latents and action to ``("next", latent)``.

        The heads add ``("next", "reward")`` and ``("next", "continuation")``, ``[..., 1]`` each.
        """
        batch = tensordict.batch_size
        carry = self._carry(tensordict)
        action = self.action_encoding(tensordict)
        noise = self.noise(batch, action.device) if noise is None else noise
        following = self._latent_td(self.predict_tensors(carry, action, noise), batch)
        features = self.features(following)
        if self.reward_head is not None:
            following.set(keys.REWARD, self.reward_head(features).mean)
        if self.continuation_head is not None:
            following.set(keys.CONTINUATION, self.continuation_head(features).mean)
        for key, value in following.items(True, True):
            tensordict.set(unravel_key(("next", key)), value)
        return tensordict

    def imagine(
        self,
        start: TensorDictBase,
        policy: Callable[[Tensor], Tensor],
        horizon: int,
        *,
        noise: Tensor | None = None,
    ) -> TensorDict:
        """Rolls the model forward under a policy, without observations.

        Args:
            start (TensorDictBase): latents ``[...]``, flattened to ``N`` rows.
            policy (callable): features ``[N, feature_size]`` to encoded actions ``[N, A]``.
            horizon (int): number of steps ``H``.

        Keyword Args:
            noise (Tensor, optional): standard noise ``[N, H, noise size]``. Drawn by default.

        Returns:
            TensorDict: ``[N, H + 1]`` with the latents, their ``features``, and the encoded ``action``
            taken at each row (zeros in the last). In memory, time comes first.
        """
        latents = tuple(
            self._require(start, key).reshape(-1, n) for key, n in self.latent_sizes.items()
        )
        rows = latents[0].shape[0]
        if noise is None:
            noise = self.noise((horizon, rows), latents[0].device)
        else:
            noise = noise.transpose(0, 1)
        features, actions = self._imagine_tensors(latents, policy, noise.unbind(0))
        features = torch.stack(features).transpose(0, 1)
        actions = torch.stack([*actions, torch.zeros_like(actions[0])]).transpose(0, 1)
        out = self._latent_td(
            features.split(list(self.latent_sizes.values()), -1), (rows, horizon + 1)
        )
        return out.set("features", features).set(keys.ACTION, actions)

    def decode(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Reads latents ``[...]``, writes the decoded observations below ``"decoded"``.

        Raises:
            RuntimeError: where the model was built without a decoder.
        """
        if self.decoder is None:
            raise RuntimeError(
                "This world model has no decoder; build it with use_reconstruction=True."
            )
        for key, distribution in self.decoder(self._decoder_features(tensordict)).items():
            tensordict.set(unravel_key(("decoded", key)), distribution.mean)
        return tensordict

    def statistics(self, observed: TensorDictBase) -> tuple[Statistics, Statistics]:
        """Statistics of posterior and prior in what :meth:`observe` returned, as :meth:`kl` reads them."""
        return tuple(
            tuple(observed.get((side, name)) for name in self.latent.names)
            for side in ("posterior", "prior")
        )

    def kl(self, posterior: Statistics, prior: Statistics) -> Tensor:
        """Divergence ``[...]`` of the posterior from the prior, in nats."""
        return self.latent.kl(posterior, prior)

    def noise(
        self, batch_size: Sequence[int], device=None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Standard noise of the stochastic state, ``[*batch_size, noise size]``."""
        return self.latent.noise(tuple(batch_size), device=device, generator=generator)

    def trajectory_noise(
        self, horizon: int, rows: int, device=None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Noise ``[H, N, noise size]`` of N trajectories; each follows one member of an ensemble."""
        return self.noise((horizon, rows), device, generator)

    def unroll(self, latents: LatentTensors, actions: Tensor, noise: Tensor) -> LatentTensors:
        """Follows known action sequences, on plain tensors.

        Args:
            latents (tuple of Tensor): ``[N, size]`` each, in the order of ``latent_keys``.
            actions (Tensor): encoded, ``[H, N, A]``.
            noise (Tensor): ``[H, N, noise size]``.

        Returns:
            tuple of Tensor: the latents after each action, ``[H, N, size]`` each.
        """
        steps = []
        for action, draw in zip(actions, noise, strict=True):
            latents = self.predict_tensors(latents, action, draw)
            steps.append(latents)
        return tuple(map(torch.stack, zip(*steps, strict=True)))

    def predict_tensors(
        self, latents: LatentTensors, action: Tensor, noise: Tensor
    ) -> LatentTensors:
        """One step of prediction on plain tensors ``[N, size]``; every family implements it."""
        raise NotImplementedError

    def predict_features(self, features: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """One step of imagination: features ``[N, feature_size]`` to the following ones."""
        latents = features.split(list(self.latent_sizes.values()), -1)
        return torch.cat(self.predict_tensors(latents, action, noise), -1)

    def predict_prior(
        self, latents: LatentTensors, action: Tensor, noise: Tensor
    ) -> tuple[LatentTensors, Statistics]:
        """One step of prediction on plain tensors ``[..., size]``: latents and statistics of the prior.

        Raises:
            NotImplementedError: for a model without stochastic latents.
        """
        raise NotImplementedError(f"{type(self).__name__} predicts no distribution over latents.")

    # -- what families implement -----------------------------------------------------------------
    def _filter_tensors(self, tokens, action, is_init, carry, noise) -> LatentTensors:
        raise NotImplementedError

    def _observe_tensors(self, tokens, action, is_init, carry, noise):
        raise NotImplementedError

    def _imagine_tensors(self, latents, policy, noise) -> tuple[list[Tensor], list[Tensor]]:
        features, actions = [torch.cat(latents, -1)], []
        for draw in noise:
            actions.append(policy(features[-1]))
            latents = self.predict_tensors(latents, actions[-1], draw)
            features.append(torch.cat(latents, -1))
        return features, actions

    def _decoder_features(self, tensordict: TensorDictBase) -> Tensor:
        """The decoder's input: all features, unless a latent carries more than the observation."""
        return self.features(tensordict)

    # -- reading and writing ---------------------------------------------------------------------
    def _encode(self, tensordict: TensorDictBase) -> Tensor:
        shapes = getattr(self.encoder, "shapes", {})  # encoders of users may know none
        for key in self.encoder.in_keys:
            self._require(tensordict, key, shapes.get(key))
        return self.encoder(tensordict)

    def _carry(self, tensordict: TensorDictBase) -> LatentTensors:
        return tuple(self._require(tensordict, key, (n,)) for key, n in self.latent_sizes.items())

    def _require(
        self, tensordict: TensorDictBase, key: NestedKey, shape: Sequence[int] | None = None
    ) -> Tensor:
        """The entry ``[*batch, *shape]``.

        Raises:
            KeyError: where it is missing; the message says how to add it.
            ValueError: where it has another shape.
        """
        value = tensordict.get(key, None)
        if value is None:
            raise KeyError(
                f"{type(self).__name__} needs the entry {key!r}; found "
                f"{sorted(map(str, tensordict.keys(True, True)))}. {self._remedy(key)}"
            )
        if shape is not None and value.shape != (*tensordict.batch_size, *shape):
            raise ValueError(
                f"The entry {key!r} has the shape {list(value.shape)}; {type(self).__name__} was "
                f"built for {list(shape)} after the batch dimensions {list(tensordict.batch_size)}."
            )
        return value

    def _is_init(self, tensordict: TensorDictBase) -> Tensor:
        value = self._require(tensordict, self.is_init_key, (1,))
        if value.dtype != torch.bool:
            raise TypeError(
                f"The entry {self.is_init_key!r} holds {value.dtype}; expected truth values (torch.bool). "
                "Convert it with .bool()."
            )
        return value

    def _remedy(self, key: NestedKey) -> str:
        if key in self.latent_keys:
            return "Append world_model.make_tensordict_primer() to the environment to carry the latents."
        if key == self.previous_action_key:
            return "Append the transform torchrl_wm.envs.PreviousStep to the environment."
        if key == self.is_init_key:
            return "Append torchrl.envs.InitTracker to the environment."
        return "The world model was built for an observation spec that has this entry."

    def _latent_td(self, latents: Sequence[Tensor], batch_size: Sequence[int]) -> TensorDict:
        out = TensorDict(batch_size=batch_size)
        for key, value in zip(self.latent_keys, latents, strict=True):
            out.set(key, value)
        return out
