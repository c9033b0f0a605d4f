"""Every frame of a video or folder, in order, upright and at its time; damaged files are refused before any work."""

import gc
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from stm_fast.errors import InputError
from stm_fast.video import OverlayVideoWriter
from stm_fast.video.reader import open_frames
from stm_fast.video.writer import MaskWriter, OverlayImageWriter
from video_files import damage_frame, needs_av, number_of, numbered_picture, write_video

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no sample data")

# colors of the corners: top left, top right, bottom left, bottom right
CORNERS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 230, 230))


def corner_picture(width: int = 64, height: int = 48) -> npt.NDArray[np.uint8]:
    image = np.zeros((height, width, 3), np.uint8)
    top, left = np.s_[: height // 2], np.s_[: width // 2]
    bottom, right = np.s_[height // 2 :], np.s_[width // 2 :]
    for (rows, columns), color in zip(
        ((top, left), (top, right), (bottom, left), (bottom, right)), CORNERS, strict=True
    ):
        image[rows, columns] = color
    return image


def corners(image: npt.NDArray[np.uint8]) -> list[int]:
    """Which of CORNERS is at the top left, top right, bottom left and bottom right."""
    found = [image[y, x].astype(int) for y in (4, -5) for x in (4, -5)]
    return [int(np.argmin([np.abs(color - known).sum() for known in CORNERS])) for color in found]


def write_pictures(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(numbered_picture(number)).save(folder / name)
    return folder


def refuses(source: Path, *words: str, name: Path | None = None) -> None:
    with pytest.raises(InputError) as caught:
        open_frames(source)
    message = str(caught.value)
    assert message.startswith(str(name or source))
    assert "\n" not in message
    for word in words:
        assert word in message


# videos


@needs_av
def test_frames_of_a_video_with_b_frames(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mp4", [numbered_picture(k) for k in range(40)], encoder={"bf": "3", "b-adapt": "0"}
    )
    reader = open_frames(path)
    assert (reader.name, reader.width, reader.height) == ("a", 64, 48)
    assert (reader.frame_count, reader.frame_rate) == (40, 25)
    for _ in range(2):
        frames = list(reader)
        assert [number_of(frame.image) for frame in frames] == list(range(40))
        assert [frame.index for frame in frames] == list(range(40))
        assert [frame.name for frame in frames] == [f"{k:05d}" for k in range(40)]
        assert [frame.time for frame in frames] == pytest.approx([k / 25 for k in range(40)])
    assert [reader.index_of(name) for name in ("00000", "39", "00040", "mask")] == [0, 39, None, None]
    assert frames[0].image.dtype == np.uint8
    assert frames[0].image.flags.c_contiguous


@needs_av
def test_variable_frame_rate_keeps_every_time(tmp_path: Path) -> None:
    times = [Fraction(k * k, 100) for k in range(12)]
    path = write_video(tmp_path / "v.mp4", [numbered_picture(k) for k in range(12)], times=times)
    frames = list(open_frames(path))
    assert [number_of(frame.image) for frame in frames] == list(range(12))
    assert [frame.time for frame in frames] == pytest.approx([float(t) for t in times], abs=1e-4)


@needs_av
def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "v.ts", [corner_picture()] * 5, times=[Fraction(k, 25) + 7 for k in range(5)], clock=Fraction(1, 25)
    )
    assert [frame.time for frame in open_frames(path)] == pytest.approx([k / 25 for k in range(5)])


@needs_av
@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mov"])
def test_other_containers(tmp_path: Path, suffix: str) -> None:
    path = write_video(
        tmp_path / f"v{suffix}", [numbered_picture(k) for k in range(12)], codec="mpeg4", clock=Fraction(1, 25)
    )
    frames = list(open_frames(path))
    assert [number_of(frame.image) for frame in frames] == list(range(12))
    assert [frame.time for frame in frames] == pytest.approx([k / 25 for k in range(12)], abs=2e-3)


@needs_av
def test_times_never_go_back_even_if_the_container_states_wrong_ones(tmp_path: Path) -> None:
    path = write_video(tmp_path / "b.avi", [numbered_picture(k) for k in range(12)], clock=Fraction(1, 25))
    frames = list(open_frames(path))
    assert [number_of(frame.image) for frame in frames] == list(range(12))
    times = [frame.time for frame in frames]
    assert times[0] == 0
    assert all(later > earlier for earlier, later in pairwise(times))


ONE = 1 << 16
END = (0, 0, 0, 1 << 30)
# display matrices as in the tkhd box, and where each puts the corners 0 1 / 2 3
DISPLAY = {
    "upright": ((ONE, 0, 0, 0, ONE, *END), [0, 1, 2, 3]),
    "a quarter turn clockwise": ((0, ONE, 0, -ONE, 0, *END), [2, 0, 3, 1]),
    "a half turn": ((-ONE, 0, 0, 0, -ONE, *END), [3, 2, 1, 0]),
    "a quarter turn counterclockwise": ((0, -ONE, 0, ONE, 0, *END), [1, 3, 0, 2]),
    "mirrored": ((-ONE, 0, 0, 0, ONE, *END), [1, 0, 3, 2]),
    "upside down": ((ONE, 0, 0, 0, -ONE, *END), [2, 3, 0, 1]),
    "transposed": ((0, ONE, 0, ONE, 0, *END), [0, 2, 1, 3]),
}


@needs_av
@pytest.mark.parametrize("turn", DISPLAY)
def test_rotation_is_applied(tmp_path: Path, turn: str) -> None:
    matrix, expected = DISPLAY[turn]
    path = write_video(tmp_path / "r.mp4", [corner_picture(64, 48)] * 3, matrix=matrix)
    reader = open_frames(path)
    frame = next(iter(reader))
    size = (48, 64) if matrix[0] == 0 else (64, 48)
    assert (reader.width, reader.height) == size
    assert frame.image.shape == (size[1], size[0], 3)
    assert frame.image.flags.c_contiguous
    assert corners(frame.image) == expected


@needs_av
def test_files_that_are_not_videos_are_refused(tmp_path: Path) -> None:
    refuses(tmp_path / "none.mp4", "no such file or folder")
    (tmp_path / "text.mp4").write_text("hello\n" * 99)
    refuses(tmp_path / "text.mp4", "not a video")
    # FFmpeg would render it like a terminal
    (tmp_path / "text.txt").write_text("hello\n" * 99)
    refuses(tmp_path / "text.txt", "not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    refuses(tmp_path / "empty.mp4", "not a video")


@needs_av
def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    """A playlist may refer to URLs and other files: none is opened."""
    named = write_video(tmp_path / "other.mp4", [numbered_picture(number) for number in range(3)])
    for text in (
        "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{named.name}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {named.name}\n",
    ):
        for suffix in ("m3u8", "mp4"):
            (tmp_path / f"list.{suffix}").write_text(text)
            refuses(tmp_path / f"list.{suffix}")


@needs_av
def test_a_file_with_only_sound_is_refused(tmp_path: Path) -> None:
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 48_000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    refuses(path, "no video stream", "audio")


@needs_av
@pytest.mark.parametrize("faststart", [False, True], ids=["index at the end", "index first"])
def test_a_truncated_video_is_refused(tmp_path: Path, faststart: bool) -> None:
    pictures = [np.random.default_rng(k).integers(0, 256, (48, 64, 3), dtype=np.uint8) for k in range(10)]
    path = write_video(tmp_path / "v.mp4", pictures, container={"movflags": "faststart"} if faststart else {})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    refuses(path, "truncated" if faststart else "cut off")
    # the last byte of the last frame; the last entries of the index
    path.write_bytes(whole[:-1] if faststart else whole[:-300])
    refuses(path)


@needs_av
@pytest.mark.parametrize("cut", [1, 300, 5_000])
def test_a_truncated_matroska_file_is_refused(tmp_path: Path, cut: int) -> None:
    pictures = [np.random.default_rng(k).integers(0, 256, (48, 64, 3), dtype=np.uint8) for k in range(10)]
    path = write_video(tmp_path / "v.mkv", pictures)
    assert len(list(open_frames(path))) == 10
    path.write_bytes(path.read_bytes()[:-cut])
    refuses(path, "truncated")


@needs_av
def test_a_matroska_file_that_states_no_length_is_read(tmp_path: Path) -> None:
    pictures = [numbered_picture(k) for k in range(10)]
    path = write_video(tmp_path / "v.mkv", pictures, container={"live": "1"})
    assert len(list(open_frames(path))) == 10


@needs_av
def test_a_damaged_frame_is_named_when_it_is_reached(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "v.mp4", [numbered_picture(k) for k in range(30)], encoder={"bf": "0", "tune": "zerolatency"}
    )
    damage_frame(path, 20)
    reader = open_frames(path)
    seen = []
    with pytest.raises(InputError, match=re.escape(str(path)) + r": frame \d+ cannot be decoded") as caught:
        seen.extend(frame.index for frame in reader)
    assert seen == list(range(len(seen)))
    assert f"frame {len(seen)} " in str(caught.value)


@needs_av
def test_a_change_of_frame_size_is_refused_at_its_frame(tmp_path: Path) -> None:
    parts = [
        write_video(tmp_path / f"{width}.h264", [numbered_picture(0, width)] * 3).read_bytes() for width in (64, 128)
    ]
    (tmp_path / "v.h264").write_bytes(b"".join(parts))
    with pytest.raises(InputError, match="frame 3 is 128x48, expected 64x48"):
        list(open_frames(tmp_path / "v.h264"))


@needs_av
def test_damaged_videos_raise_only_input_errors(tmp_path: Path) -> None:
    pictures = [numbered_picture(k) for k in range(4)]
    whole = write_video(tmp_path / "v.mp4", pictures).read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(80):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(0, len(damaged), 8)] = rng.integers(0, 256, 8, dtype=np.uint8)
        (tmp_path / "damaged.mp4").write_bytes(damaged.tobytes())
        try:
            list(open_frames(tmp_path / "damaged.mp4"))
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert not any("\n" in message for message in messages)


@needs_av
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files through /proc")
def test_videos_are_closed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [corner_picture()] * 5)

    def open_videos() -> int:
        links = (os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
        return sum(link == str(path.resolve()) for link in links)

    reader = open_frames(path)
    assert open_videos() == 0
    frames = iter(reader)
    next(frames)
    assert open_videos() == 1
    frames.close()  # type: ignore[attr-defined]
    assert open_videos() == 0


@pytest.mark.slow
@needs_av
def test_frames_are_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    """Frames in reference cycles would wait for the collector: gigabytes at 1080p."""
    path = tmp_path / "v.mp4"
    gc.collect()
    gc.disable()
    try:
        with OverlayVideoWriter(path, 64, 48, Fraction(25)) as writer:
            for number in range(60):
                writer.write(numbered_picture(number), number / 25)
        written = gc.collect()
        for _ in open_frames(path):
            pass
        read = gc.collect()
    finally:
        gc.enable()
    assert written < 30
    assert read < 30


@pytest.mark.slow
def test_without_pyav_folders_work_and_videos_say_what_to_install(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", ["0.png", "1.png"])
    (tmp_path / "v.mp4").write_bytes(b"")
    program = f"""
import sys
sys.modules["av"] = None
from fractions import Fraction
from stm_fast.errors import InputError
from stm_fast.video import OverlayVideoWriter, open_frames
assert len(list(open_frames({str(tmp_path / "pictures")!r}))) == 2
for use in (
    lambda: open_frames({str(tmp_path / "v.mp4")!r}),
    lambda: OverlayVideoWriter({str(tmp_path / "o.mp4")!r}, 8, 8, Fraction(25)),
):
    try:
        use()
    except InputError as error:
        assert "pip install av" in str(error)
    else:
        raise SystemExit("not refused")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# folders


def test_pictures_come_in_natural_order(tmp_path: Path) -> None:
    names = ["frame1.png", "frame2.PNG", "Frame10.webp", "frame011.jpg", "frame100.jpeg"]
    folder = write_pictures(tmp_path / "clip", names)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "._frame3.jpg").write_bytes(b"metadata that macOS writes")
    reader = open_frames(folder)
    assert (reader.name, reader.frame_count, reader.width, reader.height) == ("clip", 5, 64, 48)
    assert [reader.index_of(name) for name in ("frame1", "Frame10", "frame10")] == [0, 2, None]
    for _ in range(2):
        frames = list(reader)
        assert [frame.name for frame in frames] == [Path(name).stem for name in names]
        assert [number_of(frame.image) for frame in frames] == list(range(5))
        assert [frame.time for frame in frames] == pytest.approx([k / reader.frame_rate for k in range(5)])


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.fromarray(corner_picture(64, 48))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be rotated 90 degrees clockwise
    for name in ("a.jpg", "b.png", "c.webp"):
        picture.save(tmp_path / name, exif=exif)
    reader = open_frames(tmp_path)
    assert (reader.width, reader.height) == (48, 64)
    assert [corners(frame.image) for frame in reader] == [[2, 0, 3, 1]] * 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_pictures_of_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.fromarray(corner_picture()).convert(mode).save(tmp_path / f"a.{suffix}")
    (frame,) = open_frames(tmp_path)
    assert frame.image.shape == (48, 64, 3)


def test_folders_that_cannot_be_a_clip_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refuses(empty, "no images")
    twins = write_pictures(tmp_path / "twins", ["a.jpg", "a.png"])
    refuses(twins, "same name as", "a.jpg", name=twins / "a.png")
    broken = write_pictures(tmp_path / "broken", ["0.png", "1.png"])
    (broken / "1.png").write_text("not a picture")
    refuses(broken, "not a readable image", name=broken / "1.png")


def test_a_picture_of_another_size_is_refused_before_work_starts(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "clip", ["0.png", "1.png", "2.png"])
    Image.new("RGB", (32, 48)).save(folder / "2.png")
    refuses(folder, "32x48", "64x48 like 0.png", name=folder / "2.png")


def test_a_truncated_picture_is_named_when_it_is_reached(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "clip", ["0.jpg", "1.jpg"])
    whole = (folder / "1.jpg").read_bytes()
    (folder / "1.jpg").write_bytes(whole[:-40])
    frames = iter(open_frames(folder))
    next(frames)
    with pytest.raises(InputError, match=re.escape(f"{folder / '1.jpg'}: not a readable image")):
        next(frames)


# overlay videos


def codec_and_format(path: Path) -> tuple[str, str | None]:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.codec_context.name, stream.codec_context.pix_fmt


@needs_av
def test_overlay_video_plays_in_browsers_and_keeps_times(tmp_path: Path) -> None:
    path = tmp_path / "new" / "overlay.mp4"
    times = [0.0, 0.04, 0.1, 0.5, 0.51, 2.0]
    with OverlayVideoWriter(path, 64, 48, Fraction(25)) as writer:
        for number, time in enumerate(times):
            writer.write(numbered_picture(number), time)
        assert not path.exists()
    assert os.listdir(path.parent) == ["overlay.mp4"]
    assert codec_and_format(path) == ("h264", "yuv420p")
    whole = path.read_bytes()
    assert 0 < whole.find(b"moov") < whole.find(b"mdat")
    frames = list(open_frames(path))
    assert [number_of(frame.image) for frame in frames] == list(range(6))
    assert [frame.time for frame in frames] == pytest.approx(times, abs=1e-4)


@needs_av
def test_overlay_video_has_the_right_colors(tmp_path: Path) -> None:
    with OverlayVideoWriter(tmp_path / "o.mp4", 64, 48, Fraction(25)) as writer:
        writer.write(corner_picture(), 0.0)
    (frame,) = open_frames(tmp_path / "o.mp4")
    for (y, x), color in zip(((8, 8), (8, -9), (-9, 8), (-9, -9)), CORNERS, strict=True):
        assert np.abs(frame.image[y, x].astype(int) - color).max() <= 6


@needs_av
def test_odd_sizes_are_padded_to_even_ones(tmp_path: Path) -> None:
    with OverlayVideoWriter(tmp_path / "o.mp4", 63, 47, Fraction(25)) as writer:
        writer.write(np.full((47, 63, 3), 120, np.uint8), 0.0)
    (frame,) = open_frames(tmp_path / "o.mp4")
    assert frame.image.shape == (48, 64, 3)
    assert np.abs(frame.image.astype(int) - 120).max() <= 3


@needs_av
def test_an_interrupted_overlay_video_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "o.mp4").write_bytes(b"the old one")

    def interrupted() -> Iterator[OverlayVideoWriter]:
        writer = OverlayVideoWriter(tmp_path / "o.mp4", 64, 48, Fraction(25))
        with writer:
            writer.write(corner_picture(), 0.0)
            yield writer
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(interrupted())
    assert os.listdir(tmp_path) == ["o.mp4"]
    assert (tmp_path / "o.mp4").read_bytes() == b"the old one"


@needs_av
def test_closing_twice_or_without_frames(tmp_path: Path) -> None:
    writer = OverlayVideoWriter(tmp_path / "o.mp4", 64, 48, Fraction(25))
    writer.close()
    writer.close()
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="closed"):
        writer.write(corner_picture(), 0.0)
    with OverlayVideoWriter(tmp_path / "o.mp4", 64, 48, Fraction(25)) as writer:
        writer.write(corner_picture(), 0.0)
        writer.close()
        writer.abort()
    assert os.listdir(tmp_path) == ["o.mp4"]


@needs_av
def test_writing_pictures_of_another_size_is_a_value_error(tmp_path: Path) -> None:
    with OverlayVideoWriter(tmp_path / "o.mp4", 64, 48, Fraction(25)) as writer:
        with pytest.raises(ValueError, match=r"expected uint8 \[48, 64, 3\]"):
            writer.write(corner_picture(48, 64), 0.0)
        writer.write(corner_picture(), 0.0)
    assert len(list(open_frames(tmp_path / "o.mp4"))) == 1


@needs_av
def test_an_unwritable_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        OverlayVideoWriter(tmp_path / "file" / "o.mp4", 64, 48, Fraction(25))


def noise(number: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (240, 320, 3), dtype=np.uint8)


@needs_av
def test_a_full_disk_leaves_no_partial_video(small_disk: Path) -> None:
    path = small_disk / "o.mp4"

    def fill() -> None:
        with OverlayVideoWriter(path, 320, 240, Fraction(25)) as writer:
            for number in range(80):
                writer.write(noise(number), number / 25)

    with pytest.raises(InputError, match=re.escape(f"disk full while writing {path}")):
        fill()
    assert os.listdir(small_disk) == []


@needs_av
def test_a_disk_that_fills_up_at_close_leaves_no_partial_video(small_disk: Path) -> None:
    path = small_disk / "o.mp4"
    writer = OverlayVideoWriter(path, 320, 240, Fraction(25))
    writer.write(noise(0), 0.0)
    (small_disk / "other").write_bytes(bytes(124 << 10))
    with pytest.raises(InputError, match="disk full"):
        writer.close()
    assert os.listdir(small_disk) == ["other"]


@pytest.mark.parametrize("kind", [MaskWriter, OverlayImageWriter])
def test_a_full_disk_leaves_no_partial_picture(
    small_disk: Path, kind: type[MaskWriter] | type[OverlayImageWriter]
) -> None:
    writer = kind(small_disk)

    def fill() -> None:
        for number in range(9):
            picture = noise(number)
            writer.write(f"{number:05d}", picture[..., 0] if kind is MaskWriter else picture)

    with pytest.raises(InputError, match=re.escape(f"disk full while writing {small_disk}")):
        fill()
    assert os.listdir(small_disk)
    for name in os.listdir(small_disk):
        with Image.open(small_disk / name) as picture:
            picture.load()


# sample clips


@needs_av
@needs_data
def test_real_video() -> None:
    reader = open_frames(SHARED / "data" / "clips" / "chair.mp4")
    assert (reader.width, reader.height, reader.frame_count, reader.frame_rate) == (720, 480, 60, 30)
    times = [frame.time for frame in reader]
    assert times == pytest.approx([k / 30 for k in range(60)], abs=1e-4)


@needs_data
@pytest.mark.parametrize(("clip", "count", "size"), [("judo", 16, (854, 480)), ("caps", 87, (240, 426))])
def test_real_folders(clip: str, count: int, size: tuple[int, int]) -> None:
    reader = open_frames(SHARED / "data" / "clips" / "JPEGImages" / "480p" / clip)
    assert (reader.frame_count, reader.width, reader.height) == (count, *size)
    assert [frame.name for frame in reader] == [f"{k:05d}" for k in range(count)]
