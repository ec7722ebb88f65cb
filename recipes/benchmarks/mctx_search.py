"""The peer of ``search``: mctx under jit, on the same weights."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import mctx
from torch import nn

from torchrl_wm.planners.tree_search import Root


def make_search(
    model: nn.Module, root: Root, rule: str, num_simulations: int, discount: float
) -> Callable[[], object]:
    """A function that searches once, compiled; ``rule`` is ``"muzero"`` or ``"gumbel"``."""
    weights = {name: _weights(getattr(model, name)) for name in ("dynamics", "reward")}
    weights["heads"] = _weights(model.policy_and_value)
    latent, value, logits = (jnp.asarray(x.detach().numpy()) for x in (*root.latents, *root[1:]))

    def step(weights, key, action, latent):
        code = jax.nn.one_hot(action, logits.shape[-1])
        latent = jnp.tanh(_network(weights["dynamics"], jnp.concatenate([latent, code], -1)))
        heads = _network(weights["heads"], latent)
        out = mctx.RecurrentFnOutput(
            reward=_network(weights["reward"], latent)[:, 0],
            discount=jnp.full(action.shape, discount),
            prior_logits=heads[:, :-1],
            value=heads[:, -1],
        )
        return out, latent

    @jax.jit
    def run(weights, key, latent, value, logits):
        start = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=latent)
        if rule == "muzero":
            policy, options = mctx.muzero_policy, {"dirichlet_fraction": 0.0}
        else:
            policy, options = mctx.gumbel_muzero_policy, {}
        out = policy(weights, key, start, step, num_simulations, **options)
        return out.action, out.action_weights, out.search_tree.summary().visit_counts

    key = jax.random.PRNGKey(0)
    return lambda: jax.block_until_ready(run(weights, key, latent, value, logits))


def _weights(network: nn.Sequential):
    layers = (network[0], network[2])
    arrays = [(x.weight.detach().numpy().T, x.bias.detach().numpy()) for x in layers]
    return jax.tree.map(jnp.asarray, arrays)


def _network(layers, x):
    (first, first_bias), (second, second_bias) = layers
    return jax.nn.relu(x @ first + first_bias) @ second + second_bias
