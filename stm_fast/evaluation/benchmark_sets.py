"""Runs the engine over the sequences of a benchmark set and writes masks as servers and toolkits expect them.

Writes masks as ``output/Annotations/<sequence>/<frame>.png``, their timings as ``output/timings/<sequence>.json``, and
the description of the run as ``output/run.json``. The folder of a sequence appears once it is complete.
"""

import math
import time
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stm_fast.data.sequences import Ids, Sequence
from stm_fast.errors import InputError, reading, shown_text
from stm_fast.evaluation.output_folder import MASKS, RUN, TIMINGS, fill_unfinished
from stm_fast.inference.augmentation import AugmentedSegmenter
from stm_fast.inference.options import RunOptions
from stm_fast.inference.stages import StageProfiler
from stm_fast.memory import with_known_size
from stm_fast.network import STM
from stm_fast.record_file import read_record_file, typed, write_record_file
from stm_fast.runs.checkpoint import check_same, describe_network
from stm_fast.runs.loop import FRAMES_WAITING, BackgroundWriter, Segmented, Segmenter, prefetch, run
from stm_fast.runs.sinks import masks_to
from stm_fast.versions import __version__
from stm_fast.video import Frame, FrameReader, MaskWriter, open_frames
from stm_fast.whole_file import make_folder, refuse_links, whole_file

# for entries of an archive: the earliest date of the format, and Unix permissions
_EARLIEST_DATE = (1980, 1, 1, 0, 0, 0)
_UNIX, _ORDINARY_FILE = 3, 0o100644
_ANOTHER = "give another output folder"


@dataclass(frozen=True)
class Timing:
    """How long a sequence took."""

    sequence: str
    frames: int
    objects: int
    network_seconds: float  # as papers count: from frames in memory to masks in memory
    seconds: float  # end to end, with reading and writing of files
    stage_seconds: dict[str, float]  # decode and write overlap with the network

    def check(self) -> None:
        """Raises ValueError for impossible numbers."""
        whole = self.network_seconds, self.seconds
        if self.frames < 1 or self.objects < 0 or not all(0 < value < math.inf for value in whole):
            raise ValueError(f"found {self}")
        if not all(0 <= value < math.inf for value in self.stage_seconds.values()):
            raise ValueError(f"found {self}")


def describe_run(model: STM, set_name: str, split: str, options: RunOptions) -> dict[str, Any]:
    """Everything that the masks of a set depend on."""
    return {
        "set": set_name,
        "split": split,
        **describe_network(model),
        "inference": options.described(),
        "stm_fast": __version__,
    }


def claim_output(output: Path, run: Mapping[str, Any], sequences: Iterable[Sequence] = ()) -> None:
    """Prepares an output folder for this run, which may have begun there.

    Args:
        sequences: the sequences of the run, finished or not.

    Raises:
        InputError: the folder contains masks of another or an unknown run, finished sequences that are incomplete, or
            links to folders.
    """
    refuse_links(output / MASKS, output / TIMINGS)
    # listed before the record is read: another process of this run may be writing both, the record first
    earlier = _finished(output)
    make_folder(output / MASKS)
    make_folder(output / TIMINGS)
    file = output / RUN
    if not file.exists():
        if earlier:
            masks = output / MASKS / earlier[0]
            raise InputError(f"{masks}: found masks, but no {file} that describes their run; {_ANOTHER}")
        write_record_file(file, run)
    check_same(output, read_record_file(file, "the record of a run of this version", _ANOTHER), run, _ANOTHER)
    for sequence in sequences:
        if sequence.name in earlier:
            _check_whole(sequence, output)


def run_sequences(
    sequences: Collection[Sequence],
    output: Path,
    model: STM,
    options: RunOptions,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Segments the sequences that are not finished yet.

    Args:
        output: a folder that `claim_output` has prepared.
        progress: called at the start and after each sequence, with the number of finished ones and of all.

    Raises:
        InputError: frames or masks that do not fit. Finished sequences are kept.
    """

    def fill(sequence: Sequence, folder: Path) -> None:
        timing = _run(sequence, folder, model, options)
        write_record_file(output / TIMINGS / f"{sequence.name}.json", asdict(timing))

    fill_unfinished(sequences, output / MASKS, fill, progress)


def read_timings(sequences: Iterable[Sequence], output: Path) -> list[Timing]:
    """The timings of finished sequences. Raises InputError if one is damaged or missing."""
    return [_read_timing(sequence, output) for sequence in sequences]


def write_zip(sequences: Iterable[Sequence], output: Path, file: Path, prefix: str) -> None:
    """Writes the archive for a server: ``<prefix><sequence>/<frame>.png``, the required frames of every sequence.

    Equal masks give equal bytes. Raises InputError for an unreadable mask or a name that is not valid Unicode.
    """
    with whole_file(file) as partial, zipfile.ZipFile(partial, "w") as archive:
        for sequence in sequences:
            for mask in _masks_in(output / MASKS / sequence.name):
                with reading(mask):
                    content = mask.read_bytes()
                archive.writestr(_entry(f"{prefix}{sequence.name}/{mask.name}"), content)


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry of an archive, with the same date and permissions for every file."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"found the name {name!r}, expected UTF-8, which an archive needs") from None
    entry = zipfile.ZipInfo(name, _EARLIEST_DATE)
    entry.create_system, entry.external_attr = _UNIX, _ORDINARY_FILE << 16
    return entry


def _check_whole(sequence: Sequence, output: Path) -> None:
    """Raises InputError if the timing or masks of a finished sequence are missing."""
    frames = _read_timing(sequence, output).frames
    folder = output / MASKS / sequence.name
    found, expected = len(_masks_in(folder)), frames if sequence.required is None else len(sequence.required)
    if found != expected:
        raise InputError(f"{folder}: found {found} masks, expected {expected}; remove it to run the sequence again")


def _read_timing(sequence: Sequence, output: Path) -> Timing:
    file, masks = output / TIMINGS / f"{sequence.name}.json", output / MASKS / sequence.name
    what, advice = "the timing of a sequence", f"remove {masks} to run it again"
    content = read_record_file(file, what, advice)
    try:
        timing: Timing = typed(content, Timing, "timing")
        timing.check()
    except ValueError as error:
        raise InputError(f"{file}: not {what} ({error}); {advice}") from None
    if timing.sequence != sequence.name:
        raise InputError(
            f"{file}: found the timing of {shown_text(timing.sequence)}, expected {sequence.name}; {advice}"
        )
    return timing


def _finished(output: Path) -> list[str]:
    """The names of sequences that have masks, sorted."""
    with reading(output):
        folders = (output / MASKS).iterdir() if (output / MASKS).is_dir() else ()
        return sorted(folder.name for folder in folders if folder.name[0] != "." and folder.is_dir())


def _masks_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.png") if file.name[0] != ".")


def _run(sequence: Sequence, folder: Path, model: STM, options: RunOptions) -> Timing:
    assert sequence.frames is not None
    start = time.perf_counter()
    reader = open_frames(sequence.frames)
    _check_names(sequence, reader)
    memory = with_known_size(options.memory, reader.frame_count, [0])
    segmenter = AugmentedSegmenter(model, replace(options, memory=memory))
    with StageProfiler(model) as profiler:
        frames, concurrent = run_frames(sequence, reader, segmenter, folder, profiler.frame)
    seconds = time.perf_counter() - start
    stages = concurrent | dict(profiler.seconds)
    return Timing(sequence.name, frames, len(segmenter.object_ids), profiler.total, seconds, stages)


def run_frames(
    sequence: Sequence,
    reader: FrameReader,
    segmenter: Segmenter,
    folder: Path,
    measure: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[int, dict[str, float]]:
    """Segments a sequence and writes the required masks.

    Args:
        measure: a context around the network on each frame, as in :func:`stm_fast.runs.loop.run`.

    Returns:
        The number of frames, and the seconds of decoding and of writing, which overlap with the network.
    """
    write_mask = masks_to(MaskWriter(folder), sequence.required)
    seconds = {"decode": 0.0, "write": 0.0}

    def write(segmented: Segmented) -> None:
        before = time.perf_counter()
        write_mask(segmented)
        seconds["write"] += time.perf_counter() - before

    def prompt(frame: Frame, known: list[int]) -> tuple[Ids, list[int]] | None:
        return sequence.given(frame.name, known)

    decoded = prefetch(_timed(reader, seconds), FRAMES_WAITING)
    with BackgroundWriter(write, FRAMES_WAITING) as writer, closing(decoded) as frames:
        count = run(frames, prompt, segmenter, writer.put, measure=measure)
    return count, seconds


def _timed(reader: FrameReader, seconds: dict[str, float]) -> Iterator[Frame]:
    before = time.perf_counter()
    for frame in reader:
        seconds["decode"] += time.perf_counter() - before
        yield frame
        before = time.perf_counter()


def _check_names(sequence: Sequence, reader: FrameReader) -> None:
    for name in (*sequence.annotated, *sorted(sequence.required or ())):
        if reader.index_of(name) is None:
            raise InputError(f"{sequence.frames}: no frame {name}, which the set annotates or requires")
