"""The passes of a run over a video: backwards from the first given mask, if requested, and forwards from the start."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stm_fast.errors import InputError, option
from stm_fast.inference.augmentation import plain_segmenter
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.options import RunOptions
from stm_fast.memory import Shard, with_known_size
from stm_fast.network import STM
from stm_fast.runs.given import GivenMasks, find_masks, match_masks
from stm_fast.runs.loop import Prompt, Prompts, as_tensor
from stm_fast.runs.output_folder import Job
from stm_fast.video import Frame, FrameReader, open_frames


class Pass(NamedTuple):
    """One pass over a part of the video, with a memory of its own.

    Attributes:
        frames: called for the frames, in the order in which they are segmented. The images of that many of the first
            ones are not needed.
        prompts: the masks that come with them.
        begin: prepares the segmenter.
        before: the number of frames that earlier passes have segmented.
        until: the number of frames segmented after it; None for the last pass.
        backwards: whether these are the frames before the first given mask, the last one first.
        areas: the pixels of the objects in that mask, by id; none in a pass that begins with it.
    """

    frames: Callable[[int], Iterable[Frame]]
    prompts: Prompts
    begin: Callable[[VideoSegmenter], None]
    before: int = 0
    until: int | None = None
    backwards: bool = False
    areas: Mapping[int, int] | None = None

    def is_over(self, done: int) -> bool:
        """Whether the pass is over once this number of frames is segmented."""
        return self.until is not None and done >= self.until

    def indices(self, done: int) -> range:
        """Of the frames that are segmented once this number is, in the order of this pass."""
        return range(done) if self.until is None else range(self.until - 1, self.until - 1 - done, -1)


class OpenedJob(NamedTuple):
    """A video that is ready to be segmented: its input was checked, and nothing is written yet.

    Attributes:
        options: with the number of frames that stay in memory, if the length of the video is known.
        passes: one or two.
    """

    reader: FrameReader
    given: GivenMasks
    options: RunOptions
    segmenter: VideoSegmenter
    passes: list[Pass]


def open_job(
    job: Job,
    model: STM,
    options: RunOptions,
    shard: Shard | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> OpenedJob:
    """Opens a video and its masks; `should_stop` ends a live one. Raises InputError for anything wrong with them."""
    masks = find_masks(job.masks, job.source.place)
    reader = open_frames(job.source, masks.files, should_stop=should_stop)
    if job.both and reader.live:
        raise InputError(f"{option('both', True)}: found with {job.source.label}, which can be read only once")
    given = match_masks(masks, reader, job.mask_frame, job.boxes)
    options = options.for_weights(model.min_size)
    memory = with_known_size(options.memory, reader.frame_count, given.ids, job.both)
    options = replace(options, memory=memory)
    segmenter = plain_segmenter(model, options, shard)
    return OpenedJob(reader, given, options, segmenter, _passes(reader, given, job.both))


def _passes(reader: FrameReader, given: GivenMasks, both: bool) -> list[Pass]:
    first = min(given.ids)
    if not both or first == 0:
        return [Pass(partial(_forward, reader), given.prompt, VideoSegmenter.clear_memory)]
    prime = partial(_prime, reader=reader, given=given)
    areas = _areas(given, first)
    backwards = Pass(lambda _: reader.backward(first), _no_prompt, prime, until=first, backwards=True, areas=areas)
    # every n-th frame of the video is memorized, as if the frames before the mask had come with no object
    begin = partial(VideoSegmenter.clear_memory, frame_index=first)
    return [backwards, Pass(partial(_forward, reader), given.prompt, begin, before=first)]


def _forward(reader: FrameReader, unseen: int) -> Iterator[Frame]:
    """All frames; the first `unseen` have no pixels, and are not decoded if the reader can start after them."""
    for index in range(unseen):
        yield Frame(index, 0.0, reader.name_of(index), np.empty((0, 0, 3), np.uint8))
    yield from reader.forward(unseen)


def _prime(segmenter: VideoSegmenter, reader: FrameReader, given: GivenMasks) -> None:
    """Memorizes all given masks of the objects of the first one, which comes last.

    Raises InputError as the reader and `GivenMasks.read` do.
    """
    segmenter.clear_memory()
    segmenter.prime(_given_frames(reader, given))


def _given_frames(reader: FrameReader, given: GivenMasks) -> Iterator[tuple[Tensor, Tensor]]:
    first = min(given.ids)
    objects = given.ids[first]
    last = max(index for index, found in given.ids.items() if not set(found).isdisjoint(objects))
    for frame in reader.backward(last + 1):
        if frame.index < first:
            break
        mask = given.read(frame.index)
        if mask is not None:
            mask = np.where(np.isin(mask, objects), mask, np.uint8(0))
            if mask.any():
                yield as_tensor(frame), torch.from_numpy(mask)


def _areas(given: GivenMasks, index: int) -> dict[int, int]:
    """The pixels of each object in the mask of a frame. Raises InputError as `GivenMasks.read` does."""
    mask = given.read(index)
    assert mask is not None
    counts = np.bincount(mask.ravel())
    return {object_id: int(counts[object_id]) for object_id in given.ids[index]}


def _no_prompt(frame: Frame, known: list[int]) -> Prompt | None:
    return None
