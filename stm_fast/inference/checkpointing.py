"""Where an interrupted run goes on: hidden files in its output folder, replaced as it advances, gone when it is done.

``.resume.json`` names the run and the position; ``.resume-<position>-<rank>.safetensors`` is the state of each process
at that position. The JSON file is renamed into place when every state is whole and on the disk, so it never names one
that is not. Both kinds have a checksum, and a state says whose it is: what was damaged or mixed up is refused.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from stm_fast.errors import InputError, reading
from stm_fast.inference.crew import Crew
from stm_fast.inference.identity import Run
from stm_fast.inference.objects import MAX_ID
from stm_fast.inference.output_folder import RECORD, STATES
from stm_fast.record_file import difference, read_record_file, typed, write_record_file
from stm_fast.tensor_file import read_tensors, write_tensors
from stm_fast.whole_file import make_folder

_FORMAT = 2
_START_AGAIN = "start again with --overwrite"
# of the time of a run that its checkpoints may take
_SHARE = 0.1


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    frames: int  # that are done: segmented, and written
    finished: bool
    object_ids: list[int]
    scores: int = 0  # the checksum of what is written to the table of scores, see `ScoreTable`

    def check(self) -> None:
        """Raises ValueError for numbers that no run has."""
        distinct = set(self.object_ids)
        if self.frames < 0 or len(distinct) < len(self.object_ids) or not distinct <= set(range(1, MAX_ID + 1)):
            raise ValueError(f"found {self.frames} frames and the objects {self.object_ids}")


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
        with reading(self._folder):
            if not (self._folder / RECORD).exists():
                return None
        position, run = self._read()
        differs = difference(run, self._run)
        if differs is not None:
            raise InputError(
                f"{self._folder}: holds results of another run; {differs}; give another output folder, or --overwrite"
            )
        return position

    def load(self, position: Position, take: Callable[[Mapping[str, Tensor]], None]) -> None:
        """Gives `take` the state of this process at the position. Its rows are mapped until they are used.

        Args:
            take: may raise ValueError for what it is no state to.

        Raises:
            InputError: this state is damaged, or another one; or that of another process is.
        """
        self._crew.together(lambda: self._load(position, take))

    def save(self, frames: int, object_ids: list[int], state: dict[str, Tensor], scores: int = 0) -> None:
        """Replaces the checkpoint. What is written for the first `frames` frames has to be on disk already.

        Args:
            scores: the checksum of the table of scores.
        """
        make_folder(self._folder)
        if state:
            write_tensors(self._state_path(frames), state, self._facts(frames), durable=True, checksum=True)
        # every process's state is there before the record names it, and the record before old states go
        self._crew.any(False)
        self._write(Position(frames, False, object_ids, scores))
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

    def _load(self, position: Position, take: Callable[[Mapping[str, Tensor]], None]) -> None:
        path = self._state_path(position.frames)
        try:
            state, facts = read_tensors(path)
            differs = difference(facts, self._facts(position.frames))
            if differs is not None:
                raise ValueError(f"it is another state, {differs}")
            take(state)
        except InputError:
            raise  # of `take`: no room for it
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{path}: the checkpoint is damaged ({why}); {_START_AGAIN}") from error

    def _read(self) -> tuple[Position, Run]:
        path, what = self._folder / RECORD, "a checkpoint of this version"
        content = read_record_file(path, what, _START_AGAIN)
        known, run = content.pop("format", None) == _FORMAT, content.pop("run", None)
        try:
            position: Position = typed(content, Position, "record")
            position.check()
        except ValueError:
            known = False
        if known and isinstance(run, dict):
            return position, run
        raise InputError(f"{path}: not {what}; {_START_AGAIN}")

    def _write(self, position: Position) -> None:
        if self._crew.leads:
            record = {"format": _FORMAT, **asdict(position), "run": self._run}
            write_record_file(self._folder / RECORD, record, durable=True)

    def _facts(self, frames: int) -> dict[str, str]:
        """What a state says of itself."""
        run = hashlib.sha256(json.dumps(self._run, sort_keys=True).encode()).hexdigest()
        return {"format": str(_FORMAT), "run": run, "rank": str(self._crew.rank), "frames": str(frames)}

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
