"""A video file in, masks and overlays out: decoding, the network and writing overlap, and no queue grows."""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.distributed import ProcessGroup

from stm_fast.choices import Overlay
from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.inference.checkpointing import Checkpoint, Pace, Position
from stm_fast.inference.crew import Crew
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.estimation import Estimate, check_fits, run_of
from stm_fast.inference.given import GivenMasks, find_masks, mask_files
from stm_fast.inference.identity import describe_run
from stm_fast.inference.objects import label, object_scores
from stm_fast.inference.output_folder import check_output
from stm_fast.inference.overlap import FRAMES_WAITING, Behind, ahead
from stm_fast.inference.results import NoResults, Results, check_overlay
from stm_fast.memory import Shard, with_known_size
from stm_fast.network import STM
from stm_fast.video import Frame, open_frames

logger = logging.getLogger(__name__)


class _Segmented(NamedTuple):
    frame: Frame
    ids: npt.NDArray[np.uint8]  # [H, W]
    scores: dict[int, float]  # of each object that exists


class Summary(NamedTuple):
    """What segment_video did."""

    frames: int  # of the video
    seconds: float  # from the first frame's decoding to the last file's writing
    object_ids: list[int]
    output: Path
    resumed_at: int = 0  # so many frames were done before; all of them where the run was finished already


class InterruptedRun(Exception):
    """A run was asked to stop. What is done is written, and `resume` goes on there.

    Args:
        frames: how many are done.
    """

    def __init__(self, frames: int) -> None:
        super().__init__(f"interrupted after {frames} frames; every file that was written is whole")
        self.frames = frames


def segment_video(
    source: str | Path,
    masks: str | Path,
    output: str | Path,
    *,
    model: STM,
    mask_frame: int | str | None = None,
    memory: MemoryConfig | None = None,
    max_size: int | None = None,
    min_size: int = 1,
    backend: str = "auto",
    overlay: Overlay = "video",
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    leave_record: bool = False,
    group: ProcessGroup | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int | None], None] | None = None,
    estimated: Callable[[Estimate], None] | None = None,
) -> Summary:
    """Segments a video from the masks of some of its frames.

    It writes ``masks/<frame>.png``, ``scores.csv`` (how sure the network is of each object in each frame, see
    `object_scores`) and an overlay into `output`. Everything that can be wrong with the input is found before anything
    is written. Memory does not grow with the video, but for the memory bank. Files appear whole or not at all, but for
    ``scores.csv``, which grows. A run that ends early, however that comes, leaves
    a checkpoint: with `resume` it goes on to the same masks, on a CPU bit for bit.

    Args:
        source: a video file, or a folder of jpg, png or webp frames.
        masks: a mask as `read_mask` takes it for the first frame, or for the one whose name it has ("00033.png" is
            frame 33 of a video), or a folder of masks named as their frames. Objects may appear in later masks; 255
            beside other ids is void. Masks that lie among the frames are no frames.
        output: a folder that is empty or does not exist, unless `overwrite`; the input is not in it.
        model, memory, max_size, min_size, backend: as in :class:`VideoSegmenter`.
        mask_frame: the frame that the one mask belongs to, whatever its name: an index, or a name.
        overlay: "video" for ``overlay.mp4``, "pictures" for ``overlay/<frame>.jpg``, or "none".
        resume: go on with the interrupted run that `output` holds; start one where it holds nothing.
        checkpoint_seconds: between two checkpoints, at least; they take a tenth of the time at most.
        leave_record: a hidden file says that the run is done, so that another one with `resume` does nothing.
        group: processes that segment this video together, each with a part of the memory; rank 0 writes. It needs a
            backend for CPU tensors, and all see the same folder.
        should_stop: asked after each frame; the run then ends with InterruptedRun.
        progress: called after each frame with how many are done, and of how many where the source says so.
        estimated: called once, before the first frame, with what the run will take in memory.

    Raises:
        InputError: what is wrong, in one line.
        InterruptedRun: `should_stop` said so.
        RankLostError: another process of the group is gone.
    """
    source, masks, output = Path(source), Path(masks), Path(output)
    check_overlay(overlay)
    reader = open_frames(source, mask_files(masks))
    given = find_masks(masks, reader, mask_frame)
    memory = with_known_size(memory or MemoryConfig(), reader.frame_count, given.files)
    segmenter = VideoSegmenter(
        model, memory=memory, max_size=max_size, min_size=min_size, backend=backend, shard=Shard(group)
    )
    crew = Crew(group)
    run = describe_run(
        source,
        given,
        model,
        memory,
        max_size=max_size,
        min_size=min_size,
        backend=backend,
        overlay=overlay,
        processes=crew.world,
    )
    checkpoint = Checkpoint(output, run, crew)
    position = crew.together(checkpoint.find) if resume else None
    if position is not None and position.finished:
        return Summary(position.frames, 0.0, position.object_ids, output, position.frames)
    crew.agree(lambda: check_output(output, overwrite, (source, masks), resume=resume))
    estimate = check_fits(run_of(model, memory, max_size, min_size, reader, given, crew.world))
    for note in given.notes if crew.leads else ():
        logger.warning(note)
    if estimated is not None:
        estimated(estimate)

    start = time.perf_counter()
    first = _go_on(checkpoint, position, segmenter)
    pace = Pace(checkpoint_seconds)
    scores = None if position is None else position.scores
    results = crew.together(
        lambda: (
            Results(output, reader, given.palette, overlay, done=first, scores=scores) if crew.leads else NoResults()
        )
    )
    with results, Behind(_writer(results), FRAMES_WAITING) as writer:
        done = first
        with closing(ahead(reader, FRAMES_WAITING)) as frames:
            for frame in frames:
                if frame.index < first:
                    writer.put(frame)
                else:
                    writer.put(_segment(frame, segmenter, given))
                    done = frame.index + 1
                if progress is not None:
                    progress(frame.index + 1, reader.frame_count)
                stop, due = crew.any(should_stop(), pace.due)
                if (stop or due) and done > first:
                    since = time.monotonic()
                    writer.flush()
                    written = results.sync()
                    checkpoint.save(done, segmenter.object_ids, segmenter.state_dict(), written)
                    pace.saved(since)
                if stop:
                    raise InterruptedRun(done)
        _check_all_used(given, done)
    checkpoint.finish(done, segmenter.object_ids, leave_record=leave_record)
    return Summary(done, time.perf_counter() - start, segmenter.object_ids, output, first)


def _go_on(checkpoint: Checkpoint, position: Position | None, segmenter: VideoSegmenter) -> int:
    """Puts the segmenter where the run ended; the first frame that it has to segment."""
    if position is None:
        # what is killed from here on can be resumed
        checkpoint.save(0, [], {})
        return 0
    if position.frames > 0:
        checkpoint.load(position, segmenter.load_state_dict)
    return position.frames


def _writer(results: Results | NoResults) -> Callable[[_Segmented | Frame], None]:
    """Writes what was segmented; a frame alone was, by an earlier process."""

    def write(item: _Segmented | Frame) -> None:
        if isinstance(item, Frame):
            results.redraw(item)
        else:
            results.write(*item)

    return write


def _segment(frame: Frame, segmenter: VideoSegmenter, given: GivenMasks) -> _Segmented:
    """The object ids and scores of the next frame."""
    mask = given.read(frame.index)
    picture = torch.from_numpy(frame.image).permute(2, 0, 1)  # [3, H, W]
    prob = segmenter.step(picture, None if mask is None else torch.from_numpy(mask))
    ids = segmenter.object_ids
    found = label(prob, ids)
    scores = object_scores(prob, found, ids).tolist()
    return _Segmented(frame, found.cpu().numpy(), dict(zip(ids, scores, strict=True)))


def _check_all_used(given: GivenMasks, frame_count: int) -> None:
    """A source that does not say how many frames it has cannot refuse a mask beyond its end before that end."""
    for index, file in given.files.items():
        if index >= frame_count:
            raise InputError(f"{file}: no frame for this mask, the video ended after {frame_count} frames")
