"""How far the work is: a bar on a terminal, otherwise a line every ten seconds; both on stderr."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

from stm_fast.printing import printable, remark
from stm_fast.runs.ranks import launched

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int, int | None], None]  # takes the number of things done, and of all or None if it is unknown

_SECONDS = 10.0  # between two lines
_LINES = 6  # the rate is that since so many lines before


@contextmanager
def progress_bar(what: str, unit: str = "frames") -> Iterator[Advance]:
    """Shows the progress of the work in the block, unless only errors are wanted; yields its update function.

    On a terminal it is a bar, which is removed at the end. In a log even such a bar leaves an empty line, so there a
    line is printed every ten seconds, and none about shorter work.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not logging.getLogger("stm_fast").isEnabledFor(logging.WARNING):
        yield lambda done, total: None
    elif console.is_terminal:
        with _bar(what, unit, console) as advance:
            yield advance
    else:
        with _lines(what, unit) as advance:
            yield advance


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows that work without parts is going on; of several processes, the first one does."""
    if not launched().leads:
        yield
        return
    with progress_bar(what, ""):
        yield


@contextmanager
def _bar(what: str, unit: str, console: "Console") -> Iterator[Advance]:
    from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Counted(TextColumn):
        """What is done, at which rate, and when the rest will be."""

        def render(self, task: Task) -> Text:
            total = None if task.total is None else round(task.total)
            begun = total is not None or task.completed > 0
            return Text(_described(round(task.completed), total, unit, task.speed) if begun else "")

    # file names must not be interpreted as markup
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), Counted(""), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(printable(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _lines(what: str, unit: str) -> Iterator[Advance]:
    start = time.monotonic()
    now: tuple[int, int | None] | None = None
    seen = deque([(start, 0)], maxlen=_LINES)
    ended = Event()

    def advance(done: int, total: int | None) -> None:
        nonlocal now
        if now is None:  # a resumed run has done something already
            seen[0] = time.monotonic(), done
        now = done, total

    def tell() -> None:
        while not ended.wait(_SECONDS):
            seconds = time.monotonic()
            if now is None:
                remark(f"{what}: {_clock(seconds - start)} so far")
                continue
            (done, total), (before, earlier) = now, seen[0]
            seen.append((seconds, done))
            remark(f"{what}: {_described(done, total, unit, (done - earlier) / (seconds - before))}")

    # a thread, because a single step may take minutes
    thread = Thread(target=tell, name="stm_fast-progress", daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        ended.set()
        thread.join()


def _described(done: int, total: int | None, unit: str, rate: float | None) -> str:
    """Such as "120/300 frames, 4.1 frames/s, 0:44 left"."""
    parts = [f"{done} {unit}" if total is None else f"{done}/{total} {unit}"]
    if rate:
        parts.append(f"{rate:.3g} {unit}/s")
    if rate and total is not None:
        parts.append(f"{_clock(max(total - done, 0) / rate)} left")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
