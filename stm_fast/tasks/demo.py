"""stm-fast demo: draws a clip, segments it, and prints how good the masks are."""

from fractions import Fraction
from pathlib import Path

from stm_fast.data.synthetic import SyntheticClip
from stm_fast.evaluation import region_similarity
from stm_fast.inference.engine import check_backend
from stm_fast.printing import percent, say
from stm_fast.progress import progress_bar
from stm_fast.runs.video import segment_video
from stm_fast.tasks.choice import NetworkChoice
from stm_fast.tasks.network import load_for_inference
from stm_fast.tasks.progress import print_summary, print_untrained, task_name
from stm_fast.video import OverlayVideoWriter, object_ids, read_written_mask, write_mask

_FRAME_RATE = Fraction(24)


def run_demo(
    output: Path, *, frames: int, objects: int, seed: int, network: NetworkChoice, backend: str, overwrite: bool
) -> None:
    """Writes ``clip.mp4``, ``first_mask.png`` and ``result/``, and prints the score of each object.

    Raises:
        InputError: a network or a backend that cannot run here.
    """
    model = load_for_inference(network)
    check_backend(model, backend)
    clip = SyntheticClip(seed, frames=frames, objects=objects)
    video, mask = output / "clip.mp4", output / "first_mask.png"
    with OverlayVideoWriter(video, clip.width, clip.height, _FRAME_RATE) as writer:
        for index, frame in enumerate(clip):
            writer.write(frame.image, float(index / _FRAME_RATE))
    write_mask(mask, clip[0].ids)
    with progress_bar(task_name(network.untrained)) as advance:
        summary = segment_video(
            video,
            mask,
            output / "result",
            model=model,
            backend=backend,
            overwrite=overwrite,
            progress=advance,
        )
    _print_similarity(clip, output / "result/masks")
    print_summary(summary)
    if network.untrained:
        print_untrained()
    say(
        f"Watch {summary.output / 'overlay.mp4'}; it was made from {video} and {mask}.",
        "Your own video: stm-fast open clip.mp4, or stm-fast segment clip.mp4 --masks first.png --output out",
    )


def _print_similarity(clip: SyntheticClip, masks: Path) -> None:
    """Prints the J of each object in percent, as the mean over all frames but the first."""
    say("Overlap of the masks with the true ones (J, in percent):")
    files = sorted(masks.glob("*.png"))
    pairs = [(read_written_mask(file).ids, clip[index].ids) for index, file in enumerate(files)][1:]
    for object_id in object_ids(clip[0].ids):
        scores = [float(region_similarity(found == object_id, truth == object_id)) for found, truth in pairs]
        say(f"object {object_id}: J = {percent(sum(scores) / len(scores))}")
