"""Feed-forward world models: what their latents are, and that they learn real dynamics."""

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded

from torchrl_wm.algorithms import DreamerV1, DreamerV2, DreamerV3
from torchrl_wm.data import step_records
from torchrl_wm.envs import gymnasium, model_specs
from torchrl_wm.functional.transforms import symlog
from torchrl_wm.modules.dynamics import EnsembleDynamics
from torchrl_wm.objectives import LatentOvershooting, SeparateKL, WorldModelLoss
from torchrl_wm.world_models import make_autoencoder, make_identity

ACTION = Composite(action=Bounded(-1, 1, (2,)))
VECTOR = Composite(observation=Unbounded(4))


def records(spec, batch, actions=2):
    out = spec.rand(batch)
    out.update({k: torch.zeros(*batch, 1).bool() for k in ("is_init", "is_last", "terminated")})
    out["previous_action"] = torch.rand(*batch, actions)
    return out.set("reward", torch.randn(*batch, 1))


# -- learning ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pendulum():
    """Step records of random play: ``[12, 200]`` to learn from and ``[4, 200]`` held out."""
    torch.manual_seed(0)
    env = gymnasium("Pendulum-v1", num_envs=16, seed=0)
    batch = env.rollout(199, break_when_any_done=False)
    rows = step_records(batch, observation_keys=["observation"]).exclude("environment")
    return model_specs(env), *rows.reshape(16, 199).split([12, 4])


def train(model, data, updates, sequence=16):
    torch.manual_seed(1)
    loss = WorldModelLoss(model, SeparateKL(free_nats=0.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(updates):
        starts = torch.randint(data.shape[1] - sequence, (32,))
        row = torch.randint(len(data), (32, 1))
        sample = data[row, starts[:, None] + torch.arange(sequence)]
        sample = sample.update(model.initial(sample.shape))
        losses = loss(sample)
        total = sum(v for k, v in losses.items() if k.startswith("loss_"))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return model


def one_step(model, data):
    """Predicted, present and true next latents, and predicted and true rewards."""
    with torch.no_grad():
        latents = model.filter(data.clone().update(model.initial(data.shape)))["state"]
        td = TensorDict(
            state=latents[:, :-1], action=data["previous_action"][:, 1:], batch_size=(4, 198)
        )
        after = model.step(td, noise=torch.zeros_like(model.noise(td.shape)))["next"]
    latents = after["state"], latents[:, :-1], latents[:, 1:]
    return *latents, after["reward"], data["reward"][:, 1:]


def share(prediction, baseline, truth):
    """Squared error of the prediction as a share of the baseline's."""
    return ((prediction - truth).square().mean() / (baseline - truth).square().mean()).item()


@pytest.mark.parametrize(
    ("factory", "updates", "expected"),
    [
        (partial(make_identity), 150, 0.05),
        (partial(make_identity, members=2), 150, 0.1),
        (partial(make_autoencoder), 100, 0.4),
    ],
    ids=["identity", "ensemble", "autoencoder"],
)
def test_learns_the_dynamics_of_pendulum(pendulum, factory, updates, expected):
    specs, data, held_out = pendulum
    model = train(factory(*specs), data, updates)
    predicted, present, truth, reward, true_reward = one_step(model, held_out)
    assert share(predicted, present, truth) < expected  # predicting no change: 1
    assert share(reward, true_reward.mean(), true_reward) < 0.3  # predicting the mean: 1


# -- the identity -----------------------------------------------------------------------------


def test_identity_is_the_observation_and_decodes_to_it():
    spec = Composite(
        wheels=Composite(speed=Unbounded(3), gear=Categorical(4)),
        side=OneHot(2),
        image=Unbounded((3, 8, 8), dtype=torch.uint8),
    )
    model = make_identity(spec, ACTION)
    td = records(spec, (5,))
    td["wheels", "speed"] *= 50
    state = model.filter(td.update(model.initial([5])))["state"]
    speed = td["wheels", "speed"]
    torch.testing.assert_close(state[:, 6:9], symlog(speed))  # behind one-hot side and gear
    decoded = model.decode(td)["decoded"]
    torch.testing.assert_close(decoded["wheels", "speed"], speed, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoded["image"], td["image"].float() / 255)
    assert torch.equal(decoded["wheels", "gear"], td["wheels", "gear"])
    assert torch.equal(decoded["side"], td["side"])


@pytest.mark.parametrize("use_symlog", [False, True])
def test_symlog_is_no_choice_of_the_identity(use_symlog):
    with pytest.raises(TypeError, match=f"use_symlog={use_symlog} is no choice.*make_autoencoder"):
        make_identity(VECTOR, ACTION, use_symlog=use_symlog)


def test_divergence_is_the_likelihood_of_the_observation():
    model = make_identity(VECTOR, ACTION)
    td = records(VECTOR, (2, 6))
    observed = model.observe(td, model.initial([2]))
    posterior, prior = model.statistics(observed)
    likelihood = torch.distributions.Normal(*prior).log_prob(observed["state"]).sum(-1)
    # The rest of the divergence depends on the widths of posterior and prior alone.
    width, other = posterior[1], prior[1]
    entropy = torch.distributions.Normal(*posterior).entropy()
    rest = (0.5 * (width / other).square() - entropy).sum(-1)
    torch.testing.assert_close(model.kl(posterior, prior), rest - likelihood, rtol=1e-4, atol=1e-3)


def test_first_observations_cost_nothing():
    model = make_identity(VECTOR, ACTION)
    td = records(VECTOR, (2, 6))
    td["is_init"][0, 3] = True
    divergence = model.kl(*model.statistics(model.observe(td, model.initial([2]))))
    assert divergence[0, 3] == 0
    assert (divergence > 0).sum() == 11


# -- the ensemble -----------------------------------------------------------------------------


def test_last_number_of_the_noise_chooses_the_member():
    model = make_identity(VECTOR, ACTION, members=3)
    td = TensorDict(state=torch.randn(4), action=torch.rand(2)).expand(6)
    noise = torch.zeros(6, 5)
    noise[:, -1] = torch.tensor([0.0, 0.3, 0.34, 0.6, 0.67, 0.999])
    with torch.no_grad():
        torch.nn.init.normal_(model.dynamics.weights[-1])
        state = model.step(td.clone(), noise=noise)["next", "state"]
    for member in range(3):
        assert torch.equal(state[2 * member], state[2 * member + 1])
        other = (2 * member + 2) % 6
        assert not torch.isclose(state[2 * member], state[other]).any()


def test_each_row_trains_one_member():
    model = make_identity(VECTOR, ACTION, members=3)
    td = records(VECTOR, (2, 4))
    noise = model.noise([2, 4])
    noise[..., -1] = 0.5  # the second of three
    observed = model.observe(td, model.initial([2]), noise=noise)
    model.kl(*model.statistics(observed)).sum().backward()
    gradients = model.dynamics.weights[-1].grad.abs().sum((1, 2))
    assert gradients[0] == gradients[2] == 0 < gradients[1]


@pytest.mark.parametrize("style", ["planet", "v3"])
@pytest.mark.parametrize("members", [1, 3])
def test_trajectories_side_by_side_equal_those_of_single_steps(style, members):
    model = make_identity(VECTOR, ACTION, members=members, style=style)
    torch.nn.init.normal_(model.dynamics.weights[-1], std=0.1)
    for rows in (12, 10):  # a multiple of the members, or not
        latents, actions = (torch.randn(rows, 4),), torch.rand(5, rows, 2)
        noise = model.trajectory_noise(5, rows)
        (states,) = model.unroll(latents, actions, noise)
        for t in range(5):
            latents = model.predict_tensors(latents, actions[t], noise[t])
            torch.testing.assert_close(states[t], latents[0])


def test_a_prediction_outside_the_bounds_is_that_at_the_bounds():
    model = make_identity(VECTOR, ACTION)
    torch.nn.init.normal_(model.dynamics.weights[-1])
    noise = torch.zeros(1, 4)
    latents = (torch.ones(1, 4),)
    at, beyond, inside = (
        model.predict_tensors(latents, torch.tensor([[a, 0.0]]), noise)[0] for a in (1.0, 7.0, 0.5)
    )
    assert torch.equal(at, beyond)
    assert not torch.equal(at, inside)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 0}, "members=0"),
        ({"min_std": 2.0}, "min_std=2.0"),
        ({"min_std": 0.0}, "min_std=0.0"),
    ],
)
def test_wrong_sizes_of_an_ensemble(options, message):
    with pytest.raises(ValueError, match=message):
        EnsembleDynamics(2, 1, **options)


@pytest.mark.parametrize("factory", [make_identity, make_autoencoder])
def test_unknown_style(factory):
    with pytest.raises(ValueError, match="style 'v4'"):
        factory(VECTOR, ACTION, style="v4")


def test_without_a_decoder_nothing_is_decoded():
    model = make_autoencoder(VECTOR, ACTION, use_reconstruction=False)
    with pytest.raises(RuntimeError, match="no decoder"):
        model.decode(model.initial([2]))


def test_compiled_steps_predict_the_same():
    model = make_identity(VECTOR, ACTION, members=2)
    td = model.initial([3]).set("action", torch.rand(3, 2))
    noise = model.noise([3])
    expected = model.step(td.clone(), noise=noise)["next", "state"]
    called = []

    def backend(graph, inputs):
        called.append(graph)
        return graph.forward

    compiled = model.compile_steps(backend=backend).step(td.clone(), noise=noise)
    torch.testing.assert_close(compiled["next", "state"], expected)
    assert called


# -- the algorithms ---------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [make_identity, make_autoencoder])
@pytest.mark.parametrize("algorithm", [DreamerV1, DreamerV2, DreamerV3])
def test_every_dreamer_trains_them(factory, algorithm):
    pixels = Unbounded((3, 64, 64), dtype=torch.uint8)
    spec = VECTOR if factory is make_identity else Composite(pixels=pixels, **VECTOR)
    small = {"depth": 2, "units": 16} if factory is make_autoencoder else {"units": 16}
    options = {} if algorithm is DreamerV3 else {"units": 16}
    agent = algorithm(spec, ACTION, world_model=partial(factory, **small), **options)
    sample = records(spec, (2, 5)).update(agent.world_model.initial([2, 5]))
    before = [p.clone() for p in agent.world_model.parameters()]
    agent.update(sample)
    metrics, latents = agent.update(sample)  # the first learning rate of a warm-up is 0
    assert all(value.isfinite() for value in metrics.values())
    assert latents["state"].shape == (2, 4, agent.world_model.feature_size)
    pairs = zip(before, agent.world_model.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)


# -- overshooting -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_identity, make_autoencoder])
def test_overshooting_neither_starts_from_zeros_nor_trains_the_code(make):
    model = make(VECTOR, ACTION, units=8)
    rows = records(VECTOR, (3, 9))
    carry = model.initial([3])
    overshoot = LatentOvershooting(3, free_nats=0.0)

    def loss():
        torch.manual_seed(0)
        return overshoot(model, model.observe(rows, carry), rows, carry)

    rows["is_init"][:, [0, 4]] = True
    found = loss()
    carry["state"].fill_(1e3)  # what stands before the first record of an episode
    torch.testing.assert_close(loss(), found)
    found.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.encoder.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.dynamics.parameters())
