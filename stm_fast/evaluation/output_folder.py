"""The output folder of a benchmark set: the names of its parts, and whether results may be written there."""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from stm_fast.data.sequences import Sequence
from stm_fast.errors import InputError, option
from stm_fast.whole_file import remove_left_over, whole_folder

MASKS = "Annotations"
TIMINGS = "timings"
BASELINES = "baselines"
RUN = "run.json"


def check_apart(output: Path, sequences: Iterable[Sequence]) -> None:
    """Raises InputError if data of the set are among the results, or the results among the data.

    Otherwise annotations could be taken for results, and results for sequences.
    """
    place = output.resolve()
    results = [(output / name).resolve() for name in (MASKS, BASELINES)]
    found = f"{option('output')}: found {output}, which"
    for sequence in sequences:
        assert sequence.frames is not None
        for what, folder in (("annotations", sequence.annotations), ("frames", sequence.frames)):
            if any(folder.resolve().is_relative_to(path) for path in results):
                raise InputError(f"{found} contains the {what} of the set; give another folder")
            if any(place.is_relative_to(path.resolve()) for path in (folder, folder.parent)):
                raise InputError(f"{found} is among the data of the set in {folder.parent}; give another folder")


def fill_unfinished(
    sequences: Collection[Sequence],
    masks: Path,
    fill: Callable[[Sequence, Path], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fills a folder for each sequence that has none yet. It gets its final name once it is complete.

    Args:
        masks: the folder that contains them.
        fill: writes the masks of a sequence into a folder.
        progress: called at the start and after each sequence, with the number of finished ones and of all.
    """
    progress(0, len(sequences))
    for done, sequence in enumerate(sequences, 1):
        final = masks / sequence.name
        if not final.is_dir():
            remove_left_over(masks, sequence.name)
            with whole_folder(final) as partial:
                fill(sequence, partial)
        progress(done, len(sequences))
