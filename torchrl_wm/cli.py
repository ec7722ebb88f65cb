"""The console command ``torchrl-wm``: runs a recipe by name."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def recipes_folder() -> Path:
    """Where the recipes are: inside the installed package, or beside it in a source checkout.

    Raises:
        FileNotFoundError: if they are in neither place.

    Examples:
        >>> (recipes_folder() / "train.py").exists()
        True
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / "train.py").is_file():
            return folder
    raise FileNotFoundError(
        f"There are no recipes in {package} nor beside it: install torchrl_wm from its wheel, or "
        "run from a source checkout."
    )


def main(arguments: list[str] | None = None) -> None:
    """Runs ``recipes/<name>.py`` with the remaining arguments.

    Args:
        arguments (list of str, optional): name of the recipe and its arguments. Defaults to the
            command line.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    folder = recipes_folder()
    names = sorted(path.stem for path in folder.glob("*.py"))
    if not arguments or arguments[0] not in names:
        usage = f"Usage: torchrl-wm {{{'|'.join(names)}}} [arguments of the recipe, or --help for its own]"
        if arguments in (["-h"], ["--help"]):
            return print(usage)
        sys.exit(f"Unknown recipe {arguments[0]!r}. {usage}" if arguments else usage)
    script = str(folder / f"{arguments[0]}.py")
    sys.argv = [script, *arguments[1:]]
    runpy.run_path(script, run_name="__main__")
