"""Lambda returns against the reference codes and a loop by hand."""

import pytest
import torch

from torchrl_wm.functional.returns import discount_of_length, lambda_return


@pytest.mark.golden("v1_lambda_return", "v2_lambda_return")
def test_state_reward_convention(golden):
    axis = int(golden.cfg.get("axis", 0))
    reward, value, discount = (
        golden[f"in/{name}"].requires_grad_() for name in ("reward", "value", "pcont")
    )
    tail = value.narrow(axis, 1, value.shape[axis] - 1)
    bootstrap = torch.zeros_like(value.select(axis, 0))  # what the reference takes without one
    if "in/bootstrap" in golden:
        bootstrap = golden["in/bootstrap"]
    next_value = torch.cat([tail, bootstrap.unsqueeze(axis)], axis)
    returns = lambda_return(reward, next_value, discount, golden.cfg["lam"], time_dim=axis)
    golden.close(returns, "out/ret")
    if "grad/reward" in golden:
        returns.square().sum().backward()  # the test loss behind the recorded gradients
        for name, tensor in (("reward", reward), ("value", value), ("pcont", discount)):
            golden.close(tensor.grad, f"grad/{name}")


@pytest.mark.golden("v3_lambda_return")
def test_arriving_reward_convention(golden):
    reward, boot = golden["in/rew"][:, 1:], golden["in/boot"][:, 1:]
    discount = (~golden["in/term"][:, 1:]).float() * golden.cfg["disc"]
    trace = (~golden["in/last"][:, 1:]).float() * golden.cfg["lam"]
    golden.close(lambda_return(reward, boot, discount, trace, time_dim=1), "out/ret")
    soft = 1 - golden["in/term_soft"][:, 1:]
    returns = lambda_return(reward, golden["in/val"][:, 1:], soft, golden.cfg["lam"], time_dim=1)
    golden.close(returns, "out/ret_soft")


def test_by_hand():
    returns = lambda_return(
        torch.tensor([1.0, 2.0, 3.0]),
        torch.tensor([10.0, 20.0, 30.0]),
        torch.tensor([0.5, 0.0, 0.5]),
        0.5,
        time_dim=0,
    )
    # last: 3 + .5 * 30; terminated: 2; first: 1 + .5 * (.5 * 10 + .5 * 2)
    assert returns.tolist() == [4.0, 2.0, 18.0]


def test_rewards_may_be_integers():
    reward, value = torch.tensor([1, 2, 3]), torch.tensor([0.5, 0.0, 1.0])
    expected = lambda_return(reward.float(), value, 0.9, 0.95, time_dim=0)
    torch.testing.assert_close(lambda_return(reward, value, 0.9, 0.95, time_dim=0), expected)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="next_value has shape"):
        lambda_return(torch.zeros(2, 3), torch.zeros(3), 1.0, 1.0, time_dim=1)


@pytest.mark.golden("misc*")
def test_discounts_of_episode_lengths_equal_the_recorded_ones(golden):
    found = [discount_of_length(length) for length in golden["discount_episode_length"].tolist()]
    golden.close(torch.tensor(found, dtype=torch.float64), "discount", 1e-9)


def test_an_episode_has_a_step():
    with pytest.raises(ValueError, match="episode_length=0 must be positive"):
        discount_of_length(0)
