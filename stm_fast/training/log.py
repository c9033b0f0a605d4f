"""The log of a training run: JSON lines, and TensorBoard events if TensorBoard is installed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stm_fast.errors import InputError
from stm_fast.text_file import read_text
from stm_fast.whole_file import whole_file, writing

Line = Mapping[str, Any]


@dataclass
class Window:
    """Statistics of the steps since the last line of the log."""

    losses: list[float] = field(default_factory=list)  # of each step, over all processes
    seconds: float = 0.0
    skipped: int = 0  # corrupt items, since the run began

    def line(self, batch: int) -> dict[str, Any]:
        """The entries of a log line; a step has `batch` clips."""
        steps = len(self.losses)
        return {
            "loss": sum(self.losses) / steps,
            "clips_per_second": round(steps * batch / self.seconds, 3),
            "skipped": self.skipped,
        }


class TrainingLog:
    """Appends to ``log.jsonl`` in a run's folder; each line has the number of completed steps, `step`.

    Args:
        folder: of the run.
        step: number of completed steps; lines of later steps, from before an interruption, are deleted.

    Raises:
        InputError: the log cannot be written (also in `write`), or existing lines are damaged.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._file = folder / "log.jsonl"
        _truncate(self._file, step)
        self._folder = folder / "tensorboard"
        with writing(self._folder):
            self._board = _tensorboard(self._folder, step)

    def write(self, line: Line) -> None:
        """Appends a line."""
        with writing(self._file), self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is None:
            return
        with writing(self._folder):
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(name, value, line["step"])
            self._board.flush()


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log, without a last line that is incomplete.

    Raises:
        InputError: the file cannot be read, or a line is not as `TrainingLog` writes it.
    """
    *whole, _ = read_text(file, "the log of a training run").split("\n")
    return [_parsed(line, number, file) for number, line in enumerate(whole, 1)]


def _parsed(line: str, number: int, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or type(found.get("step")) is not int:
        raise InputError(f"{file}: line {number} is damaged, expected JSON with a step; repair or move the file")
    return found


def _truncate(file: Path, step: int) -> None:
    kept = [line for line in read_log(file) if line["step"] <= step] if file.is_file() else []
    with whole_file(file) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
