"""Mistakes that ports of the Dreamers made in their losses; each test is named after one."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from torchrl_wm.algorithms.optimizers import TensorFlowAdam
from torchrl_wm.functional.transforms import symexp_bins
from torchrl_wm.modules.action_distributions import DiagonalNormal, TanhNormal
from torchrl_wm.modules.distributions import TwoHot, UnitNormal
from torchrl_wm.modules.normalizers import ReturnNormalizer
from torchrl_wm.objectives import (
    ActorLoss,
    BalancedKL,
    ClippedKL,
    CriticLoss,
    ExcessKL,
    Reinforce,
    ReplayCriticLoss,
    SeparateKL,
    SlowUpdate,
    ThroughDynamics,
    align_v1,
    align_v2,
    align_v3,
)

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def nats(posterior, prior):
    """A divergence of steps that is the sum of two numbers."""
    return posterior[0] + prior[0]


def leaves(*values):
    return (torch.tensor(values, requires_grad=True),)


def trajectory(**entries):
    """``[H + 1, 1]`` from one number per state."""
    entries = {key: torch.tensor(x).view(-1, 1, 1) for key, x in entries.items()}
    length = len(next(iter(entries.values())))
    return TensorDict(entries | {"features": torch.zeros(length, 1, 1)}, [length, 1])


def numbers(tensor):
    return tensor.flatten().tolist()


# -- Divergences --------------------------------------------------------------------------------


def test_planet_averages_before_the_free_nats():
    loss = ExcessKL(3.0)(nats, leaves(1.0, 9.0), leaves(0.0, 0.0), torch.mean)["kl"]
    assert loss.item() == 3.0


def test_planet_balances_the_two_sides():
    posterior, prior = leaves(4.0, 9.0), leaves(0.0, 0.0)
    ExcessKL(3.0)(nats, posterior, prior, torch.mean)["kl"].backward()
    assert posterior[0].grad.tolist() == prior[0].grad.tolist() == [0.5, 0.5]


def test_dreamer_v1_applies_the_free_nats_to_each_step():
    posterior = leaves(1.0, 9.0)
    loss = ClippedKL(3.0)(nats, posterior, leaves(0.0, 0.0), torch.mean)["kl"]
    assert loss.item() == 5.0
    posterior = leaves(1.0, 3.0)
    loss = ClippedKL(3.0)(nats, posterior, leaves(0.0, 0.0), torch.mean)["kl"]
    loss.backward()
    assert loss.item() == 3.0 and not posterior[0].grad.any()


def test_dreamer_v2_trains_the_posterior_faster_than_the_prior():
    posterior, prior = leaves(1.0), leaves(1.0)
    BalancedKL(0.8)(nats, posterior, prior, torch.mean)["kl"].backward()
    assert posterior[0].grad.item() == pytest.approx(0.2)
    assert prior[0].grad.item() == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"balance": 0.8}, 5.0),
        ({"balance": 0.8, "free_average": False}, 6.0),
        ({"balance": 0.5}, 6.0),
    ],
)
def test_dreamer_v2_applies_the_free_nats_in_the_wrong_place(options, expected):
    rule = BalancedKL(free_nats=3.0, **options)
    loss = rule(nats, leaves(1.0, 9.0), leaves(0.0, 0.0), torch.mean)["kl"]
    assert loss.item() == pytest.approx(expected)


def test_dreamer_v3_averages_before_the_free_nats_or_joins_the_two_terms():
    posterior, prior = leaves(0.5, 9.0), leaves(0.0, 0.0)
    losses = SeparateKL(1.0, 1.0, 0.1)(nats, posterior, prior, torch.mean)
    assert losses["dynamics"].item() == 5.0
    assert losses["representation"].item() == pytest.approx(0.5)
    losses["dynamics"].backward()
    assert posterior[0].grad is None and prior[0].grad.tolist() == [0.0, 0.5]
    losses["representation"].backward()
    torch.testing.assert_close(posterior[0].grad, torch.tensor([0.0, 0.05]))
    assert prior[0].grad.tolist() == [0.0, 0.5]


def test_free_nats_apply_to_each_categorical():
    from torchrl_wm.modules.latents import CategoricalLatent

    latent = CategoricalLatent(2, 2)
    posterior = (torch.tensor([[[2.0, 0.0], [2.0, 0.0]]]),)
    prior = (torch.zeros(1, 2, 2),)
    p = 1 / (1 + math.exp(-2))
    one = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))  # 0.33 nats, below 0.5
    dynamics, _ = SeparateKL(0.5).terms(latent.kl, posterior, prior)
    assert dynamics.item() == pytest.approx(2 * one)


# -- Returns ------------------------------------------------------------------------------------

LENGTH_FOUR = {
    "reward": [1.0, 10.0, 100.0, 1000.0],
    "continuation": [0.5, 0.5, 0.5, 0.5],
    "state_value": [2.0, 4.0, 8.0, 16.0],
}


def test_dreamer_v1_leaves_the_reward_of_the_state_out_or_keeps_the_start():
    rows, _ = align_v1(trajectory(**LENGTH_FOUR), 0.0)
    # States 1 and 2: own reward plus half the value of the state after.
    assert numbers(rows["lambda_target"]) == [14.0, 108.0]
    rows, _ = align_v1(trajectory(**LENGTH_FOUR), 1.0)
    assert numbers(rows["lambda_target"]) == [10 + 0.5 * 108, 108.0]


def test_dreamer_v1_weighs_the_first_imagined_state_by_its_continuation():
    states = trajectory(**{k: [0.99] * 16 for k in LENGTH_FOUR})
    rows, _ = align_v1(states)
    assert len(rows) == 14
    weights = rows["weight"].flatten()
    torch.testing.assert_close(weights, 0.99 ** torch.arange(14.0))


def test_dreamer_v2_scores_an_action_by_the_state_it_was_taken_in():
    actor, critic = align_v2(trajectory(**LENGTH_FOUR), 0.0)
    assert numbers(critic["lambda_target"]) == [3.0, 14.0, 108.0]
    assert numbers(actor["lambda_target"]) == [14.0, 108.0]
    assert numbers(actor["baseline"]) == [2.0, 4.0]


def test_dreamer_v2_weighs_the_start_or_applies_the_discount_twice():
    actor, critic = align_v2(trajectory(**LENGTH_FOUR))
    assert numbers(critic["weight"]) == [1.0, 0.5, 0.25]
    assert numbers(actor["weight"]) == [1.0, 0.5]


def test_dreamer_v3_takes_the_reward_of_the_state_or_weighs_the_start_by_one():
    rows, _ = align_v3(trajectory(**LENGTH_FOUR), 0.0)
    assert numbers(rows["lambda_target"]) == [12.0, 104.0, 1008.0]
    assert numbers(rows["baseline"]) == [2.0, 4.0, 8.0]
    assert numbers(rows["weight"]) == [0.5, 0.25, 0.125]


# -- Actors -------------------------------------------------------------------------------------


class Given(nn.Module):
    """A network whose output is a distribution of its parameter, plus the features."""

    def __init__(self, make, value=0.0):
        super().__init__()
        self.make, self.value = make, nn.Parameter(torch.tensor(value))

    def forward(self, features):
        return self.make(self.value + features)


def rows(**entries):
    shapes = {"features": 0.0, "action": 0.0, "lambda_target": 0.0, "baseline": 0.0, "weight": 1.0}
    values = shapes | entries
    return TensorDict(
        {k: torch.as_tensor(v).reshape(-1, 1).float() for k, v in values.items()}, [1]
    )


def unit_normal_policy():
    return Given(lambda x: DiagonalNormal(x, torch.full_like(x, 2.0)))


def test_entropy_is_left_out_of_the_weight():
    actor = unit_normal_policy()
    entropy = math.log(2) + 0.5 * (1 + math.log(2 * math.pi))
    loss = ActorLoss(actor, Reinforce(), entropy_scale=3.0)(rows(weight=0.25))["loss_actor"]
    assert loss.item() == pytest.approx(-0.25 * 3 * entropy)


def test_advantage_weight_or_action_carry_a_gradient_in_reinforce():
    names = ("lambda_target", "baseline", "weight", "action", "features")
    inputs = {name: torch.tensor([[0.5]], requires_grad=True) for name in names}
    actor = unit_normal_policy()
    batch = TensorDict(inputs, [1])
    ActorLoss(actor, Reinforce(), entropy_scale=0.1)(batch)["loss_actor"].backward()
    assert all(value.grad is None for value in inputs.values())
    inputs["lambda_target"] = torch.tensor([[3.0]])
    actor.value.grad = None
    ActorLoss(actor, Reinforce())(TensorDict(inputs, [1]))["loss_actor"].backward()
    # -weight * advantage * d log N(0.5; 0.5 + value, 2): the action is where the mean is.
    assert actor.value.grad.item() == pytest.approx(0.0)
    inputs["action"] = torch.tensor([[2.5]])
    ActorLoss(actor, Reinforce())(TensorDict(inputs, [1]))["loss_actor"].backward()
    assert actor.value.grad.item() == pytest.approx(-0.5 * 2.5 * (2.0 / 4))


def test_advantage_is_divided_by_the_scale_of_the_batch_before():
    actor, normalizer = unit_normal_policy(), ReturnNormalizer(rate=1.0)
    returns = torch.linspace(0, 100, 101).unsqueeze(-1)
    batch = rows(action=2.0).expand(101).clone().set("lambda_target", returns)
    loss = ActorLoss(actor, Reinforce(), normalizer=normalizer)(batch)["loss_actor"]
    loss.backward()
    assert actor.value.grad.item() == pytest.approx(-(50 / 90) * (2.0 / 4), rel=1e-4)


def test_an_actor_without_a_gradient_is_trained_in_silence():
    loss = ActorLoss(unit_normal_policy(), ThroughDynamics())
    with pytest.raises(ValueError, match="no gradient.*through_dynamics=True"):
        loss(rows(lambda_target=1.0))


def test_mode_of_a_sampled_policy_is_that_of_the_first_row():
    loc = torch.tensor([[0.0], [1.0]])
    mode = TanhNormal(loc, torch.ones(2, 1)).mode
    torch.testing.assert_close(mode, loc.tanh())


# -- Critics ------------------------------------------------------------------------------------


def test_critic_learns_normalised_returns_or_lets_a_gradient_through():
    target = torch.tensor([[300.0]], requires_grad=True)
    features = torch.zeros(1, 1, requires_grad=True)
    critic = Given(UnitNormal)
    loss = CriticLoss(critic)
    batch = TensorDict(features=features, lambda_target=target, weight=torch.ones(1, 1))
    value = loss(batch.auto_batch_size_(1))["loss_critic"]
    assert value.item() == pytest.approx(0.5 * 300**2 + 0.5 * math.log(2 * math.pi))
    value.backward()
    assert target.grad is None and features.grad is None
    assert critic.value.grad.item() == -300


def test_slow_critic_makes_the_targets_in_place_of_holding_the_critic_back():
    loss = CriticLoss(Given(UnitNormal, 1.0), slow_regularization=2.0)
    loss.target_critic_params["value"].data.fill_(4.0)
    value = loss(rows(lambda_target=3.0))["loss_critic"]
    expected = 0.5 * 4 + 2.0 * 0.5 * 9 + 3 * 0.5 * math.log(2 * math.pi)
    assert value.item() == pytest.approx(expected)
    assert loss.slow(torch.zeros(1, 1)).mean.item() == 4.0


def test_slow_critic_waits_for_its_first_move():
    critic = Given(UnitNormal, 1.0)
    loss = CriticLoss(critic)
    update = SlowUpdate(loss, tau=1.0, every=100)
    critic.value.data.fill_(5.0)
    update.step()
    assert loss.target_critic_params["value"].item() == 5.0


def replay(**entries):
    flags = {"is_last": [0, 0, 0], "terminated": [0, 0, 0]} | entries
    values = {"reward": [1.0, 10.0, 100.0], "bootstrap": [2.0, 4.0, 8.0]}
    out = {key: torch.tensor(x).view(1, 3, 1) for key, x in values.items()}
    out |= {key: torch.tensor(x).bool().view(1, 3, 1) for key, x in flags.items()}
    features = torch.zeros(1, 3, 1, requires_grad=True)
    return TensorDict(out | {"features": features}, [1, 3]), features


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, [10 + 0.5 * 104, 104.0]),
        ({"is_last": [0, 1, 0]}, [12.0, 104.0]),  # a truncation bootstraps fully
        ({"is_last": [0, 1, 0], "terminated": [0, 1, 0]}, [10.0, 104.0]),
    ],
)
def test_replayed_returns_stop_at_a_truncation_or_go_on_after_an_end(flags, expected):
    loss = ReplayCriticLoss(CriticLoss(Given(UnitNormal)), discount=0.5, lambda_=1.0)
    _, returns = loss.terms(replay(**flags)[0])
    assert numbers(returns) == expected


def test_replayed_loss_counts_last_steps_or_stops_at_the_features():
    critic = Given(UnitNormal)
    loss = ReplayCriticLoss(CriticLoss(critic), discount=0.5, lambda_=1.0, scale=0.3)
    batch, features = replay(is_last=[0, 1, 0])
    value = loss(batch)["loss_replay_critic"]
    constant = 0.5 * math.log(2 * math.pi)
    assert value.item() == pytest.approx(0.3 * (0.5 * 12**2 + constant) / 2)
    value.backward()
    torch.testing.assert_close(numbers(features.grad), [-0.3 * 12 / 2, 0.0, 0.0])


def test_two_hot_critic_is_given_logarithms_of_returns():
    bins, logits = symexp_bins(5, limit=2.0), torch.arange(5.0)
    critic = Given(lambda x: TwoHot(x + logits, bins))
    below, above = logits.log_softmax(-1)[2:4].tolist()  # of the bins 0 and 1.718
    upper = 1.0 / bins[3].item()
    loss = CriticLoss(critic)(rows(lambda_target=1.0))["loss_critic"]
    assert loss.item() == pytest.approx(-(1 - upper) * below - upper * above)


# -- Optimisers ---------------------------------------------------------------------------------


def test_epsilon_of_tensorflow_is_taken_for_that_of_torch():
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.tensor([1e-6])
    TensorFlowAdam([weight], lr=1.0, eps=1e-4).step()
    assert weight.item() == pytest.approx(-3.1613e-4, rel=1e-4)


def test_weight_decay_is_scaled_by_the_learning_rate():
    weight = torch.ones(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    TensorFlowAdam([weight], lr=1e-4, eps=1e-5, weight_decay=0.25).step()
    assert weight.item() == pytest.approx(0.75)


def test_means_and_deviations_of_a_policy_share_one_clipped_gradient():
    from torchrl.data import Bounded

    from torchrl_wm.modules.heads import actor_head

    head = actor_head(Bounded(-1, 1, (2,)), 3, layers=1, units=4)
    shapes = [tuple(p.shape) for p in head.out.parameters()]
    assert shapes == [(2, 4), (2,), (2, 4), (2,)]
