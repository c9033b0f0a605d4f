"""What a command prints at its end."""

from stm_fast.printing import say
from stm_fast.runs.output_folder import SCORES
from stm_fast.runs.score_table import sights
from stm_fast.runs.video import Summary


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
