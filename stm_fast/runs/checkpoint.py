"""Checkpoints of a run: hidden files in its output folder, replaced as it advances and removed at its end.

``.resume.json`` describes the run and the position; ``.resume-<position>-<rank>.safetensors`` is the state of each
process at that position. The JSON file is renamed into place once every state is on disk. Both kinds have a checksum,
and a state names its run, rank and position, so that damaged or mixed up files are refused.
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stm_fast.choices import Result
from stm_fast.errors import InputError, option, reading
from stm_fast.frame_source import FrameSource
from stm_fast.inference.objects import MAX_ID
from stm_fast.inference.options import RunOptions
from stm_fast.network import STM
from stm_fast.network.fingerprint import fingerprint
from stm_fast.record_file import as_json, difference, read_record_file, typed, write_record_file
from stm_fast.runs.environment import environment
from stm_fast.runs.given import GivenMasks
from stm_fast.runs.output_folder import RECORD, RUN, START_AGAIN, STATES, Job
from stm_fast.runs.ranks import Ranks
from stm_fast.tensor_file import read_tensors, write_tensors
from stm_fast.versions import __version__
from stm_fast.whole_file import make_folder

# everything that the masks of a run depend on, as plain JSON
Description = dict[str, Any]

_FORMAT = 4
# the largest share of the run time that checkpoints may take
_SHARE = 0.1


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    frames: int  # segmented and written
    finished: bool
    object_ids: list[int]
    table: int = 0  # the checksum of the table of these frames, see `ObjectTable`

    def check(self) -> None:
        """Raises ValueError for impossible numbers."""
        distinct = set(self.object_ids)
        if self.frames < 0 or len(distinct) < len(self.object_ids) or not distinct <= set(range(1, MAX_ID + 1)):
            raise ValueError(f"found {self.frames} frames and the objects {self.object_ids}")


class Checkpoint:
    """The checkpoint of a run, used by each of its processes.

    Args:
        folder: the output folder.
        run: the description of the run.
        ranks: its processes.
        saved: called when the checkpoint was replaced.
    """

    def __init__(self, folder: Path, run: Description, ranks: Ranks, saved: Callable[[], None] = lambda: None) -> None:
        self._folder, self._run, self._ranks, self._saved = folder, run, ranks, saved

    def find(self) -> Position | None:
        """The position of the checkpoint; None if there is none.

        Raises:
            InputError: a checkpoint of another run, or a damaged one.
        """
        with reading(self._folder):
            if not (self._folder / RECORD).exists():
                return None
        position, run = _read(self._folder)
        check_same(self._folder, run, self._run, f"give another output folder, or {option('overwrite', True)}")
        return position

    def restore(self, position: Position, take: Callable[[Mapping[str, Tensor]], None]) -> None:
        """Passes the state of this process at the position to `take`. The file is memory-mapped.

        Args:
            take: raises ValueError for a state that does not fit.

        Raises:
            InputError: the state of this or another process is damaged or does not fit.
        """
        self._ranks.together(lambda: self._restore(position, take))

    def save(self, frames: int, object_ids: list[int], state: dict[str, Tensor], table: int = 0) -> None:
        """Replaces the checkpoint. The results of the first `frames` frames must be on disk already.

        Args:
            table: its checksum, see `ObjectTable`.
        """
        make_folder(self._folder)
        if state:
            write_tensors(self._state_path(frames), state, self._facts(frames), durable=True, checksum=True)
        # first every state, then the record that names them; old states are removed last
        self._ranks.any(False)
        self._write(Position(frames, False, object_ids, table))
        self._ranks.any(False)
        for path in self._folder.glob(f".resume-*-{self._ranks.rank}.safetensors"):
            if path != self._state_path(frames):
                path.unlink(missing_ok=True)
        self._saved()

    def finish(self, frames: int, object_ids: list[int], *, leave_record: bool) -> None:
        """Removes the checkpoint, or leaves only a record that the run is finished."""
        self._ranks.any(False)
        if leave_record:
            self._write(Position(frames, True, object_ids))
        self.remove(record=not leave_record)

    def remove(self, *, record: bool = True) -> None:
        """Removes the checkpoint, or only its states."""
        if not self._ranks.leads:
            return
        if record:
            (self._folder / RECORD).unlink(missing_ok=True)
        # also those of an abandoned run with more processes
        for path in self._folder.glob(STATES):
            path.unlink(missing_ok=True)

    def _restore(self, position: Position, take: Callable[[Mapping[str, Tensor]], None]) -> None:
        path = self._state_path(position.frames)
        try:
            state, facts = read_tensors(path)
            differs = difference(facts, self._facts(position.frames))
            if differs is not None:
                raise ValueError(f"it is another state, {differs}")
            take(state)
        except InputError:
            raise  # from `take`: out of memory
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{path}: the checkpoint is damaged ({why}); {START_AGAIN}") from error

    def _write(self, position: Position) -> None:
        if self._ranks.leads:
            record = {"format": _FORMAT, **asdict(position), "run": self._run}
            write_record_file(self._folder / RECORD, record, durable=True)

    def _facts(self, frames: int) -> dict[str, str]:
        """The metadata of a state."""
        run = hashlib.sha256(json.dumps(self._run, sort_keys=True).encode()).hexdigest()
        return {"format": str(_FORMAT), "run": run, "rank": str(self._ranks.rank), "frames": str(frames)}

    def _state_path(self, frames: int) -> Path:
        return self._folder / f".resume-{frames}-{self._ranks.rank}.safetensors"


def position_in(folder: Path) -> Position:
    """The position of the checkpoint of any run in a folder. Raises InputError for a damaged one."""
    return _read(folder)[0]


def _read(folder: Path) -> tuple[Position, Description]:
    path, what = folder / RECORD, "a checkpoint of this version"
    content = read_record_file(path, what, START_AGAIN)
    known, run = content.pop("format", None) == _FORMAT, content.pop("run", None)
    try:
        position: Position = typed(content, Position, "record")
        position.check()
    except ValueError:
        known = False
    if known and isinstance(run, dict):
        return position, run
    raise InputError(f"{path}: not {what}; {START_AGAIN}")


def describe_network(model: STM) -> Description:
    """Architecture, weights and dtype."""
    return {
        "network": str(model.architecture),
        "weights_sha256": fingerprint(model),
        "dtype": str(next(model.parameters()).dtype),
    }


def describe_video_run(
    job: Job, given: GivenMasks, model: STM, options: RunOptions, write: Collection[Result], ranks: int
) -> Description:
    """Describes a run over one video, which is identified by the name, size and modification time of its files, or by
    its URL, in a store also by the versions of its objects; masks, by content.

    The number of ranks is included, because each keeps its own part of the memory; the folder of a memory on disk is
    not.
    """
    return as_json(
        {
            "video": _identity(job.source),
            "masks": given.digest,
            "both": job.both,
            **describe_network(model),
            "compiled": model.compiled,
            "device": next(model.parameters()).device.type,
            **options.described(),
            "write": sorted(write),
            "ranks": ranks,
            "stm_fast": __version__,
        }
    )


def write_run_record(folder: Path, run: Description, frames: int, object_ids: list[int], device: torch.device) -> None:
    """Writes run.json: what was segmented, with which network, options and versions. It has no times of day.

    Args:
        run: from `describe_video_run`.
        device: of the network.

    Raises:
        InputError: it cannot be written.
    """
    found = {"frames": frames, "objects": object_ids}
    write_record_file(folder / RUN, {"run": run, **found, "environment": environment(device)})


def check_same(folder: Path, found: Description, expected: Mapping[str, Any], advice: str) -> None:
    """Raises InputError, with `advice`, if the run in a folder is not the expected one."""
    differs = difference(found, as_json(expected))
    if differs is not None:
        raise InputError(f"{folder}: holds results of another run; {differs}; {advice}")


class CheckpointTimer:
    """Decides when the next checkpoint is due, so that checkpoints do not slow the run down.

    Args:
        seconds: minimum time between checkpoints.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._next

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Times the writing of a checkpoint inside the block."""
        start = time.monotonic()
        yield
        now = time.monotonic()
        self._next = now + max(self._seconds, (now - start) / _SHARE)


def _identity(source: FrameSource) -> str:
    if source.identity is not None:
        return source.identity
    if source.kind == "glob":
        return f"{source.name}, {_identity_of_all(source.files)}"
    if source.path is not None:
        identity = _identity_of(source.path)
        return f"{source.name}, {identity}" if source.path.is_dir() else identity
    # a digest, because it may contain a password
    return f"{source.label} {hashlib.sha256(source.text.encode(errors='surrogateescape')).hexdigest()}"


def _identity_of(path: Path) -> str:
    """Name, size and modification time of a file; for a folder, a digest of those of its files."""
    if path.is_dir():
        return _identity_of_all(file for file in path.iterdir() if file.is_file())
    facts = path.stat()
    return f"{path.name} {facts.st_size} bytes {facts.st_mtime_ns}"


def _identity_of_all(files: Iterable[Path]) -> str:
    lines = sorted(map(_identity_of, files))
    return f"{len(lines)} files {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"
