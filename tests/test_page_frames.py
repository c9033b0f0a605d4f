"""Frames for the page: in any order, from several threads, decoded no more often than needed, in bounded memory."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stm_fast.errors import InputError
from stm_fast.page import frames as page_frames
from stm_fast.page.frames import FrameCache
from stm_fast.video import Frame, FrameReader, open_frames
from video_files import damage_frame, needs_av, number_of, numbered_picture, write_video

COUNT = 60
GROUP = {"g": "20", "keyint_min": "20", "sc_threshold": "0", "bf": "0"}


class Counted(FrameReader):
    """A reader that notes the frames it gave, and where it started."""

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader
        self.path, self.name, self.frame_rate = reader.path, reader.name, reader.frame_rate
        self.width, self.height, self.frame_count = reader.width, reader.height, reader.frame_count
        self.given: list[int] = []
        self.starts: list[int] = []
        self.open = 0

    def forward(self, start: int = 0) -> Iterator[Frame]:
        self.starts.append(start)
        self.open += 1
        try:
            for frame in self._reader.forward(start):
                self.given.append(frame.index)
                yield frame
        finally:
            self.open -= 1

    def backward(self, before: int | None = None) -> Iterator[Frame]:
        raise AssertionError

    def index_of(self, name: str) -> int | None:
        raise AssertionError

    def name_of(self, index: int) -> str:
        raise AssertionError


@pytest.fixture
def video(tmp_path: Path) -> Counted:
    pictures = [numbered_picture(k) for k in range(COUNT)]
    return Counted(open_frames(write_video(tmp_path / "v.mp4", pictures, encoder=GROUP)))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen frames are kept."""
    monkeypatch.setattr(page_frames, "FRAME_BYTES", 16 * 64 * 48 * 3)


def show(cache: FrameCache, index: int) -> int:
    frame = cache.frame(index)
    assert frame.index == index
    return number_of(frame.image)


@needs_av
def test_playing_decodes_each_frame_once(video: Counted, small: None) -> None:
    cache = FrameCache(video)
    assert [show(cache, k) for k in range(COUNT)] == list(range(COUNT))
    assert (video.given, video.starts) == (list(range(COUNT)), [0])


@needs_av
def test_a_jump_starts_there(video: Counted, small: None) -> None:
    cache = FrameCache(video)
    assert [show(cache, k) for k in (50, 10, 11, 12)] == [50, 10, 11, 12]
    assert video.starts == [50, 10]
    # a short way is decoded
    assert show(cache, 20) == 20
    assert video.starts == [50, 10]


@needs_av
def test_steps_back_decode_in_parts(video: Counted, small: None) -> None:
    cache = FrameCache(video)
    assert [show(cache, k) for k in range(50, 9, -1)] == list(range(50, 9, -1))
    assert video.starts[:3] == [50, 45, 40]
    assert len(video.given) < 50


@needs_av
def test_memory_is_bounded(video: Counted, small: None) -> None:
    cache = FrameCache(video)
    for index in range(COUNT):
        cache.frame(index)
    video.given.clear()
    # the last sixteen are there
    for index in range(COUNT - 16, COUNT):
        cache.frame(index)
    assert video.given == []
    cache.frame(COUNT - 17)
    assert video.given != []


@needs_av
def test_a_few_frames_of_any_size_are_kept(video: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_frames, "FRAME_BYTES", 1)
    cache = FrameCache(video)
    for index in (3, 4, 5, 6, 3, 4, 5, 6):
        assert show(cache, index) == index
    assert video.given == [3, 4, 5, 6]


@needs_av
def test_several_threads(video: Counted, small: None) -> None:
    cache = FrameCache(video)
    wanted = np.random.default_rng(0).integers(0, COUNT, 300).tolist()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda index: show(cache, index), wanted)) == wanted
        images = list(threads.map(lambda index: cache.jpeg(index, 32), wanted))
    assert images == [cache.jpeg(index, 32) for index in wanted]


@needs_av
def test_threads_that_want_the_same_frame_decode_it_once(video: Counted) -> None:
    cache = FrameCache(video)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: show(cache, 30), range(8))) == [30] * 8
    assert video.given == [30]


@needs_av
def test_jpeg(video: Counted) -> None:
    cache = FrameCache(video)
    for width, expected in ((None, (64, 48)), (32, (32, 24)), (500, (64, 48)), (0, (1, 1))):
        image = Image.open(io.BytesIO(cache.jpeg(21, width)))
        assert (image.format, image.size) == ("JPEG", expected)
        if expected[0] > 8:
            assert number_of(np.asarray(image)) == 21
    assert cache.jpeg(21, 500) is cache.jpeg(21)
    assert video.given == [21]


@needs_av
def test_areas_are_averaged(tmp_path: Path) -> None:
    """Scaling by taking single pixels would show black or white."""
    stripes = np.zeros((48, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "0.png")
    image = np.asarray(Image.open(io.BytesIO(FrameCache(open_frames(tmp_path)).jpeg(0, 16))))
    assert abs(image.astype(int) - 127).max() <= 2


@needs_av
@pytest.mark.parametrize("index", [-1, COUNT, 10**9])
def test_frames_that_do_not_exist(video: Counted, index: int) -> None:
    cache = FrameCache(video)
    with pytest.raises(InputError, match=rf"^v: found frame {index}, expected 0 to 59$"):
        cache.frame(index)
    with pytest.raises(InputError, match="found frame"):
        cache.jpeg(index)
    assert video.starts == []
    video.frame_count = None
    if index > 0:
        with pytest.raises(InputError, match=f"^v: found no frame {index}, the video ends before it$"):
            cache.frame(index)
    assert show(cache, 7) == 7


@needs_av
def test_a_damaged_frame_leaves_the_others(tmp_path: Path) -> None:
    pictures = [numbered_picture(k) for k in range(COUNT)]
    path = write_video(tmp_path / "v.mp4", pictures, encoder=GROUP | {"tune": "zerolatency"})
    damage_frame(path, 30)
    cache = FrameCache(open_frames(path))
    # skipping, stepping back and jumping across it
    for order in ((25, 26, 41, 42), (44, 43, 42, 41, 40, 29, 28), (59, 0, 45)):
        assert [show(cache, index) for index in order] == list(order)
    for index in (30, 31, 39):
        with pytest.raises(InputError, match="frame 30 cannot be decoded"):
            cache.frame(index)
        assert show(cache, 40) == 40


@needs_av
def test_closing_lets_go(video: Counted) -> None:
    cache = FrameCache(video)
    cache.frame(3)
    assert video.open == 1
    cache.close()
    cache.close()
    assert video.open == 0
    with pytest.raises(InputError, match="closed"):
        cache.frame(3)
    with pytest.raises(InputError, match="closed"):
        cache.jpeg(3)
