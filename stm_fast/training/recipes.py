"""The recipes of the package: training configurations that have a name."""

from pathlib import Path

from stm_fast.errors import reading, require_file

_PACKAGE = Path(__file__).resolve().parents[1]
# the last ones made the package's weights
RECIPES = {
    path.stem: path for folder in ("configs", "weights/recipe") for path in sorted((_PACKAGE / folder).glob("*.yaml"))
}


def configuration_file(given: Path) -> Path:
    """The configuration that a user names: a file, or else a recipe.

    Raises:
        InputError: neither exists.
    """
    with reading(given):
        if str(given) in RECIPES and not given.is_file():
            return RECIPES[str(given)]
    require_file(given, f"a training configuration in YAML, or a recipe: {', '.join(RECIPES)}")
    return given


def introduction(file: Path) -> str:
    """The comments at the head of a configuration, whole lines; empty if there are none."""
    lines = file.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    first = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[:first])
