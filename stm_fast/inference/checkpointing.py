"""Where an interrupted run goes on: hidden files in its output folder, replaced as it advances, gone when it is done.

``.resume.json`` names the run and the position; ``.resume-<position>-<rank>.safetensors`` is the state of each process
at that position. The JSON file is renamed into place when every state is whole and on the disk, so it never names one
that is not.
"""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from stm_fast.errors import InputError
from stm_fast.inference.crew import Crew
from stm_fast.inference.identity import Run
from stm_fast.inference.output_folder import RECORD, STATES
from stm_fast.tensor_file import write_tensors
from stm_fast.whole_file import make_folder, whole_file

_FORMAT = 1
# of the time of a run that its checkpoints may take
_SHARE = 0.1


class Position(NamedTuple):
    """How far a run has come."""

    frames: int  # that are done: segmented, and written
    finished: bool
    object_ids: list[int]


class Checkpoint:
    """The checkpoint of one run, held by every process that takes part in it.

    Args:
        folder: of the results.
        run: from `describe_run`.
        crew: the processes.
    """

    def __init__(self, folder: Path, run: Run, crew: Crew) -> None:
        self._folder, self._run, self._crew = folder, run, crew

    def find(self) -> Position | None:
        """Where the run ended; None where there is no checkpoint.

        Raises:
            InputError: the checkpoint of another run, or a damaged one.
        """
        record = self._read()
        if record is None:
            return None
        for name, expected in self._run.items():
            found = record["run"].get(name)
            if found != expected:
                raise InputError(
                    f"{self._folder}: holds results of another run; its {name}: found {_shown(found, expected)}, "
                    f"expected {_shown(expected, found)}; give another output folder, or --overwrite"
                )
        return Position(record["frames"], record["finished"], record["object_ids"])

    def load(self, position: Position) -> dict[str, Tensor]:
        """The state of this process at the position. Its rows are mapped, not read, until they are used."""
        path = self._state_path(position.frames)
        try:
            return safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: the checkpoint is damaged ({error}); start again with --overwrite") from error

    def save(self, frames: int, object_ids: list[int], state: dict[str, Tensor]) -> None:
        """Replaces the checkpoint. What is written for the first `frames` frames has to be on disk already."""
        make_folder(self._folder)
        if state:
            write_tensors(self._state_path(frames), state, durable=True)
        # every process's state is there before the record names it, and the record before old states go
        self._crew.any(False)
        self._write(Position(frames, False, object_ids))
        self._crew.any(False)
        for path in self._folder.glob(f".resume-*-{self._crew.rank}.safetensors"):
            if path != self._state_path(frames):
                path.unlink(missing_ok=True)

    def finish(self, frames: int, object_ids: list[int], *, leave_record: bool) -> None:
        """Removes the checkpoint; or leaves a record that says that the run is done."""
        self._crew.any(False)
        if leave_record:
            self._write(Position(frames, True, object_ids))
        elif self._crew.leads:
            (self._folder / RECORD).unlink(missing_ok=True)
        if self._crew.leads:
            # also those of a run with more processes that was given up
            for path in self._folder.glob(STATES):
                path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        path = self._folder / RECORD
        try:
            record = json.loads(path.read_text())
            if record["format"] == _FORMAT and record.keys() >= {"run", *Position._fields}:
                return dict(record)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError):
            pass
        raise InputError(f"{path}: not a checkpoint of this version; start again with --overwrite")

    def _write(self, position: Position) -> None:
        if self._crew.leads:
            record = {"format": _FORMAT, **position._asdict(), "run": self._run}
            with whole_file(self._folder / RECORD, durable=True) as partial:
                partial.write_text(json.dumps(record, indent=1) + "\n")

    def _state_path(self, frames: int) -> Path:
        return self._folder / f".resume-{frames}-{self._crew.rank}.safetensors"


class Pace:
    """Says when the next checkpoint is due: not more often than asked for, nor so often that it slows the run down.

    Args:
        seconds: between two checkpoints, at least.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._next

    def saved(self, since: float) -> None:
        """A checkpoint that was begun at `since`, of `time.monotonic`, is there."""
        now = time.monotonic()
        self._next = now + max(self._seconds, (now - since) / _SHARE)


def _shown(value: Any, other: Any) -> str:
    """A value for one line; of two dictionaries only what differs."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items() if other.get(name) != entry)
    return str(value)
