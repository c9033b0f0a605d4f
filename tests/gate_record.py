"""What the compile gate passed before: compiling is the same each time for the same kernels and the same Triton.

`make gate` runs all of its tests, marked `compiles`, and writes golden/gate.json. While kernels/, those tests and
Triton stay as they were, `make test` compiles a sample again; otherwise all of them.
"""

import hashlib
import json
import zlib
from pathlib import Path

import triton

TESTS = Path(__file__).resolve().parent
RECORD = TESTS / "golden" / "gate.json"
SAMPLE = 20  # one test in so many is run again


def state(root: Path = TESTS.parent) -> dict[str, str]:
    """What decides how the gate ends."""
    digest = hashlib.sha256()
    for source in sorted([*root.glob("kernels/*.py"), *root.glob("tests/test_*gate.py")]):
        digest.update(f"{source.name}\0{source.read_text()}\0".encode())
    return {"triton": triton.__version__, "sha256": digest.hexdigest()}


def passed_before(record: Path = RECORD) -> bool:
    """Whether the gate passed with what is here."""
    return record.is_file() and json.loads(record.read_text()) == state()


def is_sampled(test: str) -> bool:
    """Whether a test, by its id, is run again; other kernels have another sample."""
    return zlib.crc32(f"{test} {state()['sha256']}".encode()) % SAMPLE == 0


if __name__ == "__main__":
    RECORD.write_text(json.dumps(state(), indent=2) + "\n")
