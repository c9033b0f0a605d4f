"""YAML from files and the command line, with limits on size and depth, and without duplicate keys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from stm_fast.errors import InputError, reading, require_file, shown
from stm_fast.text_file import read_text

_MERGE = "tag:yaml.org,2002:merge"
# far more than any configuration needs
_LARGEST_FILE = 2**20  # bytes
_MOST_VALUES = 10_000  # with what aliases stand for
_TOO_MANY = f"found more than {_MOST_VALUES} values, with what aliases stand for, expected fewer"
_DEEPEST = 32
_LONGEST_VALUE = 4096  # characters, as many as a path may have
_LONGEST_PROBLEM = 200


def read_yaml(path: Path, expected: str) -> Any:
    """The content of a YAML file.

    Args:
        expected: what the file should be, for messages.

    Raises:
        InputError: no such file, not UTF-8, as `parsed_yaml`, or larger than any configuration.
    """
    require_file(path, expected)
    with reading(path):
        size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise InputError(f"{path}: found {size} bytes, expected {expected}, of at most {_LARGEST_FILE}")
    return parsed_yaml(read_text(path, expected), str(path))


def parsed_yaml(text: str, source: str) -> Any:
    """The content of a YAML text. Values with aliases are shared.

    Raises:
        InputError: not YAML, a duplicate key, or more, deeper or longer values than any configuration has. The message
            begins with `source`.
    """
    try:
        return yaml.load(text, _Loader)
    except _TooMuchError as error:
        raise InputError(f"{source}: {error}") from None
    # PyYAML's constructors of single values let any error through
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{source}: not YAML{where} ({problem[:_LONGEST_PROBLEM]})") from None


class _TooMuchError(Exception):
    """Too many, too deep or too long values, or a duplicate key."""


class _Loader(yaml.SafeLoader):
    """Checks the whole document before it constructs any value."""

    _depth = _composed = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._depth += 1
        self._composed += 1
        if self._composed > _MOST_VALUES:
            raise _TooMuchError(_TOO_MANY)
        if self._depth > _DEEPEST:
            raise _TooMuchError(f"found values more than {_DEEPEST} deep inside one another, expected fewer")
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
    """How many values a node expands to. Raises `_TooMuchError`."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise _TooMuchError(f"found a value inside itself in line {node.start_mark.line + 1}, expected none")
        return known[id(node)]
    known[id(node)] = 0  # until it is done
    if isinstance(node, ScalarNode) and len(node.value) > _LONGEST_VALUE:
        raise _TooMuchError(
            f"found {shown(node.value)} of {len(node.value)} characters, expected {_LONGEST_VALUE} at most"
        )
    if isinstance(node, MappingNode):
        _check_keys(node)
    total = 1 + sum(_count(inner, known) for inner in _inside(node))
    if total > _MOST_VALUES:
        raise _TooMuchError(_TOO_MANY)
    known[id(node)] = total
    return total


def _inside(node: Node) -> Iterator[Node]:
    if isinstance(node, MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, SequenceNode):
        yield from node.value


def _check_keys(node: MappingNode) -> None:
    """Raises `_TooMuchError` for a duplicate key, of which PyYAML would take the last."""
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, ScalarNode) or key.tag == _MERGE:
            continue
        if (key.tag, key.value) in seen:
            raise _TooMuchError(
                f"{shown(key.value)}: found twice, again in line {key.start_mark.line + 1}, expected once"
            )
        seen.add((key.tag, key.value))
