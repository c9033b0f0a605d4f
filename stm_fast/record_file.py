"""Records that the package writes and reads back: readable JSON with a checksum of its content."""

import dataclasses
import hashlib
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from stm_fast.errors import InputError, reading, require_file, shown, shown_text
from stm_fast.whole_file import whole_file

CHECKSUM = "sha256"  # the entry that holds it
_LARGEST_INTEGER = 2**53  # in a record
_MAX_SHOWN = 100  # characters of a value in a message


def as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as read back from JSON; values without a JSON type become text."""
    plain: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return plain


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as read back from JSON, followed by its SHA-256, which does not depend on white space."""
    plain = as_json(content)
    return plain | {CHECKSUM: _checksum(plain)}


def write_record_file(path: Path, content: Mapping[str, Any], *, durable: bool = False) -> None:
    """Writes a record, completely or not at all.

    Args:
        durable: as in `whole_file`.

    Raises:
        InputError: it cannot be written.
    """
    with whole_file(path, durable=durable) as partial:
        partial.write_text(json.dumps(with_checksum(content), indent=1) + "\n")


def read_record_file(path: Path, what: str, advice: str) -> dict[str, Any]:
    """The content of a record that `write_record_file` wrote.

    Args:
        what: what it should be, for the message, as in "a record of a run".
        advice: what to do if it is not.

    Raises:
        InputError: no such file, an unreadable one, or content that is not a record or was changed.
    """
    require_file(path, f"{what}; {advice}")
    with reading(path):
        data = path.read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    stated = content.pop(CHECKSUM, None) if isinstance(content, dict) else None
    if stated is None or stated != _checksum(content):
        raise InputError(f"{path}: not {what}, or damaged; {advice}")
    return dict(content)


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """The first entry in which a record differs from the expected one, for a message; None if they are equal."""
    for name in (*expected, *found):
        one, other = found.get(name), expected.get(name)
        if one != other:
            return f"its {shown_text(name)}: found {_shown(one, other)}, expected {_shown(other, one)}"
    return None


def typed(value: Any, kind: Any, name: str) -> Any:
    """Returns a value of a record if it has the expected type; builds dataclasses from their fields.

    Args:
        kind: a JSON type, `Any`, a dataclass, or a union, Literal, list or dict[str, ...] of them. An integer is
            accepted as a float.
        name: name of the value, for the message.

    Raises:
        ValueError: another type; the message names the value.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if type(value) is int and abs(value) > _LARGEST_INTEGER:
        raise ValueError(f"{name}: found {shown(value)}, expected {_LARGEST_INTEGER} at most")
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and type(value) is dict:
        return _built(value, kind, name)
    if origin in (Union, types.UnionType):
        for one in arguments:
            try:
                return typed(value, one, name)
            except ValueError:
                pass
    elif origin is list and type(value) is list:
        return [typed(item, arguments[0], f"{name}.{index}") for index, item in enumerate(value)]
    elif origin is dict and type(value) is dict:
        return {key: typed(item, arguments[1], f"{name}.{shown_text(key)}") for key, item in value.items()}
    elif (kind is Any or (origin is Literal and value in arguments)) or type(value) is kind:
        return value
    elif kind is float and type(value) is int:
        return float(value)
    elif kind is type(None) and value is None:
        return None
    raise ValueError(f"{name}: found {_cut(value)}, expected {getattr(kind, '__name__', kind)}")


def _built(value: dict[str, Any], kind: type, name: str) -> Any:
    """A dataclass built from its fields."""
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = value.keys() - fields.keys()
    missing = [
        field.name
        for field in fields.values()
        if field.name not in value
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if unknown or missing:
        raise ValueError(f"{name}: found {_cut(', '.join(value))}, expected {', '.join(fields)}")
    return kind(**{key: typed(item, hints[key], f"{name}.{key}") for key, item in value.items()})


def _checksum(plain: Mapping[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(value: Any, other: Any) -> str:
    """A value on one line; for two dictionaries, only the differences."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(
            f"{shown_text(name)} {_cut(entry)}" for name, entry in value.items() if other.get(name) != entry
        )
    return _cut(value)


def _cut(value: Any) -> str:
    text = shown(value) if type(value) is int else " ".join(str(value).split())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
