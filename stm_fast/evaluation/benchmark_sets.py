"""Runs the engine over the sequences of a benchmark set and leaves masks as servers and toolkits expect them.

``output/Annotations/<sequence>/<frame>.png`` are the masks, ``output/timings/<sequence>.json`` says how long they took,
``output/run.json`` with what they were made. A sequence's folder is there when it is whole.
"""

import math
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stm_fast.config import MemoryConfig
from stm_fast.data.sequences import Sequence
from stm_fast.errors import InputError, reading, shown_text
from stm_fast.evaluation.augmentation import AugmentedSegmenter
from stm_fast.evaluation.output_folder import MASKS, RUN, TIMINGS, check_folders
from stm_fast.inference.objects import label
from stm_fast.inference.overlap import FRAMES_WAITING, Behind, ahead
from stm_fast.inference.stages import StageClock
from stm_fast.memory import with_known_size
from stm_fast.network import STM
from stm_fast.network.fingerprint import fingerprint
from stm_fast.record_file import as_json, difference, read_record_file, typed, write_record_file
from stm_fast.versions import __version__
from stm_fast.video import Frame, FrameReader, MaskWriter, open_frames
from stm_fast.whole_file import make_folder, remove_left_over, whole_file, whole_folder

# of an entry of an archive: the first date that there is, and rights as on Unix
_EARLIEST_DATE = (1980, 1, 1, 0, 0, 0)
_UNIX, _ORDINARY_FILE = 3, 0o100644


@dataclass(frozen=True)
class Inference:
    """How a set is run; as in `VideoSegmenter` and `AugmentedSegmenter`."""

    memory: MemoryConfig = field(default_factory=MemoryConfig)
    max_size: int | None = None
    min_size: int = 1
    backend: str = "auto"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False


@dataclass(frozen=True)
class Timing:
    """How long a sequence took."""

    sequence: str
    frames: int
    objects: int
    network_seconds: float  # of the frames as papers count: frames and masks in memory, nothing read or written
    seconds: float  # end to end: pictures read, masks written
    stage_seconds: dict[str, float]  # decode and write go on beside the network

    def check(self) -> None:
        """Raises ValueError for numbers that no sequence has."""
        whole = self.network_seconds, self.seconds
        if self.frames < 1 or self.objects < 0 or not all(0 < value < math.inf for value in whole):
            raise ValueError(f"found {self}")
        if not all(0 <= value < math.inf for value in self.stage_seconds.values()):
            raise ValueError(f"found {self}")


def describe_run(model: STM, set_name: str, split: str, inference: Inference) -> dict[str, Any]:
    """What the masks of a set depend on."""
    return {
        "set": set_name,
        "split": split,
        "network": str(model.architecture),
        "weights_sha256": fingerprint(model),
        "dtype": str(next(model.parameters()).dtype),
        "inference": asdict(inference) | {"memory": inference.memory.described()},
        "stm_fast": __version__,
    }


def check_inference(model: STM, inference: Inference) -> None:
    """Raises InputError for sizes or scales that make no sense, or a backend that cannot run here."""
    _segmenter(model, inference, inference.memory)


def claim_output(output: Path, run: Mapping[str, Any], sequences: Iterable[Sequence] = ()) -> None:
    """Makes the folder one for this run.

    Args:
        sequences: that will be run, or are finished.

    Raises InputError where the folder holds, or links to, the masks of another run, or of none that it knows, or
    finished sequences that are not whole.
    """
    check_folders(output)
    # before the record is looked for: another process of this run may be writing both, the record first
    earlier = _finished(output)
    make_folder(output / MASKS)
    make_folder(output / TIMINGS)
    file = output / RUN
    if not file.exists():
        if earlier:
            masks = output / MASKS / earlier[0]
            raise InputError(f"{masks}: found masks, and no {file} that says what made them; give another --output")
        write_record_file(file, run)
    found = read_record_file(file, "the record of a run of this version", "give another --output")
    differs = difference(found, as_json(run))
    if differs is not None:
        raise InputError(f"{file}: the folder holds results of another run; {differs}; give another --output")
    for sequence in sequences:
        if sequence.name in earlier:
            _check_whole(sequence, output)


def run_sequences(
    sequences: Iterable[Sequence],
    output: Path,
    model: STM,
    inference: Inference,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Segments the sequences that are not finished yet.

    Args:
        output: a folder that `claim_output` made ready.
        progress: called with a sequence's name when it is finished.

    Raises:
        InputError: frames or masks that do not fit; what was finished before stays.
    """
    for sequence in sequences:
        if not (output / MASKS / sequence.name).is_dir():
            _run_whole(sequence, output, model, inference)
        if progress is not None:
            progress(sequence.name)


def read_timings(sequences: Iterable[Sequence], output: Path) -> list[Timing]:
    """The timings of finished sequences. Raises InputError where one is damaged or gone."""
    return [_read_timing(sequence, output) for sequence in sequences]


def write_zip(sequences: Iterable[Sequence], output: Path, file: Path, prefix: str) -> None:
    """The archive that a server takes: ``<prefix><sequence>/<frame>.png``, the required frames of every sequence.

    Equal masks give equal bytes. Raises InputError for a mask that cannot be read, or a name that is no text.
    """
    with whole_file(file) as partial, zipfile.ZipFile(partial, "w") as archive:
        for sequence in sequences:
            for mask in _masks_in(output / MASKS / sequence.name):
                with reading(mask):
                    content = mask.read_bytes()
                archive.writestr(_entry(f"{prefix}{sequence.name}/{mask.name}"), content)


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry of an archive, of the same date and rights for every file."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"found the name {name!r}, expected UTF-8, as an archive has it") from None
    entry = zipfile.ZipInfo(name, _EARLIEST_DATE)
    entry.create_system, entry.external_attr = _UNIX, _ORDINARY_FILE << 16
    return entry


def _check_whole(sequence: Sequence, output: Path) -> None:
    """Raises InputError where a finished sequence lacks its timing, or masks."""
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
    """The sequences that have masks, in the order of their names."""
    with reading(output):
        folders = (output / MASKS).iterdir() if (output / MASKS).is_dir() else ()
        return sorted(folder.name for folder in folders if folder.name[0] != "." and folder.is_dir())


def _masks_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.png") if file.name[0] != ".")


def _run_whole(sequence: Sequence, output: Path, model: STM, inference: Inference) -> None:
    """Segments a sequence under a temporary name; masks and timing get their names at the end."""
    final = output / MASKS / sequence.name
    remove_left_over(final.parent, sequence.name)
    with whole_folder(final) as partial:
        timing = _run(sequence, partial, model, inference)
        write_record_file(output / TIMINGS / f"{sequence.name}.json", asdict(timing))


def _run(sequence: Sequence, folder: Path, model: STM, inference: Inference) -> Timing:
    assert sequence.frames is not None
    start = time.perf_counter()
    reader = open_frames(sequence.frames)
    _check_names(sequence, reader)
    segmenter = _segmenter(model, inference, with_known_size(inference.memory, reader.frame_count, [0]))
    masks = MaskWriter(folder)
    beside = {"decode": 0.0, "write": 0.0}
    network_seconds = 0.0
    done = 0

    def write(named: tuple[str, npt.NDArray[np.uint8]]) -> None:
        before = time.perf_counter()
        masks.write(*named)
        beside["write"] += time.perf_counter() - before

    frames_ahead = ahead(_timed(reader, beside), FRAMES_WAITING)
    with StageClock(model) as clock, Behind(write, FRAMES_WAITING) as writer, closing(frames_ahead) as frames:
        for frame in frames:
            ids, new = sequence.given(frame.name, segmenter.object_ids) or (None, None)
            clock.start()
            picture = torch.from_numpy(frame.image).permute(2, 0, 1)  # [3, H, W]
            prob = segmenter.step(picture, None if ids is None else torch.from_numpy(ids), new)
            found = label(prob, segmenter.object_ids).cpu().numpy()  # [H, W]
            network_seconds += clock.stop()
            if sequence.required is None or frame.name in sequence.required:
                writer.put((frame.name, found))
            done += 1
    seconds = time.perf_counter() - start
    stages = beside | dict(clock.seconds)
    return Timing(sequence.name, done, len(segmenter.object_ids), network_seconds, seconds, stages)


def _segmenter(model: STM, inference: Inference, memory: MemoryConfig) -> AugmentedSegmenter:
    return AugmentedSegmenter(
        model,
        memory=memory,
        max_size=inference.max_size,
        min_size=inference.min_size,
        backend=inference.backend,
        scales=inference.scales,
        flip=inference.flip,
    )


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
