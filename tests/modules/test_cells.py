"""Recurrent cells against the reference codes, values and gradients."""

import pytest
import torch

from torchrl_wm.modules.cells import GRU, BlockCell, LayerNormGRU, ResetBeforeGRU


@pytest.mark.golden("planet_gru")
def test_reset_before_gru(golden):
    x, hidden = golden["in/x"].requires_grad_(), golden["in/h"].requires_grad_()
    gru = ResetBeforeGRU(x.shape[-1], golden.cfg["size"])
    weights = {
        "gates/kernel": gru.gates.weight,
        "gates/bias": gru.gates.bias,
        "candidate/kernel": gru.candidate.weight,
        "candidate/bias": gru.candidate.bias,
    }
    check_gru(golden, gru, weights, x, hidden)


@pytest.mark.golden("v2_gru")
def test_layer_norm_gru(golden):
    x, hidden = golden["in/x"].requires_grad_(), golden["in/h"].requires_grad_()
    gru = LayerNormGRU(x.shape[-1], golden.cfg["size"])
    weights = {
        "dense/kernel": gru.linear.weight,
        "dense/bias": gru.linear.bias,
        "norm/gamma": gru.norm.weight,
        "norm/beta": gru.norm.bias,
    }
    check_gru(golden, gru, weights, x, hidden)


def check_gru(golden, gru, weights, x, hidden):
    golden.load(weights)
    out = gru(x, hidden)
    golden.close(out, "out/h")
    (out * golden["in/probe"]).sum().backward()
    golden.gradients(weights)
    golden.close(x.grad, "grad/x")
    golden.close(hidden.grad, "grad/h")


@pytest.mark.golden("v3_core")
def test_block_cell(golden):
    cfg = golden.cfg
    deter, stoch, action = (golden[f"in/{n}"] for n in ("deter", "stoch", "action"))
    inputs = [deter.requires_grad_(), stoch.requires_grad_(), action.requires_grad_()]
    cell = BlockCell(
        cfg["stoch"] * cfg["classes"],
        cfg["action_dim"],
        cfg["deter"],
        cfg["hidden"],
        blocks=cfg["blocks"],
        layers=int(cfg.get("dynlayers", 1)),
    )
    weights = golden_block_cell(cell)
    golden.load(weights)
    projected = cell.project_action(action)
    out = cell(deter, stoch.flatten(-2), projected, cell.weights())
    golden.close(out, "out/deter")
    (out * golden["in/probe"]).sum().backward()
    golden.gradients(weights)
    for name, tensor in zip(("deter", "stoch", "action"), inputs, strict=True):
        golden.close(tensor.grad, f"grad/{name}")


def golden_block_cell(cell):
    weights = {
        "dynhid0/kernel": cell.hidden,
        "dynhid0/bias": cell.hidden_bias,
        "dynhid0norm/scale": cell.hidden_norm.weight,
        "dyngru/kernel": cell.gates,
        "dyngru/bias": cell.gates_bias,
    }
    for i, (linear, norm) in enumerate(zip(cell.extra, cell.extra_norms, strict=True), 1):
        weights[f"dynhid{i}/kernel"] = linear.weight
        weights[f"dynhid{i}/bias"] = linear.bias
        weights[f"dynhid{i}norm/scale"] = norm.weight
    for i, (linear, norm) in enumerate(zip(cell.inputs, cell.input_norms, strict=True)):
        weights[f"dynin{i}/kernel"] = linear.weight
        weights[f"dynin{i}/bias"] = linear.bias
        weights[f"dynin{i}norm/scale"] = norm.weight
    return weights


def test_any_leading_dimensions():
    torch.manual_seed(0)
    for gru in (GRU(3, 4), ResetBeforeGRU(3, 4), LayerNormGRU(3, 4)):
        x, hidden = torch.randn(2, 5, 3), torch.randn(2, 5, 4)
        out = gru(x, hidden)
        torch.testing.assert_close(out[1, 2], gru(x[1, 2], hidden[1, 2]))


def test_unknown_gru_lists_the_valid_ones():
    from torchrl_wm.modules.cells import DenseCell

    with pytest.raises(ValueError, match="layer_norm"):
        DenseCell(1, 1, 1, 1, gru="lstm")


def test_blocks_must_divide_the_belief():
    with pytest.raises(ValueError, match="blocks=3"):
        BlockCell(4, 2, 16, 4, blocks=3)


@pytest.mark.parametrize("gru", [GRU, ResetBeforeGRU, LayerNormGRU])
def test_cells_step_under_autocast(gru):
    torch.manual_seed(0)
    cell, x, hidden = gru(3, 4), torch.randn(2, 3), torch.randn(2, 4)
    exact = cell(x, hidden)
    with torch.autocast("cpu", torch.bfloat16):
        out = cell(x, hidden)
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)  # bfloat16 has 8 bits
