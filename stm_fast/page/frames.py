"""Frames for the page: asked for in any order by several threads, as pixels or as JPEG images, from bounded memory."""

import io
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from stm_fast.errors import InputError
from stm_fast.video import Frame, FrameReader

# of the frames that are kept, unless the fewest need more, and of the JPEG images
FRAME_BYTES = 256 * 2**20
JPEG_BYTES = 32 * 2**20
FEWEST_FRAMES = 4
JPEG_QUALITY = 88
# decoding goes on up to that many frames ahead, instead of starting again at a key frame
MOST_SKIPPED = 16

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class FrameCache:
    """The frames of a video that were used last, and the decoder of the next ones.

    Frames in order are decoded once each. A step back also decodes frames before, for the steps that follow. Any number
    of threads can use it; one of them decodes.

    Args:
        reader: of the frames.
    """

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader
        frame_bytes = 3 * reader.width * reader.height
        most = max(FRAME_BYTES, FEWEST_FRAMES * frame_bytes)
        self._frames: _LastUsed[int, Frame] = _LastUsed(most, lambda frame: frame.image.nbytes)
        self._images: _LastUsed[tuple[int, int], bytes] = _LastUsed(JPEG_BYTES, len)
        # how many frames are decoded at a step back
        self._back = most // frame_bytes // 4
        self._last = -1
        self._lock = Lock()
        self._decoder: _Decoder | None = None
        self._closed = False

    def frame(self, index: int) -> Frame:
        """A frame, whose pixels must not be changed.

        Raises InputError if there is none of this index, it cannot be decoded, or the cache is closed.
        """
        frame = self._frames.get(index)
        if frame is None:
            with self._lock:
                # another thread may have decoded it meanwhile
                frame = self._frames.get(index) or self._decode(index)
        self._last = index
        return frame

    def jpeg(self, index: int, width: int | None = None) -> bytes:
        """A frame as a JPEG image, scaled down to at most `width` pixels across. Raises InputError as `frame`."""
        across = self._reader.width if width is None else max(1, min(width, self._reader.width))
        image = self._images.get((index, across))
        if image is None:
            image = _encoded(self.frame(index).image, across)
            self._images.keep((index, across), image)
        return image

    def close(self) -> None:
        """Closes the file, and lets go of all frames."""
        with self._lock:
            self._closed, self._decoder = True, None
            self._frames.clear()
            self._images.clear()

    def _decode(self, index: int) -> Frame:
        count = self._reader.frame_count
        if self._closed:
            raise InputError(f"{self._reader.name}: found a closed video, expected an open one")
        if index < 0 or (count is not None and index >= count):
            expected = "0 or more" if count is None else f"0 to {count - 1}"
            raise InputError(f"{self._reader.name}: found frame {index}, expected {expected}")
        # after an error, decoding starts again
        decoder, self._decoder = self._decoder, None
        if decoder is None or not decoder.next <= index < decoder.next + MOST_SKIPPED:
            before = self._back if index < self._last <= index + self._back else 0
            decoder = _Decoder(self._reader, max(0, index - before))
        try:
            frame = decoder.advance(index, self._keep)
        except InputError:
            if decoder.start == index:
                raise
            # what is damaged may lie before it
            decoder = _Decoder(self._reader, index)
            frame = decoder.advance(index, self._keep)
        self._decoder = decoder
        return frame

    def _keep(self, frame: Frame) -> None:
        self._frames.keep(frame.index, frame)


class _Decoder:
    """Frames from one on, while they are decoded.

    Attributes:
        start: the first frame.
        next: the frame that comes next.
    """

    def __init__(self, reader: FrameReader, start: int) -> None:
        self.start = self.next = start
        self._name, self._frames = reader.name, reader.forward(start)

    def advance(self, index: int, keep: Callable[[Frame], None]) -> Frame:
        """The frame at `index`, and each before it passed to `keep` as well. Raises InputError as the reader does."""
        for frame in self._frames:
            keep(frame)
            self.next = frame.index + 1
            if frame.index == index:
                return frame
        raise InputError(f"{self._name}: found no frame {index}, the video ends before it")


class _LastUsed(Generic[Key, Value]):
    """The values that were used last, as many as fit, for several threads; `size` gives the bytes of one."""

    def __init__(self, most_bytes: int, size: Callable[[Value], int]) -> None:
        self._most, self._size, self._bytes = most_bytes, size, 0
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def keep(self, key: Key, value: Value) -> None:
        with self._lock:
            self._forget(key)
            self._values[key] = value
            self._bytes += self._size(value)
            while self._bytes > self._most:
                self._forget(next(iter(self._values)))

    def clear(self) -> None:
        with self._lock:
            self._values.clear()
            self._bytes = 0

    def _forget(self, key: Key) -> None:
        if key in self._values:
            self._bytes -= self._size(self._values.pop(key))


def _encoded(image: npt.NDArray[np.uint8], across: int) -> bytes:
    """The image uint8 [H, W, 3] RGB as a JPEG image, scaled down to `across` pixels, each the mean of an area."""
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    if across < width:
        picture = picture.resize((across, max(1, round(height * across / width))), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
