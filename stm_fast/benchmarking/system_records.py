"""What a run of the system benchmark found, and its JSON file."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stm_fast.benchmarking.records import SCHEMA, read_kind
from stm_fast.benchmarking.system import SystemRow
from stm_fast.benchmarking.system_workload import SystemWorkload
from stm_fast.record_file import write_record_file


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
    write_record_file(path, {"schema": SCHEMA} | asdict(record))


def read_system_record(path: Path) -> SystemRecord:
    """The record of a JSON file. Raises InputError for a file that is none, or damaged."""
    return read_kind(path, SystemRecord, "stm-fast benchmark --system")
