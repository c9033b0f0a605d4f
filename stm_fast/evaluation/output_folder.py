"""The output folder of a benchmark set: the names of its parts, and whether results may lie there."""

from collections.abc import Iterable
from pathlib import Path

from stm_fast.data.sequences import Sequence
from stm_fast.errors import InputError
from stm_fast.whole_file import refuse_links

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
                raise InputError(f"--output: found {output}, which holds the {what} of the set; give another folder")
            if any(place.is_relative_to(path.resolve()) for path in (folder, folder.parent)):
                raise InputError(f"--output: found {output}, among what {folder.parent} has of the set; give another")
