"""Mistakes that MuZero codes made, in targets, unrolling and replay; one test for each."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Composite, OneHot, Unbounded

from torchrl_wm.data import UnrolledTargets
from torchrl_wm.functional import n_step_returns, two_hot
from torchrl_wm.modules import ActionEncoding, HyperbolicTwoHot, HyperbolicTwoHotOutput
from torchrl_wm.objectives import MuZeroLoss
from torchrl_wm.objectives.muzero_loss import scale_gradient
from torchrl_wm.planners import SearchPolicy
from torchrl_wm.world_models import make_muzero

OBSERVATIONS = Composite(observation=Unbounded(4))
ACTIONS = Composite(action=OneHot(3))
UNROLL, ROOT = 3, 1


def model(**options):
    torch.manual_seed(0)
    made = make_muzero(OBSERVATIONS, ACTIONS, hidden_size=6, units=8, support=20, **options)
    for parameter in made.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return made


def sample(batch=4, last=None, terminated=True, steps=UNROLL, td_steps=2, **options):
    """Sequences with targets; ``last`` is the position of a final record."""
    torch.manual_seed(1)
    options |= {"root": ROOT, "unroll_steps": steps, "td_steps": td_steps, "discount": 0.9}
    targets = UnrolledTargets(ActionEncoding(ACTIONS), **options)
    shape = [batch, targets.length]
    ends = torch.zeros(*shape, 1, dtype=torch.bool)
    if last is not None:
        ends[:, last] = True
    rows = TensorDict(
        observation=torch.randn(*shape, 4),
        reward=torch.randn(*shape, 1),
        bootstrap_value=torch.randn(*shape, 1),
        search_policy=torch.rand(*shape, 3).softmax(-1),
        previous_action=torch.eye(3)[torch.randint(3, shape)],
        is_last=ends,
        terminated=ends & terminated,
        batch_size=shape,
    )
    return targets(rows)


def loss(world_model, **options):
    return MuZeroLoss(world_model, **{"unroll_steps": UNROLL, "root": ROOT, **options})


# -- targets ------------------------------------------------------------------------------------


def test_the_reward_of_a_step_is_the_one_received_on_arrival():
    """The first pseudocode trained step k on the reward of the step after it."""
    rows = sample(steps=2)
    reward = rows["reward"][:, ROOT + 1]
    only = loss(model(), unroll_steps=2)
    rows["target", "reward_mask"][:, ROOT + 2 :] = False
    hidden = only.world_model.represent(rows[:, ROOT])
    hidden = only.world_model.advance(hidden, rows["previous_action"][:, ROOT + 1])
    expected = -only.world_model.reward_head(hidden).log_prob(reward).mean() / 2
    torch.testing.assert_close(only(rows)["loss_reward"], expected)


def test_a_value_never_reads_the_next_episode():
    """A flat buffer goes on with another episode behind each end."""
    reward = torch.tensor([0.0, 1.0, 1.0, 1e6, 1e6])
    last = torch.tensor([False, False, True, False, False])
    for terminated, expected in ((last, [1.9, 1.0]), (torch.zeros_like(last), [10.0, 10.0])):
        value = torch.tensor([1e6, 1e6, 10.0, 1e6, 1e6])
        target, _ = n_step_returns(reward, value, last, terminated, td_steps=4, discount=0.9)
        torch.testing.assert_close(target[:2], torch.tensor(expected))


def test_a_truncation_differs_from_a_termination_by_the_value_of_its_final_state():
    """Reference codes do not tell a time limit from an end."""
    arguments = [torch.randn(6) for _ in range(2)]
    last = torch.arange(6) == 5
    options = {"td_steps": 9, "discount": 0.9}
    ended, _ = n_step_returns(*arguments, last, last, **options)
    cut, _ = n_step_returns(*arguments, last, torch.zeros_like(last), **options)
    expected = 0.9 ** torch.arange(5, -1, -1) * arguments[1][-1]
    torch.testing.assert_close(cut - ended, expected)


def test_signs_follow_the_players_whatever_the_parity_of_the_start():
    """A reference code compares whose turn it is with an offset instead of a position."""
    to_play = torch.tensor([0, 1, 0, 0, 1, 0])  # one moves twice
    reward = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])  # the last move, player 1's, wins
    last = torch.arange(6) == 5
    target, _ = n_step_returns(
        reward, torch.zeros(6), last, last, td_steps=9, discount=1.0, to_play=to_play
    )
    assert target.tolist() == [-1.0, 1.0, -1.0, -1.0, 1.0, 0.0]


def test_there_is_no_policy_to_learn_behind_the_end():
    """A uniform target there is trained on by a reference code."""
    world_model = model()
    only = loss(world_model, value_scale=0.0, reward_scale=0.0)
    found = []
    for change in (0.0, 7.0):
        rows = sample(last=ROOT + 1)
        rows["search_policy"][:, ROOT + 1 :] += change
        found.append(only(rows)["loss_policy"])
    assert torch.equal(*found)
    rows = sample(last=ROOT + 1)
    behind = rows["target", "value"][:, ROOT + 2 :], rows["target", "reward"][:, ROOT + 2 :]
    assert all((target == 0).all() for target in behind)
    assert rows["target", "value_mask"][:, ROOT : ROOT + UNROLL + 1].all()


def test_nothing_is_trained_behind_a_truncation():
    """There the episode would have gone on: zeros are no targets."""
    found = []
    for value in (0.0, 50.0):
        rows = sample(last=ROOT + 1, terminated=False)
        rows["target", "value"][:, ROOT + 2 :] = value
        rows["target", "reward"][:, ROOT + 2 :] = value
        found.append(loss(model())(rows))
    for key in ("loss_value", "loss_reward", "loss_policy"):
        assert torch.equal(found[0][key], found[1][key])


def test_sums_of_rewards_are_compared_with_sums_that_begin_anew_where_the_model_does():
    """A reference code begins the targets of a batch anew at steps that drift from sample to sample."""
    world_model = model(use_value_prefix=True, value_prefix_horizon=2)
    rows = sample(value_prefix_horizon=2)
    rewards = rows["reward"][:, ROOT + 1 : ROOT + UNROLL + 1, 0]
    targets = rows["target", "reward"][:, ROOT + 1 : ROOT + UNROLL + 1, 0]
    torch.testing.assert_close(targets[:, 1], rewards[:, 0] + rewards[:, 1])
    torch.testing.assert_close(targets[:, 2], rewards[:, 2])
    hidden = [world_model.represent(rows[:, ROOT])]
    for action in rows["target", "action"][:, ROOT + 1 : ROOT + UNROLL + 1].unbind(1):
        hidden.append(world_model.advance(hidden[-1], action))
    predicted = world_model.value_prefix.unroll(torch.stack(hidden, 1))
    wanted = torch.cat([torch.zeros(len(rows), 1), targets], 1).unsqueeze(-1)
    expected = -predicted.log_prob(wanted)[:, 1:].sum(1).mean() / UNROLL
    torch.testing.assert_close(loss(world_model)(rows)["loss_reward"], expected)


def test_a_search_begins_the_value_prefix_anew_by_depth():
    """A reference code takes the difference to the node that it visited before, not to the parent."""
    world_model = model(use_value_prefix=True, value_prefix_horizon=2)
    search = SearchPolicy(world_model, num_simulations=60, executor="numba")
    torch.manual_seed(3)
    roots = world_model.roots(TensorDict(observation=torch.randn(2, 4), batch_size=[2]))
    tree = search.trees(roots)
    deepest = 0
    for row in range(2):
        for node in range(1, 61):
            path = [node]
            while tree["parents"][row, path[0]] >= 0:
                path.insert(0, int(tree["parents"][row, path[0]]))
            hidden = tree["latents", "hidden"][row, path].unsqueeze(0)
            sums = world_model.value_prefix.unroll(hidden).mean[0, :, 0]
            depth = len(path) - 1
            before = sums[depth - 1] if (depth - 1) % 2 else 0.0
            torch.testing.assert_close(
                tree["rewards"][row, node], sums[depth] - before, rtol=1e-3, atol=1e-4
            )
            deepest = max(deepest, depth)
    assert deepest > 3


# -- gradients ------------------------------------------------------------------------------------


def test_the_chain_is_halved_and_the_heads_are_not():
    """A hook on the state that heads and dynamics share halves both."""
    h0 = torch.ones(1, requires_grad=True)
    h1 = h0 * 1.0
    head = 1.0 * h1
    h2 = scale_gradient(h1, 0.5) * 1.0
    (head + h2).backward()
    assert h0.grad.item() == 1.5


@pytest.mark.parametrize("k", range(UNROLL + 1))
def test_a_loss_at_step_k_reaches_the_root_scaled(k):
    """1 / K on the heads after the first and one half for every application of the dynamics."""
    world_model = model(scaling="none")
    world_model.advance = lambda hidden, action: hidden  # a chain that changes nothing
    only = loss(world_model, policy_scale=0.0, reward_scale=0.0, value_scale=1.0)
    rows = sample()
    rows["target", "value_mask"][:] = False
    rows["target", "value_mask"][:, ROOT + k] = True
    rows["target", "value"][:] = 3.0

    def gradient(value):
        weight = world_model.representation.weight
        return torch.autograd.grad(value, weight)[0]

    hidden = world_model.represent(rows[:, ROOT])
    plain = -world_model.value_head(hidden).log_prob(rows["target", "value"][:, ROOT]).mean()
    scale = 1.0 if k == 0 else 0.5**k / UNROLL
    torch.testing.assert_close(gradient(only(rows)["loss_value"]), scale * gradient(plain))


def test_no_gradient_reaches_what_the_consistency_compares_with():
    world_model = model(use_consistency=True)
    only = loss(world_model)
    rows = sample()
    rows["observation"].requires_grad_()
    only(rows)["loss_consistency"].backward()
    reached = rows["observation"].grad.abs().sum((0, 2)) > 0
    assert reached.tolist() == [t == ROOT for t in range(rows.shape[1])]


# -- values ---------------------------------------------------------------------------------------


def test_an_exact_atom_has_one_entry_and_the_top_does_not_wrap_around():
    atoms = torch.arange(-10.0, 11)
    lower, upper, weight = two_hot(torch.tensor([3.0, 10.0, 99.0, -99.0]), atoms)
    hit = torch.where(weight == 1, upper, lower)
    assert ((weight == 0) | (weight == 1)).all()
    assert hit.tolist() == [13, 20, 20, 0]


def test_decoding_undoes_encoding_within_the_support():
    atoms = HyperbolicTwoHotOutput(300).atoms
    x = torch.tensor([[-500.0], [-0.3], [0.0], [1e-3], [21.5], [5e4]])
    lower, upper, weight = two_hot(_squash(x[:, 0]), atoms)
    probs = torch.zeros(len(x), 601)
    probs.scatter_(1, lower[:, None], (1 - weight)[:, None])
    probs.scatter_(1, upper[:, None], weight[:, None])
    decoded = HyperbolicTwoHot(probs.clamp_min(1e-38).log(), atoms).mean
    torch.testing.assert_close(decoded, x, rtol=1e-4, atol=1e-4)


def test_priorities_are_errors_on_the_raw_scale():
    rows = sample()
    rows["target", "value"][:] = 100.0
    world_model = model()
    predicted = world_model.value_head(world_model.represent(rows[:, ROOT])).mean
    found = loss(world_model)(rows)["priority"]
    torch.testing.assert_close(found[:, 0], 100.0 - predicted)
    assert found.shape == (4, UNROLL + 1, 1) and found.min() > 50


def test_returns_beyond_the_support_are_counted():
    """Values are clamped to the largest atom and the agent stops improving, without a word."""
    rows = sample()
    out = loss(model())(rows)
    assert out["value_beyond_support"] == 0 and out["reward_beyond_support"] == 0
    rows["target", "value"][0] = 1e4
    rows["target", "reward"][:2] = -1e4
    out = loss(model())(rows)
    assert out["value_beyond_support"] == 0.25 and out["reward_beyond_support"] == 0.5
    assert out["loss_value"].isfinite()


def test_importance_weights_scale_whole_sequences():
    """Weights that are averaged away, or applied to the priorities too."""
    rows = sample()
    plain = loss(model())(rows)
    weight = torch.zeros(rows.shape)
    weight[2] = 1.0
    weighted = loss(model())(rows.clone().set("priority_weight", weight))
    alone = loss(model())(rows[2:3])
    for key in ("loss_policy", "loss_value", "loss_reward"):
        torch.testing.assert_close(weighted[key], alone[key] / 4)
    assert torch.equal(weighted["priority"], plain["priority"])


def test_rows_of_a_batch_do_not_touch():
    """Batch statistics make a state's value depend on its neighbours, and acting differ from training."""
    rows = sample()
    rows["target", "action"] = rows["previous_action"]
    order = torch.tensor([2, 0, 3, 1])
    only = loss(model())
    torch.testing.assert_close(only(rows)["priority"][order], only(rows[order])["priority"])


def _squash(x):
    from torchrl.modules.functional import signed_hyperbolic

    return signed_hyperbolic(x)
