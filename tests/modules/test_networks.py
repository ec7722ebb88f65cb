"""Dense layers: the columns added to a compiled product change neither results nor gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchrl_wm.modules.networks import dense


def _compiled(layer: nn.Module, columns: list[int]):
    """The layer compiled by a backend that notes the columns of every product."""

    def backend(graph: torch.fx.GraphModule, inputs):
        products = (node for node in graph.graph.nodes if node.target is F.linear)
        columns.extend(node.meta["example_value"].shape[-1] for node in products)
        return graph.forward

    torch._dynamo.reset()
    return torch.compile(layer, backend=backend)


@pytest.mark.parametrize(("outputs", "columns"), [(255, 256), (601, 608), (256, 256), (3, 3)])
def test_a_compiled_layer_of_many_odd_outputs_has_even_columns(outputs, columns):
    layer, seen = dense(8, outputs), []
    nn.init.normal_(layer.bias)
    plain = F.linear(x := torch.randn(5, 8), layer.weight, layer.bias)
    expected = torch.autograd.grad(plain.square().sum(), layer.parameters())

    result = _compiled(layer, seen)(x)
    torch.testing.assert_close(result, plain)
    assert seen == [columns]
    gradients = torch.autograd.grad(result.square().sum(), layer.parameters())
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_without_a_compiler_the_product_has_the_columns_of_the_layer():
    layer = dense(8, 255)
    with torch.profiler.profile(record_shapes=True) as profile:
        layer(torch.randn(5, 8))
    assert not any("pad" in event.name for event in profile.events())
