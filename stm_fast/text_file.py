"""Reads external text files: lists and JSON, in UTF-8."""

import json
from pathlib import Path
from typing import Any

from stm_fast.errors import InputError, reading, require_file


def read_text(file: Path, expected: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Args:
        expected: what the file should be, for the message.

    Raises:
        InputError: no such file, an unreadable one, or invalid UTF-8.
    """
    require_file(file, expected)
    with reading(file):
        content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: found invalid UTF-8 at byte {error.start}, expected {expected} as UTF-8") from None


def read_lines(file: Path, expected: str) -> list[str]:
    """The non-blank lines of a list, stripped. Raises InputError as `read_text` does."""
    return [line.strip() for line in read_text(file, expected).splitlines() if line.strip()]


def read_json(file: Path, expected: str) -> Any:
    """The content of a JSON file. Raises InputError as `read_text` does, and if it is not JSON."""
    return parsed_json(read_text(file, expected), file, expected)


def parsed_json(text: str, file: Path, expected: str) -> Any:
    """The JSON content of a file's text. Raises InputError if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also for a number with too many digits
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{file}: not JSON ({why}), expected {expected}") from None
