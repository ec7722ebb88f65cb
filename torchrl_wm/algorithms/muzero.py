"""MuZero (https://arxiv.org/abs/1911.08265) and its relatives: one agent, parts chosen by argument.

The planner makes it MuZero or Gumbel MuZero, ``reanalyze_ratio`` MuZero Reanalyze, ``use_consistency``
and ``use_value_prefix`` with priorities EfficientZero; with a ``simulator`` to search in instead of the
model it is AlphaZero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.data import Composite
from torchrl.envs import EnvBase

from torchrl_wm import keys
from torchrl_wm.algorithms.algorithm import Algorithm, total
from torchrl_wm.algorithms.options import checks_options, set_keywords
from torchrl_wm.algorithms.world_model_factory import WorldModelFactory, build_world_model
from torchrl_wm.data import (
    BootstrapValues,
    PrioritizedSequenceSampler,
    Reanalyze,
    StackedFrames,
    UnrolledTargets,
)
from torchrl_wm.envs import resolve_factory
from torchrl_wm.modules import FrameStack, stacking
from torchrl_wm.objectives import MuZeroLoss, SlowUpdate
from torchrl_wm.planners import EnvModel, SearchPolicy
from torchrl_wm.policies import FilteringSearch
from torchrl_wm.world_models import PredictionNetwork, WorldModel, make_muzero


class MuZero(Algorithm):
    """A model that predicts rewards, values and policies, and a search in it that acts and makes targets.

    Args:
        observation_spec, action_spec (Composite): unbatched specs.

    Keyword Args:
        world_model (callable, optional): makes the world model from the specs. Defaults to
            :func:`~torchrl_wm.world_models.make_muzero`.
        planner (callable, optional): makes the searches: called with the model and, but for a simulator,
            ``discount``, and once more with ``greedy=True`` for evaluations. Defaults to
            :class:`~torchrl_wm.planners.SearchPolicy` with its defaults.
        simulator (callable or str, optional): makes a stateless environment (or its import path,
            ``"package.module:function"``) to search in instead of the model; with ``unroll_steps=0``
            this is AlphaZero. Defaults to none.
        frame_stack (int, optional): number of successive frames that are stacked. Defaults to 4 where
            frames are observed; boards, vectors and observations of a simulator are not stacked.
        two_players (bool, optional): two sides take turns in the environment, which writes ``to_play``;
            values are those of the side to move, rewards those of the side that moved. Defaults to
            ``False``.
        discount (float, optional): discount of one step. Defaults to ``0.997``.
        td_steps (int, optional): rewards in a return before it is bootstrapped. Defaults to ``10``.
        auto_td_steps (int, optional): updates after which the returns of old records are one reward
            shorter (EfficientZero); 0 keeps ``td_steps``. Defaults to ``0``.
        unroll_steps (int, optional): steps over which the model is unrolled. Defaults to ``5``.
        use_mcts_targets (bool, optional): bootstrap from the searches' values, otherwise from the target
            network. Defaults to ``True``.
        target_update_every (int, optional): updates between two copies to the target network.
            Defaults to ``100``.
        reanalyze_ratio (float, optional): share of each batch that is searched again. Defaults to
            ``0.0``.
        priority_alpha (float, optional): exponent of the priorities; 0 samples uniformly. Defaults to
            ``0.0``.
        priority_beta (float, optional): exponent of the importance weights. Defaults to ``1.0``.
        temperature_decay (int, optional): length of the schedule in updates: the temperature is
            halved after 50 % of it and quartered after 75 %; 0 keeps it constant. Defaults to ``0``.
        policy_scale, reward_scale (float, optional): weights of the terms. Default to ``1.0``.
        value_scale (float, optional): weight of the value. Defaults to ``0.25``.
        use_value_prefix (bool, optional): learn sums of rewards instead of rewards. Defaults to
            ``False``.
        value_prefix_horizon (int, optional): steps after which the sums restart, in training and in the
            search. Defaults to ``5``.
        use_consistency (bool, optional): compare predicted hidden states with those of the observations
            that followed. Defaults to ``False``.
        consistency_scale (float, optional): weight of that term. Defaults to ``2.0``.
        use_reconstruction (bool, optional): decode observations. Defaults to ``False``.
        reconstruction_scale (float, optional): weight of that term. Defaults to ``1.0``.
        entropy (float, optional): weight of the policy's entropy. Defaults to ``0.0``.
        support (int, optional): largest atom of rewards and values. Defaults to ``300``.
        lr (float, optional): learning rate of AdamW. Defaults to ``2e-3``.
        weight_decay (float, optional): its weight decay. Defaults to ``1e-4``.
        grad_clip (float, optional): largest norm of the gradient. Defaults to ``10.0``.
        device (torch.device, optional): where the parameters live.

    Raises:
        ValueError: if the planner's discount differs, ``temperature_decay`` is set for a rule without
            a temperature, ``frame_stack`` is given with a simulator, or an option is out of range.
        TypeError: if the world model predicts no values or ``planner`` is not a SearchPolicy.

    Examples:
        >>> from torchrl.data import OneHot, Unbounded
        >>> specs = Composite(observation=Unbounded(4)), Composite(action=OneHot(2))
        >>> search = partial(SearchPolicy, num_simulations=4, executor="reference", trace=False)
        >>> agent = MuZero(*specs, planner=search, support=20)
        >>> td = agent.world_model.initial([3]).update({"observation": torch.randn(3, 4)})
        >>> td = td.update({"is_init": torch.ones(3, 1).bool(), "previous_action": torch.zeros(3, 2)})
        >>> td = agent.policy(td)
        >>> td["action"].shape, td["root_value"].shape
        (torch.Size([3, 2]), torch.Size([3, 1]))
    """

    @checks_options
    def __init__(
        self,
        observation_spec: Composite,
        action_spec: Composite,
        *,
        world_model: WorldModelFactory | None = None,
        planner: Callable[..., SearchPolicy] | None = None,
        simulator: Callable[[], EnvBase] | str | None = None,
        frame_stack: int | None = None,
        two_players: bool = False,
        discount: float = 0.997,
        td_steps: int = 10,
        auto_td_steps: int = 0,
        unroll_steps: int = 5,
        use_mcts_targets: bool = True,
        target_update_every: int = 100,
        reanalyze_ratio: float = 0.0,
        priority_alpha: float = 0.0,
        priority_beta: float = 1.0,
        temperature_decay: int = 0,
        policy_scale: float = 1.0,
        value_scale: float = 0.25,
        reward_scale: float = 1.0,
        use_value_prefix: bool = False,
        value_prefix_horizon: int = 5,
        use_consistency: bool = False,
        consistency_scale: float = 2.0,
        use_reconstruction: bool = False,
        reconstruction_scale: float = 1.0,
        entropy: float = 0.0,
        support: int = 300,
        lr: float = 2e-3,
        weight_decay: float = 1e-4,
        grad_clip: float = 10.0,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.frames = _make_frames(observation_spec, frame_stack, simulator)
        self.root = 1  # row 0 of a sample trains nothing
        if self.frames is not None:
            observation_spec = self.frames.observation_spec
            self.root = max(1, self.frames.count - 1)  # which needs the frames before it
        chosen = {
            "support": support,
            "use_value_prefix": use_value_prefix,
            "value_prefix_horizon": value_prefix_horizon,
            "use_consistency": use_consistency,
            "use_reconstruction": use_reconstruction,
        }
        self.world_model = _make_world_model(world_model, observation_spec, action_spec, chosen)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.two_players = two_players
        self._make_policies(planner, simulator, discount, device)
        self.to(device)
        self.loss = MuZeroLoss(
            self.world_model,
            unroll_steps=unroll_steps,
            root=self.root,
            policy_scale=policy_scale,
            value_scale=value_scale,
            reward_scale=reward_scale,
            consistency_scale=consistency_scale,
            reconstruction_scale=reconstruction_scale,
            entropy_scale=entropy,
        )
        self.slow_update = SlowUpdate(self.loss, tau=1.0, every=target_update_every)
        self.temperature_decay = self._checked_decay(temperature_decay)
        prefix = self.world_model.value_prefix
        self.targets = UnrolledTargets(
            self.world_model.action_encoding,
            root=self.root,
            unroll_steps=unroll_steps,
            td_steps=td_steps,
            auto_td_steps=auto_td_steps,
            version=self._version,
            discount=discount,
            two_players=two_players,
            value_prefix_horizon=None if prefix is None else prefix.horizon,
        )
        self.use_mcts_targets, self.reanalyze_ratio = use_mcts_targets, reanalyze_ratio
        self.sampler = partial(
            PrioritizedSequenceSampler, root=self.root, alpha=priority_alpha, beta=priority_beta
        )
        self.use_priorities, self.grad_clip = bool(priority_alpha), grad_clip
        optimizer = torch.optim.AdamW(
            self.world_model.parameters(), lr=lr, weight_decay=weight_decay
        )
        self.optimizers = {"all": optimizer}
        self.register_load_state_dict_post_hook(_set_temperature)

    def _make_policies(self, planner, simulator, discount: float, device) -> None:
        _check_planner(planner, discount)
        make_search = planner or SearchPolicy
        if simulator is None:
            signed = -discount if self.two_players else discount
            make_search = partial(make_search, self.world_model, discount=signed)
        else:  # which has discounts and turns of its own
            make_search = partial(make_search, self._true_model(simulator, discount, device))
        self.search = make_search()
        act = partial(FilteringSearch, self.world_model, frames=self.frames)
        self.policy = act(self.search, version=self._version)
        self.evaluation_policy = act(make_search(greedy=True))
        found = (keys.SEARCH_POLICY, keys.SAMPLED_ACTIONS, keys.ROOT_VALUE)
        self.searched = [key for key in found if key in self.policy.note_keys]

    def _checked_decay(self, updates: int) -> int:
        if updates and not hasattr(self.search.rule, "temperature"):
            raise ValueError(
                f"temperature_decay={updates} has no effect: {type(self.search.rule).__name__} "
                "has no temperature, as MuZeroRule has (planner=mcts). Leave it at 0."
            )
        return updates

    def replay_options(self) -> dict[str, Any]:
        """Arguments of ``StepReplay``: what the replay stores for this agent, and how it samples.

        Its ``observation_keys`` should be the environment's :func:`~torchrl_wm.envs.recorded_keys`:
        searches of old records and the signs of two players need the rules.
        """
        targets = self.targets
        # Returns bootstrap from the values that many steps later; no others are read.
        earliest = self.root + (1 if targets.auto_td_steps else targets.td_steps)
        ends = slice(0, 0) if self.use_mcts_targets else slice(earliest, None)
        fill = BootstrapValues(self._target_values, length=targets.length, evaluated=ends)
        transforms = [fill, targets]
        if self.reanalyze_ratio:
            transforms.insert(0, self._reanalyze())
        if self.frames is not None:
            transforms.insert(0, StackedFrames(self.frames, length=targets.length))
        return {
            "slice_length": targets.length - 1,
            "latents": self.world_model.latent_codecs,
            "extra_keys": self.policy.note_keys,
            "sampler": self.sampler,
            "transforms": transforms,
        }

    def update(self, sample: TensorDictBase) -> tuple[TensorDict, TensorDict | None]:
        """One update on records ``[B, T + 1]`` with their targets; returns what to write back."""
        losses = self.loss(sample)
        (optimizer,) = self.optimizers.values()
        optimizer.zero_grad()
        total(losses).backward()
        norm = nn.utils.clip_grad_norm_(self.world_model.parameters(), self.grad_clip)
        optimizer.step()
        self.slow_update.step()
        self.updates += 1
        _set_temperature(self)
        priority = losses.pop(keys.PRIORITY)
        return losses.detach().set("grad_norm", norm.detach()), self._notes(sample, priority)

    def pretrain(self, sample: TensorDictBase) -> tuple[TensorDict, TensorDict | None]:
        """Same as :meth:`update`: only the world model is trained."""
        return self.update(sample)

    def _notes(self, sample: TensorDictBase, priority: Tensor) -> TensorDict | None:
        """Fresh priorities and search statistics of rows 1 to T, masked where there are none."""
        if not (self.reanalyze_ratio or self.use_priorities):
            return None
        rows, first = sample[:, 1:], self.root - 1
        found = [*self.searched, keys.SEARCH_VERSION] if self.reanalyze_ratio else []
        notes = rows.select(*found)
        errors = rows.get(keys.PRIORITY).clone()
        errors[:, first : first + priority.shape[1]] = priority
        mask = rows.get(keys.POLICY_MASK).squeeze(-1)
        return notes.set(keys.PRIORITY, errors).set(keys.MASK, mask)

    def _true_model(self, simulator, discount: float, device) -> EnvModel:
        env = resolve_factory(simulator)()
        if device is not None and torch.device(device).type != "cpu":
            env = env.to(device)  # where the positions that it steps are judged
        observed = env.full_observation_spec.keys(True, True)
        return EnvModel(
            env,
            PredictionNetwork(self.world_model),
            discount=discount,
            turn_key=keys.TO_PLAY if self.two_players else None,
            mask_key=keys.ACTION_MASK if keys.ACTION_MASK in observed else None,
        )

    @torch.no_grad()
    def plan(self, records: TensorDictBase) -> TensorDictBase:
        """A greedy search from observations ``[N]``, such as positions of games: writes ``action``."""
        return self.evaluation_policy.search(records.update(self.world_model.roots(records)))

    def _reanalyze(self) -> Reanalyze:
        return Reanalyze(
            self._search_again,
            ratio=self.reanalyze_ratio,
            length=self.targets.length,
            root=self.root,
            unroll_steps=self.targets.unroll_steps,
            version=self._version,
            updated=self.searched,
        )

    @torch.no_grad()
    def _search_again(self, records: TensorDictBase) -> TensorDictBase:
        records = records.to(self.updates.device)
        rows = records.select(*self.search.in_keys, keys.ACTION_MASK, strict=False)
        return self.search(rows.update(self.world_model.roots(records)))

    def _version(self) -> int:
        return int(self.updates)

    def _target_values(self, records: TensorDictBase) -> Tensor:
        return self.loss.target_values(records.to(self.updates.device))


def _make_frames(observation_spec: Composite, count: int | None, simulator) -> FrameStack | None:
    if simulator is None:
        return stacking(observation_spec, count)
    if count is not None:
        raise ValueError(
            f"frame_stack={count} has no effect with a simulator, whose states are whole: leave it out."
        )
    return None


def _make_world_model(factory, observation_spec, action_spec, chosen) -> WorldModel:
    model = build_world_model(factory or make_muzero, observation_spec, action_spec, chosen)
    if not hasattr(model, "search_tensors"):
        raise TypeError(
            f"MuZero needs a world model that predicts values and policies, as make_muzero makes; a "
            f"{type(model).__name__} does not. Leave world_model out."
        )
    return model


def _set_temperature(agent: MuZero, _: Any = None) -> None:
    """Sets the scheduled temperature for the number of updates, after one or after loading a state."""
    if agent.temperature_decay:
        share = agent._version() / agent.temperature_decay
        factor = 1.0 if share < 0.5 else 0.5 if share < 0.75 else 0.25
        first = agent.evaluation_policy.search.rule.temperature
        agent.search.rule.temperature = factor * first


def _check_planner(planner: Any, discount: float) -> None:
    """Checks that the planner makes a search and does not contradict the agent's discount."""
    made = planner
    while isinstance(made, partial):
        made = made.func
    if isinstance(made, type) and not issubclass(made, SearchPolicy):
        raise TypeError(
            f"MuZero acts by a SearchPolicy (planner=mcts or gumbel_mcts), not a {made.__name__}."
        )
    given = set_keywords(planner).get("discount", discount)
    if given != discount:
        raise ValueError(
            f"The search's discount={given} contradicts the agent's discount={discount}, which sets "
            "both: leave planner.discount out and set algorithm.discount."
        )
