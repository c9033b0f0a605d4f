"""What a command prints at its end."""

from stm_fast.printing import say
from stm_fast.runs.object_table import MOST_SPANS, Sight
from stm_fast.runs.video import Summary


def task_name(untrained: bool) -> str:
    """The title of the progress bar of a segmentation."""
    return "segmenting, untrained" if untrained else "segmenting"


def print_summary(summary: Summary) -> None:
    """Prints a summary, after a line for each object that was lost or doubtful in some frames."""
    for sight in summary.sights:
        if sight.lost or sight.doubtful:
            say(f"object {sight.object_id}: {_trouble(sight)}")
    objects = ", ".join(map(str, summary.object_ids))
    speed = "finished earlier"
    if summary.frames > summary.resumed_at:
        speed = f"{(summary.frames - summary.resumed_at) / summary.seconds:.2f} frames/s"
    say(f"{summary.frames} frames, objects {objects}, {speed}, results in {summary.output}")


def _trouble(sight: Sight) -> str:
    """As "lost in 37 of 66 frames, last found in 00028; doubtful in 3 frames (00025, 00027 to 00028)"."""
    parts = []
    if sight.lost:
        last = f", last found in {sight.last}" if sight.state == "lost" and sight.last else ""
        parts.append(f"lost in {sight.lost} of {sight.frames} frames{last}")
    if sight.doubtful:
        shown = [first if first == last else f"{first} to {last}" for first, last in sight.spans[:MOST_SPANS]]
        where = ", ".join(shown + ["..."] * (len(sight.spans) > MOST_SPANS))
        parts.append(f"doubtful in {sight.doubtful} frame{'s' * (sight.doubtful > 1)} ({where})")
    return "; ".join(parts)


def print_untrained() -> None:
    """Warns that the masks are meaningless."""
    say("The network is untrained, as requested by --arch: its masks are meaningless.")
