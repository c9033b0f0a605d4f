"""A video whose objects are given and corrected by prompts, and tracked from any frame in either direction.

O objects, H x W the frames of the video.
"""

import zlib
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stm_fast.boxes import Box
from stm_fast.clicks.prompting import Click
from stm_fast.errors import InputError
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.objects import MAX_ID, label
from stm_fast.runs.tracking import Masks, Tracked, nearest_last, step, track
from stm_fast.video import Frame, FrameReader, object_ids

Bools = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.uint8]


class ObjectPrompt(NamedTuple):
    """What the user gave for one object in one frame.

    Attributes:
        mask: of the object, bool [H, W].
        box: around it, if the mask was found from a box.
        corrected: the mask that was corrected by clicks, if there was one.
        clicks: those that the mask was found from.
    """

    mask: Bools
    box: Box | None = None
    corrected: Bools | None = None
    clicks: tuple[Click, ...] = ()


class PromptedVideo:
    """The prompts of a video, and the masks found from them.

    In memory are each frame with a prompt, which takes less than its rows in the memory bank, its masks, and the masks
    of the frames that were tracked, compressed. The video is never read as a whole.

    Args:
        reader: of the frames.

    Attributes:
        given: the prompts, by frame and object.
        ids: by object, the number in 1..255 that stands for it in masks; not used again before a reset.
    """

    def __init__(self, reader: FrameReader) -> None:
        self.reader = reader
        self.given: dict[int, dict[int, ObjectPrompt]] = {}
        self.ids: dict[int, int] = {}
        self._used = 0
        self._frames: dict[int, Frame] = {}  # those with a prompt
        self._last: Frame | None = None  # the last one that was decoded
        self._found: dict[int, bytes] = {}

    def reset(self) -> None:
        """Forgets every prompt, object and mask."""
        for kept in (self.given, self.ids, self._frames, self._found):
            kept.clear()
        self._used = 0

    def add(self, frame_index: int, obj_id: int, prompt: ObjectPrompt) -> None:
        """Adds a prompt, or replaces that of the same frame and object. Raises InputError if all ids are used."""
        frame = self.frame(frame_index)
        if obj_id not in self.ids:
            if self._used == MAX_ID:
                raise InputError(f"obj_id: found {obj_id} after {MAX_ID} other objects, expected at most {MAX_ID}")
            self._used += 1
            self.ids[obj_id] = self._used
        self._frames[frame_index] = frame
        self.given.setdefault(frame_index, {})[obj_id] = prompt

    def clear(self, frame_index: int, obj_id: int) -> None:
        """Forgets the prompt of an object in a frame, if there is one."""
        prompts = self.given.get(frame_index, {})
        prompts.pop(obj_id, None)
        if not prompts:
            self.given.pop(frame_index, None)
            self._frames.pop(frame_index, None)

    def remove(self, obj_id: int) -> list[int]:
        """Forgets an object; returns the frames in which it had a prompt."""
        frames = sorted(index for index, prompts in self.given.items() if obj_id in prompts)
        for index in frames:
            self.clear(index, obj_id)
        del self.ids[obj_id]
        return frames

    def frame(self, index: int) -> Frame:
        """A frame. Raises InputError if there is none of this index, or it cannot be decoded."""
        if index in self._frames:
            return self._frames[index]
        if self._last is None or self._last.index != index:
            self._last = next(self.reader.forward(index), None)
        if self._last is None or self._last.index != index:
            raise InputError(f"{self.reader.path}: found no frame {index}, the video ends before it")
        return self._last

    def mask(self, frame_index: int, obj_id: int) -> Bools | None:
        """The mask [H, W] of an object in a frame: given, or else found; None if neither."""
        prompt = self.given.get(frame_index, {}).get(obj_id)
        if prompt is not None:
            return prompt.mask
        found = self._found_ids(frame_index) if obj_id in self.ids else None
        return None if found is None else found == self.ids[obj_id]

    def track(
        self, segmenter: VideoSegmenter, start: int, count: int | None = None, *, reverse: bool = False
    ) -> Iterator[Tracked]:
        """Tracks all objects from one frame on.

        Every frame with a prompt is memorized first, behind and ahead, the nearest to `start` last; if not every object
        has a prompt at `start`, then also the frame before it, with the masks that were found there.

        Args:
            segmenter: a new one.
            start: the first frame.
            count: how many frames; None for all.
            reverse: towards frame 0.
        """
        masks = self._to_memorize(start, start + 1 if reverse else start - 1)
        for index in nearest_last(masks.keys() - {start}, start):
            step(segmenter, self.frame(index), masks[index])
        frames = self.reader.backward(start + 1) if reverse else self.reader.forward(start)
        for tracked in track(segmenter, lambda index: masks.get(index, {}), islice(frames, count), start):
            self._keep(tracked.frame, label(tracked.prob, tracked.ids))
            yield tracked

    def _to_memorize(self, start: int, before: int) -> dict[int, Masks]:
        """The given masks by frame, and those found in the frame before the first one, if it needs them."""
        masks = {
            index: {self.ids[obj_id]: torch.from_numpy(prompt.mask) for obj_id, prompt in prompts.items()}
            for index, prompts in self.given.items()
        }
        found = self._found_ids(before)
        if found is not None and len(masks.get(start, {})) < len(self.ids):
            masks[before] = {one: torch.from_numpy(found == one) for one in object_ids(found)} | masks.get(before, {})
        return {index: of_frame for index, of_frame in masks.items() if of_frame}

    def _keep(self, frame: Frame, ids: Tensor) -> None:
        self._found[frame.index] = zlib.compress(ids.cpu().numpy().tobytes(), 1)
        self._last = frame

    def _found_ids(self, frame_index: int) -> Ids | None:
        """The ids [H, W] found in a frame, without objects that were removed since; None if it was not tracked."""
        if frame_index not in self._found:
            return None
        found = np.frombuffer(zlib.decompress(self._found[frame_index]), np.uint8)
        ids = found.reshape(self.reader.height, self.reader.width)
        return np.where(np.isin(ids, list(self.ids.values())), ids, np.uint8(0))
