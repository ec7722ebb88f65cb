import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from torchrl_wm.cli import main

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TINY = ["--config-dir", str(Path(__file__).with_name("config"))]


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Runs ``torchrl-wm`` in an empty folder, in this process; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    threads = torch.get_num_threads()

    def run(*arguments, fails=False):
        code = 0
        try:
            main(list(arguments))
        except SystemExit as error:
            code = error.code
            if isinstance(code, str):
                print(code)
        finally:
            torch.set_grad_enabled(True)  # commands that only evaluate switch it off
        output = "".join(capfd.readouterr())
        assert bool(code) == fails, output
        return output

    def tiny(*arguments, **options):
        device = [] if any(a.startswith("device=") for a in arguments) else ["device=cpu"]
        return run("train", *arguments, "algorithm=tiny", *device, *TINY, **options)

    run.tiny, run.config = tiny, TINY
    yield run
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def recipe():
    """The module of a script in ``recipes``, by its name."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
