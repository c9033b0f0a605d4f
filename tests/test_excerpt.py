"""A part of a video reads, and is written, as a video of its own, with the sound of that part."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stm_fast.video import Excerpt, FrameReader, OverlayVideoWriter, open_frames
from video_files import FRAMES, hear, make, needs_av, number_of, numbered_picture, write_sound_video


def check(reader: FrameReader, frames: range) -> None:
    whole = list(reader)[frames.start : frames.stop]
    excerpt = Excerpt(reader, frames)
    found = list(excerpt)
    assert excerpt.frame_count == len(found) == len(frames)
    assert [frame.index for frame in found] == list(range(len(frames)))
    assert [frame.name for frame in found] == [frame.name for frame in whole]
    assert [frame.time for frame in found] == [frame.time - whole[0].time for frame in whole]
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    assert numbers(excerpt.forward(2)) == [number_of(frame.image) for frame in found[2:]]
    for before in (None, 2, 0, 1000):
        assert numbers(excerpt.backward(before)) == [number_of(frame.image) for frame in found[:before][::-1]]
    assert [excerpt.name_of(frame.index) for frame in found] == [frame.name for frame in found]
    assert [excerpt.index_of(frame.name) for frame in found] == list(range(len(found)))
    assert excerpt.file_name(0) == reader.file_name(frames.start)
    for outside in (frames.start - 1, frames.stop):
        if 0 <= outside < FRAMES:
            assert excerpt.index_of(reader.name_of(outside)) is None
    assert excerpt.index_of("other") is None


def numbers(frames: object) -> list[int]:
    return [number_of(frame.image) for frame in frames]  # type: ignore[attr-defined]


@needs_av
@pytest.mark.parametrize("frames", [range(12, 21), range(5), range(29, 30), range(FRAMES)])
@pytest.mark.parametrize("name", ["v.mp4", "v.avi", "later.ts"])
def test_a_part_of_a_video(tmp_path: Path, name: str, frames: range) -> None:
    codec = {"codec": "mpeg4"} if name.endswith("avi") else {}
    times = {"times": [Fraction(k, 25) + 7 for k in range(FRAMES)]} if name.startswith("later") else {}
    check(open_frames(make(tmp_path, name, encoder={"g": "8"}, **codec, **times)), frames)


def test_a_part_of_a_folder_of_images(tmp_path: Path) -> None:
    for number in range(FRAMES):
        Image.fromarray(numbered_picture(number)).save(tmp_path / f"frame{number}.png")
    check(open_frames(tmp_path), range(7, 12))
    assert Excerpt(open_frames(tmp_path), range(7, 12)).sound() is None


@pytest.mark.parametrize("frames", [range(3, 3), range(0, 8, 2), range(5, 2, -1), range(-2, 3)])
def test_only_consecutive_frames(tmp_path: Path, frames: range) -> None:
    Image.fromarray(numbered_picture(0)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match="in steps of 1"):
        Excerpt(open_frames(tmp_path), frames)


@needs_av
@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "aac"), ("a.mov", "pcm_s16le"), ("a.mkv", "libopus"), ("a.ts", "mp2"), ("a.ts", "aac")],
)
@pytest.mark.parametrize("first", [0, 5, 30])
def test_the_overlay_of_a_part_has_its_sound(tmp_path: Path, name: str, codec: str, first: int) -> None:
    """A click at each half second; the part has 42 frames, which last 1.68 seconds."""
    source = write_sound_video(tmp_path / name, [(codec, 7.0)], start=7.0, seconds=4.0, sound=4.0)
    excerpt = Excerpt(open_frames(source), range(first, first + 42))
    target = tmp_path / "overlay.mp4"
    with OverlayVideoWriter(target, 64, 48, excerpt.frame_rate, excerpt.sound()) as writer:
        for frame in excerpt:
            writer.write(frame.image, frame.time)
    written = list(open_frames(target))
    assert numbers(written) == list(range(first, first + 42))
    assert [frame.time for frame in written] == pytest.approx(np.arange(42) / 25)
    (heard,) = hear(target)
    expected = [click - first / 25 for click in np.arange(0, 4, 0.5) if 0.1 < click - first / 25 < 1.68]
    assert len(expected) >= 3
    assert [time for time in heard.clicks if time > 0.1] == pytest.approx(expected, abs=2e-3)
    assert heard.first > -0.15
    assert heard.last == pytest.approx(1.68, abs=0.1)
