"""What a search asks of a model: the worth of roots, and what follows an action."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_wm.modules.actions import ActionEncoding

Latents = tuple[Tensor, ...]


class Root(NamedTuple):
    """States to search from: latents ``[B, ...]``, value ``[B]``, logits ``[B, A]``.

    A logit of minus infinity forbids the action.
    """

    latents: Latents
    value: Tensor
    logits: Tensor


class Step(NamedTuple):
    """What follows an action: latents ``[R, ...]``, reward ``[R]``, value ``[R]``, logits ``[R, A]``.

    ``discount [R]`` weighs everything after the edge: 0 where the episode ends, negative where the
    turn passes to the opponent; ``None`` stands for the constant of the dynamics. ``kind [R]`` int8
    tells chance nodes and those that end the episode from decisions; ``None`` stands for decisions.
    A logit of minus infinity forbids an action of the new node.
    """

    latents: Latents
    reward: Tensor
    value: Tensor
    logits: Tensor
    discount: Tensor | None = None
    kind: Tensor | None = None


class Dynamics(nn.Module):
    """Base of what can be searched.

    Args:
        action_encoding (ActionEncoding): of the environment's actions.
        num_actions (int): edges of a node.
        discount (float): of edges for which :meth:`step` says nothing else.
    """

    in_keys: list[NestedKey]
    traceable = False
    """Whether :meth:`step` is made of tensor operations alone, none of which depends on values."""

    def __init__(self, action_encoding: ActionEncoding, num_actions: int, discount: float):
        super().__init__()
        self.action_encoding, self.num_actions = action_encoding, num_actions
        self.discount = float(discount)

    def root(
        self,
        tensordict: TensorDictBase,
        allowed: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Root:
        """Roots of rows ``[B]``; ``allowed [B, A]`` masks their actions, the generator draws samples."""
        raise NotImplementedError

    def step(self, latents: Latents, action: Tensor) -> Step:
        """Follows the action with index ``action [R]`` int64 from latents ``[R, ...]``."""
        raise NotImplementedError

    def encoded_action(self, root: Root, index: Tensor) -> Tensor:
        """The flat form ``[B, F]`` of the chosen actions ``index [B]`` of roots."""
        raise NotImplementedError


class Evaluation(NamedTuple):
    """A :class:`Step` without its latents, with all defaults filled in."""

    reward: Tensor
    value: Tensor
    logits: Tensor
    priors: Tensor
    discount: Tensor
    kind: Tensor


class LatentStore:
    """The latents of all evaluated states, in the order of their evaluation, on their own device.

    Args:
        first (tuple of Tensor): latents ``[B, ...]`` of the roots.
        capacity (int): how many states there is room for, the roots included.
    """

    def __init__(self, first: Latents, capacity: int):
        self.buffers = tuple(x.new_empty(capacity, *x.shape[1:]) for x in first)
        self.used = 0
        self.append(first)

    def append(self, latents: Latents) -> None:
        """Adds rows ``[R, ...]``."""
        end = self.used + len(latents[0])
        for buffer, value in zip(self.buffers, latents, strict=True):
            buffer[self.used : end] = value
        self.used = end


class Evaluator(nn.Module):
    """Gathers latents, asks the dynamics, stores the new latents.

    Where the dynamics allow it, the operations are recorded once by ``torch.jit.trace``: at the few
    rows of acting most of the time of a small network is spent between its operations. The recording
    holds references to the parameters, so training goes on being seen.

    Args:
        dynamics (Dynamics): what is asked.
        trace (bool, optional): record the operations. Defaults to ``True``.
    """

    def __init__(self, dynamics: Dynamics, *, trace: bool = True):
        super().__init__()
        self.dynamics, self.trace = dynamics, trace and dynamics.traceable
        self._recorded: list = []  # in a list, so that it is neither a submodule nor in a state dict
        self._constants: dict = {}

    def __call__(self, store: LatentStore, index: Tensor, action: Tensor) -> Evaluation:
        """Evaluates action ``[R]`` at the stored states ``index [R]``; appends the new latents."""
        device = store.buffers[0].device
        inputs = (index.to(device), action.to(device), *store.buffers)
        out = self._call(*inputs)
        count = len(store.buffers)
        store.append(out[:count])
        reward, value, logits, priors, *rest = out[count:]
        if not rest:
            rest = self._defaults(reward)
        return Evaluation(reward, value, logits, priors, *rest)

    def forward(self, index: Tensor, action: Tensor, *buffers: Tensor) -> tuple[Tensor, ...]:
        """On plain tensors, as a tracer takes it."""
        step = self.dynamics.step(tuple(x.index_select(0, index) for x in buffers), action)
        found = [step.reward, step.value, step.logits, step.logits.softmax(-1)]
        if step.discount is not None or step.kind is not None:
            discount, kind = self._defaults(step.reward)
            found.append(discount if step.discount is None else step.discount)
            found.append(kind if step.kind is None else step.kind)
        return (*step.latents, *(x.contiguous() for x in found))

    def _call(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if not self.trace:
            return self.forward(*inputs)
        if not self._recorded:
            self._recorded.append(self._record(inputs))
        return self._recorded[0](*inputs)

    def _record(self, inputs: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
        """The recording, or the plain operations where a recording does not hold for other rows."""
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            index, action, *buffers = (x.clone() for x in inputs)
            try:
                recording = torch.jit.trace(
                    _Forward(self), (index, action, *buffers), check_trace=False
                )
                more = index.repeat(2), action.repeat(2), *buffers
                torch.testing.assert_close(recording(*more), self.forward(*more))
                return recording
            except (RuntimeError, AssertionError) as error:
                reason = str(error).strip().splitlines()[-1]
        logging.getLogger(__name__).warning(
            "The operations of %s cannot be recorded (%s); the search calls them one by one, which is "
            "slower. Set trace=False to do so without this message.",
            type(self.dynamics).__name__,
            reason,
        )
        return self.forward

    def _apply(self, fn, recurse: bool = True):
        self._recorded.clear()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_recorded": [], "_constants": {}}

    def _defaults(self, reward: Tensor) -> tuple[Tensor, Tensor]:
        key = (len(reward), reward.dtype, reward.device)
        if key not in self._constants:
            discount = torch.full_like(reward, self.dynamics.discount)
            kind = torch.zeros(len(reward), dtype=torch.int8, device=reward.device)
            self._constants[key] = discount, kind
        return self._constants[key]


class _Forward(nn.Module):
    """``Evaluator.forward`` under the only name that a tracer knows."""

    def __init__(self, evaluator: Evaluator):
        super().__init__()
        self.evaluator = evaluator

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.evaluator.forward(*inputs)
