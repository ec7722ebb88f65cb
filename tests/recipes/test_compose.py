"""Every example of recipes/compose runs, and does what its docstring says."""

import math
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "compose"


@pytest.fixture(autouse=True)
def temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def example(name):
    return runpy.run_path(str(FOLDER / f"{name}.py"))["main"]


def test_dreamer_in_a_stock_pipeline():
    main = example("dreamer_in_a_stock_pipeline")
    metrics = main(frames=640, warm_up=256, batch_size=4, length=6)
    assert {"loss_dynamics", "loss_actor", "loss_critic", "episode_length"} <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["episode_length"] > 5


def test_world_model_beside_sac():
    losses = example("world_model_beside_sac")(frames=600, batches=4, length=6)
    assert losses["last"] < 0.8 * losses["first"]


def test_ppo_inside_a_world_model():
    lengths = example("ppo_inside_a_world_model")(
        random_steps=1_200, updates=40, frames=4_096, test_steps=50
    )
    assert 5 < lengths["before"] <= 400
    assert 5 < lengths["after"] <= 400


def test_torchrl_conventions():
    results = example("torchrl_conventions")(updates=15)
    assert results["last"] < results["first"]
    assert results["slow critic moved"] > 0


def test_every_example_is_tested_and_short():
    for file in FOLDER.glob("*.py"):
        text = file.read_text()
        assert f"test_{file.stem}" in globals()
        assert text.count("\n") < 90
        assert text.startswith('"""')
        assert 'if __name__ == "__main__":' in text
