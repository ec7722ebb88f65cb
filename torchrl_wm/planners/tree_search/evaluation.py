"""The interface between a search and a model: evaluations of roots, and steps along actions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.planners.recording import traced
from torchrl_wm.programs.program import Program, recorded_program
from torchrl_wm.programs.watched import Watched

Latents = tuple[Tensor, ...]


class Root(NamedTuple):
    """States to search from: latents ``[B, ...]``, value ``[B]``, logits ``[B, A]``.

    A logit of minus infinity forbids the action.
    """

    latents: Latents
    value: Tensor
    logits: Tensor


class Step(NamedTuple):
    """The result of an action: latents ``[R, ...]``, reward ``[R]``, value ``[R]``, logits ``[R, A]``.

    ``discount [R]`` multiplies everything after the edge: 0 where the episode ends, negative where the
    turn passes to the opponent; ``None`` stands for the constant of the dynamics. ``kind [R]`` int8
    tells chance nodes and ends of episodes from decisions; ``None`` stands for decisions.
    A logit of minus infinity forbids an action of the new node.
    """

    latents: Latents
    reward: Tensor
    value: Tensor
    logits: Tensor
    discount: Tensor | None = None
    kind: Tensor | None = None


def no_action_allowed(closed: Tensor) -> ValueError:
    """The error for roots ``[B]`` without an allowed action."""
    return ValueError(
        f"No action is allowed in the rows {closed.nonzero().flatten().tolist()}: their action mask "
        "has no True. Exclude finished environments (done=True) or repair the mask."
    )


class Dynamics(nn.Module):
    """Base of what can be searched.

    Args:
        action_encoding (ActionEncoding): of the environment's actions.
        num_actions (int): edges of a node.
        discount (float): of edges for which :meth:`step` returns none.
    """

    in_keys: list[NestedKey]
    traceable = False
    """Whether :meth:`step` consists only of tensor operations, without branches that depend on values."""

    def __init__(self, action_encoding: ActionEncoding, num_actions: int, discount: float):
        super().__init__()
        self.action_encoding, self.num_actions = action_encoding, num_actions
        self.discount = float(discount)

    @property
    def root_keys(self) -> list[NestedKey]:
        """The entries that :meth:`root` reads."""
        return self.in_keys

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

    def _follow(self, device: torch.device) -> None:
        """Moves the tables of a search to the latents, which are where the model is by now."""
        for name, table in self.named_buffers(recurse=False):
            if table.device != device:
                setattr(self, name, table.to(device))


class PackedStep(NamedTuple):
    """A :class:`Step` without its latents, in one tensor, so that it takes one copy from a device.

    ``packed [R, 2 + A]`` holds reward, value and logits; where the dynamics return discounts or kinds,
    it is ``[R, 4 + A]`` with these last.
    """

    packed: Tensor
    num_actions: int
    constant: float

    @property
    def reward(self) -> Tensor:
        """``[R]``."""
        return self.packed[:, 0]

    @property
    def value(self) -> Tensor:
        """``[R]``."""
        return self.packed[:, 1]

    @property
    def logits(self) -> Tensor:
        """``[R, A]``."""
        return self.packed[:, 2 : 2 + self.num_actions]

    @property
    def discount(self) -> Tensor:
        """``[R]``."""
        if self.packed.shape[1] == 2 + self.num_actions:
            return torch.full_like(self.reward, self.constant)
        return self.packed[:, -2]

    @property
    def kind(self) -> Tensor:
        """``[R]``."""
        if self.packed.shape[1] == 2 + self.num_actions:
            return torch.zeros_like(self.reward, dtype=torch.int8)
        return self.packed[:, -1].to(torch.int8)


class LatentStore:
    """The latents of all evaluated states, in the order of their evaluation, on their own device.

    Args:
        first (tuple of Tensor): latents ``[B, ...]`` of the roots.
        capacity (int): number of states that fit, the roots included.
        spare (LatentStore, optional): one that is over, whose memory is used again where it fits. Fresh
            memory takes the system longer than a small model takes to fill it.
    """

    def __init__(self, first: Latents, capacity: int, spare: LatentStore | None = None):
        self.capacity, self.device, self.used = capacity, first[0].device, 0
        if spare is not None and spare.fits(first, capacity):
            self.buffers, self._results = spare.buffers, spare._results
        else:
            with torch.inference_mode(False):  # later searches may be outside
                self.buffers = tuple(x.new_empty(capacity, *x.shape[1:]) for x in first)
            self._results = ()
        for place, value in zip(self.reserve(len(first[0])), first, strict=True):
            place.copy_(value)

    def fits(self, first: Latents, capacity: int) -> bool:
        """Whether such latents could be stored here."""
        kinds = [[(x.shape[1:], x.dtype, x.device) for x in xs] for xs in (first, self.buffers)]
        return kinds[0] == kinds[1] and len(self.buffers[0]) >= capacity

    def results(self, *columns: int) -> tuple[np.ndarray, ...]:
        """Arrays with so many numbers of every state."""
        widths = tuple(x.shape[1] for x in self._results)
        if widths != columns or len(self._results[0]) < self.capacity:
            self._results = tuple(np.empty((self.capacity, x), np.float32) for x in columns)
        return self._results

    def reserve(self, rows: int) -> Latents:
        """The places of the next rows ``[R, ...]``."""
        self.used += rows
        return tuple(x.narrow(0, self.used - rows, rows) for x in self.buffers)


class NodeEvaluator(nn.Module):
    """Gathers latents, steps the dynamics, stores the new latents.

    Where the dynamics allow it, the operations are recorded once: for the few rows of acting, most of the
    time of a small network is overhead between its operations. On a CPU, MLPs and recurrent cells become
    a :class:`~torchrl_wm.programs.program.Program`; networks of more than two million weights,
    and operations that it cannot express (convolutions, sampling), are recorded by ``torch.jit.trace``.
    Recordings follow the training of the parameters from one search to the next.

    Args:
        dynamics (Dynamics): the dynamics that are evaluated.
        trace (bool, optional): record the operations. Defaults to ``True``.
    """

    def __init__(self, dynamics: Dynamics, *, trace: bool = True):
        super().__init__()
        self.dynamics, self.trace = dynamics, trace and dynamics.traceable
        self._recorded: dict[str, Callable | None] = {}
        self._current: Callable[..., Tensor] | None = None
        self._watched = Watched(dynamics)
        self._spare: LatentStore | None = None
        self._num_actions, self._discount = dynamics.num_actions, dynamics.discount

    @property
    def program(self) -> Program | None:
        """The program that a search can execute itself, if this evaluator has one."""
        return self._current if isinstance(self._current, Program) else None

    @property
    def constant(self) -> float:
        """The discount of edges for which the dynamics return none."""
        return self._discount

    def begin(self, first: Latents, capacity: int) -> LatentStore:
        """The memory of a search from roots with latents ``[B, ...]``; reads the parameters."""
        spare, self._spare = self._spare, None  # another thread may search at the same time
        store, rows = LatentStore(first, capacity, spare), len(first[0])
        self._current = None
        if self._watched.changed():
            self._recorded.clear()
        if self.trace and not torch.is_autocast_enabled(first[0].device.type):
            program = self._recording("program", store, rows)
            if program is not None:
                program.refresh()
                self._current = program
            else:
                self._current = self._recording("trace", store, rows)
        return store

    def end(self, store: LatentStore) -> None:
        """Keeps the memory of a search that is over for the next one, if the model is a small one."""
        if self.program is not None:
            self._spare = store

    def __call__(self, store: LatentStore, index: Tensor, action: Tensor) -> PackedStep:
        """Evaluates action ``[R]`` at the stored states ``index [R]``; appends the new latents."""
        if store.device.type != "cpu":
            index, action = index.to(store.device), action.to(store.device)
        places = store.reserve(len(index))
        if self.program is not None:
            packed = self.program(index, action, store.buffers, store.used - len(index))
        else:
            packed = (self._current or self.forward)(index, action, *store.buffers, *places)
        return PackedStep(packed, self._num_actions, self._discount)

    def forward(self, index: Tensor, action: Tensor, *tensors: Tensor) -> Tensor:
        """On plain tensors, as a tracer needs it: latents, then the places of the following ones."""
        buffers, places = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        step = self.dynamics.step(tuple(x.index_select(0, index) for x in buffers), action)
        for place, value in zip(places, step.latents, strict=True):
            place.copy_(value)
        columns = [step.reward.unsqueeze(-1), step.value.unsqueeze(-1), step.logits]
        if step.discount is not None or step.kind is not None:
            discount, kind = step.discount, step.kind
            if discount is None:
                discount = torch.full_like(step.reward, self._discount)
            if kind is None:
                kind = torch.zeros_like(step.reward)
            columns += [discount.unsqueeze(-1), kind.unsqueeze(-1).to(step.reward.dtype)]
        return torch.cat(columns, -1)

    def _recording(self, kind: str, store: LatentStore, rows: int) -> Callable[..., Tensor] | None:
        """A recording of that kind, made on first use; ``None`` where there is none."""
        if kind not in self._recorded:
            # What is recorded with numbers that are none is found wrong; it need not be in the next search.
            if not all(x[:rows].isfinite().all() for x in store.buffers):
                return None
            with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                index = torch.arange(rows, device=store.device)
                latents = [x[:rows].clone() for x in store.buffers]
                inputs = index, index % self._num_actions, *latents, *map(torch.empty_like, latents)
                record = self._program if kind == "program" else self._trace
                self._recorded[kind] = record(inputs)
        return self._recorded[kind]

    def _program(self, inputs: tuple[Tensor, ...]) -> Program | None:
        return recorded_program(self.forward, inputs, type(self.dynamics).__name__)

    def _trace(self, inputs: tuple[Tensor, ...]) -> Callable[..., Tensor] | None:
        index, action, *tensors = inputs
        latents, places = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]

        def of_more_rows(function: Callable[..., Tensor]) -> list[Tensor]:
            written = [torch.cat([x, x]) for x in places]
            return [function(index.repeat(2), action.repeat(2), *latents, *written), *written]

        return traced(self.forward, inputs, of_more_rows, type(self.dynamics).__name__)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_recorded": {}, "_current": None, "_spare": None}
