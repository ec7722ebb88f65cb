"""The Dreamers as a training loop sees them: updates on any spec, options, padding, saving."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torchrl.data import (
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    Unbounded,
)

from torchrl_wm import keys
from torchrl_wm.algorithms import DreamerV1, DreamerV2, DreamerV3, PlaNet
from torchrl_wm.world_models import make_muzero, make_rssm

CONTINUOUS = Bounded(-1.0, 1.0, (2,))
ACTIONS = {
    "one_hot": Composite(action=OneHot(3)),
    "index": Composite(action=Categorical(3)),
    "multi_index": Composite(action=MultiCategorical([2, 3])),
    "multi_one_hot": Composite(action=MultiOneHot([2, 3])),
    "continuous": Composite(action=CONTINUOUS),
    "nested": Composite(agent=Composite(arm=CONTINUOUS, gear=Categorical(3))),
}
VECTOR, IMAGE = Unbounded((4,)), Unbounded((3, 64, 64), dtype=torch.uint8)
OBSERVATIONS = {
    "vector": Composite(observation=VECTOR),
    "image": Composite(pixels=IMAGE),
    "both": Composite(camera=Composite(pixels=IMAGE), joints=VECTOR),
}
TINY = {"belief_size": 8, "hidden_size": 8, "units": 8, "state_size": 4, "blocks": 2, "depth": 2}
BEHAVIOUR = {"units": 8, "actor_layers": 1, "critic_layers": 1, "imagination_horizon": 3}
DREAMERS = {
    # Learning rates far above the defaults, so that one update moves every weight.
    "v1": partial(DreamerV1, world_model_lr=1e-2, actor_lr=1e-2, critic_lr=1e-2),
    "v2": partial(DreamerV2, world_model_lr=1e-2, actor_lr=1e-2, critic_lr=1e-2),
    "v3": partial(DreamerV3, bins=15, lr=1e-2, lr_warmup=0),
}
every_dreamer = pytest.mark.parametrize("name", DREAMERS)


def make(name, observations=OBSERVATIONS["vector"], actions=ACTIONS["one_hot"], **options):
    model = partial(make_rssm, vector_layers=1, reward_layers=1, continuation_layers=1, **TINY)
    # Without free nats, below which the prior would not be trained.
    chosen = {"world_model": model, "free_bits": 0.0, **BEHAVIOUR, **options}
    return DREAMERS[name](observations, actions, **chosen)


def sample(agent, observations=OBSERVATIONS["vector"], batch=2, steps=5):
    """A replay sample ``[batch, steps + 1]``."""
    shape = [batch, steps + 1]
    out = observations.expand(shape).rand().update(agent.world_model.initial(shape))
    actions = agent.world_model.action_encoding
    spec = Composite(dict(actions.leaves))
    out["previous_action"] = actions(spec.expand(shape).rand())
    out["reward"] = torch.randn(*shape, 1)
    for key in ("is_init", "is_last", "terminated"):
        out[key] = torch.zeros(*shape, 1, dtype=torch.bool)
    if steps > 2:  # an episode ends and another begins
        out["is_init"][0, 3] = out["is_last"][0, 2] = out["terminated"][0, 2] = True
    return out


def parts(agent):
    return {"world_model": agent.world_model, "actor": agent.actor, "critic": agent.critic}


def snapshot(agent):
    return {
        part: {key: p.detach().clone() for key, p in module.named_parameters()}
        for part, module in parts(agent).items()
    }


def unchanged(agent, before):
    """Names of the parameters that are what they were."""
    now = snapshot(agent)
    return [
        f"{part}.{key}"
        for part, values in before.items()
        for key, value in values.items()
        if torch.equal(value, now[part][key])
    ]


@every_dreamer
@pytest.mark.parametrize("observations", OBSERVATIONS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_updates_train_every_weight(name, observations, actions):
    torch.manual_seed(0)
    observations, actions = OBSERVATIONS[observations], ACTIONS[actions]
    options = {"v1": {"exploration_noise": 0.0}, "v2": {"actor_gradient": "mixed"}}.get(name, {})
    agent = make(name, observations, actions, **options)
    before, batch = snapshot(agent), sample(agent, observations)
    # Layers below a head of zeros have no gradient at first, nor has an actor while returns are 0.
    for _ in range(3):
        metrics, latents = agent.update(batch.clone())
        assert all(value.isfinite().all() for value in metrics.values(True, True))
    assert latents.batch_size == (2, 5) and not latents["belief"].requires_grad
    assert unchanged(agent, before) == []


@every_dreamer
def test_pretraining_trains_the_world_model_alone(name):
    torch.manual_seed(0)
    agent = make(name)
    before, batch = snapshot(agent), sample(agent)
    for _ in range(2):
        metrics, latents = agent.pretrain(batch.clone())
    assert latents.batch_size == (2, 5)
    assert not any("actor" in key or "critic" in key for key in metrics.keys())
    still = unchanged(agent, before)
    assert {key.split(".")[0] for key in still} == {"actor", "critic"}
    assert len(still) == len(before["actor"]) + len(before["critic"])


@every_dreamer
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"kl": {"strategy": "average"}}, "balanced.*clipped.*excess.*separate"),
        ({"imagination_horizon": 0}, "imagination_horizon=0 must be a whole number of at least 1"),
        ({"critic_ema_decay": 1.0, "use_ema_critic": True}, "critic_ema_decay=1.0 .* but not 1"),
        ({"discount": 0}, "discount=0 must be a number from 0 to 1, but not 0"),
    ],
)
def test_bad_options_are_named(name, option, message):
    with pytest.raises(ValueError, match=message):
        make(name, **option)


@every_dreamer
def test_what_is_frozen_stays_frozen(name):
    agent = make(name)
    batch = sample(agent)
    for part in (agent.world_model.decoder, agent.critic):
        part.requires_grad_(False)
    before = snapshot(agent)
    for _ in range(2):
        agent.update(batch.clone())
    still = unchanged(agent, before)
    assert not any(p.requires_grad for p in agent.world_model.decoder.parameters())
    assert all(f"world_model.decoder.{k}" in still for k in agent.world_model.decoder.state_dict())
    assert all(f"critic.{key}" in still for key in agent.critic.state_dict())
    assert "world_model.encoder" not in {".".join(key.split(".")[:2]) for key in still}


def test_nothing_is_imagined_to_follow_an_end_that_is_learned():
    agent = make("v1", use_continuation=True)
    batch = sample(agent)
    seen = []
    agent.actor_loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][keys.MASK]))
    agent.update(batch)
    ended = batch["terminated"][:, 1:-1].reshape(-1)  # the last step of a sequence starts nothing
    assert ended.any() and torch.equal(~ended, seen[0][0].reshape(-1))


@pytest.mark.parametrize("algorithm", [DreamerV1, DreamerV2, DreamerV3, PlaNet])
def test_a_world_model_without_a_divergence_is_refused(algorithm):
    specs = OBSERVATIONS["vector"], Composite(action=OneHot(3))
    with pytest.raises(TypeError, match="MuZeroModel draws no latents.*MuZeroLoss"):
        algorithm(*specs, world_model=make_muzero)


def test_a_factory_of_any_options_is_told_that_it_gets_none():
    def factory(observation_spec, action_spec, **options):
        return make_rssm(observation_spec, action_spec, **TINY, **options)

    with pytest.raises(TypeError, match="factory takes .*options.*hidden_size.*functools.partial"):
        make("v1", world_model=factory)


def test_bad_options_of_one_algorithm_are_named():
    for name in ("v1", "v2"):
        with pytest.raises(ValueError, match="imagination_horizon=1 .* at least 2"):
            make(name, imagination_horizon=1)
    with pytest.raises(ValueError, match="'pathwise'.*dynamics.*mixed.*reinforce"):
        make("v2", actor_gradient="pathwise")
    with pytest.raises(ValueError, match="'size2m'.*size1m.*size400m"):
        make("v3", size="size2m")
    with pytest.raises(ValueError, match="'float16'.*float32"):
        make("v3", precision="float16")
    with pytest.raises(ValueError, match="imagination_starts=1.*at least 2.*replay_critic_scale=0"):
        make("v3", imagination_starts=1)


@pytest.mark.parametrize(
    ("name", "options", "shortest"),
    [
        *[("v1", {}, 2), ("v1", {"use_continuation": False}, 1), ("v2", {}, 1)],
        *[("v3", {}, 2), ("v3", {"replay_critic_scale": 0}, 1)],
    ],
)
def test_an_agent_knows_the_shortest_sequence_that_trains_it(name, options, shortest):
    agent = make(name, **options)
    assert agent.shortest_sequence == shortest
    agent.update(sample(agent, steps=shortest))
    if shortest > 1:
        with pytest.raises(ValueError, match="at least 2 steps.*got 1.*slice length of the replay"):
            agent.update(sample(agent, steps=1))


@every_dreamer
def test_imagination_starts_from_the_last_steps_of_each_sequence(name):
    torch.manual_seed(0)
    agent, seen = make(name, imagination_starts=2), []
    agent.imagination.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]["belief"]))
    _, latents = agent.update(sample(agent))
    last = slice(-3, -1) if name == "v1" else slice(-2, None)  # nothing follows the last step of v1
    torch.testing.assert_close(seen[0], latents["belief"][:, last])


def test_a_discount_counts_the_same_learned_or_multiplied():
    losses = []
    for contdisc, continuation in ((True, 0.9 * 0.5), (False, 0.5)):
        torch.manual_seed(0)
        agent = make("v3", contdisc=contdisc, discount=0.9)
        head = agent.world_model.continuation_head
        with torch.no_grad():
            last = [m for m in head.modules() if isinstance(m, torch.nn.Linear)][-1]
            last.weight.zero_()
            last.bias.fill_(torch.tensor(continuation).logit())
            # So that returns, which begin as zeros, depend on the discount.
            for part in (agent.world_model.reward_head, agent.critic):
                for parameter in part.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        batch = sample(agent)
        torch.manual_seed(1)
        losses.append(agent.update(batch)[0])
    learned, multiplied = losses
    for key in ("loss_replay_critic", "value"):
        torch.testing.assert_close(learned[key], multiplied[key])
    for key in ("loss_actor", "loss_critic"):  # a start weighs what its continuation contains
        torch.testing.assert_close(learned[key], 0.9 * multiplied[key], rtol=1e-5, atol=0)
    # A Bernoulli of 1/2 costs log 2 whatever its target; the other one learns 0.9 as a soft label.
    assert multiplied["loss_continuation"].item() == pytest.approx(0.6931, abs=1e-4)
    assert learned["loss_continuation"].item() > 0.7


@every_dreamer
def test_padded_steps_change_nothing(name, gradients):
    found = []
    for garbage in (1.0, 50.0):
        torch.manual_seed(0)
        agent = make(name)
        grads = gradients(agent)
        batch = sample(agent)
        mask = torch.ones(batch.batch_size, dtype=torch.bool)
        mask[1, 3:] = False
        batch["collector", "mask"] = mask
        batch["observation"][~mask] *= garbage
        batch["reward"][~mask] *= garbage
        batch["previous_action"][~mask] = 0
        torch.manual_seed(1)
        metrics, _ = agent.update(batch)
        found.append((metrics, [grads[p] for p in agent.parameters() if p in grads]))
    (metrics, first), (others, second) = found
    for key, value in metrics.items():
        torch.testing.assert_close(value, others[key], msg=lambda m, key=key: f"{key}: {m}")
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two)


@every_dreamer
def test_imagination_starts_from_the_last_steps_before_padding(name):
    agent = make(name, imagination_starts=2)
    td = sample(agent, steps=8)
    for key in ("is_init", "is_last", "terminated"):
        td[key].zero_()
    td[keys.MASK] = torch.arange(9).expand(2, 9) < 6
    latents, records = agent._starts(td[:, 1:].select("belief", "state"), td[:, 1:])
    torch.testing.assert_close(latents["belief"], td["belief"][:, 4:6])
    torch.testing.assert_close(records["reward"], td["reward"][:, 4:6])
    assert agent.update(td)[0]["loss_actor"] != 0


@every_dreamer
def test_parameters_are_not_replaced_under_the_optimisers(name):
    agent = make(name)
    with pytest.raises(ValueError, match="assign=True"):
        agent.load_state_dict(agent.state_dict(), assign=True)


def test_pretraining_v3_spends_no_step_of_actor_and_critic():
    agent = make("v3", lr_warmup=10)
    for _ in range(3):
        agent.pretrain(sample(agent))
    assert [group["step"] for group in agent.optimizers["all"].param_groups] == [3, 0, 0]
    agent.update(sample(agent))
    assert [group["step"] for group in agent.optimizers["all"].param_groups] == [4, 1, 1]


def test_v3_without_the_replayed_loss_may_start_from_one_step():
    agent = make("v3", imagination_starts=1, replay_critic_scale=0)
    assert "loss_replay_critic" not in agent.update(sample(agent))[0]


def test_v2_takes_a_single_action_spec_that_is_no_composite():
    assert make("v2", actions=OneHot(3)).update(sample(make("v2"))) is not None


def test_losses_of_a_validation_leave_the_normaliser_alone():
    agent = make("v3")
    agent.update(sample(agent))
    before = copy.deepcopy(agent.actor_loss.normalizer.state_dict())
    agent.eval()
    with torch.no_grad():
        agent._losses(sample(agent))
    after = agent.actor_loss.normalizer.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@every_dreamer
def test_a_saved_agent_goes_on_as_if_nothing_had_happened(name):
    torch.manual_seed(0)
    options = {"critic_ema_decay": 0.5, "use_ema_critic": True}
    agent = make(name, **options)
    batch = sample(agent)
    for _ in range(3):
        agent.update(batch.clone())
    saved = copy.deepcopy(
        (agent.state_dict(), {k: o.state_dict() for k, o in agent.optimizers.items()})
    )
    again = make(name, **options)
    again.load_state_dict(saved[0])
    for key, optimizer in again.optimizers.items():
        optimizer.load_state_dict(saved[1][key])
    results = []
    for one in (agent, again):
        torch.manual_seed(1)
        metrics, latents = one.update(batch.clone())
        results.append((one.state_dict(), metrics, latents))
    (first, metrics, latents), (second, other_metrics, other_latents) = results
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (metrics == other_metrics).all() and (latents == other_latents).all()


WALKER = Composite(orientations=Unbounded((14,)), height=Unbounded(()), velocity=Unbounded((9,)))
PRESETS = {  # Counted from the official initialisation: 64x64 pictures, and 24 numbers.
    "size1m": (686_846, 640_867),
    "size12m": (10_494_158, 9_738_019),
    "size25m": (23_489_326, 21_782_947),
    "size50m": (41_650_062, 38_612_003),
    "size100m": (93_468_238, 86_622_499),
    "size200m": (165_948_686, 153_769_507),
    "size400m": (372_896_398, 345_473_059),
}


@pytest.mark.parametrize("size", PRESETS)
def test_presets_have_the_official_number_of_parameters(size):
    actions, counts = Composite(action=Bounded(-1.0, 1.0, (6,))), []
    for observations in (OBSERVATIONS["image"], WALKER):
        with torch.device("meta"):
            agent = DreamerV3(observations, actions, size=size, use_ema_critic=False)
        counts.append(sum(p.numel() for part in parts(agent).values() for p in part.parameters()))
    assert tuple(counts) == PRESETS[size]


@every_dreamer
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))])
def test_a_copy_of_an_agent_learns_as_the_agent_does(name, copied):
    torch.manual_seed(0)
    agent = make(name)
    batch = sample(agent)
    agent.update(batch.clone())
    other = copied(agent)
    before = {k: p.detach().clone() for k, p in other.named_parameters()}
    for one in (agent, other):
        torch.manual_seed(1)
        one.update(batch.clone())
    expected, found = dict(agent.named_parameters()), dict(other.named_parameters())
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert any(not torch.equal(before[key], found[key]) for key in before)


def test_the_terms_of_v3_have_weights():
    found = []
    for weight in (1.0, 3.0):
        torch.manual_seed(0)
        scales = dict.fromkeys(
            ["reward_scale", "continuation_scale", "actor_scale", "critic_scale"], weight
        )
        agent = make("v3", **scales)
        batch = sample(agent)
        torch.manual_seed(1)
        found.append(agent.update(batch)[0])
    once, thrice = found
    for key in ("loss_reward", "loss_continuation", "loss_actor", "loss_critic"):
        torch.testing.assert_close(3 * once[key], thrice[key])
    assert once["loss_dynamics"] == thrice["loss_dynamics"]


def test_parts_that_are_copied_with_an_agent_stay_its_parts():
    agent = make("v3")
    other, policy, loss = copy.deepcopy((agent, agent.policy, agent.world_model_loss))
    assert policy is other.policy and loss.world_model is other.world_model
    assert other.world_model is not agent.world_model
