"""What passed before and would pass again, because nothing that decides it has changed.

The compile gate, whose tests are marked `compiles`, comes out the same for the same kernels/ and the same Triton; cases
that Triton interprets, for the same operators too. Both take minutes. `make gate` runs all of both, with those
marked `experimental`, and writes golden/gate.json; while the sources stay as they were, `make test` runs a sample,
otherwise all.
"""

import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pytest
import triton

Kind = Literal["compiled", "interpreted"]

TESTS = Path(__file__).resolve().parent
RECORD = TESTS / "golden" / "gate.json"
SOURCES: dict[Kind, tuple[str, ...]] = {
    "compiled": ("kernels/**/*.py", "tests/gate/*.py", "tests/test_*gate.py"),
    "interpreted": (
        *("kernels/**/*.py", "stm_fast/ops/*.py", "stm_fast/testing/*.py"),
        *("tests/*_engine_cases.py", "tests/test_known_calls.py"),
    ),
}
INTERPRETED_AGAIN = ("--few", "1", "--one-in", "3")  # one case of a third of the tests
_COMPILED_AGAIN = 20  # one case in so many


def state(root: Path = TESTS.parent) -> dict[str, str]:
    """What decides how both end."""
    return {"triton": triton.__version__} | {kind: _digest(root, patterns) for kind, patterns in SOURCES.items()}


def _digest(root: Path, patterns: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for source in sorted(path for pattern in patterns for path in root.glob(pattern)):
        digest.update(f"{source.name}\0{source.read_text()}\0".encode())
    return digest.hexdigest()


def passed_before(kind: Kind, record: Path = RECORD) -> bool:
    """Whether everything passed with the present sources and Triton."""
    if not record.is_file():
        return False
    recorded, now = json.loads(record.read_text()), state()
    return all(recorded.get(name) == now[name] for name in ("triton", kind))


def compiled_again(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Those that are not of the compile gate, and a sample of those that are: another one for other kernels."""
    seed = state()["compiled"]
    return [
        item
        for item in items
        if item.get_closest_marker("compiles") is None or _number(item, seed) % _COMPILED_AGAIN == 0
    ]


def few(items: Iterable[pytest.Item], most: int) -> list[pytest.Item]:
    """A sample of at most this many cases of each test, which depends on the kernels and operators."""
    seed = state()["interpreted"]
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    return [item for those in cases.values() for item in sorted(those, key=lambda case: _number(case, seed))[:most]]


def one_in(items: Iterable[pytest.Item], many: int) -> list[pytest.Item]:
    """A sample of every n-th item, which depends on the kernels and operators."""
    seed = state()["interpreted"]
    return sorted(items, key=lambda item: _number(item, seed))[::many]


def _number(item: pytest.Item, seed: str) -> int:
    return zlib.crc32(f"{item.nodeid} {seed}".encode())


if __name__ == "__main__":
    RECORD.write_text(json.dumps(state(), indent=2) + "\n")
