"""Runs the engine over the sequences of a benchmark set and leaves masks as servers and toolkits expect them.

``output/Annotations/<sequence>/<frame>.png`` are the masks, ``output/timings/<sequence>.json`` says how long they took,
``output/run.json`` with what they were made. A sequence's folder is there when it is whole.
"""

import json
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stm_fast.config import MemoryConfig
from stm_fast.data.sequences import Sequence
from stm_fast.errors import InputError
from stm_fast.evaluation.augmentation import AugmentedSegmenter
from stm_fast.evaluation.output_folder import MASKS, TIMINGS, check_folders
from stm_fast.inference.objects import label
from stm_fast.inference.overlap import FRAMES_WAITING, Behind, ahead
from stm_fast.inference.stages import StageClock
from stm_fast.memory import with_known_size
from stm_fast.network import STM
from stm_fast.network.fingerprint import fingerprint
from stm_fast.versions import __version__
from stm_fast.video import Frame, FrameReader, MaskWriter, open_frames
from stm_fast.whole_file import make_folder, remove_left_over, whole_file, whole_folder


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


def claim_output(output: Path, run: dict[str, Any]) -> None:
    """Makes the folder one for this run. Raises InputError where it holds, or links to, the masks of another."""
    check_folders(output)
    make_folder(output / MASKS)
    make_folder(output / TIMINGS)
    file = output / "run.json"
    text = json.dumps(run, indent=1, default=str) + "\n"
    if file.is_file() and file.read_text() != text:
        raise InputError(f"{file}: the folder holds results of another run; give another --output")
    with whole_file(file) as partial:
        partial.write_text(text)


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
    """The timings of finished sequences."""
    files = (output / TIMINGS / f"{sequence.name}.json" for sequence in sequences)
    return [Timing(**json.loads(file.read_text())) for file in files]


def write_zip(sequences: Iterable[Sequence], output: Path, file: Path, prefix: str) -> None:
    """The archive that a server takes: ``<prefix><sequence>/<frame>.png``, the required frames of every sequence."""
    with whole_file(file) as partial, zipfile.ZipFile(partial, "w") as archive:
        for sequence in sequences:
            for mask in sorted((output / MASKS / sequence.name).glob("*.png")):
                archive.write(mask, f"{prefix}{sequence.name}/{mask.name}")


def _run_whole(sequence: Sequence, output: Path, model: STM, inference: Inference) -> None:
    """Segments a sequence under a temporary name; masks and timing get their names at the end."""
    final = output / MASKS / sequence.name
    remove_left_over(final.parent, sequence.name)
    with whole_folder(final) as partial:
        timing = _run(sequence, partial, model, inference)
        with whole_file(output / TIMINGS / f"{sequence.name}.json") as file:
            file.write_text(json.dumps(asdict(timing), indent=1) + "\n")


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
