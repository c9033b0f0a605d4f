"""Reads a `TrainingConfig` from YAML and changes on the command line, naming keys at fault, and writes one."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stm_fast.errors import InputError, shown, shown_text
from stm_fast.network.architecture import RANGES
from stm_fast.training.config import TrainingConfig
from stm_fast.training.yaml_text import parsed_yaml, read_yaml
from stm_fast.whole_file import whole_file

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails, SchemaValidator

_MAX_DIGITS = 9  # of a list index
_MAX_KEY_LENGTH = 99
_MAX_DEPTH = 9  # dots in a key
_MAX_PIXELS = 2**34  # of all frames of a step: 48 GiB at 8 bits per channel

# what is expected, by the type of pydantic's error, whose context fills the braces
_EXPECTED = {
    "bool_type": "true or false",
    "dataclass_type": "keys and values",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "model_attributes_type": "keys and values",
    "multiple_of": "a multiple of {multiple_of}",
    "string_type": "text",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "tuple_type": "a list",
    "union_tag_invalid": "{expected_tags}",
}
# keys whose sections are of several classes, with the position of the class name in the path of pydantic's error
_UNIONS = {"data": 2, "validation": 1}


def read_config(path: Path, changes: Iterable[str] = ()) -> TrainingConfig:
    """Reads a training run's configuration.

    Args:
        path: a YAML file with the keys of `TrainingConfig`.
        changes: ``key=value``, where dots separate nested keys and list indices, such as ``optimizer.lr=1e-4`` or
            ``data.0.path=DAVIS``; values are YAML.

    Raises:
        InputError: no such file, not YAML, an unknown or missing key, a value of the wrong type or out of range.
    """
    content = read_yaml(path, "a training configuration in YAML")
    if not isinstance(content, dict):
        raise InputError(f"{path}: found {_described(content)}, expected keys and values")
    for change in changes:
        key, equals, value = change.partition("=")
        option = f"--set {shown_text(change)}"
        if not key or not equals or key.count(".") > _MAX_DEPTH:
            raise InputError(f"{option}: expected key=value")
        content = _changed(content, key, parsed_yaml(value, option), option)
    config = from_plain(content, str(path))
    _check_together(config, str(path))
    return config


def from_plain(content: Mapping[str, Any], source: str) -> TrainingConfig:
    """A configuration from the content of a YAML file, or from `dataclasses.asdict`.

    Raises:
        InputError: an invalid value; the message begins with `source`.
    """
    from pydantic import ValidationError

    try:
        config: TrainingConfig = _validator().validate_python(content)
    except ValidationError as error:
        raise InputError(f"{source}: {_fault(error.errors(include_url=False)[0])}") from None
    return config


def config_text(config: TrainingConfig, header: str) -> str:
    """Every entry of a configuration as YAML, from which `read_config` makes an equal one.

    Args:
        header: the first lines, comments.
    """
    import yaml

    return header + yaml.safe_dump(
        _with_lists(asdict(config)), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True
    )


def write_config(config: TrainingConfig, file: Path, header: str) -> None:
    """Writes `config_text`. Raises InputError if the file cannot be written."""
    with whole_file(file) as partial:
        partial.write_text(config_text(config, header), encoding="utf-8")


def _with_lists(content: Any) -> Any:
    """Nested dictionaries and lists, in which tuples have become lists, as YAML has no tuples."""
    if isinstance(content, dict):
        return {key: _with_lists(value) for key, value in content.items()}
    return [_with_lists(value) for value in content] if isinstance(content, list | tuple) else content


@cache
def _validator() -> "SchemaValidator":
    from pydantic import TypeAdapter
    from pydantic_core import SchemaValidator

    return SchemaValidator(_strict(TypeAdapter(TrainingConfig).core_schema))


def _strict(schema: Any) -> Any:
    """A strict version of pydantic's schema: it refuses unknown keys, and only converts lists, dictionaries and numbers
    as text. Pydantic's strict mode would also refuse dictionaries.
    """
    from pydantic_core.core_schema import no_info_before_validator_function as preceded

    if isinstance(schema, list):
        return [_strict(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _strict(inner) for key, inner in schema.items()}
    match schema.get("type"):
        case "int" | "bool" | "str":
            return schema | {"strict": True}
        case "float":
            return preceded(_no_flag, schema | {"allow_inf_nan": False})
        case "dataclass":
            names = [field["name"] for field in schema["schema"]["fields"]]
            return preceded(partial(_check_keys, names), schema, ref=schema.pop("ref", None))
    return schema


def _no_flag(value: Any) -> Any:
    from pydantic_core import PydanticKnownError

    if not isinstance(value, int | float | str) or isinstance(value, bool):
        raise PydanticKnownError("float_type")
    # in YAML, 1e-5 without a point is text
    return value


def _check_keys(names: Sequence[str], section: Any) -> Any:
    """Raises ValueError for an unknown key of a section."""
    for key in section if isinstance(section, Mapping) else ():
        if key not in names:
            # get_close_matches is slow for long words
            short = isinstance(key, str) and len(key) <= _MAX_KEY_LENGTH
            near = get_close_matches(key, names, n=1) if short else []
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
            raise ValueError(f"{shown_text(key) if isinstance(key, str) else shown(key)}: unknown key, {hint}")
    return section


def _fault(error: "ErrorDetails") -> str:
    """One line about an error of pydantic; it begins with the key."""
    path = [str(part) for part in error["loc"]]
    if path and path[0] in _UNIONS:
        del path[_UNIONS[path[0]] : _UNIONS[path[0]] + 1]
    kind, found, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "value_error":  # raised by a section, whose message begins with a key
        return ".".join([*path, str(context["error"])])
    if kind.startswith("union_tag"):
        path, found = [*path, "kind"], found.get("kind")
    key = ".".join(path)
    if kind in ("missing", "union_tag_not_found"):
        return f"{key}: missing"
    limits = {name: f"{limit:.10g}" if isinstance(limit, float) else limit for name, limit in context.items()}
    expected = _EXPECTED[kind].format(**limits).replace("'", "") if kind in _EXPECTED else error["msg"]
    described = f"a list of {limits['actual_length']}" if kind in ("too_long", "too_short") else _described(found)
    return f"{key}: found {described}, expected {expected}"


def _check_together(config: TrainingConfig, source: str) -> None:
    """Raises InputError for values that contradict one another."""
    clips, batch, validation = config.clips, config.optimizer.batch, config.validation
    size = list(clips.size)
    checks: list[tuple[str, object, bool, str]] = [
        (
            "optimizer.batch",
            batch,
            batch * clips.frames * math.prod(size) <= _MAX_PIXELS,
            f"at most {_MAX_PIXELS} pixels a step, where clips have {clips.frames} frames of {size}",
        ),
        ("epochs", config.epochs, config.steps >= 1, f"clips for one batch of {batch} at least"),
    ]
    if validation is not None and validation.max_size is not None:
        fits = validation.max_size >= validation.min_size
        checks.append(("validation.max_size", validation.max_size, fits, f"at least min_size, {validation.min_size}"))
    for name, (least, most) in RANGES.items():
        found = getattr(config.network, name)
        checks.append((f"network.{name}", found, least <= found <= most, f"{least} to {most}"))
    for key, found, fits, expected in checks:
        if not fits:
            raise InputError(f"{source}: {key}: found {shown(found)}, expected {expected}")


def _changed(content: Any, key: str, value: Any, option: str) -> Any:
    """A copy of nested dictionaries and lists with another value at a dotted key."""
    first, _, rest = key.partition(".")
    if isinstance(content, list):
        # int() raises for thousands of digits
        if not first.isdecimal() or len(first) > _MAX_DIGITS or int(first) >= len(content):
            expected = f"0 to {len(content) - 1}" if content else "no number: the list is empty"
            raise InputError(f"{option}: found {shown(first)}, expected {expected}")
        at = int(first)
        return [*content[:at], _changed(content[at], rest, value, option) if rest else value, *content[at + 1 :]]
    inside = {} if content is None else content
    if not isinstance(inside, dict):
        raise InputError(f"{option}: found {_described(content)} above {shown_text(first)}, expected keys and values")
    return inside | {first: _changed(inside.get(first), rest, value, option) if rest else value}


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return "keys and values"
    return "a list" if isinstance(value, list | tuple) else "nothing" if value is None else shown(value)
