"""The world model as an environment: specs, any shape, gradients, collectors, starts, ends."""

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import (
    Bounded,
    Categorical,
    Composite,
    LazyTensorStorage,
    OneHot,
    TensorDictReplayBuffer,
    Unbounded,
)
from torchrl.envs import StepCounter, TransformedEnv, check_env_specs

from torchrl_wm.data import RingWriter, SequenceSampler, StepReplay
from torchrl_wm.envs import LearnedEnv
from torchrl_wm.world_models import make_autoencoder, make_identity, make_muzero, make_rssm

VECTOR = Composite(observation=Unbounded(4))
MIXED = Composite(
    eye=Composite(pixels=Unbounded((3, 64, 64), dtype=torch.uint8)), joints=Unbounded(3)
)
CONTINUOUS = Composite(action=Bounded(-1, 1, (2,)))
NESTED = Composite(arm=Composite(turn=Bounded(-1, 1, (2,))), gear=Categorical(3))
SMALL = {"belief_size": 16, "hidden_size": 8, "units": 8, "depth": 2, "state_size": 4}


def rssm(observations=VECTOR, actions=CONTINUOUS, **options):
    return make_rssm(observations, actions, **SMALL, **options)


MODELS = {
    "gaussian": lambda: rssm(latent="gaussian", cell="gru", style="v1"),
    "categorical": rssm,
    "nested_keys": lambda: rssm(belief_key=("wm", "h"), state_key=("wm", "z"), actions=NESTED),
    "mixed": lambda: rssm(MIXED, Composite(action=OneHot(3))),
    "identity": lambda: make_identity(VECTOR, CONTINUOUS, units=8, members=2),
    "autoencoder": lambda: make_autoencoder(VECTOR, NESTED, units=8),
    "muzero": lambda: make_muzero(VECTOR, NESTED, units=8, use_reconstruction=True),
}


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", MODELS)
def test_specs(name, shape):
    check_env_specs(LearnedEnv(MODELS[name](), batch_size=shape))


@pytest.mark.parametrize("name", MODELS)
def test_specs_with_observations(name):
    check_env_specs(LearnedEnv(MODELS[name](), write_observations=True, batch_size=[2]))


def test_observations_have_the_names_of_the_real_ones():
    rollout = LearnedEnv(MODELS["mixed"](), write_observations=True).rollout(2)
    assert rollout["eye", "pixels"].shape == (2, 3, 64, 64)
    assert rollout["next", "joints"].shape == (2, 3)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_one_environment_takes_any_shape(shape):
    model = rssm()
    start = model.initial(shape)
    start["belief"] += 1
    rollout = LearnedEnv(model).rollout(5, tensordict=start, auto_reset=False)
    assert rollout["next", "reward"].shape == (*shape, 5, 1)
    assert (rollout[..., 0]["belief"] == 1).all()


def test_steps_are_those_of_the_model():
    model = rssm()
    env = LearnedEnv(model, batch_size=[4])
    torch.manual_seed(3)
    rollout = env.rollout(6)
    torch.manual_seed(3)
    td = model.initial([4])
    for t in range(6):
        td["action"] = env.rand_action(td.empty())["action"]
        assert torch.equal(td["action"], rollout["action"][:, t])
        after = model.step(td)["next"]
        for key in ("belief", "state", "reward", "continuation"):
            assert torch.equal(after[key], rollout["next", key][:, t])
        assert torch.equal(model.features(after), rollout["next", "features"][:, t])
        td = after.select("belief", "state")


@pytest.mark.parametrize("name", ["gaussian", "categorical", "identity"])
def test_gradients_reach_first_action_and_start(name):
    model = MODELS[name]()
    torch.manual_seed(0)
    for parameter in model.reward_head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    env = LearnedEnv(model, batch_size=[3])
    start = env.reset()
    for key in model.latent_keys:
        start[key] = start[key].clone().requires_grad_()
    td, actions = start, []
    for _ in range(3):
        td["action"] = (torch.rand(3, 2) - 0.5).requires_grad_()
        actions.append(td["action"])
        td = env.step_mdp(env.step(td))
        reward = model.reward_head(td["features"]).mean
    gradients = torch.autograd.grad(reward.sum(), [actions[0], start[model.latent_keys[0]]])
    assert all((gradient != 0).any() for gradient in gradients)


def test_in_a_collector_with_a_horizon():
    env = TransformedEnv(LearnedEnv(rssm(), batch_size=[3]), StepCounter(max_steps=4))
    for batch in Collector(env, frames_per_batch=30, total_frames=60):
        assert batch.shape == (3, 10)
        ends = batch["next", "done"].squeeze(-1)
        assert ends.sum() >= 6
        assert (batch["belief"][:, 1:][ends[:, :-1]] == 0).all()  # the start: zeros
        goes_on = ~ends[:, :-1]
        assert torch.equal(
            batch["belief"][:, 1:][goes_on], batch["next", "belief"][:, :-1][goes_on]
        )


def latents(model, rows):
    td = model.initial([rows])
    td[model.latent_keys[0]] = torch.arange(1.0, rows + 1)[:, None].expand(-1, 16).clone()
    return td


@pytest.mark.parametrize("kind", ["callable", "tensordict", "buffer"])
def test_starts(kind):
    model = rssm()
    source = latents(model, 10)
    if kind == "callable":
        start = lambda count: source[:count]
    elif kind == "tensordict":
        start = source.reshape(2, 5)
    else:
        start = TensorDictReplayBuffer(storage=LazyTensorStorage(10), batch_size=2)
        start.extend(source.clone())
    env = LearnedEnv(model, start=start, batch_size=[2, 3])
    belief = env.reset()["belief"]
    assert belief.shape == (2, 3, 16)
    assert belief.min() >= 1
    assert len(belief.unique()) > 1


def test_latents_handed_to_reset_are_the_start():
    model = rssm()
    env = LearnedEnv(model, start=lambda count: pytest.fail("not asked for"))
    given = latents(model, 3)
    td = env.reset(given.clone())
    assert torch.equal(td["belief"], given["belief"])
    assert torch.equal(td["features"], model.features(given))


def test_partial_resets_start_anew_only_there():
    model = rssm()
    env = LearnedEnv(model, start=latents(model, 10), batch_size=[4])
    td = env.rollout(3)[:, -1]["next"].exclude("reward")
    before = td["belief"].clone()
    td["_reset"] = torch.tensor([[True], [False], [True], [False]])
    after = env.reset(td)["belief"]
    assert torch.equal(after[1::2], before[1::2])
    assert torch.equal(after[::2], after[::2].round())  # rows of the start
    assert not torch.equal(before[::2], before[::2].round())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [(), (7,), (5, 2)])
def test_episodes_begin_in_single_rows_of_a_replay_of_step_records(batch):
    model = rssm()
    replay = StepReplay(
        60,
        num_envs=1,
        batch_size=2,
        slice_length=4,
        action_spec=CONTINUOUS["action"],
        observation_keys=["observation"],
        latents=dict.fromkeys(model.latent_keys, torch.float32),
    )
    steps = model.initial([1, 12]).update(
        {"observation": torch.zeros(1, 12, 4), "action": torch.zeros(1, 12, 2)}
    )
    steps["belief"] = torch.arange(1.0, 13).view(1, 12, 1).expand(1, 12, 16)
    zeros = torch.zeros(1, 12, 1)
    done = zeros.bool().index_fill(1, torch.tensor([3, 7, 11]), True)
    steps.update({"is_init": done.roll(1, 1), "previous_action": torch.zeros(1, 12, 2)})
    steps["previous_reward"] = zeros
    following = {"observation": torch.zeros(1, 12, 4), "reward": zeros, "previous_reward": zeros}
    following.update({"done": done, "terminated": done, "previous_action": torch.zeros(1, 12, 2)})
    replay.extend(steps.set("next", TensorDict(following, [1, 12])))
    env = LearnedEnv(model, start=replay.buffer, batch_size=batch)
    begun = torch.cat([env.reset()["belief"][..., 0].reshape(-1) for _ in range(100)])
    assert (begun > 0).all()  # final records hold zeros
    assert len(begun.unique()) == 12


def test_episodes_begin_in_written_rows_only():
    writer = RingWriter(num_envs=2)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(80),
        writer=writer,
        sampler=SequenceSampler(writer, 5),
        batch_size=5,
    )
    ones = torch.ones(45, 16)
    records = TensorDict(belief=ones, state=torch.ones(45, 16), batch_size=[45])
    records["is_last"] = torch.zeros(45, 1, dtype=torch.bool)
    records["environment"] = (torch.arange(45) >= 5).long()  # 5 and 40 records
    buffer.extend(records)
    model = rssm()
    for key, size in model.latent_sizes.items():
        assert records[key].shape[1] == size
    begun = LearnedEnv(model, start=buffer, batch_size=[400]).reset()
    assert (begun["belief"] == 1).all() and (begun["state"] == 1).all()


def test_other_buffers_are_asked_for_a_sample():
    model = rssm()
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100, ndim=2), batch_size=5)
    buffer.extend(model.initial([4, 5]))
    assert LearnedEnv(model, start=buffer, batch_size=[7]).reset()["belief"].shape == (7, 16)


def test_episodes_end_where_the_continuation_is_low():
    model = rssm()
    torch.nn.init.zeros_(model.continuation_head.out.weight)
    never = LearnedEnv(model, terminate_below=0.4, batch_size=[2]).rollout(5)
    assert never.shape == (2, 5)
    assert not never["next", "terminated"].any()
    once = LearnedEnv(model, terminate_below=0.6, batch_size=[2]).rollout(5)
    assert once.shape == (2, 1)
    assert once["next", "terminated"].all()
    assert once["next", "done"].all()
    assert (once["continuation"] == 1).all()
    check_env_specs(LearnedEnv(model, terminate_below=0.5))


def test_seed():
    env = LearnedEnv(rssm(), batch_size=[2])
    rollouts = []
    for _ in range(2):
        env.set_seed(5)
        rollouts.append(env.rollout(4)["next", "belief"])
    assert torch.equal(*rollouts)


def test_wrong_models_and_starts():
    model = rssm(use_continuation=False, use_reconstruction=False)
    with pytest.raises(ValueError, match="use_continuation=True"):
        LearnedEnv(model, terminate_below=0.5)
    with pytest.raises(RuntimeError, match="use_reconstruction=True"):
        LearnedEnv(model, write_observations=True)
    with pytest.raises(KeyError, match="'state'.*'belief'"):
        LearnedEnv(model, start=TensorDict(belief=torch.zeros(2, 16), batch_size=[2])).reset()
    model.reward_head = None
    with pytest.raises(ValueError, match="no reward head"):
        LearnedEnv(model)
