"""A video in a store, such as s3://bucket/clip.mp4: read by ranges, in any order."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from av.container import InputContainer
from av.video.stream import VideoStream

from stm_fast.store import ObjectReader, StoredObject, StoreUrl
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
    def _open_packets(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        # the index has their sizes and time stamps, and there are none without an index: see `frame_count`
        file = self._bytes()
        with self._opened(file) as opened:
            file.blank = True
            yield opened

    def _opened(self, file: ObjectReader) -> AbstractContextManager[tuple[InputContainer, VideoStream]]:
        return open_stream(VideoInput(self.label, cast(BinaryIO, file), ()))

    def _bytes(self) -> ObjectReader:  # type: ignore[override]
        return ObjectReader(self._object)
