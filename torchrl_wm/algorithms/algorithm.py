"""What a training loop sees of an algorithm."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import cloudpickle
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from torchrl_wm.policies import FilteringPolicy
from torchrl_wm.world_models import WorldModel


class Algorithm(nn.Module, ABC):
    """Base of all algorithms; :class:`~torchrl_wm.training.Trainer` uses the members named here only.

    An algorithm of your own sets the four attributes in its constructor and implements :meth:`update`.
    The constructor is called with the observation and the action spec, and with the options of the
    command line.
    """

    world_model: WorldModel
    policy: FilteringPolicy
    """Collects."""
    evaluation_policy: FilteringPolicy
    """Acts in evaluation episodes."""
    optimizers: dict[str, torch.optim.Optimizer]
    """By name, for checkpoints."""
    shortest_sequence: int = 1
    """Trained steps of a replayed sequence that an update needs at least."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Algorithm:
        # Copied one by one, a LossModule's parameters would no longer be those of the model.
        copy = pickle.loads(cloudpickle.dumps(self))
        for own, copied in zip(self.modules(), copy.modules(), strict=True):
            memo[id(own)] = copied
        for own, copied in zip(self.parameters(), copy.parameters(), strict=True):
            memo[id(own)] = copied
        return copy

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """As of every module, but for weights of other shapes, of which none is loaded.

        Raises:
            RuntimeError: for such weights; the message names some.
            ValueError: for ``assign=True``, which would replace the parameters that the optimisers train.
        """
        if options.get("assign") or any(args[1:]):
            raise ValueError(
                "load_state_dict(assign=True) would replace the parameters that the losses and optimisers "
                "hold, so nothing would be trained; leave assign out."
            )
        own = self.state_dict()
        wrong = [
            f"{name} is {list(value.shape)}, not {list(own[name].shape)}"
            for name, value in state_dict.items()
            if name in own and value.shape != own[name].shape
        ]
        if wrong:
            raise RuntimeError(
                f"size mismatch of {len(wrong)} weights: {'; '.join(wrong[:3])}. They are those of an "
                "algorithm with other options, or for other specs."
            )
        return super().load_state_dict(state_dict, *args, **options)

    @abstractmethod
    def update(self, sample: TensorDictBase) -> tuple[TensorDict, TensorDict | None]:
        """One update of everything on a replay sample ``[B, T + 1]``.

        Returns:
            The metrics, scalars, and what is written back into rows 1 to T of the replay: entries
            ``[B, T]``, fresh latents among them, or ``None``.
        """

    @abstractmethod
    def pretrain(self, sample: TensorDictBase) -> tuple[TensorDict, TensorDict | None]:
        """One update of the world model alone, with the arguments and results of :meth:`update`."""

    def replay_options(self) -> dict[str, Any]:
        """What the replay stores and how it samples: arguments of ``StepReplay``."""
        return {"latents": self.world_model.latent_codecs}


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
