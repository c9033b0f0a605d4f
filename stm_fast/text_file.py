"""Text that comes from outside: lists, JSON. UTF-8, or one line that says what was found."""

import json
from pathlib import Path
from typing import Any

from stm_fast.errors import InputError, reading, require_file


def read_text(file: Path, expected: str) -> str:
    """The text of a file of UTF-8, with or without a byte-order mark.

    Args:
        expected: what the file should be, for the message.

    Raises InputError: no such file, one that cannot be read, other bytes than UTF-8.
    """
    require_file(file, expected)
    with reading(file):
        content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: found a byte at {error.start} that is no UTF-8, expected {expected} as UTF-8"
        ) from None


def read_lines(file: Path, expected: str) -> list[str]:
    """The lines of a list that are not blank, without space around them. Raises InputError as `read_text` does."""
    return [line.strip() for line in read_text(file, expected).splitlines() if line.strip()]


def read_json(file: Path, expected: str) -> Any:
    """What a JSON file holds. Raises InputError as `read_text` does, and where it is no JSON."""
    return parsed_json(read_text(file, expected), file, expected)


def parsed_json(text: str, file: Path, expected: str) -> Any:
    """What the text of a file holds as JSON. Raises InputError where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of very many digits
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{file}: not JSON ({why}), expected {expected}") from None
