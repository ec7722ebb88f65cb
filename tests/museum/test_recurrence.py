"""Mistakes that ports of PlaNet and the Dreamers made in their recurrence; each test is named after one."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite, Unbounded

from torchrl_wm.modules.cells import GRU, BlockCell, LayerNormGRU, ResetBeforeGRU
from torchrl_wm.modules.latents import CategoricalLatent, GaussianLatent
from torchrl_wm.world_models import make_rssm


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def zero(module):
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    return module


@torch.no_grad()
def test_planet_gates_start_without_their_bias_of_one():
    gru = ResetBeforeGRU(1, 1)
    assert gru.gates.bias.tolist() == [1.0, 1.0] and gru.candidate.bias.tolist() == [0.0]


@torch.no_grad()
def test_planet_gru_resets_after_the_product():
    gru = zero(ResetBeforeGRU(1, 2))
    gru.gates.bias.copy_(torch.tensor([-50.0, 0.0, 0.0, 0.0]))  # resets the first number only
    gru.candidate.weight[0, 1] = gru.candidate.weight[1, 1] = 1.0  # both candidates read it
    hidden = gru(torch.zeros(1, 1), torch.ones(1, 2))
    torch.testing.assert_close(hidden, torch.tensor([[0.5, 0.5]]))  # tanh(0) and the old 1


@torch.no_grad()
def test_keras_gru_leaves_the_recurrent_bias_out_of_the_reset():
    gru = zero(GRU(1, 1))
    reset, update, candidate = 0, 1, 2
    gru.cell.bias_hh[candidate] = 1.0
    gru.cell.bias_ih[reset], gru.cell.bias_ih[update] = -50.0, -50.0
    assert gru(torch.zeros(1, 1), torch.zeros(1, 1)).item() == pytest.approx(0.0, abs=1e-6)


@torch.no_grad()
def test_layer_norm_gru_normalises_each_gate_alone_or_has_a_small_epsilon():
    gru = LayerNormGRU(1, 1)
    zero(gru.linear)
    gru.linear.bias.copy_(torch.tensor([0.0, 0.0, 0.03]))  # reset, candidate, update
    deviation = math.sqrt(0.0002 + 1e-3)
    reset, update = -0.01 / deviation, 0.02 / deviation
    new = math.tanh(sigmoid(reset) * -0.01 / deviation)
    share = sigmoid(update - 1)
    expected = share * new + (1 - share) * 2.0
    assert gru(torch.zeros(1, 1), torch.full((1, 1), 2.0)).item() == pytest.approx(expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["layer_norm", "block"])
def test_update_gate_starts_without_its_bias_of_minus_one(kind):
    if kind == "layer_norm":
        new = zero(LayerNormGRU(1, 1))(torch.zeros(1, 1), torch.ones(1, 1))
    else:
        cell = zero(BlockCell(1, 1, 1, 1, blocks=1))
        new = cell(torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1, 1), cell.weights())
    assert new.item() == pytest.approx(1 - sigmoid(-1))


@torch.no_grad()
def test_block_gates_are_split_over_all_blocks_at_once():
    cell = zero(BlockCell(1, 1, 2, 1, blocks=2))
    # Block 0: reset 0, candidate 1, update 50; block 1 keeps what it had.
    cell.gates_bias.copy_(torch.tensor([0.0, 1.0, 50.0, 0.0, 0.0, -50.0]))
    new = cell(torch.full((1, 2), 0.25), torch.zeros(1, 1), torch.zeros(1, 2), cell.weights())
    torch.testing.assert_close(new, torch.tensor([[math.tanh(0.5), 0.25]]))


@torch.no_grad()
def test_block_cell_normalises_each_block_alone():
    cell = zero(BlockCell(1, 1, 2, 1, blocks=2))
    cell.hidden_norm.weight.fill_(1.0)
    cell.gates[:, 0, 1] = 1.0  # the candidate is the hidden unit of its block
    cell.gates_bias.copy_(torch.tensor([50.0, 0, 50, 50, 0, 50]))
    new = cell(torch.zeros(1, 2), torch.zeros(1, 1), torch.tensor([[3.0, 4.0]]), cell.weights())
    norm = math.sqrt((9 + 16) / 2 + 1e-4)
    silu = lambda x: x * sigmoid(x)
    expected = [math.tanh(silu(3 / norm)), math.tanh(silu(4 / norm))]
    torch.testing.assert_close(new, torch.tensor([expected]))


@torch.no_grad()
def test_block_cell_clips_actions_or_scales_all_of_them_together():
    torch.manual_seed(0)
    cell = BlockCell(1, 2, 2, 4, blocks=1)
    project = lambda *action: cell.project_action(torch.tensor([action]))
    torch.testing.assert_close(project(3.0, 0.5), project(1.0, 0.5))
    assert not torch.equal(project(1.0, 0.5), project(1.0, 0.25))


def test_gaussian_deviation_has_no_floor_or_a_ceiling():
    raw = torch.tensor([0.0, 0.0, -1e4, 1e4])
    _, std = GaussianLatent(2).statistics(raw)
    torch.testing.assert_close(std, torch.tensor([0.1, 1e4 + 0.1]))


def test_unimix_is_left_out_of_divergence_samples_or_straight_through_gradient():
    latent = CategoricalLatent(1, 2, unimix=0.5)
    sure = (torch.tensor([[[100.0, -100.0]]]),)  # mixed: 3/4 and 1/4
    other = (torch.tensor([[[-100.0, 100.0]]]),)
    expected = 0.75 * math.log(3) - 0.25 * math.log(3)
    assert latent.kl(sure, other).item() == pytest.approx(expected, rel=1e-5)
    noise = torch.tensor([[0.0, math.log(3.1)]])  # enough only against mixed probabilities
    assert latent.rsample(sure, noise).tolist() == [[0.0, 1.0]]
    leaf = torch.zeros(1, 1, 2, requires_grad=True)
    latent.rsample((leaf,), torch.zeros(1, 2))[0, 0].backward()
    torch.testing.assert_close(leaf.grad[0, 0], torch.tensor([0.125, -0.125]))  # half of 1/4


MODELS = {
    "v1": {"style": "v1", "latent": "gaussian", "cell": "gru"},
    "v2": {"style": "v2", "cell": "layer_norm"},
    "v3": {"style": "v3", "blocks": 2},
}


def model_and_records(name, action=None, steps=6):
    torch.manual_seed(0)
    action = Bounded(-1, 1, (3,)) if action is None else action
    sizes = {"belief_size": 8, "hidden_size": 8, "state_size": 2, "classes": 3, "units": 8}
    observations = Composite(observation=Unbounded((2,)))
    model = make_rssm(observations, Composite(action=action), **MODELS[name], **sizes)
    entries = {
        "observation": torch.randn(2, steps, 2),
        "previous_action": torch.rand(2, steps, 3),
        "is_init": torch.zeros(2, steps, 1, dtype=torch.bool),
    }
    return model, TensorDict(entries, [2, steps]), model.noise((2, steps))


every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_a_reset_keeps_the_state_or_the_action_of_the_episode_before(name):
    model, records, noise = model_and_records(name)
    records["is_init"][:, 3] = True
    first = model.observe(records, noise=noise)
    other = records.clone()
    other["observation"][:, :3] += 1
    other["previous_action"][:, :4] += 1  # the one at the reset led to nothing
    second = model.observe(other, noise=noise)
    assert torch.equal(first["belief"][:, 3:], second["belief"][:, 3:])
    assert not torch.equal(first["belief"][:, :3], second["belief"][:, :3])


def test_the_masked_action_of_a_reset_becomes_class_zero():
    model, records, noise = model_and_records("v3", Categorical(3))
    records["is_init"][:, 0] = True
    seen = []
    project = model.cell.project_action
    model.cell.project_action = lambda action: seen.append(action) or project(action)
    model.observe(records, noise=noise)
    rows = seen[0].transpose(0, 1) if seen[0].shape[0] == 6 else seen[0]
    assert not rows[:, 0].any() and rows[:, 1:].all()


@every_model
def test_a_sequence_starts_from_zeros_in_place_of_the_stored_latent(name):
    model, records, noise = model_and_records(name)
    whole = model.observe(records, noise=noise)
    rest = model.observe(records[:, 3:], whole[:, 2], noise=noise[:, 3:])
    torch.testing.assert_close(rest["belief"], whole["belief"][:, 3:])


@every_model
def test_the_belief_reads_the_action_taken_at_the_observation(name):
    model, records, noise = model_and_records(name)
    first = model.observe(records, noise=noise)["belief"]
    records["previous_action"][:, 2] *= -1
    second = model.observe(records, noise=noise)["belief"]
    assert torch.equal(first[:, :2], second[:, :2]) and not torch.equal(first[:, 2], second[:, 2])


@every_model
def test_the_prior_sees_the_observation_or_feeds_its_own_sample_forward(name):
    model, records, noise = model_and_records(name)
    first = model.observe(records, noise=noise)
    torch.nn.init.normal_(model.prior.output.weight)
    second = model.observe(records, noise=noise)
    assert torch.equal(first["belief"], second["belief"])
    records["observation"][:, 3] += 1
    third = model.observe(records, noise=noise)
    statistic = model.latent.names[0]
    same = torch.equal(second["prior", statistic][:, 3], third["prior", statistic][:, 3])
    differ = torch.equal(second["posterior", statistic][:, 3], third["posterior", statistic][:, 3])
    assert same and not differ
