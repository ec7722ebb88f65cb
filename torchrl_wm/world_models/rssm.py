"""The recurrent state-space model of PlaNet and the Dreamers: one class, parts chosen by argument."""

from __future__ import annotations

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_wm import keys
from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.modules.cells import Cell
from torchrl_wm.modules.compilation import compile_function
from torchrl_wm.modules.latent_heads import PosteriorHead, PriorHead
from torchrl_wm.modules.latents import Latent, Statistics
from torchrl_wm.world_models.observed_sequence import ObservedSequence
from torchrl_wm.world_models.world_model import LatentTensors, WorldModel

_TOGETHER = 8  # steps of one compiled graph: twice as many compile for minutes and gain 1 %


class RSSM(WorldModel):
    """Recurrent state-space model (https://arxiv.org/abs/1811.04551).

    The latent is a deterministic ``belief``, advanced by a recurrent cell, and a stochastic ``state``,
    drawn from the posterior where there is an observation and from the prior where there is none.

    On a CPU sequences are observed in programs (:mod:`torchrl_wm.programs`). These follow training and notice
    replaced parts, hooks and changed attributes; a gradient through them has no derivative itself.

    Args:
        encoder (nn.Module): from a TensorDict of observations to tokens ``[..., E]``.
        action_encoding (ActionEncoding): how actions become vectors.
        cell (nn.Module): a cell of :mod:`torchrl_wm.modules.cells`.
        latent (nn.Module): a latent of :mod:`torchrl_wm.modules.latents`.
        prior (PriorHead): belief to raw latent parameters.
        posterior (PosteriorHead): belief and tokens to raw latent parameters.

    Keyword Args:
        belief_key, state_key (NestedKey, optional): the latent entries. Default to ``"belief"`` and
            ``"state"``.
        **options: decoder, heads and keys of :class:`~torchrl_wm.world_models.WorldModel`.

    :func:`~torchrl_wm.world_models.make_rssm` builds one from specs and sizes.

    Examples:
        >>> from torchrl_wm.envs import gymnasium, model_specs
        >>> from torchrl_wm.world_models import make_rssm
        >>> env = gymnasium("CartPole-v1", num_envs=2)
        >>> model = make_rssm(*model_specs(env), belief_size=16, hidden_size=16, units=16)
        >>> td = env.append_transform(model.make_tensordict_primer()).reset()
        >>> posterior = model.filter(td)
        >>> posterior["belief"].shape, posterior["state"].shape
        (torch.Size([2, 16]), torch.Size([2, 128]))
        >>> push_left = lambda features: torch.eye(2)[[0] * len(features)]
        >>> model.imagine(posterior, push_left, horizon=15)["features"].shape
        torch.Size([2, 16, 144])
    """

    def __init__(
        self,
        encoder: nn.Module,
        action_encoding: ActionEncoding,
        cell: Cell,
        latent: Latent,
        prior: PriorHead,
        posterior: PosteriorHead,
        *,
        belief_key: NestedKey = keys.BELIEF,
        state_key: NestedKey = keys.STATE,
        **options,
    ):
        sizes = {belief_key: cell.belief_size, state_key: latent.flat_size}
        super().__init__(encoder, action_encoding, latent, sizes, **options)
        self.cell, self.prior, self.posterior = cell, prior, posterior
        self._sequence = ObservedSequence(self)

    @property
    def latent_codecs(self) -> dict[NestedKey, torch.dtype | int]:
        """The belief in half precision; a categorical state by the index of each class."""
        belief, state = self.latent_keys
        classes = getattr(self.latent, "classes", torch.float16)
        return {belief: torch.float16, state: classes}

    def compile_steps(self, **options) -> RSSM:
        """Compiles single steps of filtering and imagination, and a few of observed sequences at a time.

        The loops around them stay eager.

        Args:
            **options: keyword arguments of :func:`torch.compile`.
        """
        self._filter_step = compile_function(self._filter_step, **options)
        self._observe_steps = compile_function(self._observe_steps, **options)
        self._imagine_step = compile_function(self._imagine_step, **options)
        return self

    def _filter_tensors(self, tokens, action, is_init, carry, noise) -> LatentTensors:
        inputs = self._project(tokens, action, is_init, noise)
        return self._filter_step(*carry, *inputs, self.cell.weights(), self.posterior.weights())

    def _filter_step(self, *inputs) -> LatentTensors:
        belief, state, _ = self._observe_step(*inputs)
        return belief, state

    def _observe_tensors(self, tokens, action, is_init, carry, noise):
        inputs = self._project(*(x.transpose(0, 1) for x in (tokens, action, is_init, noise)))
        # The few rows of a step take longer on a CPU in lower precision, with its conversions.
        with torch.autocast("cpu", enabled=False):
            found = self._sequence(torch.cat(carry, -1), inputs)
            if found is None:
                found = self._observe_in_turn(inputs, carry)
        beliefs, states, raws = found
        # No carry depends on the prior's parameters: one batched product for the whole sequence.
        statistics = {
            "prior": self._named(self.latent.statistics(self.prior(beliefs))),
            "posterior": self._named(self.latent.statistics(raws)),
        }
        return (beliefs, states), statistics

    def _observe_in_turn(self, inputs, carry) -> tuple[Tensor, Tensor, Tensor]:
        weights = self.cell.weights(), self.posterior.weights()
        beliefs, states, raws = [], [], []
        for some in zip(*(x.split(_TOGETHER) for x in inputs), strict=True):
            steps = self._observe_steps(*carry, *some, *weights)
            for whole, part in zip((beliefs, states, raws), steps, strict=True):
                whole.extend(part)
            carry = beliefs[-1], states[-1]
        return tuple(torch.stack(x, 1) for x in (beliefs, states, raws))

    def _observe_rows(self, features, is_init, *inputs) -> tuple[Tensor, Tensor]:
        """Features ``[N, F]`` before a step to those after it, and the raw parameters."""
        latents = features.split(list(self.latent_sizes.values()), -1)
        weights = self.cell.weights(), self.posterior.weights()
        belief, state, raw = self._observe_step(*latents, is_init, *inputs, *weights)
        return torch.cat([belief, state], -1), raw

    def _project(self, tokens, action, is_init, noise) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What steps of filtering read, with the products that do not depend on the carry."""
        actions = self.cell.project_action(action.masked_fill(is_init, 0))
        return is_init, actions, self.posterior.project_tokens(tokens), noise

    def _observe_steps(
        self, belief, state, is_init, actions, tokens, noise, *weights
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Beliefs, states and raw parameters of consecutive steps, from inputs ``[T, N, ...]``."""
        beliefs, states, raws = [], [], []
        for inputs in zip(is_init, actions, tokens, noise, strict=True):
            belief, state, raw = self._observe_step(belief, state, *inputs, *weights)
            beliefs.append(belief)
            states.append(state)
            raws.append(raw)
        return beliefs, states, raws

    def _observe_step(
        self,
        belief,
        state,
        is_init,
        projected_action,
        projected_tokens,
        noise,
        cell_weights,
        head_weights,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Not a product with 0, which would keep NaN.
        belief, state = belief.masked_fill(is_init, 0), state.masked_fill(is_init, 0)
        belief = self.cell(belief, state, projected_action, cell_weights)
        raw = self.posterior(belief, projected_tokens, head_weights)
        return belief, self.latent.rsample(self.latent.statistics(raw), noise), raw

    def predict_tensors(
        self, latents: LatentTensors, action: Tensor, noise: Tensor
    ) -> LatentTensors:
        """One step of prediction on plain tensors ``[N, size]``."""
        projected = self.cell.project_action(action)
        return self._advance(*latents, projected, noise, self.cell.weights())

    def predict_features(self, features: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """One step of imagination."""
        # An actor may propose what only its clipped form was collected with.
        return super().predict_features(features, self.action_encoding.clip(action), noise)

    def predict_prior(
        self, latents: LatentTensors, action: Tensor, noise: Tensor
    ) -> tuple[LatentTensors, Statistics]:
        """One step of prediction, with the statistics of the prior."""
        projected = self.cell.project_action(action)
        belief = self.cell(*latents, projected, self.cell.weights())
        prior = self.latent.statistics(self.prior(belief))
        return (belief, self.latent.rsample(prior, noise)), prior

    def _advance(self, belief, state, projected_action, noise, cell_weights) -> LatentTensors:
        belief = self.cell(belief, state, projected_action, cell_weights)
        return belief, self.latent.rsample(self.latent.statistics(self.prior(belief)), noise)

    def unroll(self, latents: LatentTensors, actions: Tensor, noise: Tensor) -> LatentTensors:
        """Follows known action sequences, projecting the actions of all steps in one product."""
        projected, weights = self.cell.project_action(actions), self.cell.weights()
        beliefs, states = [], []
        for inputs in zip(projected, noise, strict=True):
            latents = self._advance(*latents, *inputs, weights)
            beliefs.append(latents[0])
            states.append(latents[1])
        return torch.stack(beliefs), torch.stack(states)

    def _imagine_tensors(self, latents, policy, noise) -> tuple[list[Tensor], list[Tensor]]:
        weights = self.cell.weights()
        features, actions = [torch.cat(latents, -1)], []
        for draw in noise:
            actions.append(policy(features[-1]))
            features.append(self._imagine_step(features[-1], actions[-1], draw, weights))
        return features, actions

    def _imagine_step(self, features, action, noise, cell_weights) -> Tensor:
        belief, state = features.split(list(self.latent_sizes.values()), -1)
        projected = self.cell.project_action(self.action_encoding.clip(action))
        return torch.cat(self._advance(belief, state, projected, noise, cell_weights), -1)

    def _named(self, statistics: Statistics) -> dict[str, Tensor]:
        return dict(zip(self.latent.names, statistics, strict=True))
