"""Videos that are not local files: read as they come, and only once, or from a server that keeps them."""

import logging
import time as clock
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import cast

from av.codec.context import ThreadType
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from stm_fast.errors import InputError, reason_of
from stm_fast.frame_source import FrameSource
from stm_fast.video.display_matrix import orientation_of
from stm_fast.video.frames import Frame, FrameReader
from stm_fast.video.inputs import input_of
from stm_fast.video.packet_count import VideoPacket
from stm_fast.video.stream_input import VideoInput, frame_rate_of, open_stream
from stm_fast.video.video_file import VideoFile, VideoReader

logger = logging.getLogger(__name__)

# without a frame, before the user is told
QUIET_SECONDS = 10.0
# decoded, and not asked for yet
_FRAMES_WAITING = 4
_POLL_SECONDS = 0.1


def open_stream_of(source: FrameSource, should_stop: Callable[[], bool]) -> FrameReader:
    """The reader of a source that is not a local file or folder: live, unless a server states the video's length."""
    found = input_of(source)
    if not source.live and _states_length(found):
        return VideoUrl(source, found)
    return LiveVideo(source, found, should_stop)


def _states_length(source: VideoInput) -> bool:
    with open_stream(source) as (container, _):
        return container.size > 0


class VideoUrl(VideoFile):
    """A video on a server: read from its start as often as needed. How many frames it has is known at its end."""

    def __init__(self, source: FrameSource, found: VideoInput) -> None:
        self.path = None
        self.label, self.name, self._input = source.label, source.name, found
        self.frame_count = None
        with self._open() as (container, stream):
            self.frame_rate = frame_rate_of(stream)
            first = next(self._decoded(container.demux(stream)))
            self._note_first(first)
            self.width, self.height = self._orientation.upright_size(first)

    def _open(self) -> AbstractContextManager[tuple[InputContainer, VideoStream]]:
        return open_stream(self._input)


class LiveVideo(VideoReader):
    """Frames as they come, with their own time stamps, from a source that can be read only once.

    A thread opens the source and decodes it. At most a few frames wait, unless frames are dropped; until they are asked
    for, the source waits too. An iteration can start again until its second frame is asked for. It ends with the
    source, when the source gives no frame for `stall_seconds`, when its frames change their size, and when
    `should_stop()`; in each case what was read so far is the video. Damaged frames are skipped.

    Raises InputError if the source cannot be opened, or ends or stalls before its first frame.
    """

    live = True

    def __init__(self, source: FrameSource, found: VideoInput, should_stop: Callable[[], bool]) -> None:
        self.path = self.frame_count = None
        self.label, self.name = source.label, source.name
        self._source, self._input, self._should_stop = source, found, should_stop
        self._waiting: Queue[Frame | Exception | None] = Queue(1 if source.drop_frames else _FRAMES_WAITING)
        self._closed = Event()
        self._dropped = self._damaged = 0
        # a daemon: reading from a pipe cannot be interrupted
        Thread(target=self._read, name="stm_fast-live", daemon=True).start()
        try:
            self._first: Frame | None = self._next()
        except _Ended as end:
            self._closed.set()
            why = f"no frame, {end}" if end.__cause__ is None else f"{found.problem} ({end})"
            raise InputError(f"{self.label}: {why}") from end
        self.height, self.width = self._first.image.shape[:2]

    def forward(self, start: int = 0) -> Iterator[Frame]:
        """Raises InputError if `start` is not 0, or the frames were read already."""
        if start > 0:
            raise InputError(f"{self.label}: a live source can be read from its first frame only, found frame {start}")
        if self._first is None:
            raise InputError(f"{self.label}: a live source cannot be read twice")
        return self._frames(self._first)

    def backward(self, before: int | None = None) -> Iterator[Frame]:
        """Raises InputError: the frames are gone once they are read."""
        raise InputError(f"{self.label}: a live source cannot be read backward")

    def _frames(self, first: Frame) -> Iterator[Frame]:
        yield first
        self._first = None
        count = 1
        try:
            while True:
                frame = self._next()
                if frame.image.shape != first.image.shape:
                    raise _Ended(f"the next one is {_size(frame)}, expected {_size(first)} like frame 0")
                # not the index in the source: frames may have been dropped
                yield replace(frame, index=count, name=self.name_of(count))
                count += 1
        except (_Ended, InputError) as end:
            dropped = f", {self._dropped} dropped" if self._dropped else ""
            damaged = f", {self._damaged} damaged" if self._damaged else ""
            logger.warning("%s: ends after %d frames%s%s: %s", self.label, count, dropped, damaged, end)
        finally:
            self._closed.set()

    def _next(self) -> Frame:
        """Waits for the next frame. Raises _Ended if there is none, InputError if the source could not be opened."""
        start, told = clock.monotonic(), False
        limit = self._source.stall_seconds
        while not self._should_stop():
            with suppress(Empty):
                return _frame(self._waiting.get(timeout=_POLL_SECONDS))
            waited = clock.monotonic() - start
            if waited >= limit:
                raise _Ended(f"none came for {limit:g} s")
            if waited >= QUIET_SECONDS and not told:
                told = True
                logger.warning("%s: no frame for %g s; ends after %g s", self.label, QUIET_SECONDS, limit)
        raise _Ended("stopped")

    def _read(self) -> None:
        """The thread that opens the source and decodes it."""
        end: Exception | None = None
        try:
            with open_stream(self._input) as (container, stream):
                # decoding several frames at a time would delay each of them
                stream.thread_type = ThreadType.SLICE
                self._stream = stream
                self.frame_rate = frame_rate_of(stream)
                for index, (time, stored) in enumerate(self._timed(self._decoded(container.demux(stream)))):
                    if index == 0:
                        self._orientation = orientation_of(stored)
                    # the first two are never dropped: the first one may have a mask, and must have been taken
                    self._put(self._convert(index, time, stored), self._source.drop_frames and index > 1)
        except Exception as error:
            end = error
        self._put(end)

    def _put(self, item: Frame | Exception | None, drop: bool = False) -> None:
        while not self._closed.is_set():
            with suppress(Full):
                self._waiting.put(item, timeout=0 if drop else _POLL_SECONDS)
                return
            if drop:
                with suppress(Empty):
                    self._waiting.get_nowait()
                    self._dropped += 1

    def _decoded(self, packets: Iterator[VideoPacket]) -> Iterator[VideoFrame]:
        """The frames that can be decoded. A stream that is joined in its middle starts with some that cannot."""
        started, failure = False, None
        while not self._closed.is_set():
            try:
                packet = next(packets, None)
            except Exception as error:  # a lost connection, for example
                packet, failure = None, error
            if packet is not None and not packet.size:
                continue  # PyAV's mark of the end
            for frame in self._decode_packet(packet or self._end(), started):
                started = True
                yield frame
            if failure is not None:
                raise failure
            if packet is None:
                return

    def _end(self) -> VideoPacket:
        """The empty packet that makes the decoder give its last frames."""
        end = cast("VideoPacket", Packet())
        if self._stream.time_base is not None:
            # without it, these would have no times
            end.time_base = self._stream.time_base
        return end

    def _decode_packet(self, packet: VideoPacket, started: bool) -> Iterator[VideoFrame]:
        """The frames that a packet completes."""
        try:
            frames = self._stream.decode(packet)
        except Exception:  # of any type, for hostile data
            frames, self._damaged = [], self._damaged + started
        for frame in frames:
            if frame.is_corrupt:
                self._damaged += started
            else:
                yield frame


class _Ended(Exception):
    """Why there are no more frames."""


def _frame(item: Frame | Exception | None) -> Frame:
    """What the thread passed on: a frame, or why it stopped."""
    if isinstance(item, InputError):
        raise item
    if isinstance(item, Exception):
        raise _Ended(reason_of(item)) from item
    if item is None:
        raise _Ended("the source has ended")
    return item


def _size(frame: Frame) -> str:
    height, width = frame.image.shape[:2]
    return f"{width}x{height}"
