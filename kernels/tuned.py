"""Tiles that were timed on the user's GPU: the JSON file that STM_FAST_CONFIGS names, which goes before configs.py.

    {"schema": 3, "machine": {...}, "settings": {"architecture": 90, ...}, "rows": [
        {"kernel": "forward", "choice": {the fields of Choice}, "tile": {the fields of ForwardConfig}, ...}], ...}

The variable is read once in a process. A tile is taken for exactly the choice that it was timed for.
`stm-fast benchmark tune` writes such a file.
"""

import json
import os
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, TypeVar

from stm_fast.kernels.tiles import BackwardConfig, Choice, ForwardConfig

VARIABLE = "STM_FAST_CONFIGS"
SCHEMA = 3  # of records of stm-fast benchmark

# whose tile; "backward" is that of P and G, "top-k" also that of usage and row totals
Kernel = Literal["forward", "backward", "grad_value", "grad_key", "grad_query", "top-k"]
KINDS: dict[Kernel, type[ForwardConfig] | type[BackwardConfig]] = {
    "forward": ForwardConfig,
    "backward": BackwardConfig,
    "grad_value": BackwardConfig,
    "grad_key": BackwardConfig,
    "grad_query": BackwardConfig,
    "top-k": BackwardConfig,
}
Tiles = Mapping[tuple[Kernel, Choice], ForwardConfig | BackwardConfig]
Config = TypeVar("Config", ForwardConfig, BackwardConfig)


class _Table:
    """Tiles of a using(), which are equal to no others."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles


_in_use: list[_Table] = []  # the innermost last


def tuned_tile(kernel: Kernel, choice: Choice, kind: type[Config]) -> Config | None:
    """The tile that was timed for such a choice, if any; raises what check_table() does."""
    found = _tiles(choice.architecture).get((kernel, choice))
    return found if isinstance(found, kind) else None


def check_table(architecture: int) -> None:
    """Raises ValueError, one line, where the file is no table of tiles, or not of this architecture."""
    _tiles(architecture)


def table_in_use() -> Hashable:
    """Equal for as long as tuned_tile() gives the same tiles."""
    return _in_use[-1] if _in_use else None


def _tiles(architecture: int) -> Tiles:
    if _in_use:
        return _in_use[-1].tiles
    path = file_of_tiles()
    return read_tiles(path, architecture) if path else {}


@cache
def file_of_tiles() -> str | None:
    """What the environment names, looked up once: it would be a twentieth of the host's time of a small read."""
    return os.environ.get(VARIABLE)


@contextmanager
def using(tiles: Tiles) -> Iterator[None]:
    """Takes these tiles instead of the file's inside the block."""
    _in_use.append(_Table(tiles))
    try:
        yield
    finally:
        _in_use.pop()


@cache
def read_tiles(path: str, architecture: int) -> Tiles:
    """The tiles of a file; ValueError, one line, for a file that is no such table, or one of another architecture."""
    try:
        with open(path) as file:
            table = json.load(file)
        if table["schema"] != SCHEMA:
            raise ValueError(f"schema {table['schema']}")
        found = table["settings"]["architecture"]
        tiles = dict(map(_entry, table["rows"]))
    except OSError as error:
        raise ValueError(f"{VARIABLE}: cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        expected = f"the JSON of stm-fast benchmark tune, schema {SCHEMA}"
        raise ValueError(f"{VARIABLE}: {path}: expected {expected}; {error}") from None
    if found != architecture:
        raise ValueError(f"{VARIABLE}: {path}: found tiles for sm_{found}, expected sm_{architecture} as this GPU is")
    return tiles


def _entry(entry: Mapping[str, Any]) -> tuple[tuple[Kernel, Choice], ForwardConfig | BackwardConfig]:
    tile = KINDS[entry["kernel"]](**entry["tile"])
    wrong = [name for name, size in vars(tile).items() if type(size) is not int or size < 1]
    if wrong:
        raise ValueError(f"tile: {', '.join(wrong)}: expected whole numbers above 0")
    return (entry["kernel"], Choice(**entry["choice"])), tile
