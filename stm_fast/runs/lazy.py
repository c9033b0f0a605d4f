"""Segments a video frame by frame, as the results are asked for."""

import logging
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from stm_fast.boxes import GivenBoxes, boxes_of
from stm_fast.config import MemoryConfig
from stm_fast.frame_source import STALL_SECONDS, frame_source
from stm_fast.inference.engine import Segmentation
from stm_fast.inference.options import RunOptions
from stm_fast.inference.sightings import Watch
from stm_fast.network import STM
from stm_fast.network.loading import load
from stm_fast.runs.loop import FRAMES_WAITING, given_ids, prefetch, step
from stm_fast.runs.mask_sources import Masks
from stm_fast.runs.output_folder import Job
from stm_fast.runs.passes import OpenedJob, open_job
from stm_fast.runs.stored import localized

logger = logging.getLogger(__name__)


def segment(
    source: str | Path,
    masks: Masks | None = None,
    *,
    model: STM | None = None,
    mask_frame: int | str | None = None,
    both: bool = False,
    boxes: GivenBoxes | None = None,
    memory: MemoryConfig | None = None,
    max_size: int | None = None,
    min_size: int | None = None,
    backend: str = "auto",
    allow_network: bool = False,
    stall_seconds: float = STALL_SECONDS,
    drop_frames: bool = False,
) -> Iterator[Segmentation]:
    """Segments a video from the masks of some of its frames, and yields the result of each frame; writes nothing.

    The input is checked at once. A frame is segmented when its result is asked for; a few frames are decoded ahead.

    Args:
        source, masks, mask_frame, both, boxes, allow_network, stall_seconds, drop_frames: as in
            :func:`stm_fast.segment_video`.
        model: from :func:`stm_fast.load`; by default the package's weights.
        memory, max_size, min_size, backend: as in :class:`stm_fast.VideoSegmenter`.

    Yields:
        The `Segmentation` of every frame. With `both`, those of the frames before the first given mask come first, the
        last one first: see `Segmentation.frame_index`.

    Raises:
        InputError: anything wrong with the input, in one line; while iterating, a frame that cannot be decoded.
    """
    model = load() if model is None else model
    options = RunOptions(memory or MemoryConfig(), max_size, min_size, backend)
    frames = frame_source(source, allow_network=allow_network, stall_seconds=stall_seconds, drop_frames=drop_frames)
    job = Job(frames, masks, Path(), mask_frame, both, boxes_of(boxes))
    with ExitStack() as stack:
        local = stack.enter_context(localized(job))
        opened = open_job(local.job, model, options)
        for note in opened.given.notes:
            logger.warning(local.named(note))
        results = _segmentations(opened)
        # copies of what is in a store are removed with it
        weakref.finalize(results, stack.pop_all().close)
    return results


def _segmentations(job: OpenedJob) -> Iterator[Segmentation]:
    segmenter, count = job.segmenter, 0
    for one in job.passes:
        one.begin(segmenter)
        watch = Watch(one.areas)
        with closing(prefetch(one.frames(0), 0 if job.reader.live else FRAMES_WAITING)) as frames:
            for count, frame in enumerate(frames, start=1):
                if count > one.before:
                    prompt = one.prompts(frame, segmenter.object_ids)
                    prob = step(frame, prompt, segmenter)
                    result = Segmentation(frame.index, prob, segmenter.object_ids, frame=frame)
                    yield result.watched(watch, given_ids(prompt))
    job.given.check_all_used(count)
