"""The base of Dreamer v1, v2 and v3: a world model, an actor and a critic."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.data import Composite

from torchrl_wm import keys
from torchrl_wm.algorithms.optimizers import TensorFlowAdam
from torchrl_wm.objectives import SlowUpdate
from torchrl_wm.policies import FilteringActor
from torchrl_wm.world_models import WorldModel, make_rssm

Sizes = TypeVar("Sizes")
WorldModelFactory = Callable[..., WorldModel]


class Dreamer(nn.Module):
    """Base of the Dreamers; a training loop uses only the members named here.

    ``policy`` collects, ``evaluation_policy`` evaluates, ``optimizers`` maps names to optimisers, and
    :meth:`update` and :meth:`pretrain` take a replay sample ``[B, T + 1]`` and return metrics and the
    fresh latents ``[B, T]`` of rows 1 to T.
    """

    policy: FilteringActor
    evaluation_policy: FilteringActor
    optimizers: dict[str, torch.optim.Optimizer]
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
        """The latents and records among ``[B, T]`` that imagination starts from."""
        if not self.imagination_starts:
            return latents, records
        return latents[:, -self.imagination_starts :], records[:, -self.imagination_starts :]

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


def build_world_model(
    factory: WorldModelFactory | None,
    observation_spec: Composite,
    action_spec: Composite,
    defaults: Mapping[str, Any],
) -> WorldModel:
    """Calls a world model's factory with an algorithm's defaults for the parameters that it names.

    Arguments already set by a ``functools.partial`` are kept; without a factory an RSSM is made.

    Raises:
        TypeError: for a factory with ``**options`` that names none of the defaults.
    """
    factory = make_rssm if factory is None else factory
    chosen = factory.keywords if isinstance(factory, partial) else {}
    known = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    if takes_any and not known.keys() & defaults.keys():
        raise TypeError(
            f"{getattr(factory, '__name__', factory)} takes **options, but an algorithm only sets what a "
            f"world model's factory names: name those of {sorted(defaults)} that it is to set, or give "
            "functools.partial(make_rssm, ...)."
        )
    offered = {k: v for k, v in defaults.items() if k in known and k not in chosen}
    return factory(observation_spec, action_spec, **offered)


def preset(sizes: Mapping[str, Sizes], name: str) -> Sizes:
    """The sizes of that name.

    Raises:
        ValueError: for an unknown name; the message lists the valid ones.
    """
    if name not in sizes:
        raise ValueError(f"Unknown size {name!r}; expected one of {list(sizes)}.")
    return sizes[name]


def total(losses: TensorDictBase) -> Tensor:
    """The sum of all entries whose name begins with ``loss_``."""
    return sum(value for key, value in losses.items() if key.startswith("loss_"))


def results(*losses: TensorDictBase) -> tuple[TensorDict, TensorDict | None]:
    """Detached metrics of several losses, and the latents that one of them carries."""
    metrics, latents = TensorDict(), None
    for part in losses:
        latents = part.get("latents", latents)
        metrics.update(part.exclude("latents").detach())
    return metrics, None if latents is None else latents.detach()
