"""A video file in, masks and overlays out: decoding, the network and writing overlap, and no queue grows."""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch.distributed import ProcessGroup

from stm_fast.choices import Overlay
from stm_fast.config import MemoryConfig
from stm_fast.inference.augmentation import plain_segmenter
from stm_fast.inference.options import RunOptions
from stm_fast.memory import Shard, with_known_size
from stm_fast.network import STM
from stm_fast.runs.checkpoint import Checkpoint, CheckpointTimer, Position, describe_video_run
from stm_fast.runs.estimation import Estimate, check_fits, workload_of
from stm_fast.runs.given import find_masks, match_masks
from stm_fast.runs.loop import FRAMES_WAITING, BackgroundWriter, Segmented, prefetch, run
from stm_fast.runs.output_folder import Job, OutputOptions, check_output
from stm_fast.runs.ranks import Ranks, of_group
from stm_fast.runs.sinks import Results
from stm_fast.video import open_frames

logger = logging.getLogger(__name__)


class Summary(NamedTuple):
    """What segment_video did."""

    frames: int  # of the video
    seconds: float  # from the first frame's decoding to the last file's writing
    object_ids: list[int]
    output: Path
    resumed_at: int = 0  # frames that were done before; all of them where the run was finished already


class InterruptedRun(Exception):
    """A run was asked to stop. What is done is written, and `resume` continues there.

    Args:
        frames: how many are done.
    """

    def __init__(self, frames: int) -> None:
        super().__init__(f"interrupted after {frames} frames; every file that was written is whole")
        self.frames = frames


class Hooks(NamedTuple):
    """What is called while a video is segmented, see `segment_video`."""

    should_stop: Callable[[], bool]
    progress: Callable[[int, int | None], None]
    estimated: Callable[[Estimate], None]


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
    is written. Memory does not grow with the video, except for the memory bank. Files appear whole or not at all,
    except for ``scores.csv``, which grows. A run that ends early, for whatever reason, leaves a checkpoint: with
    `resume` it continues to the same masks, on a CPU bit for bit.

    Args:
        source: a video file, or a folder of jpg, png or webp frames.
        masks: a mask as `read_mask` takes it for the first frame, or for the one whose name it has ("00033.png" is
            frame 33 of a video), or a folder of masks named as their frames. Objects may appear in later masks; 255
            beside other ids is void. Masks among the frames are not taken for frames.
        output: a folder that is empty or does not exist, unless `overwrite`; the input is not in it.
        model, memory, max_size, min_size, backend: as in :class:`VideoSegmenter`.
        mask_frame: the frame that the one mask belongs to, whatever its name: an index, or a name.
        overlay: "video" for ``overlay.mp4``, "pictures" for ``overlay/<frame>.jpg``, or "none".
        resume: continue the interrupted run that `output` holds; start one where it holds nothing.
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
    job = Job(Path(source), Path(masks), Path(output), mask_frame)
    options = RunOptions(memory or MemoryConfig(), max_size, min_size, backend)
    outputs = OutputOptions(overlay, overwrite, resume, checkpoint_seconds, leave_record)
    hooks = Hooks(should_stop, progress or _ignore, estimated or _ignore)
    return segment_job(job, model, options, outputs, hooks, of_group(group))


def segment_job(
    job: Job, model: STM, options: RunOptions, outputs: OutputOptions, hooks: Hooks, ranks: Ranks
) -> Summary:
    """As `segment_video`; the `ranks` segment the video together."""
    return _VideoRun(job, model, options, outputs, hooks, ranks).segment()


class _VideoRun:
    """One video that is segmented into a folder."""

    def __init__(
        self, job: Job, model: STM, options: RunOptions, outputs: OutputOptions, hooks: Hooks, ranks: Ranks
    ) -> None:
        self._job, self._outputs, self._hooks, self._ranks = job, outputs, hooks, ranks
        masks = find_masks(job.masks, job.source)
        self._reader = reader = open_frames(job.source, masks.files)
        self._given = given = match_masks(masks, reader, job.mask_frame)
        options = replace(options, memory=with_known_size(options.memory, reader.frame_count, given.files))
        self._segmenter = plain_segmenter(model, options, Shard(ranks.group))
        described = describe_video_run(job.source, given, model, options, outputs.overlay, ranks.world)
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
        inputs = (job.source, job.masks)
        ranks.lead(lambda: check_output(job.output, outputs.overwrite, inputs, resume=outputs.resume))
        estimate = check_fits(self._workload)
        for note in self._given.notes if ranks.leads else ():
            logger.warning(note)
        self._hooks.estimated(estimate)

        start = time.perf_counter()
        first = self._restore(position)
        scores = 0 if position is None else position.scores
        palette = self._given.palette
        with self._results as results:
            ranks.lead(lambda: results.open(job.output, self._reader, palette, outputs.overlay, first, scores))
            frames = self._run(first)
        ids = self._segmenter.object_ids
        self._checkpoint.finish(frames, ids, leave_record=outputs.leave_record)
        return Summary(frames, time.perf_counter() - start, ids, job.output, first)

    def _restore(self, position: Position | None) -> int:
        """Restores the segmenter; returns the next frame to segment."""
        if position is None:
            # a run that is killed from here on can be resumed
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
        """After each frame: reports progress, saves a checkpoint if one is due, stops if that is asked for."""
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
    """What a hook does that is not given."""
