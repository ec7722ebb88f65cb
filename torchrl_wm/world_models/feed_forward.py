"""World models without recurrence: the latent follows from the present observation alone."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn

from torchrl_wm import keys
from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.modules.compilation import compile_function
from torchrl_wm.modules.dynamics import EnsembleDynamics
from torchrl_wm.modules.flat_encoder import FlatEncoder
from torchrl_wm.modules.latents import GaussianLatent, Statistics
from torchrl_wm.world_models.world_model import LatentTensors, WorldModel


class FeedForward(WorldModel):
    """A latent that is the code of the present observation, and Gaussian dynamics.

    In the losses, the posterior is a Gaussian of fixed width around the code and the prior is the
    prediction of the dynamics, so the divergence is the negative log-likelihood of the code up to a
    constant, and the losses of the recurrent models apply. Errors below the width cost next to nothing.
    The divergence trains only the dynamics; the code is trained by decoder and heads, as in World Models
    (https://arxiv.org/abs/1803.10122). The first observation of an episode is not predicted: there the
    divergence is zero.

    For environments whose observation reveals the state (Pendulum, CartPole with velocities).

    Args:
        encoder (nn.Module): from a TensorDict of observations to the code ``[..., S]``.
        action_encoding (ActionEncoding): how actions become vectors.
        dynamics (EnsembleDynamics): the next latent from latent and action.

    Keyword Args:
        posterior_std (float, optional): width of the posterior. Defaults to ``0.01``.
        state_key (NestedKey, optional): the latent entry. Defaults to ``"state"``.
        **options: decoder, heads and keys of :class:`~torchrl_wm.world_models.WorldModel`.

    With several members, the noise of a row has one more number, uniform in [0, 1), that selects the
    member which predicts it. Drawn anew for every row, it splits a batch among the members; kept along a
    trajectory, it makes the trajectory follow one member.

    Examples:
        >>> from torchrl_wm.envs import gymnasium, model_specs
        >>> from torchrl_wm.world_models import make_autoencoder
        >>> env = gymnasium("Pendulum-v1", num_envs=2)
        >>> model = make_autoencoder(*model_specs(env), state_size=8, members=5)
        >>> td = env.append_transform(model.make_tensordict_primer()).reset()
        >>> td = model.step(model.filter(td).set("action", torch.zeros(2, 1)))
        >>> td["next", "state"].shape, td["next", "reward"].shape
        (torch.Size([2, 8]), torch.Size([2, 1]))
    """

    latent_is_observation = True

    def __init__(
        self,
        encoder: nn.Module,
        action_encoding: ActionEncoding,
        dynamics: EnsembleDynamics,
        *,
        posterior_std: float = 0.01,
        state_key: NestedKey = keys.STATE,
        **options,
    ):
        size = encoder.out_features
        super().__init__(
            encoder, action_encoding, GaussianLatent(size), {state_key: size}, **options
        )
        self.dynamics, self.posterior_std = dynamics, posterior_std

    @property
    def members(self) -> int:
        """Number of dynamics networks."""
        return self.dynamics.members

    def noise(self, batch_size, device=None, generator=None) -> Tensor:
        """Unit normal noise of the latent; with several members also a uniform draw that selects one."""
        noise = super().noise(batch_size, device, generator)
        if self.members == 1:
            return noise
        draw = torch.rand(*batch_size, 1, device=device, generator=generator)
        return torch.cat([noise, draw], -1)

    def trajectory_noise(self, horizon, rows, device=None, generator=None) -> Tensor:
        """Noise ``[H, N, noise size]``; trajectory ``i`` follows member ``i`` modulo their number."""
        noise = WorldModel.noise(self, (horizon, rows), device, generator)
        if self.members == 1:
            return noise
        follow = (torch.arange(rows, device=device) % self.members + 0.5) / self.members
        return torch.cat([noise, follow.view(1, rows, 1).expand(horizon, rows, 1)], -1)

    def compile_steps(self, **options) -> FeedForward:
        """Compiles the dynamics.

        Args:
            **options: keyword arguments of :func:`torch.compile`.
        """
        self._prior = compile_function(self._prior, **options)
        return self

    def _filter_tensors(self, tokens, action, is_init, carry, noise) -> LatentTensors:
        return (tokens.float(),)

    def _observe_tensors(self, tokens, action, is_init, carry, noise):
        states = tokens.float()
        # If the code were trained to be predictable, it would shrink until all errors are below the width.
        code = states.detach()
        posterior = code, torch.full_like(code, self.posterior_std)
        before = torch.cat([carry[0].unsqueeze(1), code[:, :-1]], 1)
        prior = self._prior(before, action, noise)
        # There is no prediction across a reset, and therefore no divergence.
        prior = tuple(torch.where(is_init, q, p) for q, p in zip(posterior, prior, strict=True))
        sides = {"prior": prior, "posterior": posterior}
        named = {k: dict(zip(self.latent.names, v, strict=True)) for k, v in sides.items()}
        return (states,), named

    def predict_tensors(self, latents, action: Tensor, noise: Tensor) -> LatentTensors:
        """One step of prediction on plain tensors ``[N, size]``."""
        return self.predict_prior(latents, action, noise)[0]

    def predict_prior(
        self, latents: LatentTensors, action: Tensor, noise: Tensor
    ) -> tuple[LatentTensors, Statistics]:
        """One step of prediction, with the statistics of the member that the noise selects."""
        prior = self._prior(latents[0], action, noise)
        return (self.latent.rsample(prior, noise[..., : self.latent.size]),), prior

    def unroll(self, latents: LatentTensors, actions: Tensor, noise: Tensor) -> LatentTensors:
        """Follows known action sequences; trajectory ``i`` follows member ``i`` modulo their number."""
        members, rows = self.members, actions.shape[1]
        if rows % members:
            return super().unroll(latents, actions, noise)
        apart = lambda x: x.unflatten(-2, (-1, members)).transpose(-2, -3).contiguous()
        (state,), actions = map(apart, latents), apart(self.action_encoding.clip(actions))
        noise, states = apart(noise[..., : self.latent.size]), []
        for action, draw in zip(actions, noise, strict=True):
            state = self.latent.rsample(self.dynamics.side_by_side(state, action), draw)
            states.append(state)
        return (torch.stack(states).transpose(-2, -3).flatten(1, 2),)

    def _prior(self, state: Tensor, action: Tensor, noise: Tensor) -> Statistics:
        members, member = self.members, None
        if members > 1:
            member = (noise[..., -1:] * members).long().clamp_max(members - 1)
        # An unbounded policy may sample actions that the environment would clip.
        return self.dynamics(state, self.action_encoding.clip(action), member)


class Identity(FeedForward):
    """A feed-forward model whose latent is the observation itself, flattened, with numbers in symlog.

    There is no decoder to train: :meth:`decode` inverts the flattening.

    Args:
        encoder (FlatEncoder): joins the observations.
        action_encoding (ActionEncoding): how actions become vectors.
        dynamics (EnsembleDynamics): the next latent from latent and action.

    Keyword Args:
        **options: those of :class:`FeedForward`, without a decoder.
    """

    encoder: FlatEncoder

    def decode(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Reads latents ``[...]``, writes the observations that they encode below ``"decoded"``."""
        state = self._require(tensordict, self.latent_keys[0])
        for key, value in self.encoder.inverse(state).items():
            tensordict.set(unravel_key(("decoded", key)), value)
        return tensordict
