"""Imports go down only, so that a part can be read, used and tested without what is built on it."""

import ast
from pathlib import Path

import torchrl_wm

PACKAGE = Path(torchrl_wm.__file__).parent
FLOORS = [
    {"keys", "ranges"},
    {"functional", "programs"},
    {"modules"},
    {"envs", "data", "world_models"},
    {"planners"},
    {"policies", "objectives"},
    {"algorithms", "training"},
    {"cli", "__main__"},
]
APART = [{"algorithms", "training"}]  # neither imports the other


def level(part: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if part in floor)


def imported_parts(path: Path) -> set[str]:
    """Parts of the package that a file imports, ``torchrl_wm`` itself left out."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            modules = [node.module]
            if node.module == "torchrl_wm":
                modules = [f"torchrl_wm.{alias.name}" for alias in node.names]
            names += modules
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    parts = [name.split(".") for name in names if name.startswith("torchrl_wm.")]
    return {part[1] for part in parts if not part[1].startswith("__version")}


def test_imports_go_down_only():
    seen = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in ("__init__", "recipes"):
            continue
        seen.add(part)
        for other in imported_parts(path):
            assert level(other) <= level(part), f"{path} of {part} imports {other}"
            assert other == part or {part, other} not in APART, f"{path} imports {other}"
    assert seen == set().union(*FLOORS), "a part of the package has no floor"


def test_nothing_imports_the_recipes():
    for path in PACKAGE.rglob("*.py"):
        assert "recipes" not in {p.split(".")[0] for p in _absolute(path)}, path


def _absolute(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    found = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    return found | {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
