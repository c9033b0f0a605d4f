"""What a benchmark found, as rows, and its JSON file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from stm_fast.errors import InputError
from stm_fast.record_file import read_record_file, typed, with_checksum, write_record_file

SCHEMA = 2
_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class Row:
    """One route on one workload; either times or the reason why there are none."""

    shape: str
    dtype: str
    pass_name: str
    route: str
    refused: str | None = None
    seconds: float | None = None  # the median
    seconds_20: float | None = None  # quantiles
    seconds_80: float | None = None
    host_seconds: float | None = None  # median, until the call returned
    rounds: int = 0
    first_call_seconds: float | None = None  # with whatever is compiled or loaded then
    tflop_per_second: float | None = None
    fraction_of_mm: float | None = None  # of the rate of torch.mm in the same rounds
    gb_per_second: float | None = None
    extra_bytes: int | None = None  # at the peak, beyond inputs and results
    error: float | None = None  # relative to float64


@dataclass
class Record:
    """A run: where, with what settings, and every row."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def to_json(self, indent: int | None = None) -> str:
        """One JSON object; on one line without an indent."""
        return json.dumps(with_checksum({"schema": SCHEMA} | asdict(self)), indent=indent)


def write_record(record: Record, path: Path) -> None:
    """Writes the JSON file, whole or not at all; replaces what is there. Raises InputError where it cannot."""
    write_record_file(path, {"schema": SCHEMA} | asdict(record))


def read_record(path: Path) -> Record:
    """The record of a JSON file. Raises InputError for a file that is none, or damaged."""
    return read_kind(path, Record, "stm-fast benchmark")


def read_kind(path: Path, kind: type[_Kind], command: str) -> _Kind:
    """What a command's JSON file holds: a schema, and a dataclass. Raises InputError as `read_record` does."""
    what, advice = f"the JSON of {command}, schema {SCHEMA}", "measure again"
    content = read_record_file(path, what, advice)
    try:
        if content.pop("schema", None) != SCHEMA:
            raise ValueError("another schema")
        found: _Kind = typed(content, kind, "record")
    except ValueError as error:
        raise InputError(f"{path}: not {what} ({error}); {advice}") from None
    return found
