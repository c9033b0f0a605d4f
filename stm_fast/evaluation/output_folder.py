"""The output folder of a benchmark set: the names of its parts, and whether results may lie there."""

from collections.abc import Callable, Iterable
from pathlib import Path

from stm_fast.data.sequences import Sequence
from stm_fast.errors import InputError, option
from stm_fast.whole_file import make_folder, refuse_links, remove_left_over, whole_folder

MASKS = "Annotations"
TIMINGS = "timings"
BASELINES = "baselines"
RUN = "run.json"


def check_folders(output: Path) -> None:
    """Raises InputError where a link would make another folder's files pass for results."""
    refuse_links(output / MASKS, output / TIMINGS)


def check_apart(output: Path, sequences: Iterable[Sequence]) -> None:
    """Raises InputError where data of the set lie among the results, or results among the data.

    Annotations would be taken for results, and results for sequences.
    """
    place = output.resolve()
    results = [(output / name).resolve() for name in (MASKS, BASELINES)]
    for sequence in sequences:
        assert sequence.frames is not None
        for folder in (sequence.annotations, sequence.frames):
            if any(folder.resolve().is_relative_to(path) for path in results):
                what = "annotations" if folder == sequence.annotations else "frames"
                raise InputError(
                    f"{option('output')}: found {output}, which holds the {what} of the set; give another folder"
                )
            if any(place.is_relative_to(path.resolve()) for path in (folder, folder.parent)):
                raise InputError(
                    f"{option('output')}: found {output}, among what {folder.parent} has of the set; give another"
                )


def fill_unfinished(
    sequences: Iterable[Sequence],
    masks: Path,
    fill: Callable[[Sequence, Path], None],
    progress: Callable[[str], None] = lambda name: None,
) -> None:
    """Makes the folder of each sequence that has none yet; it gets its name when it is whole.

    Args:
        masks: the folder of all of them.
        fill: puts the masks of a sequence into a folder.
        progress: called with the name of each sequence that is finished.

    Raises InputError where `masks` is a link.
    """
    refuse_links(masks)
    make_folder(masks)
    for sequence in sequences:
        final = masks / sequence.name
        if not final.is_dir():
            remove_left_over(masks, sequence.name)
            with whole_folder(final) as partial:
                fill(sequence, partial)
        progress(sequence.name)
