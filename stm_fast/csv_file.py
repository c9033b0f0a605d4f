"""Tables as CSV: the same bytes everywhere, names come back as they were, and none is a formula to a spreadsheet."""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TextIO

# what spreadsheets take for the beginning of a formula, also in its wide and small forms, behind what they leave out
_FORMULA = re.compile(r"'*(?:[\t\r\n]|[\s\0-\x1f\ufeff\u200b]*[=+\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b])")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")
# a semicolon parts cells where the decimal point is a comma
_TO_BE_QUOTED = re.compile(r'[",;\t\r\n]|^\s|\s$')
# a longer line is none of ours: a name is a file's
_MOST_CHARACTERS = 4096


def open_csv(path: Path, mode: Literal["r", "w", "a"]) -> TextIO:
    """A file for `csv_lines` or `read_csv`: UTF-8, but for the bytes of names that are no text. Raises OSError."""
    return path.open(mode, newline="", encoding="utf-8", errors="surrogateescape")


def csv_lines(rows: Iterable[Iterable[object]]) -> str:
    """Rows as lines of CSV.

    A cell that a spreadsheet would run, such as a name "=1+1", gets an apostrophe before it, which `read_csv` takes
    away; numbers stay as they are.
    """
    return "".join(",".join(_written(str(cell)) for cell in row) + "\n" for row in rows)


def read_csv(file: TextIO) -> Iterator[list[str]]:
    """The rows of a file of `csv_lines`, one by one. Raises ValueError where it is no CSV."""
    try:
        for row in csv.reader(iter(lambda: file.readline(_MOST_CHARACTERS), ""), strict=True):
            yield [cell[1:] if cell.startswith("'") and _would_run(cell[1:]) else cell for cell in row]
    except csv.Error as error:
        raise ValueError(str(error)) from None


def _written(cell: str) -> str:
    if _would_run(cell):
        cell = f"'{cell}"
    return '"{}"'.format(cell.replace('"', '""')) if _TO_BE_QUOTED.search(cell) else cell


def _would_run(cell: str) -> bool:
    return _FORMULA.match(cell) is not None and _NUMBER.fullmatch(cell) is None
