"""Predictions without observations are compared with what happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from torchrl_wm.training.assembly import build_algorithm
from torchrl_wm.training.configuration import instantiate
from torchrl_wm.training.loop import with_latents

CONFIG = str(Path(__file__).resolve().parents[2] / "recipes" / "config")
STACKED = [
    "algorithm=muzero",
    "env=cartpole_pixels",
    "env.image_size=96",
    "planner.num_simulations=2",
]


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm=dreamer_v3", "env=cartpole"],
        [*STACKED, "algorithm.use_reconstruction=true", "world_model.channels=4"],
    ],
)
def test_predictions_have_the_shape_of_what_happened(recipe, overrides):
    open_loop = recipe("open_loop")
    torch.manual_seed(0)
    with initialize_config_dir(CONFIG, version_base="1.3"):
        config = compose("train", overrides)
    env = instantiate(config.env, seed=0)
    agent = build_algorithm(config, env, torch.device("cpu"))
    env = with_latents(env, agent.policy)
    with torch.no_grad():
        records = open_loop.play(env, agent.evaluation_policy, 6)
        key = open_loop.decoded_key(agent.world_model, None)
        truth, predicted = open_loop.predict(agent.world_model, records, key, 3)
    env.close()
    assert truth.shape == predicted.shape and truth.shape[1] == 4
    rows = open_loop.compare(truth, predicted, 3)
    assert [row["step"] for row in rows] == [1, 2, 3] and all(row["model"] >= 0 for row in rows)
