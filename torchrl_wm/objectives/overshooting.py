"""Latent overshooting: comparing predictions over several steps with the posteriors."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_wm.objectives.masking import masked_mean
from torchrl_wm.world_models import WorldModel


class LatentOvershooting(nn.Module):
    """Divergence of posteriors from priors predicted 2 to ``distance`` steps ahead (arXiv:1811.04551).

    From the latents before every step the model predicts ahead with the recorded actions. The posteriors
    are detached as targets. A prediction never crosses the beginning of an episode. The one-step prior
    is left to the ordinary divergence. PlaNet's paper introduces the term; its final agent does without.

    Args:
        distance (int): number of steps predicted from each start.

    Keyword Args:
        free_nats (float, optional): nats of each prediction that cost nothing. Defaults to ``3.0``.
        scale (float, optional): weight of the term. Defaults to ``1.0``.

    Raises:
        ValueError: for a distance below 2.

    Examples:
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> from torchrl_wm.world_models import make_rssm
        >>> specs = Composite(joints=Unbounded(6)), Composite(action=OneHot(2))
        >>> model = make_rssm(*specs, belief_size=16, hidden_size=16, units=16)
        >>> records = model.initial([2, 9]).update({"joints": torch.randn(2, 9, 6)})
        >>> records["is_init"] = torch.zeros(2, 9, 1, dtype=torch.bool)
        >>> records["previous_action"] = torch.zeros(2, 9, 2)
        >>> carry = model.initial([2])
        >>> LatentOvershooting(3)(model, model.observe(records, carry), records, carry).shape
        torch.Size([])
    """

    def __init__(self, distance: int, *, free_nats: float = 3.0, scale: float = 1.0):
        super().__init__()
        if distance < 2:
            raise ValueError(
                f"Overshooting over distance={distance} steps has nothing to add to the one-step "
                "divergence; give at least 2."
            )
        self.distance, self.free_nats, self.scale = distance, free_nats, scale

    def forward(
        self,
        world_model: WorldModel,
        observed: TensorDictBase,
        records: TensorDictBase,
        carry: TensorDictBase,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            world_model (WorldModel): the model.
            observed (TensorDictBase): what its ``observe`` returned for the records, ``[B, T]``.
            records (TensorDictBase): with ``previous_action`` and ``is_init``, ``[B, T]``.
            carry (TensorDictBase): latents ``[B]`` before the first record.
            mask (Tensor, optional): ``[B, T]`` or ``[B, T, 1]``, False where a record is padding.
        """
        is_init = records.get(world_model.is_init_key).squeeze(-1)
        counts = torch.ones_like(is_init) if mask is None else mask.reshape(is_init.shape)
        posterior = world_model.statistics(observed)[0]
        action = records.get(world_model.previous_action_key).masked_fill(is_init.unsqueeze(-1), 0)
        latents = tuple(
            _before(observed.get(key), carry.get(key), is_init) for key in world_model.latent_keys
        )
        # Past the end of a sequence, _ahead wraps around to its beginning: finite values, masked below.
        inside = torch.arange(is_init.shape[1], device=is_init.device)
        begun = counts
        if world_model.latent_is_observation:
            latents, begun = tuple(value.detach() for value in latents), counts & ~is_init
        excess, valid = [], [begun]
        for step in range(self.distance):
            noise = world_model.noise(is_init.shape, action.device)
            latents, prior = world_model.predict_prior(latents, _ahead(action, step), noise)
            if not step:
                continue
            target = tuple(_ahead(value.detach(), step) for value in posterior)
            excess.append((world_model.kl(target, prior) - self.free_nats).clamp_min(0))
            same_sequence = inside + step < len(inside)
            valid.append(valid[-1] & same_sequence & _ahead(counts & ~is_init, step))
        return self.scale * masked_mean(torch.stack(excess), torch.stack(valid[1:]))


def _before(latents: Tensor, carry: Tensor, is_init: Tensor) -> Tensor:
    """The latents ``[B, T, S]`` of the previous row; zeros where an episode begins."""
    before = torch.cat([carry.unsqueeze(1), latents[:, :-1]], 1)
    return before.masked_fill(is_init.unsqueeze(-1), 0)


def _ahead(value: Tensor, steps: int) -> Tensor:
    """The entries ``steps`` rows later in ``[B, T, ...]``, wrapping around."""
    return value.roll(-steps, 1)
