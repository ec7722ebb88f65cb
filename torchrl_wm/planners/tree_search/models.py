"""Models that can be searched: a world model on plain tensors, or any module on TensorDicts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torch.distributions import Distribution

from torchrl_wm import keys
from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.planners.tree_search.evaluation import Latents, Root, Step
from torchrl_wm.world_models import WorldModel


class SearchedModel(nn.Module):
    """Base: roots from TensorDicts, steps with encoded actions; logits are the policy head's outputs.

    Attributes:
        in_keys: the latents of a root, in their order.
        root_keys: all that :meth:`root` reads. Defaults to the latents.
        action_encoding (ActionEncoding): of the environment's actions.
        traceable (bool): whether :meth:`step` consists only of tensor operations.
    """

    in_keys: list[NestedKey]
    action_encoding: ActionEncoding
    traceable = False

    @property
    def root_keys(self) -> list[NestedKey]:
        """The entries that :meth:`root` reads."""
        return self.in_keys

    def root(self, tensordict: TensorDictBase) -> Root:
        """Latents, value ``[B]`` and raw logits ``[B, P]`` of rows ``[B]``."""
        raise NotImplementedError

    def step(self, latents: Latents, action: Tensor) -> Step:
        """Follows encoded actions ``[R, F]`` from latents ``[R, ...]``."""
        raise NotImplementedError

    def distribution(self, raw: Tensor) -> Distribution:
        """The policy of raw logits ``[..., P]``, over encoded actions, to draw samples from.

        It offers ``noise(shape, generator=)`` and ``sample(shape, noise=)``.

        Raises:
            TypeError: for a model without a ``policy_head``.
        """
        head = getattr(self.policy_of, "policy_head", None)
        if head is None:
            raise TypeError(
                f"num_sampled_actions needs a policy to draw from, and {type(self.policy_of).__name__} has "
                "no policy_head."
            )
        return head.output(raw)

    @property
    def policy_of(self) -> nn.Module:
        """The module that has the policy head."""
        return self


class TensorModel(SearchedModel):
    """A world model that offers ``search_tensors``, such as MuZero's.

    Args:
        model (WorldModel): with ``predict`` and ``search_tensors``.
        discount (float): of a step, multiplied by the continuation if the model predicts one.
    """

    traceable = True

    def __init__(self, model: WorldModel, discount: float):
        super().__init__()
        self.model, self.discount = model, float(discount)
        self.in_keys, self.action_encoding = list(model.latent_keys), model.action_encoding

    @property
    def policy_of(self) -> nn.Module:
        """The world model."""
        return self.model

    def root(self, tensordict: TensorDictBase) -> Root:
        """Latents, value ``[B]`` and raw logits ``[B, P]`` of rows ``[B]``."""
        return predicted_root(self.model, tensordict, self.in_keys)

    def step(self, latents: Latents, action: Tensor) -> Step:
        """Follows encoded actions ``[R, F]`` from latents ``[R, ...]``."""
        latents, reward, value, logits = self.model.search_tensors(latents, action)
        discount = None
        if self.model.continuation_head is not None:
            going_on = self.model.continuation_head(torch.cat(latents, -1)).mean
            discount = self.discount * going_on.squeeze(-1)
        return Step(latents, reward, value, logits, discount)


class TensorDictModel(SearchedModel):
    """Any module that steps latents in a TensorDict.

    ``module.step`` (or the module itself, where it has none) reads the latents and the action and
    writes ``("next", latent)``, ``("next", "reward")`` and, where it has one, ``("next",
    "continuation")``. ``module.predict`` reads latents and writes ``state_value`` and
    ``policy_logits``; without it the root has to hold both already and the step has to write both
    below ``"next"``.

    Args:
        module (nn.Module): with ``latent_keys`` and ``action_encoding``, as a world model.
        discount (float): of a step, multiplied by the continuation if there is one.

    Raises:
        TypeError: for a module that cannot be searched.
        KeyError: at a root or a step, for a missing entry.
    """

    def __init__(self, module: nn.Module, discount: float):
        super().__init__()
        for name in ("latent_keys", "action_encoding"):
            if not hasattr(module, name):
                raise TypeError(
                    f"A {type(module).__name__} cannot be searched: it has no {name}. Searched are "
                    "world models, modules with latent_keys and action_encoding, and Dynamics."
                )
        self.module, self.discount = module, float(discount)
        self.in_keys, self.action_encoding = list(module.latent_keys), module.action_encoding
        self._follow = getattr(module, "step", module)

    @property
    def root_keys(self) -> list[NestedKey]:
        """The latents; without ``predict`` also their value and logits."""
        judged = [] if hasattr(self.module, "predict") else _judged_keys(self.module)
        return [*self.in_keys, *judged]

    @property
    def policy_of(self) -> nn.Module:
        """The searched module."""
        return self.module

    def root(self, tensordict: TensorDictBase) -> Root:
        """Latents, value ``[B]`` and raw logits ``[B, P]`` of rows ``[B]``."""
        return predicted_root(self.module, tensordict, self.in_keys)

    def step(self, latents: Latents, action: Tensor) -> Step:
        """Follows encoded actions ``[R, F]`` from latents ``[R, ...]``."""
        rows = TensorDict(batch_size=[len(action)], device=action.device)
        for key, value in zip(self.in_keys, latents, strict=True):
            rows.set(key, value)
        following = self._follow(self.action_encoding.decode(action, rows)).get("next")
        root = predicted_root(self.module, following, self.in_keys, below=("next",))
        reward = require(following, keys.REWARD, type(self.module).__name__, ("next",))
        discount, going_on = None, following.get(keys.CONTINUATION, None)
        if going_on is not None:
            discount = self.discount * going_on.reshape(len(action))
        return Step(root.latents, reward.reshape(len(action)), root.value, root.logits, discount)


def predicted_root(
    module: nn.Module, tensordict: TensorDictBase, latent_keys, below: tuple[str, ...] = ()
) -> Root:
    """Latents of rows ``[B]`` with the value and logits that ``module.predict`` gives them."""
    name = type(module).__name__
    latents = tuple(require(tensordict, key, name, below) for key in latent_keys)
    predict: Callable | None = getattr(module, "predict", None)
    if predict is not None:
        tensordict = predict(tensordict.select(*latent_keys))
    value_key, logits_key = _judged_keys(module)
    value = require(tensordict, value_key, name, below)
    return Root(latents, value.reshape(len(value)), require(tensordict, logits_key, name, below))


def _judged_keys(module: nn.Module) -> list[NestedKey]:
    value_key = getattr(module, "value_key", keys.STATE_VALUE)
    return [value_key, getattr(module, "logits_key", keys.POLICY_LOGITS)]


def require(tensordict: TensorDictBase, key: NestedKey, name: str, below: tuple = ()) -> Tensor:
    """The entry ``key``.

    Raises:
        KeyError: where it is missing; the message names it.
    """
    value = tensordict.get(key, None)
    if value is None:
        wanted, found = unravel_key((*below, key)), sorted(map(str, tensordict.keys(True, True)))
        raise KeyError(
            f"A search of {name} needs the entry {wanted!r}; found {found}. Roots hold the latents (act "
            "after the model's filter), a step writes latents and reward, and state_value and "
            "policy_logits come from predict or stand beside them."
        )
    return value
