"""Segments a video into an output folder. Decoding, the network and writing overlap, with bounded queues."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch.distributed import ProcessGroup

from stm_fast.boxes import GivenBoxes, boxes_of
from stm_fast.choices import DEFAULT_RESULTS, Result
from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError, option
from stm_fast.frame_source import STALL_SECONDS, frame_source
from stm_fast.inference.options import RunOptions
from stm_fast.memory import Shard
from stm_fast.network import STM
from stm_fast.runs.annotations import write_annotations
from stm_fast.runs.checkpoint import Checkpoint, CheckpointTimer, Position, describe_video_run, write_run_record
from stm_fast.runs.estimation import Estimate, check_fits, note_on_size, workload_of
from stm_fast.runs.loop import FRAMES_WAITING, BackgroundWriter, Segmented, prefetch, run
from stm_fast.runs.mask_sources import Masks
from stm_fast.runs.object_table import Sight, sights
from stm_fast.runs.output_folder import GIVEN, Job, OutputOptions, check_output, remove_working_files
from stm_fast.runs.passes import Pass, open_job
from stm_fast.runs.ranks import Ranks, of_group
from stm_fast.runs.sinks import Results, needs_prob, require_encoders, shows_frames
from stm_fast.runs.sole_writer import SoleWriter, sole_writer
from stm_fast.runs.stored import LocalJob, stored
from stm_fast.store import StoreUrl, place_of

logger = logging.getLogger(__name__)


class Summary(NamedTuple):
    """The outcome of segment_video."""

    frames: int  #: of the video
    seconds: float  #: from decoding the first frame to writing the last file
    object_ids: list[int]  #: of all objects
    output: Path | StoreUrl  #: the folder of the results
    resumed_at: int = 0  #: frames that an earlier run had done, all of them if it was finished
    sights: Sequence[Sight] = ()  #: how often each object was found


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
    both: bool = False,
    boxes: GivenBoxes | None = None,
    memory: MemoryConfig | None = None,
    max_size: int | None = None,
    min_size: int | None = None,
    backend: str = "auto",
    write: Collection[Result] = DEFAULT_RESULTS,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    leave_record: bool = False,
    overlay_stream: str | Path | None = None,
    allow_network: bool = False,
    stall_seconds: float = STALL_SECONDS,
    drop_frames: bool = False,
    group: ProcessGroup | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int | None], None] | None = None,
    estimated: Callable[[Estimate], None] | None = None,
) -> Summary:
    """Segments a video from the masks of some of its frames.

    Writes ``masks/<frame>.png``, ``objects.csv`` (where each object is in each frame, and how certain that is), an
    overlay and other results into `output`. The input is checked before anything is written. Memory does not grow with
    the length of the video, except for the memory bank. Files appear complete or not at all, except for
    ``objects.csv``, which grows. A run that ends early, for any reason, leaves a checkpoint; with `resume` it continues
    to the same masks, on a CPU bit for bit.

    Args:
        source: a video or TIFF file, or a folder of jpg, png, webp or tif frames; or an image glob,
            ``"frames/*.png"``; a URL, "camera:0" or "/dev/video0", a named pipe, or "-" for standard input. What can be
            read only once, as a camera or a pipe, is a live source: it cannot be resumed, and `should_stop` ends it
            with complete results. Source, masks and output may be in a store: ``"s3://bucket/clip.mp4"``, gs://, az://.
        masks: a mask that `read_mask` accepts, for the first frame or for the one it is named after ("00033.png" is
            frame 33 of a video), a folder of masks named after their frames, or another form that `find_masks` lists,
            such as an array of object ids, or files or arrays by frame. Objects may first appear in later masks; 255
            alone is object 1, and next to other ids it is void. Masks among the frames are not treated as frames. None
            if there are only boxes.
        output: a folder that is empty or does not exist, unless `overwrite`; it must not contain the input. In a store,
            results are whole if there is a ``run.json``.
        model, memory, max_size, min_size, backend: as in :class:`VideoSegmenter`.
        mask_frame: the frame that a single mask belongs to, regardless of its name: an index, or a name.
        both: also segment the frames before the first given mask, backwards from it, with the objects of that mask.
            Otherwise nothing is found in them. Objects that first appear in a later mask are segmented from there on.
        boxes: boxes around objects, as `boxes_of` accepts them. A small network, which needs OpenCV, makes their masks;
            they are written into ``given/``. Where a box and a mask overlap in a frame, the mask counts.
        write: the results to write: "masks", "overlay" (``overlay.mp4``), "pictures" (``overlay/<frame>.jpg``), "csv"
            (``objects.csv``), "coco" (``coco.json``, a COCO data set), "rle" (``rle.json``, as in YouTube-VIS);
            of the soft masks, all objects together: "matte" (``matte.mp4``, white is object), "alpha" (``alpha.mov``,
            ProRes 4444 with straight alpha), "webm" (``alpha.webm``, VP9 with alpha), "cutout"
            (``cutout/<frame>.png``, RGBA); "soft" (``soft/<frame>.<object>.png``, 16 bits, 65535 times the
            probability).
        resume: continue the interrupted run in `output`; start one if the folder is empty.
        checkpoint_seconds: minimum time between checkpoints, which take at most a tenth of the run time.
        leave_record: leave a hidden file that marks the run as finished, so that `resume` does nothing.
        overlay_stream: where to stream the overlay to as well, as it is segmented: a new .ts or .mkv file, a named
            pipe, or "-" for standard output. After `resume`, only the frames that are left; with `both`, only those
            from the first given mask on.
        allow_network: accept a URL as `source` that is not in a store, and use the network for it.
        stall_seconds: a live source that gives no frame for so long has ended.
        drop_frames: of a live source, segment only the newest frame whenever the network is ready for one.
        group: processes that segment this video together, each with a part of the memory; rank 0 writes. The group
            needs a backend for CPU tensors, and all processes must see the same files.
        should_stop: called after each frame; the run ends with InterruptedRun when it returns True.
        progress: called at the start and after each frame with the number of frames done, and their total or None.
        estimated: called once, before the first frame, with the estimated memory of the run.

    Raises:
        InputError: anything wrong with the input, in one line.
        InterruptedRun: `should_stop` returned True.
        RankLostError: another process of the group is gone.
    """
    frames = frame_source(source, allow_network=allow_network, stall_seconds=stall_seconds, drop_frames=drop_frames)
    job = Job(frames, masks, place_of(output), mask_frame, both, boxes_of(boxes))
    options = RunOptions(memory or MemoryConfig(), max_size, min_size, backend)
    outputs = OutputOptions(tuple(write), overwrite, resume, checkpoint_seconds, leave_record, overlay_stream)
    hooks = Hooks(should_stop, progress or _ignore, estimated or _ignore)
    return segment_job(job, model, options, outputs, hooks, of_group(group))


def segment_job(
    job: Job, model: STM, options: RunOptions, outputs: OutputOptions, hooks: Hooks, ranks: Ranks
) -> Summary:
    """`segment_video` for `ranks` that segment the video together."""
    with stored(job, outputs, ranks) as local, sole_writer(local.folder) as writer:
        summary = _VideoRun(local, model, options, outputs, hooks, ranks, writer).segment()
    return summary._replace(output=job.output)


class _VideoRun:
    """The run over one video."""

    def __init__(
        self,
        local: LocalJob,
        model: STM,
        options: RunOptions,
        outputs: OutputOptions,
        hooks: Hooks,
        ranks: Ranks,
        writer: SoleWriter,
    ) -> None:
        job, self._folder, self._writer = local.job, local.folder, writer
        self._job, self._outputs, self._hooks, self._ranks, self._named = job, outputs, hooks, ranks, local.named
        self._opened = opened = open_job(job, model, options, Shard(ranks.group), hooks.should_stop)
        self._live = opened.reader.live
        if self._live and (outputs.resume or ranks.world > 1):
            found = option("resume", True) if outputs.resume else f"{ranks.world} processes"
            raise InputError(f"{job.source.label}: a live source can be read only once, found {found}")
        self._segmenter = opened.segmenter
        self._described = describe_video_run(job, opened.given, model, opened.options, outputs.write, ranks.world)
        self._checkpoint = Checkpoint(self._folder, self._described, ranks, local.saved)
        size = (opened.reader.height, opened.reader.width)
        self._device = next(model.parameters()).device
        self._keep_prob = needs_prob(outputs.write)
        self._workload = workload_of(model, opened.options, size, opened.given, ranks.world, keep_prob=self._keep_prob)
        self._timer = CheckpointTimer(outputs.checkpoint_seconds)

    def segment(self) -> Summary:
        """Segments what is left of the video."""
        folder, outputs, ranks = self._folder, self._outputs, self._ranks
        ranks.lead(self._writer.claim)
        position = ranks.together(self._checkpoint.find) if outputs.resume else None
        if position is not None and position.finished:
            done = position.frames
            return Summary(done, 0.0, position.object_ids, folder, done, sights(folder))
        ranks.lead(lambda: check_output(folder, outputs.overwrite, self._job.inputs, resume=outputs.resume))
        ranks.lead(lambda: require_encoders(folder, outputs.write))
        estimate = check_fits(self._workload)
        notes = [*self._opened.given.notes, note_on_size(self._workload)]
        for note in filter(None, notes if ranks.leads else ()):
            logger.warning(self._named(note))
        self._hooks.estimated(estimate)

        start = time.perf_counter()
        first = self._restore(position)
        frames = self._run_passes(first, 0 if position is None else position.table)
        ids = self._segmenter.object_ids
        seen = sights(folder) if ranks.leads else []
        if ranks.leads:
            objects = {number: self._opened.given.names.get(number, f"object {number}") for number in ids}
            write_annotations(folder, self._opened.reader, frames, objects, outputs.write)
            write_run_record(folder, self._described, frames, ids, self._device)
        self._checkpoint.finish(frames, ids, leave_record=outputs.leave_record)
        if ranks.leads:
            remove_working_files(folder, outputs.write)
        return Summary(frames, time.perf_counter() - start, ids, folder, first, seen)

    def _restore(self, position: Position | None) -> int:
        """Restores the segmenter; returns the number of frames that are done."""
        if position is None:
            if self._live:
                # that of an earlier run, whose results are replaced
                self._checkpoint.remove()
            else:
                # from here on, a killed run can be resumed
                self._checkpoint.save(0, [], {})
            # if it did not exist before
            self._ranks.lead(self._writer.claim)
            return 0
        # a pass starts with an empty memory
        if position.frames not in [one.before for one in self._opened.passes]:
            self._checkpoint.restore(position, self._segmenter.load_state_dict)
        return position.frames

    def _run_passes(self, done: int, table: int) -> int:
        """The passes that are not over; returns the number of frames.

        Args:
            done: the number of frames that are done.
            table: its checksum for these frames.
        """
        self._hooks.progress(done, self._opened.reader.frame_count)
        frames = 0
        for one in self._opened.passes:
            if one.is_over(done):
                continue
            if done <= one.before:
                one.begin(self._segmenter)
            with Results() as results:
                self._ranks.lead(partial(self._open, results, one, done, table))
                frames = self._run(one, results, done)
                done, table = frames, results.checksum
                if one.until is None:
                    self._opened.given.check_all_used(frames)
                else:
                    results.sync()
                    # the next pass starts with an empty memory
                    self._checkpoint.save(done, self._segmenter.object_ids, {}, table)
        return frames

    def _open(self, results: Results, one: Pass, done: int, table: int) -> None:
        reader, palette, write = self._opened.reader, self._opened.given.palette, self._outputs.write
        results.open(
            self._folder,
            reader,
            palette,
            write,
            one.indices(done),
            table,
            in_order=not one.backwards,
            areas=one.areas,
        )
        if self._outputs.overlay_stream is not None and not one.backwards:
            results.stream(self._outputs.overlay_stream, reader, palette)
        self._opened.given.write(self._folder / GIVEN, reader)

    def _run(self, one: Pass, results: Results, first: int) -> int:
        """The loop over the frames, between the thread that decodes and the one that writes."""
        # a resumed run shows them again, in its videos
        unseen = 0 if shows_frames(self._outputs.write) else first
        decoded = prefetch(one.frames(unseen), 0 if self._live else FRAMES_WAITING)
        with BackgroundWriter(results.write, FRAMES_WAITING) as writer, closing(decoded) as frames:

            def advance(done: int) -> None:
                self._advance(max(first, done), done > first, writer, results)

            return run(
                frames,
                one.prompts,
                self._segmenter,
                writer.put,
                first=first,
                watch=results.watch,
                keep_prob=self._keep_prob and self._ranks.leads,
                after=advance,
            )

    def _advance(self, done: int, is_new: bool, writer: BackgroundWriter[Segmented], results: Results) -> None:
        """After each frame: reports progress, saves a checkpoint if one is due, and stops on request."""
        self._hooks.progress(done, self._opened.reader.frame_count)
        if self._live:  # ends by itself on request, and cannot be resumed
            return
        stop, due = self._ranks.any(self._hooks.should_stop(), self._timer.due)
        if (stop or due) and is_new:
            with self._timer.saving():
                writer.flush()
                results.sync()
                state = self._segmenter.state_dict()
                self._checkpoint.save(done, self._segmenter.object_ids, state, results.checksum)
        if stop:
            raise InterruptedRun(done)


def _ignore(*_: object) -> None:
    """A callback that does nothing."""
