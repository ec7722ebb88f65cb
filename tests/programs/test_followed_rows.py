"""Heads and their losses in programs: the numbers and the gradients of the modules."""

from __future__ import annotations

import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Binary, Bounded, Categorical, Composite, OneHot
from torchrl.envs.utils import exploration_type, set_exploration_type

from torchrl_wm.modules import HyperbolicTwoHotHead, NormalHead, TwoHotHead, actor_head
from torchrl_wm.modules.distributions import TwoHot, UnitNormal
from torchrl_wm.objectives import ActorLoss, CriticLoss, Reinforce
from torchrl_wm.programs import followed_rows
from torchrl_wm.programs.followed_rows import FollowedLoss, FollowedRows

ROWS, SIZE = 523, 19  # neither whole tiles nor whole blocks
NETWORK = {"layers": 2, "units": 21}
CRITICS = {
    "two-hot": lambda: TwoHotHead(SIZE, bins=41, out_scale=1.0, **NETWORK),
    "of an even number": lambda: TwoHotHead(SIZE, bins=40, out_scale=1.0, **NETWORK),
    "layer norm": lambda: TwoHotHead(SIZE, out_scale=1.0, norm="layer", **NETWORK),
    "tanh": lambda: TwoHotHead(SIZE, bins=9, out_scale=1.0, activation="tanh", **NETWORK),
    "normal": lambda: NormalHead(SIZE, activation="elu", norm=None, **NETWORK),
    "without layers": lambda: NormalHead(SIZE, layers=0, units=1),
}
ACTIONS = {
    "continuous": Bounded(-1, 1, (3,)),
    "one-hot": OneHot(5),
    "several": Composite(arm=Bounded(-1, 1, (2,)), gear=Categorical(3)),
}


def trained(head: nn.Module) -> nn.Module:
    """Scales and biases that are not those of a new network."""
    torch.manual_seed(0)
    for parameter in head.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return head


def rows(head, actions: int = 0, spread: float = 3.0) -> TensorDict:
    generator = torch.Generator().manual_seed(1)
    draw = lambda size: torch.randn(ROWS, size, generator=generator)
    found = {"features": draw(SIZE), "lambda_target": spread * draw(1), "baseline": draw(1)}
    found["weight"] = torch.rand(ROWS, 1, generator=generator)
    if actions:
        found["action"] = head(found["features"]).sample()
    return TensorDict(found, [ROWS])


def losses(loss, sample, name: str) -> tuple[dict, dict]:
    """What the loss writes, and the gradients."""
    loss.zero_grad()
    out = loss(sample)
    (3 * out[name]).backward()
    return dict(out.items()), {n: p.grad for n, p in loss.named_parameters() if p.grad is not None}


def in_torch(*arguments) -> tuple[dict, dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(followed_rows, "_FEWEST", 2**60)
        return losses(*arguments)


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys() and ours
        for key, value in theirs.items():
            # Relative to the largest: a gradient is a sum over rows, whose terms may cancel.
            bound = 5e-5 * max(value.abs().max().item(), 1e-2)
            torch.testing.assert_close(ours[key], value, rtol=0, atol=bound)


def has_program(follow) -> bool:
    return follow._followed.program is not None


@pytest.mark.parametrize("share", [0.0, 0.7])
@pytest.mark.parametrize("name", CRITICS)
def test_a_critic_learns_the_same(name, share):
    head = trained(CRITICS[name]())
    loss = CriticLoss(head, slow_regularization=share)
    with torch.no_grad():
        for value in loss.target_critic_params.values(True, True):
            value.mul_(0.9)
    sample = rows(head)
    assert_same(losses(loss, sample, "loss_critic"), in_torch(loss, sample, "loss_critic"))
    assert has_program(loss._fit_both if share else loss._fit)


def test_threads_share_the_rows(monkeypatch):
    head = trained(CRITICS["two-hot"]())
    loss, sample = CriticLoss(head), rows(head)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert_same(losses(loss, sample, "loss_critic"), in_torch(loss, sample, "loss_critic"))
    assert has_program(loss._fit)


def test_targets_beyond_the_bins_and_on_them():
    head = trained(CRITICS["two-hot"]())
    loss, sample = CriticLoss(head), rows(head, spread=1e8)
    sample["lambda_target"][:41, 0] = head.output.bins
    assert_same(losses(loss, sample, "loss_critic"), in_torch(loss, sample, "loss_critic"))
    assert has_program(loss._fit)


@pytest.mark.parametrize("name", ACTIONS)
def test_an_actor_learns_the_same(name):
    actor = trained(actor_head(ACTIONS[name], SIZE, unimix=0.01, **NETWORK))
    loss, sample = ActorLoss(actor, Reinforce(), entropy_scale=0.1), rows(actor, actions=1)
    assert_same(losses(loss, sample, "loss_actor"), in_torch(loss, sample, "loss_actor"))
    assert has_program(loss._maximised)


def test_an_actor_whose_entropy_is_estimated_learns_in_torch():
    actor = trained(actor_head(Bounded(-1, 1, (2,)), SIZE, continuous="tanh_normal", **NETWORK))
    loss, sample = ActorLoss(actor, Reinforce(), entropy_scale=0.1), rows(actor, actions=1)
    assert losses(loss, sample, "loss_actor")[0]["entropy"].isfinite()
    assert not has_program(loss._maximised)


def test_an_actor_of_truth_values_learns_in_torch_if_there_is_no_program():
    actor = trained(actor_head(Binary(4), SIZE, **NETWORK))
    loss, sample = ActorLoss(actor, Reinforce(), entropy_scale=0.1), rows(actor, actions=1)
    assert_same(losses(loss, sample, "loss_actor"), in_torch(loss, sample, "loss_actor"))


def test_scales_may_change_while_training():
    actor, critic = trained(actor_head(OneHot(4), SIZE, **NETWORK)), trained(CRITICS["two-hot"]())
    actors = ActorLoss(actor, Reinforce(), entropy_scale=0.1)
    critics = CriticLoss(critic, slow_regularization=1.0)
    sample = rows(actor, actions=1)
    for scale in (0.1, 0.7):
        actors.entropy_scale = critics.slow_regularization = scale
        assert_same(*(f(actors, sample, "loss_actor") for f in (losses, in_torch)))
        assert_same(*(f(critics, sample, "loss_critic") for f in (losses, in_torch)))
    assert has_program(actors._maximised) and has_program(critics._fit_both)


def test_attributes_of_parts_may_change_while_training():
    actor = trained(actor_head(OneHot(4), SIZE, unimix=0.01, **NETWORK))
    loss, sample = ActorLoss(actor, Reinforce(), entropy_scale=0.1), rows(actor, actions=1)
    same = lambda: assert_same(*(f(loss, sample, "loss_actor") for f in (losses, in_torch)))
    same()
    first = loss._maximised._followed.program
    for unimix in (0.1, 0.2, 0.3):  # with every call: nothing is recorded
        actor.output.unimix = unimix
        same()
    assert loss._maximised._followed.program is first
    same()
    second = loss._maximised._followed.program
    assert second is not first
    actor.mlp.activation = torch.tanh
    same()
    same()
    assert loss._maximised._followed.program not in (first, second, None)


class Scaled(nn.Module):
    scale = 1.0

    def __init__(self, mlp):
        super().__init__()
        self.mlp, self.factors, self.shift = mlp, [1.0], torch.zeros(1)

    def forward(self, x):
        return self.mlp(x) * self.scale * self.factors[0] + self.shift


def test_attributes_of_any_kind_may_change():
    head = trained(CRITICS["two-hot"]())
    head.mlp = Scaled(head.mlp)
    loss, sample = CriticLoss(head, use_ema_critic=False), rows(head)
    changes = [("scale", 2.0), ("factors", [0.5]), ("shift", torch.ones(1)), ("scale", 3.0)]
    for name, value in [("factors", [1.0]), *changes]:
        setattr(head.mlp, name, value)
        for _ in range(2):
            assert_same(*(f(loss, sample, "loss_critic") for f in (losses, in_torch)))
        assert has_program(loss._fit)


@pytest.mark.parametrize("count", [100, ROWS])
def test_the_critic_is_asked_once(count):
    head, shapes = trained(CRITICS["two-hot"]()), []
    loss, sample = CriticLoss(head, use_ema_critic=False), rows(head)[:count]
    head.mlp.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    loss(sample)
    assert shapes == [(count, SIZE)]
    assert loss(sample[0])["loss_critic"].shape == ()


def test_training_is_followed_and_replaced_parameters_are_noticed():
    head = trained(CRITICS["two-hot"]())
    loss, sample = CriticLoss(head, use_ema_critic=False), rows(head)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    values = []
    for _ in range(3):
        found = losses(loss, sample, "loss_critic")
        assert_same(found, in_torch(loss, sample, "loss_critic"))
        values.append(found[0]["loss_critic"].item())
        optimizer.step()
    assert values[2] < values[1] < values[0] and has_program(loss._fit)
    other = CriticLoss(trained(CRITICS["two-hot"]()), use_ema_critic=False)
    loss.load_state_dict(other.state_dict(), assign=True)
    assert_same(losses(loss, sample, "loss_critic"), in_torch(loss, sample, "loss_critic"))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_learns_on_its_own(how):
    head = trained(CRITICS["two-hot"]())
    loss, sample = CriticLoss(head, use_ema_critic=False), rows(head)
    first = losses(loss, sample, "loss_critic")
    other = how(loss)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert_same(losses(other, sample, "loss_critic"), in_torch(other, sample, "loss_critic"))
    assert_same(losses(loss, sample, "loss_critic"), first)


@pytest.mark.parametrize("hook", ["forward", "forward_pre", "full_backward"])
def test_hooks_are_called(hook):
    head, calls = trained(CRITICS["two-hot"]()), []
    loss, sample = CriticLoss(head, use_ema_critic=False), rows(head)
    losses(loss, sample, "loss_critic")
    handle = getattr(head.mlp, f"register_{hook}_hook")(lambda *_: calls.append(1))
    losses(loss, sample, "loss_critic")
    assert calls
    handle.remove()
    calls.clear()
    losses(loss, sample, "loss_critic")
    assert not calls and has_program(loss._fit)


def test_a_frozen_layer_gets_no_gradient():
    head = trained(CRITICS["two-hot"]())
    loss, sample = CriticLoss(head, use_ema_critic=False), rows(head)
    parameters = dict(loss.named_parameters())
    frozen = next(name for name in parameters if "linears" in name)
    for _ in range(2):
        parameters[frozen].requires_grad_(False)
        found = losses(loss, sample, "loss_critic")
        assert frozen not in found[1] and len(found[1]) == len(parameters) - 1
        assert_same(found, in_torch(loss, sample, "loss_critic"))
        parameters[frozen].requires_grad_(True)
        assert_same(losses(loss, sample, "loss_critic"), in_torch(loss, sample, "loss_critic"))
        assert has_program(loss._fit)


def test_a_hook_of_a_gradient_is_called_once_a_backward_pass():
    head, calls = trained(CRITICS["two-hot"]()), []
    loss, sample = CriticLoss(head, use_ema_critic=False), rows(head)
    parameter = next(loss.parameters())
    handle = parameter.register_hook(lambda gradient: calls.append(1) or 3 * gradient)
    tripled = losses(loss, sample, "loss_critic")[1]
    assert len(calls) == 1
    handle.remove()
    found = losses(loss, sample, "loss_critic")
    assert_same(found, in_torch(loss, sample, "loss_critic"))
    name = next(name for name, value in loss.named_parameters() if value is parameter)
    torch.testing.assert_close(tripled[name], 3 * found[1][name], rtol=1e-3, atol=1e-5)
    assert has_program(loss._fit)


def test_hooks_of_all_modules_are_called():
    head, calls = trained(CRITICS["two-hot"]()), []
    loss, sample = CriticLoss(head, use_ema_critic=False), rows(head)
    handle = nn.modules.module.register_module_forward_hook(lambda part, *_: calls.append(part))
    try:
        losses(loss, sample, "loss_critic")
    finally:
        handle.remove()
    assert sum(part is head.mlp for part in calls) >= 1


class Centred(nn.Module):
    """Rows that depend on each other."""

    def __init__(self, how, mlp):
        super().__init__()
        self.mlp, self.how = mlp, how

    def forward(self, x):
        return self.mlp(self.how(x))


ON_OTHERS = {
    "the sum": lambda x: x - x.sum(0, keepdim=True) / 100,
    "a product of all": lambda x: x @ (x.t() @ x) / 1000,
    "the sum as a bias": lambda x: torch.addmm(x.sum(0), x, torch.ones(SIZE, SIZE)),
    "their number": lambda x: x / len(x),
}


@pytest.mark.parametrize("what", ON_OTHERS)
def test_rows_that_depend_on_others_are_left_to_torch(what, caplog):
    caplog.set_level(logging.INFO)
    head = trained(CRITICS["normal"]())
    head.mlp = Centred(ON_OTHERS[what], head.mlp)
    loss, sample = CriticLoss(head, use_ema_critic=False), rows(head)
    assert_same(losses(loss, sample, "loss_critic"), in_torch(loss, sample, "loss_critic"))
    assert not has_program(loss._fit)
    reason = "gives other numbers" if what == "their number" else "depend on a sum over them"
    assert reason in caplog.text


class Doubled(Reinforce):
    def forward(self, policy, action, target, advantage):
        return 2 * super().forward(policy, action, target, advantage) + target.squeeze(-1)


class OtherTerms(CriticLoss):
    def terms(self, features, target, units=None):
        return 2 * super().terms(features, target, units)


class OtherBins(TwoHotHead):
    def forward(self, features):
        return TwoHot(self.raw(features), 3 * self.output.bins)


class OtherLikelihood(TwoHot):
    def log_prob(self, value):
        return 2 * super().log_prob(value)


class OtherPrediction(TwoHotHead):
    def forward(self, features):
        return OtherLikelihood(self.raw(features), self.output.bins)


def test_what_subclasses_change_counts():
    actor = trained(actor_head(OneHot(4), SIZE, **NETWORK))
    loss, sample = ActorLoss(actor, Reinforce()), rows(actor, actions=1)
    losses(loss, sample, "loss_actor")
    loss.gradient = Doubled()
    assert_same(losses(loss, sample, "loss_actor"), in_torch(loss, sample, "loss_actor"))
    options = {"bins": 41, "out_scale": 1.0, **NETWORK}
    head = trained(TwoHotHead(SIZE, **options))
    usual, twice = CriticLoss(copy.deepcopy(head)), OtherTerms(head)
    once, double = (x(sample)["loss_critic"] for x in (usual, twice))
    torch.testing.assert_close(double, 2 * once)
    for kind in (OtherBins, OtherPrediction):
        loss = CriticLoss(trained(kind(SIZE, **options)))
        assert_same(*(f(loss, sample, "loss_critic") for f in (losses, in_torch)))


@pytest.mark.parametrize("scale", [0.5, torch.tensor([0.5]), nn.Parameter(torch.tensor(0.5))])
def test_scales_and_targets_of_any_type(scale):
    head = trained(CRITICS["two-hot"]())
    loss, sample = CriticLoss(head, slow_regularization=1.0), rows(head)
    loss.slow_regularization = scale
    sample["lambda_target"] = sample["lambda_target"].long()
    found = loss(sample)["loss_critic"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(followed_rows, "_FEWEST", 2**60)
        torch.testing.assert_close(found, loss(sample)["loss_critic"])
    assert found.requires_grad


def test_a_loss_is_a_tensor_as_any_other():
    head = trained(CRITICS["two-hot"]())
    loss, sample = CriticLoss(head), rows(head)
    total = loss(sample)["loss_critic"]
    total += 1
    total.backward()
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


def test_two_python_threads_learn_at_once():
    head = trained(CRITICS["two-hot"]())
    loss = CriticLoss(head, use_ema_critic=False)
    samples = [rows(head), rows(head, spread=50.0)]
    parameters = list(loss.parameters())
    gradients = lambda x: torch.autograd.grad(loss(x)["loss_critic"], parameters)
    expected = [gradients(x) for x in samples]

    def learn(which: int) -> bool:
        found = (gradients(samples[which]) for _ in range(30))
        return all(
            torch.equal(a, b) for x in found for a, b in zip(x, expected[which], strict=True)
        )

    # TorchRL's losses set the exploration type of all threads, and restore it in any order.
    with set_exploration_type(exploration_type()), ThreadPoolExecutor(2) as pool:
        assert all(pool.map(learn, [0, 1]))


def test_masked_rows_and_values_without_gradients():
    head = trained(CRITICS["two-hot"]())
    loss, sample = CriticLoss(head), rows(head)
    with torch.no_grad():
        assert not loss(sample)["loss_critic"].requires_grad
    sample["mask"] = torch.arange(ROWS)[:, None] % 3 > 0
    assert_same(losses(loss, sample, "loss_critic"), in_torch(loss, sample, "loss_critic"))


def test_the_values_of_many_rows_are_those_of_the_critic():
    head = trained(CRITICS["two-hot"]())
    loss = CriticLoss(head)
    trajectory = TensorDict(features=torch.randn(7, 101, SIZE), batch_size=[7, 101])
    assert loss.evaluate(trajectory) is None
    expected = head(trajectory["features"]).mean
    # The values are differences of shares of the outermost bins, 5e8.
    torch.testing.assert_close(trajectory["state_value"], expected, rtol=1e-4, atol=30.0)
    assert has_program(loss._values)


def test_large_networks_learn_in_torch(monkeypatch):
    monkeypatch.setattr(followed_rows, "_MOST", 1000)
    head = trained(CRITICS["two-hot"]())
    loss, sample = CriticLoss(head), rows(head)
    monkeypatch.setattr(followed_rows, "_Minimised", None)  # is not asked for
    assert losses(loss, sample, "loss_critic")[1]


def test_what_is_minimised_has_one_derivative():
    layer = nn.Linear(4, 1)
    follow = FollowedLoss(lambda x, y: ((layer(x) - y).square(), y), layer)
    loss, _ = follow(torch.randn(ROWS, 4), torch.ones(ROWS, 1), torch.ones(ROWS, 1))
    with pytest.raises(RuntimeError, match="no derivative.*fewer than 512 rows"):
        torch.autograd.grad(loss, [layer.weight], create_graph=True)


def test_columns_in_other_orders_and_threads(monkeypatch):
    layer = nn.Linear(SIZE, 37)
    follow, x = FollowedRows(lambda rows: layer(rows), layer), torch.randn(3, 700, SIZE)
    expected = layer(x).detach()
    torch.testing.assert_close(follow(x), expected)
    torch.testing.assert_close(follow(x.transpose(0, 1)), expected.transpose(0, 1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.testing.assert_close(follow(x), expected)


@pytest.mark.parametrize(
    "head", [CRITICS["two-hot"], lambda: HyperbolicTwoHotHead(SIZE, support=20, **NETWORK)]
)
def test_positions_give_the_same_likelihood(head):
    head = trained(head())
    prediction, value = head(torch.randn(300, SIZE)), 100 * torch.randn(300, 1)
    found = prediction.log_prob_at(prediction.position(value))
    torch.testing.assert_close(found, prediction.log_prob(value), rtol=1e-5, atol=1e-5)


def test_positions_know_the_bins_around_a_value():
    prediction = TwoHot(torch.zeros(3, 3), torch.tensor([-1.0, 0.0, 1.0]))
    values = torch.tensor([[0.25], [-9.0], [9.0]])
    assert prediction.position(values).tolist() == [[1.0, 0.25], [0.0, 0.0], [1.0, 1.0]]
    normal = UnitNormal(torch.zeros(3, 1))
    assert normal.position(values) is values


@pytest.mark.parametrize("part", [nn.BatchNorm1d(SIZE), nn.Dropout()])
def test_what_changes_while_it_trains_is_left_to_torch(part):
    head = trained(CRITICS["two-hot"]())
    head.mlp = nn.Sequential(part, head.mlp)
    loss, sample = CriticLoss(head, use_ema_critic=False), rows(head)
    before = copy.deepcopy(part)
    torch.manual_seed(3)
    found = losses(loss, sample, "loss_critic")
    counted = [int(x) for x in part.buffers() if not x.is_floating_point()]
    assert counted in ([], [1]) and not has_program(loss._fit)
    part.load_state_dict(before.state_dict())
    torch.manual_seed(3)
    assert_same(found, in_torch(loss, sample, "loss_critic"))
