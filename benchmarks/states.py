"""How often "doubtful" and "lost" are right, and how often a wrong mask is called "found", against annotations.

python benchmarks/states.py DAVIS --sequence bmx-bumps --sequence flamingo [--backward] [--weights open]
"""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from annotated import Sequence, sequences
from stm_fast import STM, VideoSegmenter, load
from stm_fast.evaluation import region_similarity
from stm_fast.inference.engine import Segmentation
from stm_fast.video.image_folder import read_frame

WRONG = 0.5  # J below which a mask is wrong


def judged(result: Segmentation, sequence: Sequence) -> Counter[str]:
    """Counts of "frames", "warned", "right", "wrong" and "missed", of the objects in an annotated frame."""
    truth, mask = sequence.read(result.frame_index), result.mask.numpy()
    counts = Counter[str]()
    for sighting in result.sightings:
        own = truth == sighting.object_id
        wrong = float(region_similarity(mask == sighting.object_id, own)) < WRONG
        warned = sighting.state != "found"
        counts["frames"] += 1
        counts["warned"] += warned
        counts["right"] += warned and (wrong or not own.any())
        counts["wrong"] += wrong
        counts["missed"] += wrong and not warned
    return counts


def judge(sequence: Sequence, model: STM) -> Counter[str]:
    """The counts of a sequence, segmented from the annotation of its first frame."""
    frames = (read_frame(file).transpose(2, 0, 1) for file in sequence.frames)
    counts = Counter[str]()
    for result in VideoSegmenter(model).propagate(frames, {0: sequence.read(0)}):
        if result.frame_index and result.frame_index in sequence.masks:
            counts += judged(result, sequence)
    return counts


def main(
    root: Annotated[Path, typer.Argument(help="With JPEGImages and Annotations, as in DAVIS.")],
    sequence: Annotated[list[str] | None, typer.Option(help="Only these sequences.")] = None,
    weights: Annotated[str, typer.Option(help="As for stm_fast.load.")] = "default",
    backward: Annotated[bool, typer.Option("--backward", help="Play the sequences backward.")] = False,
) -> None:
    """Prints a line for each sequence with something wrong or a warning, and the sums."""
    model, total = load(weights, dtype="float32"), Counter[str]()
    for one in sequences(root, sequence or ()):
        counts = judge(one.backward() if backward else one, model)
        total += counts
        if counts["warned"] or counts["wrong"]:
            print(described(one.name, counts))
    print(described("all", total))


def described(name: str, counts: Counter[str]) -> str:
    """One line."""
    right, missed = f"{counts['right']} of {counts['warned']}", f"{counts['missed']} of {counts['wrong']}"
    return f"{name}: {counts['frames']} frames, right {right}, missed {missed}"


if __name__ == "__main__":
    typer.run(main)
