"""Records of benchmarks, all of one shape: the machine, the settings, and a row for each measurement."""

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil
import torch

from stm_fast.benchmarking.shapes import FrameWorkload
from stm_fast.errors import InputError
from stm_fast.network.deploy.precision import cpu_instructions
from stm_fast.record_file import read_record_file, typed, with_checksum, write_record_file
from stm_fast.versions import version_of

SCHEMA = 3
PUBLISHED = "published"  # the route, and the variant of a whole frame, that the others are compared with
AnyRow = TypeVar("AnyRow")
_CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class ReadRow:
    """One route on one workload: either its times, or the reason why it was not timed."""

    shape: str
    dtype: str
    pass_name: str
    route: str
    skipped: str | None = None  # the reason
    seconds: float | None = None  # the median
    seconds_20: float | None = None  # quantiles
    seconds_80: float | None = None
    host_seconds: float | None = None  # median, until the call returned
    rounds: int = 0
    first_call_seconds: float | None = None  # with everything that is compiled or loaded then
    tflop_per_second: float | None = None
    fraction_of_mm: float | None = None  # of the rate of torch.mm in the same rounds
    gb_per_second: float | None = None
    extra_bytes: int | None = None  # at the peak, beyond inputs and results
    error: float | None = None  # relative to float64


@dataclass(frozen=True)
class FrameRow:
    """What one variant took for a whole frame; seconds of a frame, medians over the rounds."""

    workload: FrameWorkload
    variant: str
    rounds: int
    frame_seconds: float
    frame_seconds_20: float  # quantiles
    frame_seconds_80: float
    stage_seconds: dict[str, float] = field(default_factory=dict)
    similarity: float = 1.0  # J between its masks and those of the first variant, mean over objects and frames
    peak_bytes: int | None = None  # beyond the loaded network; None where it was not measured
    background_seconds: dict[str, float] = field(default_factory=dict)  # of decoding and writing, which run in parallel


@dataclass
class Record(Generic[AnyRow]):
    """A run: where, with what settings, and every row."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[AnyRow] = field(default_factory=list)

    def to_json(self) -> str:
        """The content of the file, on one line."""
        return json.dumps(with_checksum(self._content()))

    def write(self, path: Path) -> None:
        """Writes the JSON file atomically; replaces an existing file. Raises InputError if that fails."""
        write_record_file(path, self._content())

    def _content(self) -> dict[str, Any]:
        return {"schema": SCHEMA} | asdict(self)


def read_record(path: Path, row_type: type[AnyRow]) -> Record[AnyRow]:
    """The record of a JSON file with such rows. Raises InputError for any other file, and for a damaged one."""
    what, advice = f"a benchmark record, schema {SCHEMA}", "measure again"
    content = read_record_file(path, what, advice)
    try:
        if content.pop("schema", None) != SCHEMA:
            raise ValueError("another schema")
        if content.keys() != {"machine", "settings", "rows"}:
            raise ValueError("other entries")
        machine, settings = (typed(content[name], dict[str, Any], name) for name in ("machine", "settings"))
        return Record(machine, settings, typed(content["rows"], list[row_type], "rows"))  # type: ignore[valid-type]
    except ValueError as error:
        raise InputError(f"{path}: not {what} ({error}); {advice}") from None


def describe_machine(device: str) -> dict[str, Any]:
    """Hardware, versions, commit, date, and everything else that changes a time."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": device,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cpu": _cpu_name(),
        "cpu_capability": cpu_instructions(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in psutil.getloadavg()],
        "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE"),
        "stm_fast": version_of("stm_fast"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version_of("triton"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _commit() -> str | None:
    """The commit of the checkout the package runs from, marked where files differ; None for an installed package."""
    if not (_CHECKOUT / "pyproject.toml").is_file():
        return None
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty= with changes"]
    try:
        done = subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
