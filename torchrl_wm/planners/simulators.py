"""Returns of action sequences, in a world model or in a stateless environment."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.envs import Compose, EnvBase, InitTracker, TensorDictPrimer, TransformedEnv
from torchrl.envs.utils import step_mdp

from torchrl_wm import keys
from torchrl_wm.envs import LearnedEnv
from torchrl_wm.modules.actions import ActionEncoding
from torchrl_wm.modules.compilation import compile_function
from torchrl_wm.planners.imagined_steps import ImaginedSteps
from torchrl_wm.planners.recording import Recording
from torchrl_wm.planners.stateless import check_unbatched, ended, flat, outermost, start_keys
from torchrl_wm.ranges import COUNT
from torchrl_wm.world_models import WorldModel

REWARD_KEY = ("next", keys.REWARD)

_BLOCK = 1024  # rows that go through all layers together on a CPU: more would leave its cache


class ModelSimulator(nn.Module):
    """Returns of action sequences in a world model, by its batched imagination on plain tensors.

    Rewards are the means of the reward head at the imagined states. A predicted
    continuation weights everything after its state, but not the reward that arrives with the state.

    Args:
        model (WorldModel): with a reward head.

    Keyword Args:
        discount (float): of one step.
        terminal_value (callable, optional): features ``[N, F]`` of the last states to values ``[N, 1]``.
        particles (int, optional): trajectories of each action sequence, averaged; in an ensemble of
            dynamics each follows one member. Defaults to one for each member.
        sample_latents (bool, optional): sample the latents; otherwise follow the most probable ones.
            Defaults to ``True``.
        trace (bool, optional): record the operations, see :class:`ImaginedSteps` for most models and
            :class:`Recording` for others. Defaults to ``True``.

    Raises:
        ValueError: for a model without a reward head, or less than one particle.
    """

    def __init__(
        self,
        model: WorldModel,
        *,
        discount: float,
        terminal_value: Callable[[Tensor], Tensor] | None = None,
        particles: int | None = None,
        sample_latents: bool = True,
        trace: bool = True,
    ):
        super().__init__()
        if model.reward_head is None:
            raise ValueError(
                f"Planning needs rewards, and this {type(model).__name__} has no reward head: give it one "
                "with reward_head=..., as make_rssm and make_identity do, and train it."
            )
        particles = model.members if particles is None else particles
        COUNT.check(particles=particles)
        self.model, self.discount, self.terminal_value = model, discount, terminal_value
        self.particles, self.sample_latents = particles, sample_latents
        self.in_keys, self.rewards = list(model.latent_keys), "the parameters of the world model"
        self.encoding = model.action_encoding
        self.steps = ImaginedSteps(model) if trace else None
        self.imagined = Recording(self._imagine) if trace else self._imagine

    def compile_steps(self, **options) -> None:
        """Compiles the imagination instead of recording it.

        Args:
            **options: keyword arguments of :func:`torch.compile`.
        """
        self.steps = None
        self.imagined = compile_function(self._imagine, **{"dynamic": False, **options})

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def start(self, tensordict: TensorDictBase) -> tuple[Tensor, ...]:
        """The latents ``[n, size]`` in a TensorDict ``[n]``, for one plan."""
        return _Start(tensordict.get(key) for key in self.in_keys)

    def returns(
        self, start: tuple[Tensor, ...], actions: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Returns ``[n, K]`` of flat action sequences ``[n, K, H, A]`` from ``n`` start states."""
        n, candidates = actions.shape[:2]
        actions = actions.flatten(0, 1).transpose(0, 1)
        if self.particles > 1:
            actions = actions.repeat_interleave(self.particles, 1)
        latents = _repeat(start, candidates * self.particles)
        noise = self._noise(*actions.shape[:2], actions.device, generator)
        unchanged = isinstance(start, _Start) and start.judged
        program = self.steps and self.steps.program(actions, noise, latents, unchanged)
        if isinstance(start, _Start):
            start.judged = True
        if program:
            reward, goes_on, last = self.steps(program, actions, noise, latents)
            total, tail = self._weigh(reward, goes_on)
        else:
            total, last, tail = self._in_blocks(actions, noise, *latents)
        if self.terminal_value is not None:
            last = torch.cat(last, -1) if program else last
            total = total + tail * self.terminal_value(last).squeeze(-1)
        if self.particles > 1:
            total = total.view(-1, self.particles).mean(-1)
        return total.view(n, candidates)

    def _in_blocks(self, actions: Tensor, noise: Tensor, *latents: Tensor) -> tuple[Tensor, ...]:
        """What is imagined, on a CPU for a few rows at a time."""
        if not actions.is_cpu:
            return self.imagined(actions, noise, *latents)
        members = self.model.members
        rows = max(_BLOCK // members, 1) * members  # the members take turns in every block
        # Contiguous, since a compiled function is compiled anew for other strides.
        steps = ((part.contiguous() for part in x.split(rows, 1)) for x in (actions, noise))
        blocks = *steps, *(x.split(rows) for x in latents)
        found = [self.imagined(*block) for block in zip(*blocks, strict=True)]
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _imagine(self, actions: Tensor, noise: Tensor, *latents: Tensor) -> tuple[Tensor, ...]:
        """Weighted sum of rewards ``[N]``, last features ``[N, F]`` and the weight of their value ``[N]``."""
        features = torch.cat(self.model.unroll(latents, actions, noise), -1)
        blocks = features.flatten(0, 1).split(_BLOCK)
        reward = torch.cat([self.model.reward_head(block).mean for block in blocks])
        goes_on = None
        if self.model.continuation_head is not None:
            goes_on = self.model.continuation_head(features).mean.squeeze(-1)
        total, tail = self._weigh(reward.view(features.shape[:2]), goes_on)
        return total, features[-1], tail

    def _weigh(self, reward: Tensor, goes_on: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weighted sum of rewards ``[H, N]``, and the weight of the last state's value, both ``[N]``."""
        horizon, tail = len(reward), reward.new_full(reward.shape[1:], self.discount ** len(reward))
        if self.discount != 1:
            steps = torch.arange(horizon, device=reward.device)
            reward = reward * (self.discount**steps).to(reward.dtype).unsqueeze(-1)
        if goes_on is None:
            return reward.sum(0), tail
        alive = goes_on.cumprod(0)
        return reward[0] + (reward[1:] * alive[:-1]).sum(0), tail * alive[-1]

    def propose(
        self,
        start: tuple[Tensor, ...],
        policy: Callable[[Tensor], Tensor],
        count: int,
        horizon: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``count`` action sequences ``[n, count, H, A]`` of a policy of features ``[N, F]``."""
        latents, model = _repeat(start, count), self.model
        noise = self._noise(horizon, len(latents[0]), latents[0].device, generator)
        actions = []
        for draw in noise:
            actions.append(policy(torch.cat(latents, -1)))
            latents = model.unroll(latents, actions[-1].unsqueeze(0), draw.unsqueeze(0))
            latents = tuple(value[0] for value in latents)
        return torch.stack(actions, 1).unflatten(0, (len(start[0]), count))

    def _noise(self, horizon: int, rows: int, device, generator: torch.Generator | None) -> Tensor:
        noise = self.model.trajectory_noise(horizon, rows, device, generator)
        if not self.sample_latents:
            # Only the draws of the state: the choice of the ensemble's member is kept.
            noise[..., : self.model.latent.noise_size] = self.model.latent.mode_noise
        return noise


class EnvSimulator(nn.Module):
    """Returns of action sequences in a stateless environment, by stepping it.

    After a step that ends the episode neither rewards nor a terminal value count.

    Args:
        env (EnvBase): an environment that takes inputs of any batch size; transforms that are appended
            to it later are no part of planning.

    Keyword Args:
        discount (float): of one step.
        reward_key (NestedKey, optional): the reward, below ``"next"``. Defaults to the
            environment's own. Rewards of several numbers are summed.
        terminal_value (TensorDictModule, optional): reads the last states, writes ``value_key``.
        value_key (NestedKey, optional): Defaults to ``"state_value"``.
        advantage_module (callable, optional): a TorchRL value estimator; sequences are then judged by
            the ``advantage`` that it writes for their first step.
        read_observations (bool, optional): let the start hold the observations beside the state, for
            proposals of a policy. Defaults to ``False``.

    Raises:
        ValueError: for an environment that is batch-locked, or a reward that it does not write.
    """

    def __init__(
        self,
        env: EnvBase,
        *,
        discount: float,
        reward_key: NestedKey | None = None,
        terminal_value: Callable[[TensorDictBase], TensorDictBase] | None = None,
        value_key: NestedKey = keys.STATE_VALUE,
        advantage_module: Callable[[TensorDictBase], TensorDictBase] | None = None,
        read_observations: bool = False,
    ):
        super().__init__()
        check_unbatched(env)
        self.env, self.discount = _without_notes(env), discount
        self.reward_key = _check_reward_key(env, reward_key)
        self.rewards = f"the reward {self.reward_key} of {type(env).__name__}"
        self.terminal_value, self.value_key = terminal_value, value_key
        self.advantage_module = advantage_module
        self.in_keys = start_keys(
            self.env, observed=read_observations or advantage_module is not None
        )
        self.encoding = ActionEncoding(env.full_action_spec_unbatched)
        self.done_keys = outermost(env, "done")

    def compile_steps(self, **options) -> None:
        """Raises a TypeError: the steps of an environment are its own."""
        raise TypeError(
            f"The steps of {type(self.env).__name__} cannot be compiled; plan in a world model, or "
            "leave compile_steps out."
        )

    @property
    def device(self) -> torch.device | None:
        """Where the environment is; ``None`` where it is on no particular device."""
        return self.env.device

    def start(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The state ``[n]`` in a TensorDict ``[n]``."""
        return tensordict.select(*self.in_keys)

    def returns(
        self, start: TensorDictBase, actions: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Returns ``[n, K]`` of flat action sequences ``[n, K, H, A]`` from ``n`` start states."""
        n, candidates, horizon, _ = actions.shape
        actions = actions.flatten(0, 1)
        state = self._repeat(start, candidates)
        total, weight, rows = 0.0, 1.0, []
        alive = torch.ones(len(actions), dtype=torch.bool, device=actions.device)
        for t in range(horizon):
            row = self.env.step(self.encoding.decode(actions[:, t], state))
            reward = flat(row.get(self.reward_key)).sum(1)
            total = total + self._counted(reward, alive, weight)
            alive, weight = alive & ~ended(row, self.done_keys), weight * self.discount
            state = step_mdp(row)
            if self.advantage_module is not None:
                rows.append(row.select(*self.in_keys, *self.encoding.in_keys, "next"))
        if self.advantage_module is not None:
            return self._advantage(torch.stack(rows, 1)).view(n, candidates)
        if self.terminal_value is not None:
            value = self.terminal_value(state).get(self.value_key)
            total = total + self._counted(value.reshape(len(value)), alive, weight)
        return total.view(n, candidates)

    def propose(
        self,
        start: TensorDictBase,
        policy: Callable[[TensorDictBase], TensorDictBase],
        count: int,
        horizon: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``count`` action sequences ``[n, count, H, A]`` of a policy on TensorDicts."""
        state, actions = self._repeat(start, count), []
        for _ in range(horizon):
            row = self.env.step(policy(state))
            actions.append(self.encoding(row))
            state = step_mdp(row)
        return torch.stack(actions, 1).unflatten(0, (len(start), count))

    def _repeat(self, start: TensorDictBase, count: int) -> TensorDictBase:
        return start.unsqueeze(1).expand(len(start), count).reshape(len(start) * count)

    @staticmethod
    def _counted(value: Tensor, alive: Tensor, weight: float) -> Tensor:
        # Not a product with 0: what comes after an end may be no number.
        return torch.where(alive, weight * value, torch.zeros_like(value))

    def _advantage(self, trajectory: TensorDictBase) -> Tensor:
        self.advantage_module(trajectory)
        return trajectory.get(self.advantage_module.tensor_keys.advantage)[:, 0].flatten(1).sum(1)


Simulator = ModelSimulator | EnvSimulator


def make_simulator(
    env: EnvBase | WorldModel,
    *,
    discount: float,
    reward_key: NestedKey | None = None,
    terminal_value: Callable | None = None,
    advantage_module: Callable | None = None,
    read_observations: bool = False,
    **model_options,
) -> Simulator:
    """The simulator of a world model, or of an environment.

    A :class:`~torchrl_wm.envs.LearnedEnv` that only steps its model is simulated by the model itself.

    Args:
        env (EnvBase or WorldModel): where sequences are evaluated.

    Keyword Args:
        discount, terminal_value (optional): see the two simulators.
        reward_key, advantage_module, read_observations (optional): see :class:`EnvSimulator`.
        **model_options: ``particles``, ``sample_latents`` and ``trace`` of :class:`ModelSimulator`.

    Raises:
        TypeError: for an ``env`` that is neither an environment nor a world model.
        ValueError: for an option that applies only to the other kind, or a discount outside [0, 1].
    """
    if not 0 <= discount <= 1:
        raise ValueError(f"discount={discount} must lie between 0 and 1.")
    if isinstance(env, LearnedEnv) and env.terminate_below is None and advantage_module is None:
        env = env.world_model if reward_key in (None, REWARD_KEY) else env
    if isinstance(env, WorldModel):
        if advantage_module is not None:
            raise ValueError(
                "advantage_module reads the steps of an environment: plan in LearnedEnv(world_model), "
                "or give terminal_value."
            )
        if reward_key not in (None, REWARD_KEY):
            raise ValueError(
                f"A world model predicts its reward by itself; reward_key={reward_key!r} has no meaning."
            )
        options = {"discount": discount, "terminal_value": terminal_value}
        return ModelSimulator(env, **options, **model_options)
    if not isinstance(env, EnvBase):
        raise TypeError(
            f"Planning needs a TorchRL environment or a world model, not {type(env).__name__}."
        )
    if model_options.get("particles") is not None or not model_options.get("sample_latents", True):
        raise ValueError("particles and sample_latents are options of planning in a world model.")
    return EnvSimulator(
        env,
        discount=discount,
        reward_key=reward_key,
        terminal_value=terminal_value,
        advantage_module=advantage_module,
        read_observations=read_observations,
    )


def _without_notes(env: EnvBase) -> EnvBase:
    """The environment with those of its transforms that tell states and rewards.

    Plans need no ``InitTracker`` and no primers, which expect the batch of the environment; nor what is
    appended later, such as the primer that carries the plan.
    """
    if not isinstance(env, TransformedEnv):
        return env
    transforms = env.transform if isinstance(env.transform, Compose) else [env.transform]
    kept = [t.clone() for t in transforms if not isinstance(t, InitTracker | TensorDictPrimer)]
    return TransformedEnv(env.base_env, Compose(*kept)) if kept else env.base_env


class _Start(tuple):
    """Where the sequences of one plan start; the model's parameters do not change in between."""

    judged = False
    """Whether some of its sequences were judged already."""


def _repeat(start: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    return tuple(value.repeat_interleave(count, 0) for value in start)


def _as_tuple(key: NestedKey) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key


def _check_reward_key(env: EnvBase, reward_key: NestedKey | None) -> NestedKey:
    if reward_key is None:
        return unravel_key(("next", *_as_tuple(_single_reward(env))))
    specs = (env.full_reward_spec, env.full_observation_spec)
    written = [unravel_key(("next", k)) for spec in specs for k in spec.keys(True, True)]
    if unravel_key(reward_key) not in written:
        raise ValueError(
            f"reward_key={reward_key!r} is nothing that {type(env).__name__} writes in a step; expected "
            f"one of {written}."
        )
    return unravel_key(reward_key)


def _single_reward(env: EnvBase) -> NestedKey:
    if len(env.reward_keys) != 1:
        raise ValueError(
            f"{type(env).__name__} has the rewards {list(env.reward_keys)}: say which one counts with "
            "reward_key=('next', ...)."
        )
    return env.reward_keys[0]
