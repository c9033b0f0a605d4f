"""A YAML file and changes from the command line to a `TrainingConfig`; every fault is named by its key."""

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from stm_fast.errors import InputError, shown, shown_text
from stm_fast.training.config import TrainingConfig
from stm_fast.training.limits import check_limits
from stm_fast.training.yaml_text import parsed_yaml, read_yaml


def read_config(path: Path, changes: Iterable[str] = ()) -> TrainingConfig:
    """Reads a training run's configuration.

    Args:
        path: a YAML file with the names of `TrainingConfig`.
        changes: ``key=value`` with dots between the keys of what lies inside one another, counted from 0 in lists, as
            in ``optimizer.lr=1e-4`` or ``data.0.path=DAVIS``; values are written as in YAML.

    Raises:
        InputError: no such file, not YAML, an unknown or missing key, a value of the wrong type or out of range.
    """
    content = read_yaml(path, "a training configuration in YAML")
    if not isinstance(content, dict):
        raise InputError(f"{path}: found {_described(content)}, expected keys and values")
    for change in changes:
        _apply(content, change)
    config = from_plain(content, str(path))
    check_limits(config, str(path))
    return config


def from_plain(content: Mapping[str, Any], source: str) -> TrainingConfig:
    """A configuration out of what YAML or `dataclasses.asdict` gives. Raises InputError that names `source`."""
    try:
        config: TrainingConfig = _built(TrainingConfig, content, "")
    except _Fault as fault:
        raise InputError(f"{source}: {fault}") from None
    return config


_MOST_DIGITS = 9  # of a place in a list
_LONGEST_KEY = 99


class _Fault(Exception):
    """What is wrong, starting with the key."""


def _apply(content: dict[str, Any], change: str) -> None:
    """Sets one value of nested dictionaries and lists, in place."""
    key, equals, value = change.partition("=")
    option = f"-o {shown_text(change)}"
    if not key or not equals:
        raise InputError(f"{option}: expected key=value")
    place: Any = content
    *above, last = key.split(".")
    for part in above:
        place = place[_index(place, part, option)] if isinstance(place, list) else _inside(place, part)
        if not isinstance(place, dict | list):
            raise InputError(f"{option}: {shown_text(part)} is {_described(place)}, nothing lies inside it")
    place[_index(place, last, option) if isinstance(place, list) else last] = parsed_yaml(value, option)


def _inside(place: dict[str, Any], part: str) -> Any:
    if place.get(part) is None:
        place[part] = {}
    return place[part]


def _index(place: list[Any], part: str, option: str) -> int:
    # of a word of thousands of digits Python makes no number
    if not part.isdecimal() or len(part) > _MOST_DIGITS or int(part) >= len(place):
        expected = f"0 to {len(place) - 1}" if place else "no number: the list is empty"
        raise InputError(f"{option}: found {shown(part)}, expected {expected}")
    return int(part)


def _built(kind: Any, value: Any, key: str) -> Any:
    """`value` as `kind`, a type annotation."""
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, key)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, key)
    if origin is Literal:
        if value not in arguments:
            raise _Fault(f"{key}: found {shown(value)}, expected {_listed(arguments)}")
        return value
    if origin is tuple:
        return _tuple(arguments, value, key)
    return _plain(kind, value, key)


def _dataclass(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise _Fault(f"{key}: found {_described(value)}, expected keys and values")
    hints = get_type_hints(kind)
    for name in value:
        if name not in hints:
            raise _Fault(f"{_joined(key, name)}: unknown key{_nearest(name, hints)}")
    for field in dataclasses.fields(kind):
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if not has_default and field.name not in value:
            raise _Fault(f"{_joined(key, field.name)}: missing")
    return kind(**{name: _built(hints[name], inner, _joined(key, name)) for name, inner in value.items()})


def _one_of(kinds: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    if len(kinds) == 1:
        return _built(kinds[0], value, key)
    # dataclasses that are told apart by the literals of their field `kind`
    names = {name: kind for kind in kinds for name in get_args(get_type_hints(kind)["kind"])}
    name = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(name, str) or name not in names:
        raise _Fault(f"{_joined(key, 'kind')}: found {shown(name)}, expected {_listed(names)}")
    return _built(names[name], value, key)


def _tuple(arguments: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _Fault(f"{key}: found {_described(value)}, expected a list")
    kinds = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
    if len(kinds) != len(value):
        raise _Fault(f"{key}: found {len(value)} values, expected {len(kinds)}")
    return tuple(
        _built(kind, inner, _joined(key, str(at))) for at, (kind, inner) in enumerate(zip(kinds, value, strict=True))
    )


def _plain(kind: type, value: Any, key: str) -> Any:
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return _number(value, key)
    if type(value) is not kind:
        raise _Fault(f"{key}: found {_described(value)}, expected {_NAMES[kind]}")
    return value


def _number(value: float | str, key: str) -> float:
    try:
        number = float(value)  # YAML takes 1e-5, without a point, for a word
    except ValueError:
        raise _Fault(f"{key}: found {shown(value)}, expected a number") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Fault(f"{key}: found {shown(value)}, expected a finite number")
    return number


_NAMES: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return "keys and values"
    return "a list" if isinstance(value, list | tuple) else "nothing" if value is None else shown(value)


def _nearest(name: Any, known: Iterable[str]) -> str:
    known = list(known)
    # takes long for long words
    near = get_close_matches(name, known, n=1) if isinstance(name, str) and len(name) <= _LONGEST_KEY else []
    return f", did you mean {near[0]}?" if near else f", expected one of {', '.join(known)}"


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _joined(key: str, name: Any) -> str:
    shown_name = shown_text(name) if isinstance(name, str) else shown(name)
    return f"{key}.{shown_name}" if key else shown_name
