"""Names that the reference codes give to the weights of the package's networks.

Each function returns ``{name or names joined on the output: parameter}`` as ``GoldenCase.load`` and
``GoldenCase.gradients`` read it. ``below`` stands in front of every name.
"""

from __future__ import annotations

import torch
from torch import nn


def linear(layer, name):
    return {f"{name}/kernel": layer.weight, f"{name}/bias": layer.bias}


def joined(layer, names):
    """One layer here that is several in the reference, in the order of its outputs."""
    kinds = {"kernel": layer.weight, "bias": layer.bias}
    return {tuple(f"{name}/{kind}" for name in names): value for kind, value in kinds.items()}


def convolution(golden, conv, norm, name):
    return linear(conv, name) | golden.norm(norm, f"{name}norm")


def linears(pairs, below=""):
    weights = {}
    for name, layer in pairs.items():
        weights |= linear(layer, below + name)
    return weights


# -- Recurrent state-space models ---------------------------------------------------------------


def planet_rssm(cell, prior, posterior):
    pairs = {"gates": cell.gru.gates, "candidate": cell.gru.candidate}
    weights = linears(pairs, "transition/gru/")
    for i, layer in enumerate(cell.linears):
        weights |= linear(layer, f"transition/in{i}")
    for side, head in (("transition", prior), ("posterior", posterior)):
        for i, layer in enumerate(head.mlp.linears):
            weights |= linear(layer, f"{side}/out{i}")
        weights |= joined(head.output, (f"{side}/mean", f"{side}/stddev"))
    return weights


def planet_head(head, name):
    layers = [*head.mlp.linears, head.out]
    names = [f"{name}/dense" + (f"_{i}" if i else "") for i in range(len(layers))]
    return linears(dict(zip(names, layers, strict=True)))


def v1_rssm(cell, prior, posterior, below=""):
    """Without the cell, whose gates have another order: see ``load_keras_gru``."""
    pairs = {
        "img1": cell.linears[0],
        "img2": prior.mlp.linears[0],
        "img3": prior.output,
        "obs1": posterior.mlp.linears[0],
        "obs2": posterior.output,
    }
    return linears(pairs, below)


def v2_rssm(golden, cell, prior, posterior, below=""):
    pairs = {
        "img_in": cell.linears[0],
        "img_out_0": prior.mlp.linears[0],
        "img_dist_0": prior.output,
        "obs_out": posterior.mlp.linears[0],
        "obs_dist": posterior.output,
        "gru/dense": cell.gru.linear,
    }
    norms = {
        "gru/norm": cell.gru.norm,
        "img_in_norm": cell.norms[0],
        "img_out_norm_0": prior.mlp.norms[0],
        "obs_out_norm": posterior.mlp.norms[0],
    }
    weights = linears(pairs, below)
    for name, norm in norms.items():
        weights |= golden.norm(norm, below + name)
    return weights


def v3_rssm(golden, cell, prior, posterior, below=""):
    weights = {
        f"{below}dynhid0/kernel": cell.hidden,
        f"{below}dynhid0/bias": cell.hidden_bias,
        f"{below}dyngru/kernel": cell.gates,
        f"{below}dyngru/bias": cell.gates_bias,
    }
    norms = {"dynhid0norm": cell.hidden_norm}
    for i, (layer, norm) in enumerate(zip(cell.extra, cell.extra_norms, strict=True), 1):
        weights |= linear(layer, f"{below}dynhid{i}")
        norms[f"dynhid{i}norm"] = norm
    for i, (layer, norm) in enumerate(zip(cell.inputs, cell.input_norms, strict=True)):
        weights |= linear(layer, f"{below}dynin{i}")
        norms[f"dynin{i}norm"] = norm
    for name, norm in norms.items():
        weights |= golden.norm(norm, below + name)
    for name, head in (("prior", prior), ("obs", posterior)):
        weights |= golden.dense(head.mlp, f"{below}{name}{{}}", f"{below}{name}{{}}norm")
        weights |= linear(head.output, f"{below}{name}logit")
    return weights


def _torch_gates(tensor):
    """Keras orders the gates update, reset, candidate; torch reset, update, candidate."""
    update, reset, candidate = tensor.chunk(3, -1)
    return torch.cat([reset, update, candidate], -1)


def _keras_gru(golden, name, prefix):
    bias = _torch_gates(golden[f"{prefix}/{name}/bias"])
    return {
        "weight_ih": _torch_gates(golden[f"{prefix}/{name}/kernel"]).T,
        "weight_hh": _torch_gates(golden[f"{prefix}/{name}/recurrent_kernel"]).T,
        "bias_ih": bias[0],
        "bias_hh": bias[1],
    }


def load_keras_gru(golden, cell: nn.GRUCell, name):
    """Fills a torch cell; returns the names, so that ``golden.load`` knows them to be used."""
    with torch.no_grad():
        for key, value in _keras_gru(golden, name, "param").items():
            getattr(cell, key).copy_(value)
    names = [f"{name}/{part}" for part in ("kernel", "recurrent_kernel", "bias")]
    return {name: torch.empty_like(golden.weight(name)) for name in names}


def check_keras_gru(golden, gradients, name, prefix="grad/param"):
    """Compares ``{torch name: gradient}`` of a cell."""
    for key, expected in _keras_gru(golden, name, prefix).items():
        allowed = 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(gradients[key], expected, rtol=0, atol=allowed)


# -- Encoders and decoders ----------------------------------------------------------------------


def first_encoder(image, below="enc/", style="v1"):
    """Dreamer v1 and v2."""
    names = {"v1": "h{}", "v2": "conv{}"}[style]
    start = {"v1": 1, "v2": 0}[style]
    pairs = {names.format(i): conv for i, conv in enumerate(image.convs, start)}
    return linears(pairs, below)


def first_decoder(image, below="dec/", style="v1"):
    """Dreamer v1 and v2."""
    first, names, start = {"v1": ("h1", "h{}", 2), "v2": ("convin", "conv{}", 0)}[style]
    pairs = {names.format(i): conv for i, conv in enumerate(image.convs, start)}
    return linears({first: image.inputs} | pairs, below)


def v3_encoder(golden, encoder):
    weights = {}
    if encoder.vector is not None:
        weights |= golden.dense(encoder.vector.mlp, "enc/mlp{}", "enc/mlp{}norm")
    if encoder.image is not None:
        pairs = zip(encoder.image.convs, encoder.image.norms, strict=True)
        for i, (conv, norm) in enumerate(pairs):
            weights |= convolution(golden, conv, norm, f"enc/cnn{i}")
    return weights


def v3_decoder(golden, decoder):
    weights = {}
    if (vector := decoder.vector) is not None:
        weights |= golden.dense(vector.mlp, "dec/mlp/linear{}", "dec/mlp/norm{}")
        for key, out in zip(vector.keys, vector.outs, strict=True):
            weights |= linear(out, f"dec/vec/{key}/pred")
    if (image := decoder.image) is not None:
        weights |= linear(image.from_belief, "dec/sp0")
        weights |= golden.dense(image.from_state, "dec/sp1", "dec/sp1norm")
        weights |= linear(image.from_hidden, "dec/sp2")
        weights |= golden.norm(image.norm, "dec/spnorm")
        last = len(image.convs) - 1
        for i, (conv, norm) in enumerate(zip(image.convs, image.norms, strict=False)):
            weights |= convolution(golden, conv, norm, f"dec/conv{last - 1 - i}")
        weights |= linear(image.convs[-1], "dec/imgout")
    return weights


# -- Heads --------------------------------------------------------------------------------------


def output(layer, names):
    """The last layer of a head, or its layers side by side."""
    layers = [layer] if len(names) == 1 else layer.parts
    return linears(dict(zip(names, layers, strict=True)))


def v1_head(golden, head, below=""):
    return golden.dense(head.mlp, below + "h{}", "") | linear(head.out, below + "hout")


def v2_head(golden, head, *names, below=""):
    out = output(head.out, [f"{below}out/{name}" for name in names])
    return golden.dense(head.mlp, below + "dense{}", below + "norm{}") | out


def v3_head(golden, head, *names, below=""):
    out = output(head.out, [f"{below}head/{name}" for name in names])
    return golden.dense(head.mlp, below + "mlp/linear{}", below + "mlp/norm{}") | out
