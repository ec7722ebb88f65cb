"""The losses as TorchRL's LossModules: keys, dispatch, parameters, target updaters."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, OneHot, Unbounded
from torchrl.objectives import HardUpdate, SoftUpdate

from torchrl_wm.algorithms import DreamerV3
from torchrl_wm.modules.heads import TwoHotHead, actor_head
from torchrl_wm.objectives import (
    ActorLoss,
    CriticLoss,
    Imagination,
    LatentOvershooting,
    MuZeroLoss,
    Reinforce,
    ReplayCriticLoss,
    SeparateKL,
    SlowUpdate,
    WorldModelLoss,
    align_v3,
)
from torchrl_wm.world_models import make_muzero, make_rssm

FEATURES = 5
NETWORK = {"layers": 1, "units": 8}


def actor_loss():
    return ActorLoss(actor_head(OneHot(3), FEATURES, **NETWORK), Reinforce(), entropy_scale=0.1)


def critic_loss(**options):
    critic = TwoHotHead(FEATURES, bins=15, out_scale=1.0, **NETWORK)
    return CriticLoss(critic, slow_regularization=1.0, **options)


def replay_critic_loss():
    return ReplayCriticLoss(critic_loss(), discount=0.99)


def world_model_loss():
    sizes = {"belief_size": 8, "hidden_size": 8, "units": 8, "state_size": 2, "blocks": 2}
    observations = Composite(camera=Composite(joints=Unbounded((4,))))
    return WorldModelLoss(
        make_rssm(observations, Composite(action=OneHot(3)), **sizes), SeparateKL()
    )


def muzero_loss():
    specs = Composite(observation=Unbounded(4)), Composite(action=OneHot(3))
    return MuZeroLoss(make_muzero(*specs, units=8, hidden_size=8, support=5), unroll_steps=2)


ROW = {
    "features": (FEATURES,),
    "action": (3,),
    "lambda_target": (1,),
    "baseline": (1,),
    "weight": (1,),
    "reward": (1,),
    "bootstrap": (1,),
    "previous_action": (3,),
    "belief": (8,),
    "state": (8,),
    ("camera", "joints"): (4,),
}
FLAGS = ("is_last", "terminated", "is_init")
LOSSES = {
    "actor": (actor_loss, "features"),
    "critic": (critic_loss, "lambda_target"),
    "replay_critic": (replay_critic_loss, "bootstrap"),
    "world_model": (world_model_loss, "reward"),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def make(name):
    torch.manual_seed(0)
    return LOSSES[name][0]()


def rows():
    """Rows ``[2, 4]`` with all that any loss reads."""
    torch.manual_seed(1)
    out = TensorDict(batch_size=[2, 4])
    for key, shape in ROW.items():
        out.set(key, torch.randn(2, 4, *shape))
    for key in FLAGS:
        out[key] = torch.zeros(2, 4, 1, dtype=torch.bool)
    out["noise"] = torch.randn(2, 4, 8)
    return out


def losses(td):
    return {key: value for key, value in td.items() if key.startswith("loss_")}


@every_loss
def test_in_keys_are_all_that_is_needed_and_out_keys_all_that_is_written(name):
    loss, batch = make(name), rows()
    entries = [*loss.in_keys, *(["noise"] if name == "world_model" else [])]
    out = loss(batch.select(*entries))
    torch.testing.assert_close(losses(out), losses(make(name)(batch)))
    assert set(out.keys()) == set(loss.out_keys)
    assert all(value.shape == () for value in losses(out).values())
    for key in loss.in_keys:
        with pytest.raises(Exception):  # noqa: B017 (which one depends on who reads the entry)
            loss(batch.exclude(key).select(*entries, strict=False))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ({}, {"overshooting": LatentOvershooting(2)}),
        ({"use_continuation": False}, {}),
        ({"use_reconstruction": False}, {"squash_reward": True}),
    ],
)
def test_the_world_model_loss_writes_its_out_keys_whatever_its_parts(model, options):
    observations, sizes = Composite(joints=Unbounded(4)), {"belief_size": 8, "units": 8}
    model = make_rssm(observations, Composite(action=OneHot(3)), state_size=2, **sizes, **model)
    batch = rows().set("joints", torch.randn(2, 4, 4))
    loss = WorldModelLoss(model, SeparateKL(), **options)
    out = loss(batch)
    assert set(out.keys()) == set(loss.out_keys)
    assert len(loss.out_keys) == len(set(loss.out_keys))
    assert out["kl"].shape == () and not out["kl"].requires_grad


@every_loss
def test_keys_may_be_renamed_and_nested(name):
    key, batch = LOSSES[name][1], rows()
    loss = make(name)
    loss.set_keys(**{key: ("learn", "renamed")})
    expected = losses(make(name)(batch))
    batch.rename_key_(key, ("learn", "renamed"))
    assert ("learn", "renamed") in loss.in_keys
    torch.testing.assert_close(losses(loss(batch)), expected)


@every_loss
def test_an_unknown_key_is_refused(name):
    with pytest.raises(ValueError, match="nonsense"):
        make(name).set_keys(nonsense="anything")


@pytest.mark.parametrize("name", ["actor", "critic", "replay_critic"])
def test_keyword_arguments_are_dispatched(name):
    loss, batch = make(name), rows()
    values = loss(**{key: batch[key] for key in loss.in_keys})
    values = values if isinstance(values, tuple) else (values,)
    expected = make(name)(batch)
    for value, key in zip(values, loss.out_keys, strict=True):
        torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize("name", ["actor", "critic", "world_model"])
def test_the_parameters_are_those_of_the_network(name):
    loss = make(name)
    learned = {key: p for key, p in loss.named_parameters() if p.requires_grad}
    network = dict(getattr(loss, name).named_parameters())
    assert len(learned) == len(network)
    sum(losses(loss(rows())).values()).backward()
    assert all(p.grad is not None for p in learned.values())


@pytest.mark.parametrize(
    "make_loss", [*(make for make, _ in LOSSES.values()), muzero_loss], ids=[*LOSSES, "muzero"]
)
def test_parameters_are_not_drawn_anew_but_may_be_as_they_were(make_loss):
    loss = make_loss()
    first = copy.deepcopy(loss.state_dict())
    with pytest.raises(NotImplementedError, match=r"load_state_dict\(first\)"):
        loss.reset_parameters_recursive()
    same = lambda: all(torch.equal(value, first[key]) for key, value in loss.state_dict().items())
    assert same()
    for value in loss.state_dict().values():  # those of the slow copies among them
        value.add_(1)
    assert not first or not same()
    loss.load_state_dict(first)  # what the message advises
    assert same()


def test_the_replayed_loss_has_no_parameters_of_its_own():
    assert list(replay_critic_loss().parameters()) == []


@pytest.mark.parametrize(
    ("updater", "options", "share"),
    [
        (SoftUpdate, {"tau": 0.5}, 0.5),
        (SlowUpdate, {"tau": 0.5}, 0.5),
        (HardUpdate, {"value_network_update_interval": 0}, 1.0),
    ],
)
def test_target_updaters_of_torchrl_move_the_slow_critic(updater, options, share):
    loss = critic_loss()
    update = updater(loss, **options)
    slow, bias = loss.target_critic_params, ("out", "bias")
    assert not slow[bias].requires_grad
    before = slow[bias].clone()
    loss.critic_params[bias].data.add_(1.0)
    update.step()
    torch.testing.assert_close(slow[bias] - before, torch.full_like(before, share))


def test_a_slow_critic_is_asked_for_but_switched_off():
    with pytest.raises(ValueError, match="use_ema_critic=True"):
        critic_loss(use_ema_critic=False)


@pytest.mark.parametrize("records", [lambda td: td[:, 0], lambda td: td[:, :1]])
def test_the_world_model_needs_two_rows(records):
    with pytest.raises(ValueError, match=r"\[B, T \+ 1\] with T at least 1"):
        world_model_loss()(records(rows()))


def test_a_horizon_below_one_is_refused():
    model = world_model_loss().world_model
    with pytest.raises(ValueError, match="imagination_horizon=0"):
        Imagination(model, None, None, 0, discount=0.9)


@pytest.mark.parametrize("name", ["actor", "critic", "replay_critic"])
def test_masked_rows_count_for_nothing(name):
    batch = rows()
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[1, 2:] = False
    batch["collector", "mask"] = mask
    expected = losses(make(name)(batch))
    for key in ROW:
        batch.set(key, batch.get(key).clone())
        batch.get(key)[~mask] = 1e3
    torch.testing.assert_close(losses(make(name)(batch)), expected)


def test_what_imagination_has_said_already_gives_the_losses_of_a_second_pass():
    agent = DreamerV3(Composite(observation=Unbounded(3)), Composite(action=Bounded(-1, 1, (2,))))
    for head in (agent.actor, agent.critic):
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    trajectory = agent.imagination(agent.world_model.initial([4]))
    value_units = agent.critic_loss.evaluate(trajectory)
    value = agent.critic(trajectory["features"]).mean
    torch.testing.assert_close(trajectory["state_value"], value, rtol=1e-4, atol=1e-4)
    rows, _ = align_v3(trajectory)
    again = rows.exclude("raw_policy").set("lambda_target", rows["lambda_target"].clone())
    rows.set("value_units", value_units)
    agent.actor_loss.normalizer = None  # it would move between the two calls
    for loss, head in ((agent.actor_loss, agent.actor), (agent.critic_loss, agent.critic)):
        name = loss.out_keys[0]
        found, expected = (
            torch.autograd.grad(loss(x)[name], list(head.parameters()), retain_graph=True)
            for x in (rows, again)
        )
        assert any(g.any() for g in expected)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("observations", "words"),
    [
        ({"a_b": Unbounded(2), "a": Composite(b=Unbounded(2))}, "'loss_a_b'"),
        ({"continuation": Unbounded(2)}, "'loss_continuation'"),
        ({"noise": Unbounded(2)}, "'noise'"),
    ],
)
def test_observations_that_take_the_name_of_something_else_are_named(observations, words):
    model = make_rssm(Composite(observations), Composite(action=OneHot(3)), belief_size=8, units=8)
    with pytest.raises(ValueError, match=f"{words}.*RenameTransform"):
        WorldModelLoss(model, SeparateKL())


@pytest.mark.parametrize("key", ["reward", "terminated", "is_last"])
def test_entries_that_are_missing_or_have_another_shape_are_named(key):
    specs = Composite(x=Unbounded(3)), Composite(action=OneHot(2))
    agent = DreamerV3(*specs, size="tiny", imagination_horizon=2)
    sample = agent.world_model.initial([2, 6]).update({"x": torch.randn(2, 6, 3)})
    sample["reward"], sample["previous_action"] = torch.zeros(2, 6, 1), torch.zeros(2, 6, 2)
    for flag in ("is_init", "is_last", "terminated"):
        sample[flag] = torch.zeros(2, 6, 1, dtype=torch.bool)
    agent.update(sample.clone())
    with pytest.raises(KeyError, match=f"needs the entry '{key}'"):
        agent.update(sample.exclude(key))
    sample[key] = sample[key].expand(2, 6, 2).clone()
    with pytest.raises(ValueError, match=f"reads the entry '{key}' as"):
        agent.update(sample)


@pytest.mark.parametrize("key", ["lambda_target", "weight"])
@pytest.mark.parametrize("name", ["actor", "critic"])
def test_imagined_rows_without_their_last_dimension_are_not_broadcast(name, key):
    loss, td = make(name), rows()
    with pytest.raises(ValueError, match=f"reads the entry '{key}' as"):
        loss(td.clone().set(key, td[key].squeeze(-1)))
    with pytest.raises(KeyError, match=f"needs the entry .*{key}"):
        loss(td.exclude(key))


@pytest.mark.parametrize("name", ["replay_critic", "world_model"])
def test_numbers_are_not_negated_as_flags(name):
    loss, td = make(name), rows()
    with pytest.raises(TypeError, match=r"'terminated' as truth values .* torch.uint8"):
        loss(td.set("terminated", td["terminated"].to(torch.uint8)))


@pytest.mark.parametrize("name", ["replay_critic", "world_model"])
def test_sequences_of_batches_of_two_dimensions_are_refused(name):
    td = torch.stack([rows()] * 3)
    with pytest.raises(ValueError, match=r"step records \[B, T"):
        make(name)(td)


def test_what_is_not_a_number_does_not_pass_a_reset_in_overshooting():
    loss = world_model_loss()
    loss.overshooting = LatentOvershooting(3)
    td = rows()
    td["is_init"].zero_()
    td["is_init"][:, 2] = True
    td["previous_action"][:, 2] = torch.nan
    assert loss(td)["loss_overshooting"].isfinite()
