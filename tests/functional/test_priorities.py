from __future__ import annotations

import pytest

from torchrl_wm.functional import importance_weights, priority_probabilities


@pytest.mark.golden("misc*")
def test_probabilities_and_weights_equal_the_recorded_ones(golden):
    alpha, beta, eps = (float(golden[f"per_{name}"]) for name in ("alpha", "beta", "eps"))
    probability = priority_probabilities(golden["per_priority"], alpha=alpha, eps=eps)
    golden.close(probability, "per_prob", 1e-9)
    drawn = probability[golden["per_index"]]
    golden.close(importance_weights(drawn, len(probability), beta=beta), "per_weight", 1e-9)


@pytest.mark.golden("misc*")
def test_extreme_exponents(golden):
    priority = golden["per_priority"]
    even = priority_probabilities(priority, alpha=0.0)
    assert (even - even[0]).abs().max() == 0
    assert (importance_weights(even[:5], len(even), beta=1.0) == 1).all()
