"""J and F of sequences of masks, with several processes for many sequences."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stm_fast.data.sequences import Ids, Objects, Sequence
from stm_fast.errors import InputError
from stm_fast.evaluation.metrics import Floats, Statistics, contour_accuracy, region_similarity, statistics
from stm_fast.listing import mask_of
from stm_fast.video import object_ids, read_written_mask


@dataclass(frozen=True, eq=False)
class ObjectScore:
    """The scores of one object of a sequence in T frames: all but the first and the last."""

    sequence: str
    object_id: int
    frames: tuple[str, ...]  # names, T
    region: Floats  # J, [T]
    contour: Floats  # F, [T]

    @property
    def name(self) -> str:
        """The name that the toolkit uses."""
        return f"{self.sequence}_{self.object_id}"

    @property
    def J(self) -> Statistics:
        return statistics(self.region)

    @property
    def F(self) -> Statistics:
        return statistics(self.contour)


def score_sequence(sequence: Sequence, results: Path) -> list[ObjectScore]:
    """J and F of every object of a sequence in every annotated frame but the first and the last.

    As in the toolkit: if the objects are defined by the first annotation, they are 1 to its highest id; a frame in
    which neither mask has the object scores 1, also before the object appears; void pixels are background.

    Args:
        sequence: with an annotation for every frame to score.
        results: folder of PNGs named after the annotated frames.

    Raises:
        InputError: fewer than three annotated frames, or a result that is missing, has another size, or has an object
            that the annotations do not have.
    """
    check_length(sequence)
    names = sequence.annotated[1:-1]
    ids = _scored_ids(sequence)
    region, contour = (np.zeros((len(ids), len(names))) for _ in range(2))  # [O, T]
    for index, name in enumerate(names):
        truth = sequence.read_annotation(name)
        found_ids = _read_result(sequence, mask_of(results, name), truth.shape, ids)
        planes = found_ids == np.array(ids)[:, None, None], truth == np.array(ids)[:, None, None]  # [O, H, W]
        region[:, index], contour[:, index] = region_similarity(*planes), contour_accuracy(*planes)
    return [
        ObjectScore(sequence.name, object_id, names, region[row], contour[row]) for row, object_id in enumerate(ids)
    ]


def check_length(sequence: Sequence) -> None:
    """Raises InputError if a sequence has fewer than three annotated frames, too few to score."""
    found = len(sequence.annotated)
    if found < 3:
        raise InputError(f"{sequence.annotations}: found {found} annotated frames, expected at least 3 to score")


def score_sequences(
    pairs: Iterable[tuple[Sequence, Path]],
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[ObjectScore]:
    """The scores of pairs of a sequence and the folder of its results, in this order.

    Args:
        workers: number of processes; by default one per core.
        progress: called at the start and after each sequence, with the number of scored ones and of all.

    Raises:
        InputError: as in `score_sequence`, for the first invalid sequence.
    """
    pairs = list(pairs)
    workers = min(workers or os.cpu_count() or 1, len(pairs))
    found: list[ObjectScore] = []
    progress(0, len(pairs))
    for done, scores in enumerate(_each(pairs, workers), 1):
        found += scores
        progress(done, len(pairs))
    return found


def _each(pairs: list[tuple[Sequence, Path]], workers: int) -> Iterator[list[ObjectScore]]:
    if workers <= 1:
        yield from (score_sequence(*pair) for pair in pairs)
        return
    # spawned, not forked: a forked copy of a process whose threads hold locks can hang
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(score_sequence, *zip(*pairs, strict=True))


def _scored_ids(sequence: Sequence) -> list[int]:
    if sequence.objects is Objects.ONE:
        return [1]
    if sequence.objects is Objects.FIRST:
        highest = int(sequence.read_annotation(sequence.annotated[0]).max())
        ids = list(range(1, highest + 1))
    else:
        ids = sorted({found for name in sequence.annotated for found in object_ids(sequence.read_annotation(name))})
    if not ids:
        raise InputError(f"{sequence.annotations}: found no object in the annotations, expected at least one")
    return ids


def _read_result(sequence: Sequence, file: Path, shape: tuple[int, ...], ids: list[int]) -> Ids:
    found = sequence.normalized(read_written_mask(file).ids)
    if found.shape != shape:
        height, width = found.shape
        raise InputError(f"{file}: mask of {width}x{height}, expected {shape[1]}x{shape[0]} like the annotation")
    if sequence.objects is Objects.ONE:
        return found
    # like the toolkit, which ignores lower ids that the annotations do not have
    extra = [object_id for object_id in object_ids(found) if object_id > ids[-1]]
    if extra:
        raise InputError(f"{file}: found objects {extra}, but {sequence.annotations} has none above {ids[-1]}")
    return found
