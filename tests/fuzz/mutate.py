"""Mutations of bytes, of text, and of JSON and YAML content. The same draw makes the same mutation."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    100,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
WIDE_NUMBERS = (*NUMBERS, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
MOST_BYTES = 2**20  # by which mutations may lengthen a file


def mutated_bytes(data: bytes, draw: Random, others: Sequence[bytes] = ()) -> bytes:
    """One to four changes anywhere, most of them near the beginning, where formats have their headers."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        draw.choice(_BYTES)(changed, draw)
        del changed[MOST_BYTES + len(data) :]
    if others and draw.random() < 0.1:
        other = draw.choice(others)
        changed[draw.randint(0, len(changed)) :] = other[draw.randint(0, len(other)) :]
    return bytes(changed)


def position(length: int, draw: Random) -> int:
    """The position of a byte; half of them are among the first 512."""
    return draw.randrange(max(1, min(length, 512) if draw.random() < 0.5 else length))


def _flip(data: bytearray, draw: Random) -> None:
    if data:
        data[position(len(data), draw)] ^= 1 << draw.randrange(8)


def _overwrite(data: bytearray, draw: Random) -> None:
    if data:
        data[position(len(data), draw)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))


def _number(data: bytearray, draw: Random) -> None:
    width, order = draw.choice((2, 4, 8)), draw.choice(("little", "big"))
    at = position(len(data), draw)
    if len(data) >= at + width:
        number = draw.choice(WIDE_NUMBERS) % 2 ** (8 * width)
        data[at : at + width] = number.to_bytes(width, order)


def _truncate(data: bytearray, draw: Random) -> None:
    del data[draw.randint(0, len(data)) :]


def _remove(data: bytearray, draw: Random) -> None:
    at = position(len(data), draw)
    del data[at : at + draw.choice((1, 2, 4, 16, 64))]


def _repeat(data: bytearray, draw: Random) -> None:
    at = position(len(data), draw)
    piece = bytes(data[at : at + draw.choice((1, 4, 16, 256))])
    data[at:at] = piece * draw.choice((1, 2, 100))


def _insert(data: bytearray, draw: Random) -> None:
    at = position(len(data), draw)
    data[at:at] = draw.randbytes(draw.choice((1, 2, 4, 16)))


_BYTES: tuple[Callable[[bytearray, Random], None], ...]
_BYTES = (_flip, _flip, _overwrite, _overwrite, _number, _number, _number, _truncate, _remove, _repeat, _insert)


def nasty(draw: Random) -> Any:
    """A value that readers easily forget to handle."""
    return copy.deepcopy(draw.choice(_NASTY))


_NASTY: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        "",
        " ",
        "a",
        "0",
        "1e400",
        "../../x",
        "/",
        ".",
        "\0",
        "a\nb",
        "=1+1",
        "ö\udce4",
        "\u202e",
        "x" * 300,
    ),
    *(0, 1, -1, 2, 255, 256, 65536, 10**6, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 10**400, -(2**63)),
    *(0.0, -0.0, 0.5, 1e-300, 1e9, 1e308, math.nan, math.inf, -math.inf),
    *([], {}, [[]], [0], [None], {"a": 1}, {"": ""}, [1e9] * 6, list(range(1000))),
)


def mutated_tree(tree: Any, draw: Random) -> Any:
    """JSON or YAML content with one to three nodes replaced, removed, repeated, wrapped or moved."""
    root = [copy.deepcopy(tree)]
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = _places(root)
        holder, key = draw.choice(places)
        draw.choice(_TREES)(holder, key, draw, places)
    return root[0]


def _places(holder: Any) -> list[tuple[Any, Any]]:
    """Every node below, as the list or dictionary that holds it and its index or key there."""
    found, waiting = [], [holder]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one))
        found += [(one, key) for key in keys]
        waiting += [one[key] for key in keys if isinstance(one[key], dict | list)]
    return found


def _replace(holder: Any, key: Any, draw: Random, _places: Any) -> None:
    holder[key] = nasty(draw)


def _nudge(holder: Any, key: Any, draw: Random, _places: Any) -> None:
    value = holder[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        holder[key] = str(value) if draw.random() < 0.5 else [value]
    else:
        with suppress(OverflowError):  # an integer too large for a float
            holder[key] = draw.choice((value + 1, value - 1, -value, value * 1000, value / 3, float(value), str(value)))


def _drop(holder: Any, key: Any, _draw: Random, _places: Any) -> None:
    if isinstance(holder, dict):
        del holder[key]
    elif len(holder) > 1:
        holder.pop(key)


def _copy(holder: Any, key: Any, draw: Random, places: Any) -> None:
    """Copies a node over another one, or appends it to its list."""
    value = copy.deepcopy(holder[key])
    if isinstance(holder, list) and draw.random() < 0.5:
        holder.append(value)
        return
    other, place = draw.choice(places)
    if not (isinstance(other, list) and place >= len(other)):
        other[place] = value


def _rename(holder: Any, key: Any, draw: Random, _places: Any) -> None:
    if isinstance(holder, dict):
        holder[str(nasty(draw)) if draw.random() < 0.5 else f"{key}s"] = holder.pop(key)


def _wrap(holder: Any, key: Any, draw: Random, _places: Any) -> None:
    for _ in range(draw.choice((1, 1, 3, 40))):
        holder[key] = [holder[key]] if draw.random() < 0.5 else {"a": holder[key]}


_TREES: tuple[Callable[[Any, Any, Random, Any], None], ...]
_TREES = (_replace, _replace, _replace, _nudge, _nudge, _drop, _copy, _rename, _wrap)


def mutated_json(data: bytes, draw: Random, others: Sequence[bytes] = ()) -> bytes:
    """A changed tree as JSON, or JSON whose text is changed."""
    kind = draw.random()
    if kind < 0.75:
        return json.dumps(mutated_tree(json.loads(data), draw)).encode("utf-8", "surrogatepass")
    return mutated_text(data, draw, others)


def mutated_text(data: bytes, draw: Random, others: Sequence[bytes] = ()) -> bytes:
    """Text in another encoding, with lines moved, cells changed, very deep or very long; or its bytes changed."""
    return draw.choice(_TEXTS)(data, draw, others)


def _encoded(data: bytes, draw: Random, _others: Any) -> bytes:
    text = data.decode("utf-8", "replace")
    return draw.choice(("ö" + text, text)).encode(draw.choice(("utf-8-sig", "latin-1", "utf-16", "utf-32")), "replace")


def _lines(data: bytes, draw: Random, _others: Any) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    at = draw.randrange(len(lines))
    return b"".join(
        draw.choice(
            (
                [*lines[:at], *lines[at + 1 :]],
                [*lines[:at], lines[at], *lines[at:]],
                draw.sample(lines, len(lines)),
                [*lines, str(nasty(draw)).encode("utf-8", "replace") + b"\n"],
                [*lines[:at], lines[at].rstrip() + b"\r\n", *lines[at + 1 :]],
            )
        )
    )


def _cells(data: bytes, draw: Random, _others: Any) -> bytes:
    separator = draw.choice((b",", b" ", b":", b"/", b"\n"))
    cells = data.split(separator)
    cells[draw.randrange(len(cells))] = str(nasty(draw)).encode("utf-8", "replace")
    return separator.join(cells)


def _deep(data: bytes, draw: Random, _others: Any) -> bytes:
    at, opening = draw.randint(0, len(data)), draw.choice((b"[", b"{", b'{"a":', b"- ", b"&a [*a,", b'"', b"9"))
    return data[:at] + opening * draw.choice((50, 3000)) + data[at:]


_TEXTS: tuple[Callable[[bytes, Random, Any], bytes], ...]
_TEXTS = (_encoded, _lines, _cells, _cells, _deep, mutated_bytes, mutated_bytes)
