"""Action sequences of any spec as normalised flat vectors, and distributions over them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Binary, Bounded, Categorical, TensorSpec

from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.modules.encoding import groups


class ActionSpace(nn.Module):
    """The flat actions of an :class:`~torchrl_wm.modules.actions.ActionEncoding`, normalised.

    Bounded numbers are scaled to [-1, 1] and clipped there, unbounded ones are unchanged, one-hot groups
    hold 0 and 1. A distribution is a ``mean`` and a ``std``, ``[..., A]``: for numbers those of a normal;
    for classes the ``mean`` holds their probabilities (the average of one-hot vectors, so that refitting
    to samples is the same operation for both) and the ``std`` has no meaning.

    Args:
        encoding (ActionEncoding): the flat form.

    Keyword Args:
        scale_by_bounds (bool, optional): scale bounded numbers; otherwise they are only clipped.
            Defaults to ``True``.

    Raises:
        ValueError: for an empty action, or infinite bounds to scale by.

    Examples:
        >>> from torchrl.data import Composite
        >>> spec = Composite(gear=Categorical(2), speed=Bounded(0, 100, (1,)))
        >>> space = ActionSpace(ActionEncoding(spec))
        >>> mean = space.initial_mean
        >>> mean
        tensor([0.5000, 0.5000, 0.0000])
        >>> space.actions(space.sample(mean, torch.ones(3), torch.tensor([1.0, -1.0, 3.0])))
        tensor([  1.,   0., 100.])
    """

    def __init__(self, encoding: ActionEncoding, *, scale_by_bounds: bool = True):
        super().__init__()
        if not encoding.size:
            raise ValueError(
                f"The action {list(encoding.leaves)} is empty: nothing can be planned."
            )
        self.encoding, self.size = encoding, encoding.size
        self.classes: list[slice] = []
        self.yes_no: list[slice] = []
        middle, half = torch.zeros(self.size), torch.ones(self.size)
        low, high = torch.full((self.size,), -torch.inf), torch.full((self.size,), torch.inf)
        mean, start = torch.zeros(self.size), 0
        for key, spec in encoding.leaves.items():
            part = slice(start, start + encoding.sizes[key])
            start = part.stop
            if (counts := groups(spec)) is not None:
                self.classes += _consecutive(part.start, counts)
            elif isinstance(spec, Binary):
                self.yes_no.append(part)
                mean[part] = 0.5
            elif isinstance(spec, Bounded) and not isinstance(spec, Categorical):
                low[part], high[part] = _bounds(key, spec, scale_by_bounds)
        for part in self.classes:
            mean[part] = 1 / (part.stop - part.start)
        if scale_by_bounds:
            bounded = low.isfinite()
            middle[bounded] = (high[bounded] + low[bounded]) / 2
            half[bounded] = (high[bounded] - low[bounded]) / 2
            low[bounded], high[bounded] = -1.0, 1.0
        buffers = {
            "middle": middle,
            "half_range": half,
            "low": low,
            "high": high,
            "initial_mean": mean,
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)
        self.scaled = bool((middle != 0).any() or (half != 1).any())
        self.clipped = bool(low.isfinite().any() or high.isfinite().any())
        ends = low.unique().tolist(), high.unique().tolist()
        # The same bounds for all, as numbers: a quarter of the time of tensors.
        self._ends = (ends[0][0], ends[1][0]) if len(ends[0]) == len(ends[1]) == 1 else None

    def sample(self, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """Draws normalised actions ``[..., A]`` from unit normal noise ``[..., A]``.

        Classes are drawn by the Gumbel trick from the same normal noise, so with coloured noise they
        persist in time.
        """
        draw = self.clip(torch.addcmul(mean, std, noise))
        for part in self.classes:
            log_probs = mean[..., part].expand(draw[..., part].shape).log()
            index = (log_probs + _gumbel(noise[..., part])).argmax(-1)
            draw[..., part] = F.one_hot(index, part.stop - part.start).to(draw.dtype)
        for part in self.yes_no:
            draw[..., part] = (torch.special.ndtr(noise[..., part]) < mean[..., part]).to(
                draw.dtype
            )
        return draw

    def clip(self, normalised: Tensor) -> Tensor:
        """Numbers within their bounds."""
        if not self.clipped:
            return normalised
        return normalised.clamp(*(self._ends or (self.low, self.high)))

    def actions(self, normalised: Tensor) -> Tensor:
        """Flat actions ``[..., A]`` from normalised ones."""
        return (
            torch.addcmul(self.middle, self.half_range, normalised) if self.scaled else normalised
        )

    def normalise(self, actions: Tensor) -> Tensor:
        """The inverse of :meth:`actions`, within the bounds."""
        if self.scaled:
            actions = (actions - self.middle) / self.half_range.clamp_min(
                torch.finfo(torch.float32).tiny
            )
        return self.clip(actions)

    def soften(self, mean: Tensor) -> Tensor:
        """Averages probabilities with uniform ones: after a refit, classes that were not drawn have 0."""
        if not (self.classes or self.yes_no):
            return mean
        mean = mean.clone()
        for part in (*self.classes, *self.yes_no):
            mean[..., part] = (mean[..., part] + self.initial_mean[part]) / 2
        return mean


def _consecutive(start: int, counts: list[int]) -> list[slice]:
    parts = []
    for count in counts:
        parts.append(slice(start, start + count))
        start += count
    return parts


def _bounds(key, spec: TensorSpec, scale: bool) -> tuple[Tensor, Tensor]:
    low, high = spec.space.low.float().flatten(), spec.space.high.float().flatten()
    # Suites use the largest number of the type for no bound.
    largest = torch.finfo(torch.float32).max
    if scale and not ((low > -largest).all() and (high < largest).all()):
        raise ValueError(
            f"The action {key!r} has infinite bounds, by which samples cannot be scaled: give finite "
            "ones, use an Unbounded spec, or set scale_by_bounds=False."
        )
    return low, high


def _gumbel(normal: Tensor) -> Tensor:
    """Gumbel noise from unit normal noise."""
    uniform = torch.special.ndtr(normal).clamp(1e-7, 1 - 1e-7)
    return -(-uniform.log()).log()
