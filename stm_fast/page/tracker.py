"""Tracks the objects of a project from a frame on, forward or back, and keeps what is found.

O objects, H x W the frames of the video.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.inference.augmentation import plain_segmenter
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.objects import label
from stm_fast.inference.options import RunOptions
from stm_fast.inference.sightings import Sighting, Watch
from stm_fast.memory import stays
from stm_fast.network import STM
from stm_fast.page.blending import GivenFrames, blended, share
from stm_fast.page.project import Project
from stm_fast.runs.estimation import Workload, check_fits, most_frames
from stm_fast.runs.loop import FRAMES_WAITING, BackgroundWriter, Ids, as_tensor
from stm_fast.runs.tracking import Masks, Tracked, nearest_last, track
from stm_fast.video import Frame, FrameReader, object_ids

_MOST_FOUND = 16  # each takes about half as long as a frame that is tracked


@dataclass(frozen=True)
class TrackedFrame:
    """A frame whose masks are kept in the project.

    Attributes:
        state: as in `Project.states`.
        seconds: since the first of the frames was begun.
        rate: frames per second so far.
        done, total: frames tracked so far, and at the end.
    """

    index: int
    state: str
    seconds: float
    rate: float
    done: int
    total: int


@dataclass(frozen=True, eq=False)
class _Found:
    """What the network found in a frame."""

    index: int
    ids: Ids
    sightings: list[Sighting]
    prob: Tensor  # [1 + O, H, W], on the CPU
    object_ids: list[int]
    seconds: float
    done: int


class _Plan(NamedTuple):
    """What is memorized, and what is tracked then.

    Attributes:
        memorized: the frames whose masks are memorized for good, in order.
        begin: the one that tracking goes on from; None if the first tracked frame is the one the user chose.
        frames: to be tracked, in order.
    """

    memorized: list[int]
    begin: int | None
    frames: range

    @property
    def back(self) -> bool:
        return self.frames.step < 0


def track_project(
    project: Project,
    model: STM,
    options: RunOptions,
    start: int,
    back: bool,
    should_stop: Callable[[], bool],
    tell: Callable[[TrackedFrame], None],
) -> int:
    """Tracks all objects from a frame on, up to the mark in that direction.

    First, every given frame is memorized for good, behind and ahead, the nearest one last, and some that were found,
    see `_found_behind`. Tracking goes on from the last frame up to `start` that has a mask, which is memorized as well;
    if there is none, `start` is the first frame. Masks that are given on the way stay, and between two given masks of
    an object, what is found is blended with what was found before.

    Args:
        project: it keeps each result.
        model: the network.
        options: as for a run over the video.
        start: the frame that the user looks at.
        back: towards frame 0.
        should_stop: asked between frames.
        tell: called in another thread, in order, once a frame is kept.

    Returns:
        The number of frames that were tracked.

    Raises:
        InputError: there is no mask yet, or no frame in this direction; a frame cannot be decoded; a result cannot be
            written; the memory of this machine does not suffice.
    """
    plan = _plan(project, options.memory, start, back)
    segmenter = plain_segmenter(model, _fitting(project, model, options, plan))
    _memorize(segmenter, project, plan, should_stop)
    watch, began, done = Watch(_areas(project, plan)), time.perf_counter(), 0
    given = partial(_given, project, frozenset(project.given_frames()))
    results = track(segmenter, given, _decoded(project.reader, plan.frames))
    blend = partial(_blended, project, _given_frames(project), back)
    keep = partial(_keep, project, tell, len(plan.frames))
    with BackgroundWriter(keep, FRAMES_WAITING) as writer, closing(results):
        while not should_stop() and (tracked := next(results, None)) is not None:
            done += 1
            writer.put(_found(blend(tracked), watch, time.perf_counter() - began, done))
    return done


def _plan(project: Project, memory: MemoryConfig, start: int, back: bool) -> _Plan:
    """Raises InputError if there is nothing to memorize or to track."""
    begin = _begin(project, start, back)
    memorized = {*project.given_frames()}
    if begin is not None:
        memorized |= {begin, *_found_behind(project, memory, begin, back)}
    if not memorized:
        raise InputError("track: found no mask in any frame, expected one to begin with")
    marks = project.marks
    if back:
        frames = range(start if begin is None else begin - 1, marks.start - 1, -1)
    else:
        frames = range(start if begin is None else begin + 1, marks.stop)
    if not frames:
        found = f"no frame {'before' if back else 'after'} frame {start if begin is None else begin}"
        raise InputError(f"track: found {found} within the marks, {marks.start} to {marks.stop - 1}")
    return _Plan(nearest_last(memorized, start if begin is None else begin), begin, frames)


def _begin(project: Project, start: int, back: bool) -> int | None:
    """The last frame up to `start` that has a mask."""
    states = project.states()
    for index in range(start, project.frame_count) if back else range(start, -1, -1):
        seen = states[index] != "." and any(one.pixels for one in project.sightings(index))
        if seen and project.shown(index).any():  # the file may be damaged
            return index
    return None


def _found_behind(project: Project, memory: MemoryConfig, begin: int, back: bool) -> list[int]:
    """Frames that are memorized besides the given ones, with what was found in them.

    They are those that a run that had come to `begin` would have memorized, but no doubtful ones, evenly spread, and at
    most `_MOST_FOUND`, or half of what given frames leave free in a capped memory. They show the object as it usually
    is, where a corrected frame is unlike the others. With a single given frame they are those after it: tracking from
    there begins as a run does.
    """
    given, states = project.given_frames(), project.states()
    behind = range(begin + 1, project.frame_count) if back else range(begin)
    if len(given) == 1:
        behind = range(begin + 1, given[0]) if back else range(given[0] + 1, begin)
    found = [index for index in behind if states[index] == "f" and stays(memory, index, False)]
    most = _MOST_FOUND if memory.max_frames is None else min(_MOST_FOUND, (memory.max_frames - len(given)) // 2)
    if not found or most < 1 or memory.max_bytes is not None:
        return []
    spread = found[:: math.ceil(len(found) / most)]
    return [index for index in spread if project.shown(index).any()]  # a file may be damaged


def _fitting(project: Project, model: STM, options: RunOptions, plan: _Plan) -> RunOptions:
    """The options with the number of frames that will be memorized, and room for those that are never evicted.

    Of a video that is too long for the memory of this machine, evenly spread frames are kept in half of it. Raises
    InputError if even the given frames do not fit.
    """
    memory, given = options.memory, len(plan.memorized)
    if memory.max_frames is not None:
        memory = replace(memory, max_frames=max(memory.max_frames, given))
    # frames count from 0 when they come backwards
    counted = range(len(plan.frames)) if plan.back else plan.frames
    staying = given + sum(stays(memory, index, False) for index in counted)
    size, objects = (project.reader.height, project.reader.width), max(1, len(project.objects))
    options = replace(options.for_weights(model.min_size), memory=memory)
    work = Workload(model, options, size, objects, 0, staying, given, keep_prob=True)
    if not memory.capped and (most := most_frames(work)) < staying:
        work = work.with_memory(max_frames=max(most // 2, given), evict="even")
    check_fits(work)
    return work.with_memory(frames=min(staying, work.memory.max_frames or staying)).options


def _memorize(segmenter: VideoSegmenter, project: Project, plan: _Plan, should_stop: Callable[[], bool]) -> None:
    """Memorizes all masks, so that the frames after them are segmented as in a run over the whole video."""
    going_on = not plan.back and plan.begin is not None  # the next frame counts from this one
    segmenter.clear_memory(frame_index=0 if plan.back else plan.frames.start - going_on)
    primed = plan.memorized[:-1] if going_on else plan.memorized
    pairs = ((as_tensor(_frame(project.reader, index)), _ids(project, plan, index)) for index in primed)
    segmenter.prime(takewhile(lambda _: not should_stop(), pairs))
    if going_on and not should_stop():
        begin = plan.memorized[-1]
        segmenter.step(as_tensor(_frame(project.reader, begin)), _ids(project, plan, begin))


def _ids(project: Project, plan: _Plan, index: int) -> Tensor:
    """The objects of a frame that is memorized, uint8 [H, W]."""
    given = None if index == plan.begin else project.given(index)
    return torch.from_numpy(project.shown(index) if given is None else given)


def _areas(project: Project, plan: _Plan) -> dict[int, int]:
    """The pixels of each object in the frame that is memorized last."""
    counts = torch.bincount(_ids(project, plan, plan.memorized[-1]).flatten(), minlength=1).tolist()
    return {object_id: count for object_id, count in enumerate(counts) if object_id and count}


def _given(project: Project, frames: Collection[int], index: int) -> Masks:
    """The masks given for a frame."""
    ids = project.given(index) if index in frames else None
    return {} if ids is None else {one: torch.from_numpy(ids == one) for one in object_ids(ids)}


def _given_frames(project: Project) -> dict[int, list[int]]:
    """By object, the frames in which it was given."""
    frames: dict[int, list[int]] = {}
    for index in project.given_frames():
        given = project.given(index)
        for object_id in () if given is None else object_ids(given):
            frames.setdefault(object_id, []).append(index)
    return frames


def _blended(project: Project, given: GivenFrames, back: bool, tracked: Tracked) -> Tracked:
    """The result for a frame, blended with the one before as far as it is between given masks."""
    index = tracked.frame.index
    shares = [share(index, given.get(one, ()), back=back) for one in tracked.ids]
    if all(one == 1 for one in shares) or not project.sightings(index):
        return tracked
    return tracked._replace(prob=blended(tracked.prob, tracked.ids, project.soft(index), shares))


def _found(tracked: Tracked, watch: Watch, seconds: float, done: int) -> _Found:
    ids = label(tracked.prob, tracked.ids)
    sightings = watch.see(tracked.prob, ids, tracked.ids, tracked.given)
    return _Found(tracked.frame.index, ids.cpu().numpy(), sightings, tracked.prob.cpu(), tracked.ids, seconds, done)


def _keep(project: Project, tell: Callable[[TrackedFrame], None], total: int, found: _Found) -> None:
    """Keeps what was found in a frame, and says so."""
    project.keep(found.index, found.ids, found.sightings, found.prob.numpy(), found.object_ids)
    state, rate = project.state(found.index), found.done / max(found.seconds, 1e-9)
    tell(TrackedFrame(found.index, state, found.seconds, rate, found.done, total))


def _frame(reader: FrameReader, index: int) -> Frame:
    """Raises InputError if it cannot be decoded."""
    frame = next(_decoded(reader, range(index, index + 1)), None)
    if frame is None:
        raise InputError(f"{reader.name}: found no frame {index}, the video ends before it")
    return frame


def _decoded(reader: FrameReader, frames: range) -> Iterator[Frame]:
    """Frames in either direction."""
    decoded = reader.backward(frames.start + 1) if frames.step < 0 else reader.forward(frames.start)
    return islice(decoded, len(frames))
