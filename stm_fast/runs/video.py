"""Segments a video into an output folder. Decoding, the network and writing overlap, with bounded queues."""

import logging
import time
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch.distributed import ProcessGroup

from stm_fast.boxes import boxes_of
from stm_fast.choices import DEFAULT_RESULTS, Result
from stm_fast.config import MemoryConfig
from stm_fast.inference.augmentation import plain_segmenter
from stm_fast.inference.options import RunOptions
from stm_fast.memory import Shard, with_known_size
from stm_fast.network import STM
from stm_fast.runs.checkpoint import Checkpoint, CheckpointTimer, Position, describe_video_run
from stm_fast.runs.estimation import Estimate, check_fits, workload_of
from stm_fast.runs.given import find_masks, match_masks
from stm_fast.runs.loop import FRAMES_WAITING, BackgroundWriter, Segmented, prefetch, run
from stm_fast.runs.mask_sources import Masks
from stm_fast.runs.output_folder import Job, OutputOptions, check_output, parts_of, remove_working_files
from stm_fast.runs.ranks import Ranks, of_group
from stm_fast.runs.sinks import Results
from stm_fast.video import open_frames

logger = logging.getLogger(__name__)


class Summary(NamedTuple):
    """The outcome of segment_video."""

    frames: int  # of the video
    seconds: float  # from decoding the first frame to writing the last file
    object_ids: list[int]
    output: Path
    resumed_at: int = 0  # frames that an earlier run had done: all, if it was finished


class InterruptedRun(Exception):
    """A run was asked to stop. Its results so far are written, and `resume` continues it.

    Args:
        frames: the number of frames done.
    """

    def __init__(self, frames: int) -> None:
        super().__init__(f"interrupted after {frames} frames; all files written so far are complete")
        self.frames = frames


class Hooks(NamedTuple):
    """Callbacks of a run, see `segment_video`."""

    should_stop: Callable[[], bool]
    progress: Callable[[int, int | None], None]
    estimated: Callable[[Estimate], None]


def segment_video(
    source: str | Path,
    masks: Masks | None,
    output: str | Path,
    *,
    model: STM,
    mask_frame: int | str | None = None,
    boxes: object = None,
    memory: MemoryConfig | None = None,
    max_size: int | None = None,
    min_size: int = 1,
    backend: str = "auto",
    write: Collection[Result] = DEFAULT_RESULTS,
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

    Writes ``masks/<frame>.png``, ``scores.csv`` (the confidence in each object in each frame, see `object_scores`), an
    overlay and other results into `output`. The input is checked before anything is written. Memory does not grow with
    the length of the video, except for the memory bank. Files appear complete or not at all, except for ``scores.csv``,
    which grows. A run that ends early, for any reason, leaves a checkpoint; with `resume` it continues to the same
    masks, on a CPU bit for bit.

    Args:
        source: a video file, or a folder of jpg, png or webp frames.
        masks: a mask that `read_mask` accepts, for the first frame or for the one it is named after ("00033.png" is
            frame 33 of a video), a folder of masks named after their frames, or another form that `find_masks` lists,
            such as an array of object ids, or files or arrays by frame. Objects may first appear in later masks; 255
            alone is object 1, and next to other ids it is void. Masks among the frames are not treated as frames. None
            if there are only boxes.
        output: a folder that is empty or does not exist, unless `overwrite`; it must not contain the input.
        model, memory, max_size, min_size, backend: as in :class:`VideoSegmenter`.
        mask_frame: the frame that a single mask belongs to, regardless of its name: an index, or a name.
        boxes: boxes around objects, as `boxes_of` accepts them; their masks are made with GrabCut, which needs OpenCV,
            and written into ``given/``. Where a box and a mask overlap in a frame, the mask counts.
        write: the results to write: "masks", "overlay" (``overlay.mp4``), "pictures" (``overlay/<frame>.jpg``), "csv".
        resume: continue the interrupted run in `output`; start one if the folder is empty.
        checkpoint_seconds: minimum time between checkpoints, which take at most a tenth of the run time.
        leave_record: leave a hidden file that marks the run as finished, so that `resume` does nothing.
        group: processes that segment this video together, each with a part of the memory; rank 0 writes. The group
            needs a backend for CPU tensors, and all processes must see the same files.
        should_stop: called after each frame; the run ends with InterruptedRun when it returns True.
        progress: called after each frame with the number of frames done, and their total or None if it is unknown.
        estimated: called once, before the first frame, with the estimated memory of the run.

    Raises:
        InputError: anything wrong with the input, in one line.
        InterruptedRun: `should_stop` returned True.
        RankLostError: another process of the group is gone.
    """
    job = Job(Path(source), masks, Path(output), mask_frame, boxes_of(boxes))
    options = RunOptions(memory or MemoryConfig(), max_size, min_size, backend)
    outputs = OutputOptions(tuple(write), overwrite, resume, checkpoint_seconds, leave_record)
    hooks = Hooks(should_stop, progress or _ignore, estimated or _ignore)
    return segment_job(job, model, options, outputs, hooks, of_group(group))


def segment_job(
    job: Job, model: STM, options: RunOptions, outputs: OutputOptions, hooks: Hooks, ranks: Ranks
) -> Summary:
    """`segment_video` for `ranks` that segment the video together."""
    return _VideoRun(job, model, options, outputs, hooks, ranks).segment()


class _VideoRun:
    """The run over one video."""

    def __init__(
        self, job: Job, model: STM, options: RunOptions, outputs: OutputOptions, hooks: Hooks, ranks: Ranks
    ) -> None:
        self._job, self._outputs, self._hooks, self._ranks = job, outputs, hooks, ranks
        masks = find_masks(job.masks, job.source)
        self._reader = reader = open_frames(job.source, masks.files)
        self._given = given = match_masks(masks, reader, job.mask_frame, job.boxes)
        options = replace(options, memory=with_known_size(options.memory, reader.frame_count, given.ids))
        self._segmenter = plain_segmenter(model, options, Shard(ranks.group))
        described = describe_video_run(job.source, given, model, options, outputs.write, ranks.world)
        self._checkpoint = Checkpoint(job.output, described, ranks)
        self._workload = workload_of(model, options, (reader.height, reader.width), given, ranks.world)
        self._results = Results()
        self._timer = CheckpointTimer(outputs.checkpoint_seconds)

    def segment(self) -> Summary:
        """Segments what is left of the video."""
        job, outputs, ranks = self._job, self._outputs, self._ranks
        position = ranks.together(self._checkpoint.find) if outputs.resume else None
        if position is not None and position.finished:
            return Summary(position.frames, 0.0, position.object_ids, job.output, position.frames)
        ranks.lead(lambda: check_output(job.output, outputs.overwrite, job.inputs, resume=outputs.resume))
        estimate = check_fits(self._workload)
        for note in self._given.notes if ranks.leads else ():
            logger.warning(note)
        self._hooks.estimated(estimate)

        start = time.perf_counter()
        first = self._restore(position)
        scores = 0 if position is None else position.scores
        palette = self._given.palette
        with self._results as results:
            ranks.lead(lambda: results.open(job.output, self._reader, palette, outputs.write, first, scores))
            ranks.lead(lambda: self._given.write(parts_of(job.output)[2], self._reader))
            frames = self._run(first)
        ids = self._segmenter.object_ids
        self._checkpoint.finish(frames, ids, leave_record=outputs.leave_record)
        if ranks.leads:
            remove_working_files(job.output, outputs.write)
        return Summary(frames, time.perf_counter() - start, ids, job.output, first)

    def _restore(self, position: Position | None) -> int:
        """Restores the segmenter; returns the next frame to segment."""
        if position is None:
            # from here on, a killed run can be resumed
            self._checkpoint.save(0, [], {})
            return 0
        if position.frames > 0:
            self._checkpoint.restore(position, self._segmenter.load_state_dict)
        return position.frames

    def _run(self, first: int) -> int:
        """The loop over the frames, between the thread that decodes and the one that writes."""
        decoded = prefetch(self._reader, FRAMES_WAITING)
        with BackgroundWriter(self._results.write, FRAMES_WAITING) as writer, closing(decoded) as frames:
            count = run(
                frames,
                self._given.prompt,
                self._segmenter,
                writer.put,
                first=first,
                with_scores=True,
                after=lambda done: self._advance(first, done, writer),
            )
            self._given.check_all_used(count)
        return count

    def _advance(self, first: int, done: int, writer: BackgroundWriter[Segmented]) -> None:
        """After each frame: reports progress, saves a checkpoint if one is due, and stops on request."""
        self._hooks.progress(done, self._reader.frame_count)
        stop, due = self._ranks.any(self._hooks.should_stop(), self._timer.due)
        if (stop or due) and done > first:
            with self._timer.saving():
                writer.flush()
                written = self._results.sync()
                self._checkpoint.save(done, self._segmenter.object_ids, self._segmenter.state_dict(), written)
        if stop:
            raise InterruptedRun(max(done, first))


def _ignore(*_: object) -> None:
    """A callback that does nothing."""
