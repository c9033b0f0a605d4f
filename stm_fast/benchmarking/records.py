"""What a benchmark found, as rows, and its JSON file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stm_fast.errors import InputError
from stm_fast.whole_file import whole_file

_SCHEMA = 1


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
        return json.dumps({"schema": _SCHEMA} | asdict(self), indent=indent)


def write_record(record: Record, path: Path) -> None:
    """Writes the JSON file, whole or not at all; replaces what is there. Raises InputError where it cannot."""
    with whole_file(path) as partial:
        partial.write_text(record.to_json(indent=1) + "\n")


def read_record(path: Path) -> Record:
    """The record of a JSON file. Raises InputError for a file that is none."""
    try:
        found = json.loads(path.read_text())
        if found.pop("schema") != _SCHEMA:
            raise ValueError("another schema")
        return Record(found["machine"], found["settings"], [Row(**row) for row in found["rows"]])
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected the JSON of stm-fast benchmark, schema {_SCHEMA}; {error}") from error
