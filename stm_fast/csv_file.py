"""Tables as CSV: the same bytes on every system, names restored exactly, no cell that a spreadsheet evaluates."""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TextIO

# what spreadsheets take as the start of a formula, fullwidth and small forms included, after characters they skip
_FORMULA = re.compile(r"'*(?:[\t\r\n]|[\s\0-\x1f\ufeff\u200b]*[=+\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b])")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")
# a semicolon separates cells in locales with a decimal comma
_NEEDS_QUOTES = re.compile(r'[",;\t\r\n]|^\s|\s$')
# longer than any line written here, because names are file names
_MAX_CHARACTERS = 4096


def open_csv(path: Path, mode: Literal["r", "w", "a"]) -> TextIO:
    """Opens a file for `csv_lines` or `read_csv`, in UTF-8; other bytes in names are preserved. Raises OSError."""
    return path.open(mode, newline="", encoding="utf-8", errors="surrogateescape")


def csv_lines(rows: Iterable[Iterable[object]]) -> str:
    """Rows as lines of CSV.

    A cell that a spreadsheet would evaluate, such as the name "=1+1", gets a leading apostrophe, which `read_csv`
    removes; numbers are unchanged.
    """
    return "".join(",".join(_written(str(cell)) for cell in row) + "\n" for row in rows)


def read_csv(file: TextIO) -> Iterator[list[str]]:
    """The rows of a file written with `csv_lines`, one by one. Raises ValueError if it is not CSV."""
    try:
        for row in csv.reader(iter(lambda: file.readline(_MAX_CHARACTERS), ""), strict=True):
            yield [cell[1:] if cell.startswith("'") and _is_formula(cell[1:]) else cell for cell in row]
    except csv.Error as error:
        raise ValueError(str(error)) from None


def _written(cell: str) -> str:
    if _is_formula(cell):
        cell = f"'{cell}"
    return '"{}"'.format(cell.replace('"', '""')) if _NEEDS_QUOTES.search(cell) else cell


def _is_formula(cell: str) -> bool:
    return _FORMULA.match(cell) is not None and _NUMBER.fullmatch(cell) is None
