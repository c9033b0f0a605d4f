"""The recipes of the package: training configurations that have a name."""

from pathlib import Path

from stm_fast.errors import InputError, reading

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
        if given.is_file():
            return given
    recipe = RECIPES.get(str(given))
    if recipe is None:
        expected = f"expected a training configuration in YAML, or a recipe: {', '.join(RECIPES)}"
        raise InputError(f"{given}: no such file, {expected}")
    return recipe


def introduction(file: Path) -> str:
    """The comments at the head of a configuration, whole lines; empty if there are none."""
    lines = file.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    first = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[:first])
