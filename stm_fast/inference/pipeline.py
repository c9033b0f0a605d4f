"""A video file in, masks and overlays out: decoding, the network and writing overlap, and no queue grows."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.estimate import Estimate, check_fits, run_of
from stm_fast.inference.given import GivenMasks, find_masks
from stm_fast.inference.objects import label
from stm_fast.inference.overlap import Behind, ahead
from stm_fast.inference.results import Overlay, Results, check_output
from stm_fast.memory import frames_that_stay
from stm_fast.network import STM
from stm_fast.video import Frame, FrameReader, open_frames, read_mask

_FRAMES_WAITING = 4  # decoded but not segmented, and segmented but not written


class Summary(NamedTuple):
    """What segment_video did."""

    frames: int
    seconds: float  # from the first frame's decoding to the last file's writing
    object_ids: list[int]
    output: Path


def segment_video(
    source: str | Path,
    masks: str | Path,
    output: str | Path,
    *,
    model: STM,
    memory: MemoryConfig | None = None,
    max_size: int | None = None,
    backend: str = "auto",
    overlay: Overlay = "video",
    overwrite: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
    estimated: Callable[[Estimate], None] | None = None,
) -> Summary:
    """Segments a video from the masks of some of its frames and writes ``output/masks/<frame>.png`` and an overlay.

    Everything that can be wrong with the input is found before anything is written. Memory does not grow with the
    video, but for the memory bank. Files appear whole or not at all.

    Args:
        source: a video file, or a folder of jpg, png or webp frames.
        masks: a palette PNG of object ids for the first frame, or a folder of such PNGs named as their frames
            ("00033.png" is frame 33 of a video). Objects may appear in later masks.
        output: a folder that is empty or does not exist, unless `overwrite`; the input is not in it.
        model, memory, max_size, backend: as in :class:`VideoSegmenter`.
        overlay: "video" for ``overlay.mp4``, "pictures" for ``overlay/<frame>.jpg``, or "none".
        progress: called after each frame with how many are done, and of how many where the source says so.
        estimated: called once, before the first frame, with what the run will take in memory.

    Raises:
        InputError: what is wrong, in one line.
    """
    output = Path(output)
    reader = open_frames(source)
    given = find_masks(masks, reader)
    check_output(output, overwrite, inputs=(Path(source), Path(masks)))
    memory = _with_known_size(memory or MemoryConfig(), reader, given)
    segmenter = VideoSegmenter(model, memory=memory, max_size=max_size, backend=backend)
    estimate = check_fits(run_of(model, memory, max_size, reader, given))
    if estimated is not None:
        estimated(estimate)
    start, done = time.perf_counter(), 0

    with Results(output, reader, given.palette, overlay) as results:

        def write(segmented: tuple[Frame, npt.NDArray[np.uint8]]) -> None:
            results.write(*segmented)

        with Behind(write, _FRAMES_WAITING) as writer, closing(ahead(reader, _FRAMES_WAITING)) as frames:
            for frame in frames:
                file = given.files.get(frame.index)
                mask = None if file is None else torch.from_numpy(read_mask(file).ids)
                prob = segmenter.step(torch.from_numpy(frame.image).permute(2, 0, 1), mask)
                writer.put((frame, label(prob, segmenter.object_ids).cpu().numpy()))
                done += 1
                if progress is not None:
                    progress(done, reader.frame_count)
        _check_all_used(given, done)
    return Summary(done, time.perf_counter() - start, segmenter.object_ids, output)


def _with_known_size(memory: MemoryConfig, reader: FrameReader, given: GivenMasks) -> MemoryConfig:
    """The configuration with the number of frames that will stay, where the source says how many it has."""
    if memory.frames is not None or reader.frame_count is None:
        return memory
    return replace(memory, frames=frames_that_stay(memory, reader.frame_count, given.files))


def _check_all_used(given: GivenMasks, frame_count: int) -> None:
    """A source that does not say how many frames it has cannot refuse a mask beyond its end before that end."""
    for index, file in given.files.items():
        if index >= frame_count:
            raise InputError(f"{file}: no frame for this mask, the video ended after {frame_count} frames")
