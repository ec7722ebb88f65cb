"""Golden cases for every test: numbers that the reference programs produced, one file per case.

A test asks for them by family and is run once per file found:

    @pytest.mark.golden("v3_twohot")
    def test_prediction(golden):
        bins = symexp_bins(golden.cfg["bins"])
        golden.close(prediction(golden["in/logits"], bins), "out/pred")

A name with a ``*`` is a pattern of file names. ``TORCHRL_WM_GOLDEN`` names another folder than
``tests/golden``; all sizes and hyper-parameters come from the files.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated_cuda import emulated_cuda
from tested_device import DEVICE
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"

# Workers of the tests share the cores: small models are ruined by threads that outnumber them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False  # three decimal digits are fewer than the golden files have
torch.backends.cudnn.deterministic = True  # resumed runs are compared bit by bit


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, alone and beside others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


class GoldenCase:
    """One file ``<family>__<variant>.npz``: ``cfg/ in/ param/ out/ grad/`` entries as tensors.

    ``load`` and ``gradients`` take the reference's names of weights with the parameters that hold
    them; the change of layout (dense, convolution) is made here.
    """

    tolerance = 1e-4

    def __init__(self, path: Path):
        self.path = path
        self.family, _, self.variant = path.stem.partition("__")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        self.cfg = {n[4:]: a.tolist() for n, a in arrays.items() if n.startswith("cfg/")}
        self.entries = {
            n: torch.from_numpy(a).to(DEVICE) for n, a in arrays.items() if n[:4] != "cfg/"
        }

    def __getitem__(self, name: str) -> Tensor:
        """A fresh copy of the entry with its full name, for example ``in/x``."""
        if name not in self.entries:
            raise KeyError(
                f"{self.path.name} has no entry {name!r}; it has {sorted(self.entries)}."
            )
        return self.entries[name].clone()

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def group(self, prefix: str) -> dict[str, Tensor]:
        """All entries below ``prefix``, their names without it."""
        prefix = prefix.rstrip("/") + "/"
        return {n[len(prefix) :]: self[n] for n in self.entries if n.startswith(prefix)}

    def layers(self, pattern: str) -> int:
        """How many weights ``pattern.format(0)``, ``pattern.format(1)``, ... the file holds."""
        count = 0
        while f"param/{pattern.format(count)}" in self:
            count += 1
        return count

    def weight(self, name: str | tuple[str, ...], prefix: str = "param") -> Tensor:
        """A weight (or its gradient) in PyTorch's layout; several names joined on the output."""
        names = (name,) if isinstance(name, str) else name
        value = torch.cat([self[f"{prefix}/{n}"] for n in names], -1)
        if value.ndim == 2:  # dense: [in, out] -> [out, in]
            return value.T.contiguous()
        if value.ndim == 4:  # convolution: [h, w, in, out] -> [out, in, h, w], transposed likewise
            return value.permute(3, 2, 0, 1).contiguous()
        return value

    def load(self, weights: Mapping[str | tuple[str, ...], Tensor], below: str = "") -> None:
        """Copies the file's weights; none whose name starts with ``below`` may be left out."""
        used = {n for name in weights for n in ((name,) if isinstance(name, str) else name)}
        left = {n for n in self.group("param") if n.startswith(below)} - used
        assert not left, f"{self.path.name}: the test loads everything but {sorted(left)}"
        with torch.no_grad():
            for name, parameter in weights.items():
                value = self.weight(name)
                assert value.shape == parameter.shape, (name, value.shape, parameter.shape)
                parameter.copy_(value)

    def dense(self, mlp, linear: str, norm: str) -> dict[str, Tensor]:
        """Names of a perceptron's weights, from the reference's patterns of layers and norms."""
        weights = {}
        for i, (layer, scale) in enumerate(zip(mlp.linears, mlp.norms, strict=True)):
            weights[f"{linear.format(i)}/kernel"] = layer.weight
            weights[f"{linear.format(i)}/bias"] = layer.bias
            weights |= self.norm(scale, norm.format(i))
        return weights

    @staticmethod
    def norm(norm, name: str) -> dict[str, Tensor]:
        """Names of the weights of a normalisation: RMS, layer or none."""
        if isinstance(norm, torch.nn.LayerNorm):
            return {f"{name}/gamma": norm.weight, f"{name}/beta": norm.bias}
        return {} if isinstance(norm, torch.nn.Identity) else {f"{name}/scale": norm.weight}

    def close(self, actual: Tensor, name: str, tolerance: float | None = None) -> None:
        """Asserts equality with an entry, relative to the entry's largest number."""
        self._compare(actual, self[name], name, tolerance)

    def gradients(
        self,
        weights: Mapping[str | tuple[str, ...], Tensor],
        prefix: str = "grad/param",
        values: Mapping[Tensor, Tensor | None] | None = None,
    ) -> None:
        """Asserts that the ``.grad`` of each weight, or its value, equals ``<prefix>/<name>``."""
        for name, parameter in weights.items():
            actual = parameter.grad if values is None else values.get(parameter)
            actual = torch.zeros_like(parameter) if actual is None else actual
            self._compare(actual, self.weight(name, prefix), f"{prefix}/{name}", None)

    def _compare(self, actual: Tensor, expected: Tensor, name: str, tolerance: float | None):
        actual, expected = actual.detach().cpu(), expected.cpu()
        where = f"{self.path.name} {name}"
        assert actual.shape == expected.shape, f"{where}: {actual.shape} is not {expected.shape}"
        if not expected.is_floating_point():
            assert torch.equal(actual.to(expected.dtype), expected), where
            return
        actual, expected = actual.double(), expected.double()
        scale = expected[expected.isfinite()].abs().max().item() if expected.numel() else 0.0
        allowed = (self.tolerance if tolerance is None else tolerance) * scale or 1e-7
        bad = ~torch.isclose(actual, expected, rtol=0.0, atol=allowed, equal_nan=True)
        if bad.any():
            error = (actual - expected).abs()[bad].max().item()
            pytest.fail(f"{where}: {int(bad.sum())} entries differ, by {error:.3g} of {scale:.3g}")


def _cuda():
    return nullcontext() if torch.cuda.is_available() else emulated_cuda()


@pytest.fixture
def cuda():
    """The GPU of this machine; where there is none, an emulated one."""
    with _cuda():
        yield


@pytest.fixture
def tested_device():
    """Whatever ``TORCHRL_WM_TEST_DEVICE`` needs."""
    with nullcontext() if torch.device(DEVICE).type == "cpu" else _cuda():
        yield


def pytest_generate_tests(metafunc):
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None:
        return
    elsewhere = os.environ.get("TORCHRL_WM_GOLDEN")
    folder = Path(elsewhere) if elsewhere else FOLDER
    if not folder.is_dir():
        raise pytest.UsageError(f"TORCHRL_WM_GOLDEN names {folder}, which is not a folder.")
    patterns = [n if "*" in n else f"{n}__*" for n in marker.args]
    paths = [path for pattern in patterns for path in sorted(folder.rglob(f"{pattern}.npz"))]
    if not paths and not elsewhere:
        raise pytest.UsageError(f"No golden file of {marker.args} below {folder}.")
    metafunc.parametrize("golden", paths, ids=[p.stem for p in paths], indirect=True)


@pytest.fixture
def golden(request, tested_device) -> GoldenCase:
    """The golden case that a test marked ``golden(<family>)`` runs on, on the device of the tests."""
    # The deterministic convolutions of a GPU add in an order that rounds more: of two pixels of v3_encdec__a
    # that differ by 2e-6 the other one then is the largest, and gets the gradient.
    kernels = {"enabled": True, "deterministic": False, "allow_tf32": False}
    with torch.device(DEVICE), torch.backends.cudnn.flags(**kernels):
        yield GoldenCase(request.param)
