"""The base of Dreamer v1, v2 and v3: a world model, an actor and a critic."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_wm import keys
from torchrl_wm.algorithms.algorithm import Algorithm, results, total
from torchrl_wm.algorithms.optimizers import TensorFlowAdam
from torchrl_wm.objectives import SlowUpdate


class Dreamer(Algorithm):
    """Base of the Dreamers, whose policies filter with the world model and act with the actor."""

    imagination_starts: int

    def _step(self, **losses: Tensor) -> None:
        """One step of each named optimiser on its loss; each trains only its own parameters.

        All gradients are taken before any weight changes. Frozen parameters are not trained.
        """
        for name, loss in losses.items():
            groups = self.optimizers[name].param_groups
            parameters = [p for g in groups for p in g["params"] if p.requires_grad]
            if not parameters:
                continue
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        for name in losses:
            self.optimizers[name].step()
            self.optimizers[name].zero_grad()

    def _starts(
        self, latents: TensorDictBase, records: TensorDictBase
    ) -> tuple[TensorDictBase, TensorDictBase]:
        """The latents and records among ``[B, T]`` that imagination starts from: the last that count."""
        if not self.imagination_starts:
            return latents, records
        last, mask = slice(-self.imagination_starts, None), records.get(keys.MASK, None)
        if mask is None:
            return latents[:, last], records[:, last]
        order = mask.reshape(latents.shape).int().argsort(dim=1, stable=True)[:, last]
        return latents.gather(1, order), records.gather(1, order)

    def pretrain(self, sample: TensorDictBase) -> tuple[TensorDict, TensorDict]:
        """One update of the world model alone."""
        losses = self.world_model_loss(sample)
        self._step(world_model=total(losses))
        return results(losses)

    def _adams(self, rates: Mapping[str, float], **options) -> dict[str, TensorFlowAdam]:
        """One optimiser for each named part, with its learning rate."""
        return {
            name: TensorFlowAdam(getattr(self, name).parameters(), rate, **options)
            for name, rate in rates.items()
        }

    def _slow_update(self, tau: float, every: int = 1) -> SlowUpdate | None:
        """The updater of the slow critic, if there is one."""
        if not self.critic_loss.use_ema_critic:
            return None
        return SlowUpdate(self.critic_loss, tau=tau, every=every)

    @staticmethod
    def start_mask(records: TensorDictBase, rows: TensorDictBase) -> None:
        """Masks, in place, the rows imagined from steps of ``records [B, T]`` that are padding."""
        mask = records.get(keys.MASK, None)
        if mask is not None:
            rows.set(keys.MASK, mask.reshape(1, -1).expand(rows.batch_size))
