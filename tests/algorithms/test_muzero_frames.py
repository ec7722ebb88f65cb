"""Stacks of frames: acting and training see the same, across resets and the seam of the ring."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from torchrl.collectors import Collector
from torchrl.data import Composite, OneHot, Unbounded

from torchrl_wm.algorithms import MuZero
from torchrl_wm.data import StepReplay
from torchrl_wm.envs import model_specs, wrap
from torchrl_wm.functional import stack_frames
from torchrl_wm.modules import FrameStack
from torchrl_wm.planners import SearchPolicy
from torchrl_wm.world_models import make_muzero

ENVS, CAPACITY = 3, 90
CHANNELS, SIZE = 3, 32


class Screens(gym.Env):
    """Every screen is another one; episodes of one to seven steps."""

    observation_space = gym.spaces.Dict(
        view=gym.spaces.Box(0, 255, (SIZE, SIZE, CHANNELS), np.uint8)
    )
    action_space = gym.spaces.Discrete(2)

    def observe(self):
        return {"view": self.np_random.integers(0, 256, (SIZE, SIZE, CHANNELS), np.uint8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 8))
        return self.observe(), {}

    def step(self, action):
        self.left -= 1
        return self.observe(), 1.0, self.left == 0, False, {}


def build(**options):
    torch.manual_seed(0)
    env = wrap(Screens, num_envs=ENVS)
    specs = model_specs(env)
    chosen = {"unroll_steps": 2, "td_steps": 2, "support": 5, **options}
    agent = MuZero(
        *specs,
        world_model=partial(make_muzero, channels=2, units=4, head_layers=0),
        planner=partial(SearchPolicy, num_simulations=2, executor="reference"),
        **chosen,
    )
    replay = StepReplay(
        CAPACITY,
        num_envs=ENVS,
        batch_size=32,
        action_spec=specs[1],
        observation_keys=list(specs[0].keys(True, True)),
        seed=0,
        **agent.replay_options(),
    )
    env.append_transform(agent.policy.make_tensordict_primer())
    return env, agent, replay


def collect(env, agent, replay, batches, steps=5):
    """Fills the replay; returns all stacks that were acted on, by their newest screen."""
    seen = {}

    def keep(tensordict):
        out = FrameStack.forward(agent.frames, tensordict)
        for stack in out["view"]:
            seen[newest(stack)] = stack.clone()
        return out

    agent.frames.forward = keep
    collector = Collector(
        env,
        agent.policy,
        frames_per_batch=steps * ENVS,
        total_frames=-1,
        track_traj_ids=False,
        auto_register_policy_transforms=False,
    )
    for _, batch in zip(range(batches), collector, strict=False):
        assert batch["view"].shape[-3] == CHANNELS
        replay.extend(batch)
    collector.shutdown()
    del agent.frames.forward
    return seen


def newest(stack):
    return stack[-CHANNELS:, 0].numpy().tobytes()


def test_training_sees_what_was_acted_on():
    env, agent, replay = build()
    seen = collect(env, agent, replay, batches=14)
    assert (replay.writer.counts > replay.writer.slots).all(), "no ring has a seam yet"
    counted = resets = 0
    for _ in range(6):
        sample = replay.sample()
        for row in sample[:, agent.root :].reshape(-1):
            if row["is_last"]:
                continue
            stack = row["view"]
            assert torch.equal(stack, seen[newest(stack)])
            counted += 1
            resets += bool(row["is_init"])
    assert counted > 200 and resets > 20
    slots = sample["index"] // ENVS
    assert (slots.diff(dim=1) < 0).any(), "no sample crosses the seam"


def test_no_screen_is_stored_twice():
    env, agent, replay = build()
    collect(env, agent, replay, batches=4)
    assert replay.sizes()["observations"] == CHANNELS * SIZE * SIZE
    assert replay.sample()["view"].shape[-3] == 4 * CHANNELS
    assert agent.world_model.encoder.image.image_shape == (4 * CHANNELS, SIZE, SIZE)


@pytest.mark.filterwarnings("ignore")
def test_an_update_reads_stacks_and_writes_back_beside_the_right_records():
    options = {"use_consistency": True, "reanalyze_ratio": 1.0, "priority_alpha": 1.0}
    env, agent, replay = build(**options)
    collect(env, agent, replay, batches=8)
    agent.updates += 7  # what is searched again shows by its version
    sample = replay.sample()
    _, notes = agent.update(sample)
    replay.write_back(sample, notes)
    stored = replay.buffer.storage._storage
    live = notes["collector", "mask"]
    assert live.any() and not live[:, : agent.root - 1].any()
    again = sample["index"][:, 1:][live]
    assert (stored["search_version"][again] == 7).all()
    assert stored["priority"][sample["index"][:, agent.root]].isfinite().all()


def test_stacks_by_hand():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (4, 30, 2, 1, 1), generator=generator, dtype=torch.uint8)
    begins = torch.rand(4, 30, generator=generator) < 0.2
    stacked = stack_frames(frames, begins, 4)
    for row in range(4):
        episode = []
        for t in range(30):
            episode = [frames[row, t]] if begins[row, t] or t == 0 else [*episode, frames[row, t]]
            last = ([episode[0]] * 4 + episode)[-4:] if len(episode) < 4 else episode[-4:]
            assert torch.equal(stacked[row, t], torch.cat(last))


def test_boards_and_vectors_are_not_stacked():
    specs = Composite(board=Unbounded((2, 9, 9), dtype=torch.uint8), speed=Unbounded(3))
    make = partial(MuZero, specs, Composite(action=OneHot(2)), support=5)
    assert make().frames is None
    with pytest.raises(ValueError, match="frame_stack=4.*no screens.*board, speed"):
        make(frame_stack=4)
    with pytest.raises(ValueError, match="frame_stack=0 must be a whole number of at least 1"):
        make(frame_stack=0)


def test_missing_frames_are_named():
    _, agent, _ = build()
    td = agent.world_model.initial([2]).update(
        {"view": torch.zeros(2, CHANNELS, SIZE, SIZE).byte()}
    )
    td["is_init"] = torch.ones(2, 1, dtype=torch.bool)
    with pytest.raises(KeyError, match=r"(?s)'frames', 'view'.*make_tensordict_primer"):
        agent.policy(td)
