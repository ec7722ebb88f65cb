import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _run(*command, **options):
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_installed_wheel_trains(tmp_path):
    pip = (sys.executable, "-m", "pip", "-q")
    wheels, site, work = tmp_path / "wheels", tmp_path / "site", tmp_path / "work"
    _run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", wheels, ROOT)
    (wheel,) = wheels.iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert "torchrl_wm/recipes/config/algorithm/dreamer_v3.yaml" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]
    _run(*pip, "install", "--no-deps", "--no-index", "--target", site, wheel)
    work.mkdir()
    # Before the checkout, which an editable install puts on the path, comes what was installed.
    paths = os.pathsep.join([str(site), str(ROOT / "tests" / "training")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    options = {"cwd": work, "env": environment}
    where = _run(sys.executable, "-c", "import torchrl_wm; print(torchrl_wm.__file__)", **options)
    assert where.startswith(str(site))
    output = _run(
        site / "bin" / "torchrl-wm",
        *("train", "--config-dir", Path(__file__).with_name("config"), "algorithm=tiny"),
        *("run_dir=first", "total_steps=40"),
        **options,
    )
    assert "at step 40" in output
    assert sorted(path.name for path in work.iterdir()) == ["first"]
