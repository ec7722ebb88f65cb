"""Frames of the last steps as one observation, for models without recurrence."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torchrl.data import Composite, Unbounded

from torchrl_wm import keys
from torchrl_wm.functional.frames import stack_frames
from torchrl_wm.modules.observations import split_observations
from torchrl_wm.modules.residual import ResidualImageEncoder
from torchrl_wm.ranges import COUNT


class FrameStack(TensorDictModuleBase):
    """Stacks the frames of the last ``count`` steps along the channels, the newest last.

    An environment shows one frame and a replay stores it once. While acting, the earlier ones are
    carried from step to step (:meth:`forward`); in a sequence of records they are the rows before
    (:meth:`sequence`). Both repeat the first frame of an episode until there are enough, as
    EfficientZero (https://arxiv.org/abs/2111.00210) does. Boards and vectors stay as they are.

    Args:
        observation_spec (Composite): unbatched specs of what an environment shows.
        count (int): frames in a stack.

    Keyword Args:
        is_init_key (NestedKey, optional): the first step of an episode. Defaults to ``"is_init"``.

    :attr:`observation_spec` is the spec of the stacked observations.

    Examples:
        >>> spec = Composite(pixels=Unbounded((3, 32, 32), dtype=torch.uint8))
        >>> frames = FrameStack(spec, 4)
        >>> td = frames.carried_spec.zero([2]).update(spec.rand([2]))
        >>> td = td.set("is_init", torch.ones(2, 1, dtype=torch.bool))
        >>> frames(td)["pixels"].shape, td["pixels"].shape
        (torch.Size([2, 12, 32, 32]), torch.Size([2, 3, 32, 32]))
    """

    def __init__(
        self, observation_spec: Composite, count: int, *, is_init_key: NestedKey = keys.IS_INIT
    ):
        super().__init__()
        self.count, self.is_init_key = count, is_init_key
        self.observation_spec, self.carried_spec = observation_spec.clone(), Composite()
        self.carried: dict[NestedKey, NestedKey] = {}
        for key, spec in screens(observation_spec).items():
            channels, *size = spec.shape
            self.carried[key] = unravel_key((keys.FRAMES, key))
            self.observation_spec[key] = Unbounded((count * channels, *size), dtype=spec.dtype)
            earlier = Unbounded((count - 1, channels, *size), dtype=spec.dtype)
            self.carried_spec[self.carried[key]] = earlier
        self.in_keys = [*self.carried, *self.carried.values(), is_init_key]
        self.out_keys = [*self.carried, *self.carried.values()]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """One step of acting ``[...]``: a copy with stacked frames and what the next step carries.

        Raises:
            KeyError: for a missing entry.
        """
        out, batch = tensordict.copy(), tensordict.batch_size
        begins = self._required(tensordict, self.is_init_key).reshape(-1, 1)
        begins = torch.cat([torch.zeros_like(begins).expand(-1, self.count - 1), begins], 1)
        for key, carried in self.carried.items():
            now, before = self._required(tensordict, key), self._required(tensordict, carried)
            frames = torch.cat([before, now.unsqueeze(-4)], -4).reshape(
                -1, self.count, *now.shape[-3:]
            )
            seen = stack_frames(frames, begins, self.count)[:, -1]
            seen = seen.reshape(*batch, *seen.shape[1:])
            out.set(key, seen).set(carried, seen.unflatten(-3, (self.count, -1))[..., 1:, :, :, :])
        return out

    def sequence(self, records: TensorDictBase) -> TensorDictBase:
        """Records ``[B, T]`` with stacked frames, complete from row ``count - 1`` on; in place."""
        begins = self._required(records, self.is_init_key).reshape(records.shape)
        for key in self.carried:
            records.set(key, stack_frames(self._required(records, key), begins, self.count))
        return records

    def _required(self, tensordict: TensorDictBase, key: NestedKey) -> torch.Tensor:
        value = tensordict.get(key, None)
        if value is None:
            found = sorted(map(str, tensordict.keys(True, True)))
            raise KeyError(
                f"Stacking frames needs the entry {key!r}; found {found}. Append the policy's "
                "make_tensordict_primer() to the environment to carry the frames, and InitTracker."
            )
        return value


def stacking(observation_spec: Composite, count: int | None = None) -> FrameStack | None:
    """The stack of ``count`` frames, by default 4 where there are any; None where nothing is stacked.

    Raises:
        ValueError: for a count below 1, or above 1 where there are no frames.

    Examples:
        >>> stacking(Composite(speed=Unbounded(3))) is None
        True
    """
    if count is not None:
        COUNT.check(frame_stack=count)
    if not screens(observation_spec):
        if count is not None and count > 1:
            found = ", ".join(map(str, observation_spec.keys(True, True)))
            raise ValueError(
                f"frame_stack={count}, but there are no screens among the observations {found}: leave "
                "it out. Boards and vectors are not stacked."
            )
        return None
    return None if count == 1 else FrameStack(observation_spec, count or 4)


def screens(observation_spec: Composite) -> dict:
    """The images of a spec that are larger than a board.

    Examples:
        >>> board, screen = (Unbounded((2, n, n), dtype=torch.uint8) for n in (9, 64))
        >>> list(screens(Composite(board=board, screen=screen)))
        ['screen']
    """
    _, images = split_observations(observation_spec)
    largest = ResidualImageEncoder.LARGEST_BOARD
    return {key: spec for key, spec in images.items() if max(spec.shape[-2:]) > largest}
