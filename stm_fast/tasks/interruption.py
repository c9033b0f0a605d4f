"""Ctrl-C and SIGTERM: a run ends after the current frame, and the user is told how to resume it."""

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from stm_fast.runs.ranks import launched

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FROM_SIGNALS = 128  # shells report 128 + the number of the signal


class Stop:
    """Whether a signal has asked the run to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """130 after ctrl-C, 143 after SIGTERM."""
        return _FROM_SIGNALS + (self.signal or signal.SIGINT)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Within the block, the first signal asks the run to stop; a second one ends the program at once."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _: FrameType | None) -> None:
        stop.signal = number
        restore()

    for number in _SIGNALS:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()


def how_to_resume() -> tuple[str, str]:
    """A line, and the command that resumes this run; the user has to repeat the options of torchrun."""
    is_script = Path(sys.argv[0]).name != "__main__.py"
    program = [sys.argv[0]] if is_script else [sys.executable, "-m", "stm_fast"]
    given = [argument for argument in sys.argv[1:] if argument not in ("--overwrite", "--resume")]
    # right after the command, because its arguments may contain "--"
    at = next((index for index, argument in enumerate(given, start=1) if not argument.startswith("-")), 0)
    again = [*given[:at], "--resume", *given[at:]]
    if launched().world == 1:
        return "To resume:", _joined([*program, *again])
    program = ["--no-python", *program] if is_script else program[1:]
    return "To resume, with torchrun's options as before:", f"torchrun ... {_joined([*program, *again])}"


def _joined(words: list[str]) -> str:
    """A command to copy into a shell, with unprintable characters escaped."""
    return " ".join(shlex.quote(word) if word.isprintable() else _escaped(word) for word in words)


def _escaped(word: str) -> str:
    codes = (chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:03o}" for byte in os.fsencode(word))
    return f"$'{''.join(codes)}'"
