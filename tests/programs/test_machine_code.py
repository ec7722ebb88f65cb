"""Machine code on disk is what it says it is, whatever other processes and files do."""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import shutil
import subprocess
import sys
import types
import uuid
from collections import Counter
from pathlib import Path

import numba
import pytest
from numba.core.caching import IndexDataCacheFile
from numba.core.dispatcher import Dispatcher

import torchrl_wm
from torchrl_wm import programs
from torchrl_wm.planners import tree_search
from torchrl_wm.planners.tree_search import kernels
from torchrl_wm.programs import instructions, machine_code
from torchrl_wm.programs.machine_code import SOURCES, sources_stamp


def dispatchers() -> dict[int, Dispatcher]:
    """All compiled functions of the package."""
    found = {}
    for package in (programs, tree_search):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(module.name)
            found |= {id(x): x for x in vars(module).values() if isinstance(x, Dispatcher)}
    return found


def test_no_two_functions_are_linked_by_the_same_name():
    names = Counter(
        (x.py_func.__module__, x.py_func.__qualname__, str(x.targetoptions))
        for x in dispatchers().values()
    )
    assert len(names) > 40 and {n: count for n, count in names.items() if count > 1} == {}


def test_every_file_with_compiled_functions_is_watched():
    holding = {x.py_func.__module__.replace(".", "/") for x in dispatchers().values()}
    expected = {f"torchrl_wm/{name}" for name in SOURCES}
    assert holding | {"torchrl_wm/programs/exponential"} == expected


def test_the_stamp_is_that_of_all_files(tmp_path, monkeypatch):
    for name in SOURCES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.py").write_text(name)
    monkeypatch.setattr(machine_code, "__file__", str(tmp_path / "programs" / "machine_code.py"))
    stamps = set()
    for name in (*SOURCES, None):
        stamps.add(sources_stamp.__wrapped__())
        if name is not None:
            (tmp_path / f"{name}.py").write_text("changed")
    assert len(stamps) == len(SOURCES) + 1


@pytest.mark.parametrize("function", [instructions.run, kernels.search_muzero, kernels.plant])
def test_the_functions_of_searches_use_such_files(function):
    files = function._cache._cache_file
    assert isinstance(files, machine_code._Files) and files._source_stamp == sources_stamp()


def interleaved(files, folder) -> tuple[str | None, str | None]:
    """What is found after two processes saved one signature each, both before the other was seen."""
    one, other = files(folder, "f", "stamp"), files(folder, "f", "stamp")
    save_data, other._load_index = one._save_data, dict
    one._save_data = lambda *named: other.save("second", "two") or save_data(*named)
    one.save("first", "one")
    reader = files(folder, "f", "stamp")
    return reader.load("first"), reader.load("second")


def test_two_processes_that_save_at_once_do_not_mix_their_files(tmp_path):
    first, second = interleaved(machine_code._Files, str(tmp_path))
    assert first in ("one", None) and second in ("two", None) and (first, second) != (None, None)


def test_it_is_why_the_files_are_not_numbered(tmp_path):
    """numba's own numbering: should this fail, the class can go."""
    assert interleaved(IndexDataCacheFile, str(tmp_path)) == (None, "one")


def test_what_was_saved_is_found_again_and_not_for_other_sources(tmp_path):
    folder = str(tmp_path)
    files = machine_code._Files(folder, "f", "before")
    for key in ("first", "second"):
        files.save(key, key.upper())
    assert [machine_code._Files(folder, "f", "before").load(x) for x in ("first", "second")] == [
        "FIRST",
        "SECOND",
    ]
    later = machine_code._Files(folder, "f", "after")
    assert later.load("first") is None
    later.save("first", "changed")
    assert later.load("first") == "changed" and later.load("second") is None


def test_files_of_code_that_had_its_classes_elsewhere_are_no_obstacle(tmp_path, monkeypatch):
    folder = str(tmp_path)
    for gone in ("module", "class"):
        module = types.ModuleType("earlier")
        module.Key = type("Key", (), {"__module__": "earlier"})
        monkeypatch.setitem(sys.modules, "earlier", module)
        machine_code._Files(folder, gone, "stamp").save(module.Key(), "code")
        if gone == "class":
            del module.Key
        else:
            monkeypatch.delitem(sys.modules, "earlier")
        files = machine_code._Files(folder, gone, "stamp")
        assert files.load("key") is None
        files.save("key", "new code")
        assert files.load("key") == "new code"


def _one_more(x):
    return x + 1


def test_the_wait_for_the_compiler_is_announced_once_and_not_for_what_is_kept(monkeypatch, caplog):
    stamp = uuid.uuid4().hex
    monkeypatch.setattr(machine_code, "sources_stamp", lambda: stamp)
    for lines in (1, 0):
        machine_code._announce.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.INFO, "torchrl_wm"):
            function = machine_code.kept_on_disk(numba.njit(_one_more))
            assert function(1) == 2 and function(1.5) == 2.5
        assert [x.levelname for x in caplog.records] == ["WARNING"] * lines


@pytest.mark.parametrize("kind", ["without a compiler", "from a zip archive"])
def test_the_package_is_imported(kind, tmp_path):
    environment, folder = dict(os.environ), Path(torchrl_wm.__file__).parent
    if kind == "without a compiler":
        environment |= {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(folder.parent)}
    else:
        archive = shutil.make_archive(str(tmp_path / "package"), "zip", folder.parent, folder.name)
        environment |= {"PYTHONPATH": archive, "NUMBA_CACHE_DIR": str(tmp_path)}
    code = "import torchrl_wm.planners as p; print(p.__file__)"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert (".zip" in found.stdout) == (kind == "from a zip archive")
