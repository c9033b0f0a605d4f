"""Reads YAML with limits on size and depth, and without duplicate keys."""

from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from stm_fast.errors import InputError, reading, require_file, shown
from stm_fast.text_file import read_text

_MERGE = "tag:yaml.org,2002:merge"
# all limits are far more than a configuration needs
_MAX_BYTES = 2**20  # bytes
_MAX_VALUES = 10_000  # with aliases expanded
_TOO_MANY = f"found more than {_MAX_VALUES} values, counting expanded aliases, expected fewer"
_MAX_DEPTH = 32
_MAX_VALUE_LENGTH = 4096  # characters, as many as a path may have
_MAX_PROBLEM_LENGTH = 200


def read_yaml(path: Path, expected: str) -> Any:
    """The content of a YAML file.

    Args:
        path: of the file.
        expected: a description of the file, for messages.

    Raises:
        InputError: no such file, not UTF-8, too large, or as in `parsed_yaml`.
    """
    require_file(path, expected)
    with reading(path):
        size = path.stat().st_size
    if size > _MAX_BYTES:
        raise InputError(f"{path}: found {size} bytes, expected {expected}, of at most {_MAX_BYTES}")
    return parsed_yaml(read_text(path, expected), str(path))


def parsed_yaml(text: str, source: str) -> Any:
    """The content of a YAML text. Aliases are references to the same object.

    Raises:
        InputError: not YAML, a duplicate key, or values that are too many, too deep or too long. The message begins
            with `source`.
    """
    try:
        return yaml.load(text, _Loader)
    except _TooMuchError as error:
        raise InputError(f"{source}: {error}") from None
    # PyYAML's constructors of scalars raise errors of many types
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{source}: not YAML{where} ({problem[:_MAX_PROBLEM_LENGTH]})") from None


class _TooMuchError(Exception):
    """Too many, too deep or too long values, or a duplicate key."""


class _Loader(yaml.SafeLoader):
    """Checks the whole document before any value is constructed."""

    _depth = _composed = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._depth += 1
        self._composed += 1
        if self._composed > _MAX_VALUES:
            raise _TooMuchError(_TOO_MANY)
        if self._depth > _MAX_DEPTH:
            raise _TooMuchError(f"found values nested more than {_MAX_DEPTH} levels deep, expected fewer")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def get_single_node(self) -> Node | None:
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (LookupError, AttributeError, TypeError):
            if not isinstance(node, ScalarNode):
                raise
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                problem=f"{shown(node.value)} is no {kind}", problem_mark=node.start_mark
            ) from None


def _count(node: Node, known: dict[int, int]) -> int:
    """The number of values that a node expands to. Raises `_TooMuchError`."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise _TooMuchError(f"found a value inside itself in line {node.start_mark.line + 1}, expected none")
        return known[id(node)]
    known[id(node)] = 0  # while it is being counted
    if isinstance(node, ScalarNode) and len(node.value) > _MAX_VALUE_LENGTH:
        raise _TooMuchError(
            f"found {shown(node.value)} of {len(node.value)} characters, expected {_MAX_VALUE_LENGTH} at most"
        )
    inner = node.value if isinstance(node, SequenceNode) else []
    if isinstance(node, MappingNode):
        _check_keys(node)
        inner = chain(*node.value)  # keys and values
    total = 1 + sum(_count(child, known) for child in inner)
    if total > _MAX_VALUES:
        raise _TooMuchError(_TOO_MANY)
    known[id(node)] = total
    return total


def _check_keys(node: MappingNode) -> None:
    """Raises `_TooMuchError` for a duplicate key, for which PyYAML would use the last value."""
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, ScalarNode) or key.tag == _MERGE:
            continue
        if (key.tag, key.value) in seen:
            raise _TooMuchError(
                f"{shown(key.value)}: found twice, again in line {key.start_mark.line + 1}, expected once"
            )
        seen.add((key.tag, key.value))
