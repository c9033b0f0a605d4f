"""What a run of the system benchmark found, and its JSON file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stm_fast.benchmarking.system import SystemRow
from stm_fast.benchmarking.system_workload import SystemWorkload
from stm_fast.errors import InputError
from stm_fast.whole_file import whole_file

_SCHEMA = 1


@dataclass
class SystemRecord:
    """A run: where, every row, and what goes on beside the network."""

    machine: dict[str, Any]
    rows: list[SystemRow] = field(default_factory=list)
    beside_seconds: dict[str, dict[str, float]] = field(default_factory=dict)  # by the workload's name

    def workloads(self) -> list[list[SystemRow]]:
        """The rows of each workload, in the order of the run."""
        found: dict[SystemWorkload, list[SystemRow]] = {}
        for row in self.rows:
            found.setdefault(row.workload, []).append(row)
        return list(found.values())


def write_system_record(record: SystemRecord, path: Path) -> None:
    """Writes the JSON file, whole or not at all; replaces what is there. Raises InputError where it cannot."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps({"schema": _SCHEMA} | asdict(record), indent=1) + "\n")


def read_system_record(path: Path) -> SystemRecord:
    """The record of a JSON file. Raises InputError for a file that is none."""
    try:
        found = json.loads(path.read_text())
        if found["schema"] != _SCHEMA:
            raise ValueError("another schema")
        rows = [SystemRow(**row | {"workload": SystemWorkload(**row["workload"])}) for row in found["rows"]]
        return SystemRecord(found["machine"], rows, found["beside_seconds"])
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: expected the JSON of stm-fast benchmark --system, schema {_SCHEMA}; {error}"
        ) from error
