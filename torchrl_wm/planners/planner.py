"""The base of sampling planners: draw action sequences, evaluate them, refit to the best."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.data import Composite, Unbounded
from torchrl.envs import EnvBase, TensorDictPrimer

from torchrl_wm import keys
from torchrl_wm.planners.action_space import ActionSpace
from torchrl_wm.planners.evaluating import evaluating
from torchrl_wm.planners.simulators import make_simulator
from torchrl_wm.programs.draws import unit_normal
from torchrl_wm.ranges import COUNT
from torchrl_wm.world_models import WorldModel

_VARIANCE_FLOOR = 1e-6  # PlaNet's: even equal samples leave some deviation


class Planner(TensorDictModuleBase):
    """Base of the planners: a policy for any collector that optimises a sequence in every step.

    Reads the state (the latents of a world model after ``filter``, or the inputs of a stateless
    environment) of any batch size ``[...]`` and writes the first action of the plan in the environment's
    own encoding. Every batch entry has its own candidates and elites. In each of ``optim_steps``
    iterations ``num_candidates`` sequences are drawn and evaluated, and the distribution is refitted to
    the ``top_k`` best. Non-finite returns count as minus infinity; where all are, the action is
    arbitrary, and a warning says so. Nothing is differentiated.

    Args:
        env (EnvBase or WorldModel): where sequences are evaluated: a world model with a reward head, or
            an environment that is not batch-locked.
        planning_horizon (int): steps of a sequence.
        optim_steps (int): iterations.
        num_candidates (int): sequences evaluated in an iteration, proposals included.
        top_k (int): sequences that the distribution is refitted to.
        reward_key (NestedKey, optional): the reward of an environment. Defaults to its only one.
        action_key (NestedKey, optional): where the action is written, for an environment with one
            action entry. Defaults to that entry; several entries are written under their own names.

    Keyword Args:
        discount (float, optional): of one step. Defaults to ``1.0``.
        terminal_value (callable, optional): value of the last state: for a world model a function from
            features ``[N, F]`` to ``[N, 1]``, for an environment a module that writes
            ``"state_value"``.
        proposal_policy (callable, optional): proposes sequences that are among the candidates of every
            iteration: for a world model a function from features ``[N, F]`` to flat actions ``[N, A]``,
            for an environment a policy on TensorDicts.
        num_proposals (int, optional): how many sequences it proposes. Defaults to ``0``.
        momentum (float, optional): share of the distribution kept in a refit. Defaults to ``0.0``.
        init_std (float, optional): first standard deviation, in half ranges of bounded numbers.
            Defaults to ``1.0``.
        min_std, max_std (float, optional): floor and ceiling after a refit, in the same unit. Default
            to ``0.0`` and no ceiling.
        select (str, optional): act on the ``"mean"`` after the last iteration, or on its ``"best"``
            sequence. Defaults to ``"mean"``.
        warm_start (bool, optional): start from the plan of the previous step, shifted by one, with its
            last action repeated. The plan is carried in ``plan_key``: append
            :meth:`make_tensordict_primer` to the environment. Defaults to ``False``.
        scale_by_bounds (bool, optional): draw bounded numbers over their range; otherwise with mean 0
            and deviation ``init_std``, clipped. Defaults to ``True``.
        particles, sample_latents, trace (optional): see
            :class:`~torchrl_wm.planners.ModelSimulator`.
        plan_key (NestedKey, optional): normalised plan ``[..., H, A]``. Defaults to ``"plan"``.
        is_init_key (NestedKey, optional): where True, there is no plan yet. Defaults to ``"is_init"``.
        generator (torch.Generator, optional): source of all draws of sequences and latents. Defaults
            to the global one.

    Raises:
        ValueError: for a batch-locked environment, more elites than candidates, an empty action,
            infinite bounds to scale by, or a number out of range.
        TypeError: for an ``env`` that is neither an environment nor a world model.
    """

    def __init__(
        self,
        env: EnvBase | WorldModel,
        planning_horizon: int,
        optim_steps: int,
        num_candidates: int,
        top_k: int,
        reward_key: NestedKey | None = None,
        action_key: NestedKey | None = None,
        *,
        discount: float = 1.0,
        terminal_value: Callable | None = None,
        proposal_policy: Callable | None = None,
        num_proposals: int = 0,
        momentum: float = 0.0,
        init_std: float = 1.0,
        min_std: float = 0.0,
        max_std: float | None = None,
        select: Literal["mean", "best"] = "mean",
        warm_start: bool = False,
        scale_by_bounds: bool = True,
        particles: int | None = None,
        sample_latents: bool = True,
        trace: bool = True,
        advantage_module: Callable | None = None,
        plan_key: NestedKey = keys.PLAN,
        is_init_key: NestedKey = keys.IS_INIT,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.simulator = make_simulator(
            env,
            discount=discount,
            reward_key=reward_key,
            terminal_value=terminal_value,
            advantage_module=advantage_module,
            read_observations=proposal_policy is not None,
            particles=particles,
            sample_latents=sample_latents,
            trace=trace,
        )
        self.planning_horizon, self.optim_steps = planning_horizon, optim_steps
        self.num_candidates, self.top_k = num_candidates, top_k
        self.proposal_policy, self.num_proposals = proposal_policy, num_proposals
        self.momentum, self.init_std = momentum, init_std
        self.min_std, self.max_std, self.select = min_std, max_std, select
        self._check_options()
        self.space = ActionSpace(self.simulator.encoding, scale_by_bounds=scale_by_bounds)
        self.space.to(self.simulator.device)
        self.generator = generator
        self.action_key = self._check_action_key(action_key)
        self.is_init_key, self.plan_key = unravel_key(is_init_key), unravel_key(plan_key)
        self.carried: dict[NestedKey, tuple[int, ...]] = {}
        if warm_start:
            self.carried[self.plan_key] = (planning_horizon, self.space.size)
        self._set_keys()

    def _set_keys(self) -> None:
        carried = list(self.carried)
        self.in_keys = [*self.simulator.in_keys, *([self.is_init_key] if carried else []), *carried]
        written = self.simulator.encoding.in_keys if self.action_key is None else [self.action_key]
        self.out_keys = [*written, *carried]

    # -- carried entries -------------------------------------------------------------------------
    @property
    def carried_spec(self) -> Composite:
        """Unbatched spec of the entries carried from step to step; empty without a warm start."""
        spec = Composite()
        for key, shape in self.carried.items():
            spec[key] = Unbounded(shape)
        return spec

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform with which an environment carries the plan; it needs ``InitTracker`` too.

        Both carry their entries in the batch size of the environment: for several environments take one
        that has it, such as ``SerialEnv(4, PendulumEnv)``, and plan in a single one.
        """
        return TensorDictPrimer(self.carried_spec, default_value=0.0, expand_specs=True)

    def compile_steps(self, **options) -> Planner:
        """Compiles the imagination of a world model, all steps of a plan at once.

        Useful for small models that no program expresses: with 32 units a plan took 0.7 times as long as a
        recorded one, at PlaNet's size there was no gain. A program is faster than both, and is given up.
        Compiling takes a minute or more for each number of candidates and rows, so iCEM, whose numbers
        fall, compiles several times.

        Args:
            **options: keyword arguments of :func:`torch.compile`.

        Raises:
            TypeError: where plans are made in an environment.
        """
        self.simulator.compile_steps(**options)
        return self

    # -- planning --------------------------------------------------------------------------------
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Plans for every row ``[...]`` and writes the actions."""
        plan, carried = self.plan(tensordict)
        batch = tensordict.batch_size
        for key, value in carried.items():
            tensordict.set(key, value.reshape(*batch, *value.shape[1:]))
        first = self.space.actions(plan[:, 0]).reshape(*batch, self.space.size)
        encoding = self.simulator.encoding
        if self.action_key is None:
            return encoding.decode(first, tensordict)
        decoded = encoding.decode(first, tensordict.empty())
        return tensordict.set(self.action_key, decoded.get(encoding.in_keys[0]))

    @torch.no_grad()
    def plan(
        self, tensordict: TensorDictBase, *, noise: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, dict[NestedKey, Tensor]]:
        """The optimised sequences of ``n`` rows, flattened from ``[...]``.

        Args:
            tensordict (TensorDictBase): ``[...]``, with all ``in_keys``.

        Keyword Args:
            noise (sequence of Tensor, optional): the unit normal draws of each iteration,
                ``[n, samples, H, A]``. Drawn by default.

        Returns:
            The plan ``[n, H, A]``, normalised and flat, and the entries carried to the next step.

        Raises:
            KeyError: for a missing entry.
        """
        with evaluating(self):
            return self._optimise(self._read(tensordict), noise)

    def _optimise(
        self, rows: TensorDictBase, noise: Sequence[Tensor] | None
    ) -> tuple[Tensor, dict[NestedKey, Tensor]]:
        start = self.simulator.start(rows)
        read = next(rows.values(True, True), None)
        if read is not None and read.device != self.space.middle.device:  # the model was moved
            self.space.to(read.device)
        mean, std = self._begin(rows)
        proposals = self._propose(start)
        elites = self._carried_elites(rows, mean)
        for i in range(self.optim_steps):
            draws = self._noise((len(rows), self._samples(i))) if noise is None else noise[i]
            drawn = self.space.sample(mean.unsqueeze(1), std.unsqueeze(1), draws)
            candidates = torch.cat([drawn, *proposals, *self._kept(i, mean, elites)], 1)
            returns = self.simulator.returns(start, self.space.actions(candidates), self.generator)
            # A NaN return would win or lose comparisons arbitrarily.
            returns = returns.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
            returns, index = returns.topk(self.top_k, dim=1)
            elites = candidates.gather(1, index[..., None, None].expand(-1, -1, *mean.shape[1:]))
            mean, std = self._refit(mean, std, elites, self._weights(returns))
        self._warn_of_nothing_usable(returns[:, 0])
        plan = elites[:, 0] if self.select == "best" else mean
        return plan, self._carry(mean, elites)

    def _warn_of_nothing_usable(self, best: Tensor) -> None:
        """Warns of rows without a finite return, where the action is arbitrary."""
        if count := int((best == -torch.inf).sum()):
            warnings.warn(
                f"{type(self).__name__}: in {count} of {len(best)} rows no candidate has a finite return, "
                f"so the action is arbitrary. Look for nan or inf in {self.simulator.rewards}, or in what "
                f"the planner reads: {self.in_keys}.",
                stacklevel=2,
            )

    def _refit(self, mean, std, elites: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution of the weighted elites ``[n, top_k, H, A]``, with momentum and limits."""
        weights = weights[..., None, None].to(elites.dtype)
        new_mean = (weights * elites).sum(1)
        variance = (weights * (elites - new_mean.unsqueeze(1)).square()).sum(1)
        new_std = (variance + _VARIANCE_FLOOR).sqrt()
        if self.momentum:
            new_mean, new_std = new_mean.lerp(mean, self.momentum), new_std.lerp(std, self.momentum)
        return new_mean, new_std.clamp(self.min_std, self.max_std)

    # -- where planners differ -------------------------------------------------------------------
    def _weights(self, returns: Tensor) -> Tensor:
        """Weights ``[n, top_k]`` of the elites, which sum to 1, from their returns, best first."""
        usable = returns > -torch.inf
        usable = usable | ~usable.any(1, keepdim=True)
        return usable / usable.sum(1, keepdim=True)

    def _samples(self, iteration: int) -> int:
        """Sequences drawn from the distribution in an iteration."""
        return self.num_candidates - self.num_proposals

    def _noise(self, shape: tuple[int, int]) -> Tensor:
        """Unit normal noise ``[*shape, H, A]``."""
        size = (*shape, self.planning_horizon, self.space.size)
        return unit_normal(size, device=self.space.middle.device, generator=self.generator)

    def _kept(self, iteration: int, mean: Tensor, elites: Tensor | None) -> list[Tensor]:
        """Candidates ``[n, *, H, A]`` that are reused from the iteration or step before."""
        return []

    def _carried_elites(self, rows: TensorDictBase, mean: Tensor) -> Tensor | None:
        """Elites ``[n, *, H, A]`` of the step before."""
        return None

    def _carry(self, mean: Tensor, elites: Tensor) -> dict[NestedKey, Tensor]:
        """The entries that the next step starts from."""
        return {self.plan_key: mean} if self.plan_key in self.carried else {}

    # -- beginning -------------------------------------------------------------------------------
    def _begin(self, rows: TensorDictBase) -> tuple[Tensor, Tensor]:
        shape = (len(rows), self.planning_horizon, self.space.size)
        initial = self.space.initial_mean.expand(shape)
        std = torch.full(shape, self.init_std, device=initial.device)
        if not self.carried:
            return initial, std
        shifted = self.space.soften(shift(rows.get(self.plan_key)))
        return torch.where(self._fresh(rows)[:, None, None], initial, shifted), std

    def _fresh(self, rows: TensorDictBase) -> Tensor:
        """Rows ``[n]`` without a plan: a new episode, or the primer's zeros (after a warm-up)."""
        nothing = (rows.get(self.plan_key) == 0).flatten(1).all(1)
        return rows.get(self.is_init_key).reshape(len(rows)) | nothing

    def _propose(self, start) -> list[Tensor]:
        if not self.num_proposals:
            return []
        options = (self.num_proposals, self.planning_horizon, self.generator)
        return [self.space.normalise(self.simulator.propose(start, self.proposal_policy, *options))]

    def _read(self, tensordict: TensorDictBase) -> TensorDictBase:
        for key in self.in_keys:
            if tensordict.get(key, None) is None:
                found = sorted(map(str, tensordict.keys(True, True)))
                raise KeyError(
                    f"{type(self).__name__} needs the entry {key!r}; found {found}.{self._remedy(key)}"
                )
        return tensordict.select(*self.in_keys).reshape(tensordict.batch_size.numel())

    def _remedy(self, key: NestedKey) -> str:
        if key in self.carried:
            return " Append planner.make_tensordict_primer() to the environment to carry the plan."
        if key == self.is_init_key and self.carried:
            return " Append torchrl.envs.InitTracker to the environment, or set warm_start=False."
        return ""

    # -- checks ----------------------------------------------------------------------------------
    def _check_options(self) -> None:
        for name in ("planning_horizon", "optim_steps", "num_candidates", "top_k"):
            COUNT.check(**{name: getattr(self, name)})
        if self.top_k > self.num_candidates:
            raise ValueError(
                f"top_k={self.top_k} elites cannot be chosen among num_candidates="
                f"{self.num_candidates}: lower top_k or draw more candidates."
            )
        if self.select not in ("mean", "best"):
            raise ValueError(f"Unknown select {self.select!r}; expected 'mean' or 'best'.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be at least 0 and below 1.")
        ceiling = torch.inf if self.max_std is None else self.max_std
        if not (0 <= self.min_std <= ceiling and self.init_std > 0):
            raise ValueError(
                f"Need 0 <= min_std <= max_std and init_std > 0; got min_std={self.min_std}, "
                f"max_std={self.max_std}, init_std={self.init_std}."
            )
        if (self.proposal_policy is None) != (self.num_proposals == 0):
            raise ValueError("proposal_policy and num_proposals need each other; one is missing.")
        if not 0 <= self.num_proposals < self.num_candidates:
            raise ValueError(
                f"num_proposals={self.num_proposals} must leave some of num_candidates="
                f"{self.num_candidates} to be drawn."
            )

    def _check_action_key(self, action_key: NestedKey | None) -> NestedKey | None:
        entries = self.simulator.encoding.in_keys
        if action_key is None or (entries == [unravel_key(action_key)]):
            return None
        if len(entries) > 1:
            raise ValueError(
                f"action_key={action_key!r} names one entry, but the actions are {entries}; leave it "
                "out and all are written."
            )
        return unravel_key(action_key)


def shift(sequence: Tensor) -> Tensor:
    """A sequence ``[..., H, A]`` one step later, its last action repeated.

    Examples:
        >>> shift(torch.tensor([[1.0], [2.0], [3.0]])).flatten()
        tensor([2., 3., 3.])
    """
    return torch.cat([sequence[..., 1:, :], sequence[..., -1:, :]], -2)
