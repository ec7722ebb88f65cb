"""The targets of an unrolled model: returns, rewards, policies, and the masks of where they count."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs.transforms import Transform

from torchrl_wm import keys
from torchrl_wm.data.records import required, sequences
from torchrl_wm.functional.n_step import n_step_returns, steps_of_age, value_prefixes
from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.ranges import NUMBER


class UnrolledTargets(Transform):
    """Adds the targets of MuZero to sampled sequences of step records, below ``"target"``.

    A model is unrolled from record ``root`` of each sequence over ``unroll_steps`` actions. Past a
    termination it learns that nothing follows: value and reward 0, after random actions. Past a
    truncation nothing is known and nothing is trained; the return bootstraps from the final observation
    (see :class:`~torchrl_wm.data.BootstrapValues`). Policies are trained where a search stored one.

    Args:
        encoding (ActionEncoding): of the actions.

    Keyword Args:
        root (int): position of the root in a sequence.
        unroll_steps (int): ``K``.
        td_steps (int): rewards in a return before it is bootstrapped.
        discount (float): discount of one step.
        auto_td_steps (int, optional): updates after which the returns of old records are one reward
            shorter, see :func:`~torchrl_wm.functional.steps_of_age`; needs the records'
            ``policy_version``. Defaults to ``0``, which keeps ``td_steps``.
        version (callable, optional): the number of updates so far. Defaults to a constant 0.
        two_players (bool, optional): the records have ``to_play``. Defaults to ``False``.
        value_prefix_horizon (int, optional): train towards sums of rewards, restarted every so many steps
            (EfficientZero), instead of single rewards. Defaults to single rewards.

    :attr:`length` records are needed: ``root + K + td_steps + 1``.

    Raises:
        ValueError: for sequences of another length, or steps below 1.
        KeyError: for a missing entry.

    Examples:
        >>> from torchrl.data import OneHot
        >>> targets = UnrolledTargets(
        ...     ActionEncoding(OneHot(2)), root=0, unroll_steps=1, td_steps=1, discount=0.5)
        >>> ends = torch.tensor([[False], [True], [False]])
        >>> records = TensorDict(
        ...     reward=torch.tensor([[0.0], [1.0], [0.0]]), bootstrap_value=torch.ones(3, 1),
        ...     previous_action=torch.ones(3, 2), is_last=ends, terminated=ends, batch_size=[3])
        >>> targets(records)["target", "value"].flatten()
        tensor([1., 0., 0.])
    """

    def __init__(
        self,
        encoding: ActionEncoding,
        *,
        root: int,
        unroll_steps: int,
        td_steps: int,
        discount: float,
        auto_td_steps: int = 0,
        version: Callable[[], int] = int,
        two_players: bool = False,
        value_prefix_horizon: int | None = None,
    ):
        super().__init__()
        if unroll_steps < 0 or td_steps < 1 or root < 0:
            raise ValueError(
                f"Need td_steps >= 1, unroll_steps >= 0 and root >= 0, got {td_steps=}, "
                f"{unroll_steps=}, {root=}."
            )
        NUMBER.check(auto_td_steps=auto_td_steps)
        self.encoding, self.root, self.unroll_steps = encoding, root, unroll_steps
        self.td_steps, self.discount, self.two_players = td_steps, discount, two_players
        self.auto_td_steps, self.version = auto_td_steps, version
        self.value_prefix_horizon = value_prefix_horizon
        self.length = root + unroll_steps + td_steps + 1

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Adds the targets to ``[B * length]`` or ``[B, length]`` records."""
        rows = sequences(tensordict, self.length)
        last, terminated = self._scalar(rows, keys.IS_LAST), self._scalar(rows, keys.TERMINATED)
        value, known = self._returns(rows, last, terminated)
        past, absorbed = self._past(last, terminated)
        unrolled = torch.zeros_like(last)
        unrolled[:, self.root : self.root + self.unroll_steps + 1] = True
        arrived = unrolled.clone()
        arrived[:, self.root] = False
        scored = ~past | absorbed
        reward = self._rewards(rows, past)
        out = {
            keys.VALUE_TARGET: value.masked_fill(past, 0.0),
            keys.REWARD_TARGET: reward,
            keys.VALUE_MASK: unrolled & scored & (known | past),
            keys.REWARD_MASK: arrived & scored,
            keys.POLICY_MASK: unrolled & ~past & ~last,
            keys.OBSERVED_MASK: unrolled & ~past,
        }
        for key, entry in out.items():
            tensordict.set(key, entry.reshape(*tensordict.shape, 1))
        taken = required(rows, keys.PREVIOUS_ACTION)
        taken = torch.where(past.unsqueeze(-1), self._random_actions(rows).to(taken.device), taken)
        return tensordict.set(keys.UNROLL_ACTION, taken.reshape(*tensordict.shape, -1))

    def _returns(self, rows, last: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
        to_play = self._scalar(rows, keys.TO_PLAY) if self.two_players else None
        td_steps = self.td_steps
        if self.auto_td_steps:
            age = self.version() - self._scalar(rows, keys.POLICY_VERSION)
            td_steps = steps_of_age(td_steps, age, self.auto_td_steps)
        return n_step_returns(
            self._scalar(rows, keys.REWARD),
            self._scalar(rows, keys.BOOTSTRAP_VALUE),
            last,
            terminated,
            td_steps=td_steps,
            discount=self.discount,
            to_play=to_play,
        )

    def _rewards(self, rows: TensorDictBase, past: Tensor) -> Tensor:
        """Rewards, or sums of rewards; none are added past the end."""
        reward = self._scalar(rows, keys.REWARD).masked_fill(past, 0.0)
        if self.value_prefix_horizon is None:
            return reward
        after = slice(self.root + 1, self.root + 1 + self.unroll_steps)
        sums = value_prefixes(reward[:, after], self.value_prefix_horizon)
        return reward.slice_scatter(sums, 1, after.start, after.stop)

    def _past(self, last: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
        """Which records come after the root's episode, and whether that was terminated."""
        ends = last.clone()
        ends[:, : self.root] = False
        ended = ends.cumsum(1)
        terminal = (ends & terminated & (ended == 1)).cumsum(1).bool()
        before = lambda x: torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        return before(ended.bool()), before(terminal)

    def _random_actions(self, rows: TensorDictBase) -> Tensor:
        leaves = self.encoding.leaves.items()
        drawn = TensorDict({key: spec.rand(rows.shape) for key, spec in leaves}, rows.shape)
        return self.encoding(drawn)

    @staticmethod
    def _scalar(rows: TensorDictBase, key) -> Tensor:
        return required(rows, key).reshape(rows.shape)
