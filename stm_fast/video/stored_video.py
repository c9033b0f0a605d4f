"""A video in a store, such as s3://bucket/clip.mp4: read by ranges, in any order."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from av.container import InputContainer
from av.video.stream import VideoStream

from stm_fast.store import ObjectReader, StoredObject, StoreUrl
from stm_fast.video.packet_count import VideoPacket
from stm_fast.video.stream_input import VideoInput, open_stream
from stm_fast.video.video_file import VideoFile


class StoredVideo(VideoFile):
    """As `VideoFile`, without a copy: the parts of the object that are needed are read when they are.

    Its frames are counted only where an index does (MP4, MOV); of other containers, all of it would have to be read.
    Raises InputError also if the object is missing, or cannot be read: a lost connection is not the end of a video.
    """

    _counts_packets = False

    def __init__(self, url: StoreUrl) -> None:
        self.path = None
        self.label, self.name = url, Path(url.name).stem
        self._object = StoredObject(url)
        self._inspect()

    def _open(self) -> AbstractContextManager[tuple[InputContainer, VideoStream]]:
        return self._opened(self._bytes())

    @contextmanager
    def _packets(self) -> Iterator[tuple[VideoStream, Iterator[VideoPacket]]]:
        # the index of the file has all that is used of them: without one, `frame_count` is None, and nobody asks
        file = self._bytes()
        with self._opened(file) as (container, stream):
            file.blank = True
            yield stream, _with_kinds(container.demux(stream), stream)

    def _opened(self, file: ObjectReader) -> AbstractContextManager[tuple[InputContainer, VideoStream]]:
        return open_stream(VideoInput(self.label, cast(BinaryIO, file), ()))

    def _bytes(self) -> ObjectReader:  # type: ignore[override]
        return ObjectReader(self._object)


def _with_kinds(packets: Iterator[VideoPacket], stream: VideoStream) -> Iterator[VideoPacket]:
    """Packets without content, with the key frames of the index: FFmpeg looks for these in the content, too."""
    keys = {entry.pos for entry in stream.index_entries if entry.is_keyframe}
    for packet in packets:
        packet.is_keyframe = packet.pos in keys
        yield packet
