"""What a command prints while it runs and at its end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from stm_fast.printing import printable, say
from stm_fast.runs.output_folder import SCORES
from stm_fast.runs.score_table import sights
from stm_fast.runs.video import Summary

# file names must not be interpreted as markup
_DESCRIPTION = TextColumn("{task.description}", markup=False)


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} {self._unit}/s")


@contextmanager
def progress_bar(what: str, unit: str = "frames") -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on stderr, shown only in a terminal and removed at the end; yields its update function."""
    columns = (_DESCRIPTION, BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn())
    console = Console(stderr=True)
    # in a log, even a bar that disappears leaves an empty line
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(printable(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def task_name(untrained: bool) -> str:
    """The title of the progress bar of a segmentation."""
    return "segmenting, untrained" if untrained else "segmenting"


def print_summary(summary: Summary) -> None:
    """Prints a summary, after a line for each object that was not found in some frames."""
    for sight in sights(summary.output):
        if sight.missing:
            where = f"not found in {sight.missing} of {sight.frames} frames, last found in {sight.last}"
            say(f"{summary.output / SCORES}: object {sight.object_id} {where}")
    objects = ", ".join(map(str, summary.object_ids))
    speed = "finished earlier"
    if summary.frames > summary.resumed_at:
        speed = f"{(summary.frames - summary.resumed_at) / summary.seconds:.2f} frames/s"
    say(f"{summary.frames} frames, objects {objects}, {speed}, results in {summary.output}")


def print_untrained() -> None:
    """Warns that the masks are meaningless."""
    say("The network is untrained, as requested by --arch: its masks are meaningless.")
