"""The number of frames of a video is right or unknown, its default stream is used, and its metadata is not trusted."""

import io
import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stm_fast.errors import InputError
from stm_fast.video import containers
from stm_fast.video.reader import open_frames
from video_files import (
    B_FRAMES,
    CLOCK,
    FRAMES,
    MPEG2,
    MPEG4,
    OPEN_H264,
    OPEN_HEVC,
    UNKNOWN,
    VIDEOS,
    Sent,
    emptied,
    from_the_second_key,
    make,
    nine_frames_earlier,
    number_of,
    numbered_picture,
    packed,
    remux,
    two_in_one_packet_of_vp9,
    with_hidden_frames_of_vp8,
    with_repeated_frames,
    with_spoiled_keys,
    write_video,
)

stream_input = pytest.importorskip("stm_fast.video.stream_input")  # which imports PyAV


def counted(path: Path) -> tuple[int | None, int]:
    """The stated number of frames, and the number of frames read."""
    reader = open_frames(path)
    return reader.frame_count, len(list(reader))


@pytest.mark.parametrize("name", VIDEOS)
def test_the_number_of_frames_is_known(tmp_path: Path, name: str) -> None:
    assert counted(make(tmp_path, name, **VIDEOS[name])) == (FRAMES, FRAMES)


@pytest.mark.parametrize("name", UNKNOWN)
def test_the_frame_count_is_unknown_if_packets_do_not_determine_it(tmp_path: Path, name: str) -> None:
    assert counted(make(tmp_path, name, **UNKNOWN[name])) == (None, FRAMES)


def test_one_frame_is_one_frame(tmp_path: Path) -> None:
    assert counted(write_video(tmp_path / "v.mp4", [numbered_picture(0)])) == (1, 1)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_frames_that_an_edit_list_cuts_off_are_not_counted(tmp_path: Path, suffix: str) -> None:
    whole = make(tmp_path, f"whole.{suffix}", encoder=B_FRAMES)
    reader = open_frames(remux(whole, tmp_path / f"cut.{suffix}", nine_frames_earlier))
    assert reader.frame_count == FRAMES - 9
    assert [number_of(frame.image) for frame in reader] == list(range(9, FRAMES))
    assert [reader.index_of(name) for name in ("20", "21")] == [20, None]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("options", [OPEN_H264, OPEN_HEVC, MPEG2, MPEG4], ids=["h264", "hevc", "mpeg2", "mpeg4"])
def test_a_video_cut_in_an_open_group_of_pictures(tmp_path: Path, options: dict[str, Any], suffix: str) -> None:
    """The frames before its first key frame refer to missing frames, and no decoder shows them."""
    whole = make(tmp_path, f"whole.{suffix}", **options)
    count, found = counted(remux(whole, tmp_path / f"cut.{suffix}", from_the_second_key))
    assert found <= 20
    # an MP4 file states this itself
    assert count == (found if suffix == "mp4" else None)
    count, found = counted(remux(whole, tmp_path / f"late.{suffix}", lambda packets: packets[3:]))
    assert count in (None, found)


@pytest.mark.parametrize("suffix", ["avi", "mov", "mkv", "nut"])
def test_empty_packets_are_not_frames(tmp_path: Path, suffix: str) -> None:
    whole = make(tmp_path, "whole.avi", codec="mjpeg", pix_fmt="yuvj420p")
    assert counted(remux(whole, tmp_path / f"v.{suffix}", emptied)) == (FRAMES - 5, FRAMES - 5)


def test_hidden_frames_are_not_counted(tmp_path: Path) -> None:
    whole = make(tmp_path, "whole.webm", codec="libvpx")
    assert counted(remux(whole, tmp_path / "v.webm", with_hidden_frames_of_vp8)) == (FRAMES - 6, FRAMES - 6)


def test_frames_that_share_a_packet_are_counted(tmp_path: Path) -> None:
    whole = make(tmp_path, "whole.webm", codec="libvpx-vp9")
    assert counted(remux(whole, tmp_path / "v.webm", two_in_one_packet_of_vp9)) == (FRAMES, FRAMES)


@pytest.mark.parametrize("edit", [with_repeated_frames, packed])
@pytest.mark.parametrize("suffix", ["avi", "mp4"])
def test_packets_that_may_hold_no_frame_or_two(
    tmp_path: Path, edit: Callable[[list[Sent]], list[Sent]], suffix: str
) -> None:
    whole = make(tmp_path, f"whole.{suffix}", codec="mpeg4")
    assert counted(remux(whole, tmp_path / f"v.{suffix}", edit))[0] is None


def test_frames_that_a_decoder_drops_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The HEVC decoder silently drops frames that depend on a damaged one."""
    whole = make(tmp_path, "whole.mkv", **OPEN_HEVC)
    path = remux(whole, tmp_path / "v.mkv", lambda packets: packets[:5] + with_spoiled_keys(packets[5:]))
    count, found = counted(path)
    assert count == FRAMES > found
    assert caplog.messages == [f"{path}: damaged: {found} of {FRAMES} frames could be decoded"]


# streams


def write_streams(path: Path, *dispositions: str, sizes: tuple[int, ...] = (32, 64, 48)) -> Path:
    """Video streams of different widths, in one file."""
    import av
    from av.stream import Disposition

    with av.open(str(path), "w") as container:
        streams = []
        for disposition, width in zip(dispositions, sizes, strict=False):
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, 48, "yuv420p"
            stream.disposition = Disposition[disposition] if disposition else Disposition(0)
            streams.append(stream)
        for number in range(5):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(numbered_picture(number, stream.width), format="rgb24")
                frame.pts, frame.time_base = number, CLOCK
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("dispositions", "width"),
    [
        (("", "default"), 64),
        (("default", ""), 32),
        # of equal streams FFmpeg chooses the first
        (("", ""), 32),
        (("default", "default"), 32),
        (("", "default", "default"), 64),
    ],
)
def test_the_default_stream_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dispositions: tuple[str, ...], width: int
) -> None:
    path = write_streams(tmp_path / "v.mkv", *dispositions)
    reader = open_frames(path)
    assert (reader.width, reader.frame_count) == (width, 5)
    assert [frame.image.shape for frame in reader] == [(48, width, 3)] * 5
    number = {32: 1, 64: 2}[width]
    assert caplog.messages == [f"{path}: found {len(dispositions)} video streams, using number {number} ({width}x48)"]


@pytest.mark.parametrize("flag", ["attached_pic", "timed_thumbnails", "still_image", "dependent"])
def test_thumbnails_are_not_taken(caplog: pytest.LogCaptureFixture, flag: str) -> None:
    """With stand-ins for streams, because few containers can be written with thumbnails."""
    from av.stream import Disposition

    def stream(index: int, flags: Disposition) -> SimpleNamespace:
        return SimpleNamespace(index=index, disposition=flags, codec_context=object(), type="video")

    class Streams(list[SimpleNamespace]):
        def best(self, kind: str) -> SimpleNamespace:
            return self[0]

        @property
        def video(self) -> list[SimpleNamespace]:
            return self

    thumbnail = stream(0, Disposition[flag] | Disposition.default)
    video = stream(1, Disposition(0))
    choose: Any = stream_input._choose
    assert choose(Path("v.mp4"), SimpleNamespace(streams=Streams([thumbnail, video]))) is video
    with pytest.raises(InputError, match=r"v\.mp4: no video stream, found video"):
        choose(Path("v.mp4"), SimpleNamespace(streams=Streams([thumbnail])))


def test_unknown_codec(tmp_path: Path) -> None:
    path = make(tmp_path, "v.mkv", codec="ffv1")
    path.write_bytes(path.read_bytes().replace(b"V_FFV1", b"V_NONE"))
    with pytest.raises(InputError, match="the codec of the video stream is unknown"):
        open_frames(path)


def test_subtitles_alone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.srt"
    path.write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n\n2\n00:00:01,000 --> 00:00:02,000\nthere\n")
    with pytest.raises(InputError, match="no video stream, found subtitle"):
        open_frames(path)


# other metadata


@pytest.mark.parametrize(
    ("average", "guessed", "expected"),
    [
        (Fraction(24_000, 1001), Fraction(24), Fraction(24_000, 1001)),
        (Fraction(90_000), Fraction(30), Fraction(30)),
        (Fraction(0), Fraction(-30), Fraction(25)),
        (Fraction(1, 10**9), None, Fraction(25)),
        (Fraction(1, 3600), None, Fraction(1, 3600)),
        (None, None, Fraction(25)),
    ],
)
def test_implausible_frame_rates_are_ignored(
    average: Fraction | None, guessed: Fraction | None, expected: Fraction
) -> None:
    stream: Any = SimpleNamespace(average_rate=average, guessed_rate=guessed)
    assert stream_input.frame_rate_of(stream) == expected


@pytest.mark.parametrize(
    "matrix",
    [
        (0, 0, 0, 0),
        (-(2**31), -(2**31), -(2**31), -(2**31)),
        (0, 1 << 16, 0, 0),
        (1 << 16, 0, 1 << 17, 0),
        (1, 1, 1, 1),
    ],
)
def test_frames_stay_upright_if_the_display_matrix_is_not_a_rotation(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    a, b, c, d = matrix
    path = write_video(tmp_path / "v.mp4", [numbered_picture(5)], matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    (frame,) = open_frames(path)
    assert frame.image.shape == (48, 64, 3)
    assert number_of(frame.image) == 5


def test_huge_frames_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (write_video(tmp_path / f"{width}.h264", [numbered_picture(0, width)] * 3) for width in (64, 128))
    monkeypatch.setattr(stream_input, "MAX_PIXELS", 64 * 48)
    assert len(list(open_frames(small))) == 3
    with pytest.raises(InputError, match=r"128\.h264: frames of 128x48, expected at most 3072 pixels"):
        open_frames(large)
    both = tmp_path / "both.h264"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(InputError, match=r"frame [0-3] cannot be decoded"):
        list(open_frames(both))


def test_metadata_in_another_encoding_does_not_matter(tmp_path: Path) -> None:
    path = make(tmp_path, "v.mkv", codec="ffv1")
    whole = path.read_bytes()
    assert b"Lavf" in whole  # the program that wrote it
    path.write_bytes(whole.replace(b"Lavf", b"\xff\xfe\xfd\xfc"))
    assert counted(path) == (FRAMES, FRAMES)


@pytest.mark.parametrize("name", ["fragments.mp4", "plain.mkv", "vp9.webm", "plain.avi", "plain.ts", "plain.gif"])
def test_damaged_files_raise_only_input_errors(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    path = make(tmp_path, name, **VIDEOS[name])
    whole = path.read_bytes()
    chance = np.random.default_rng(0)
    messages = []
    for _ in range(20):
        damaged = np.frombuffer(whole, np.uint8).copy()
        for end in (len(damaged), 600):
            damaged[chance.integers(0, end, 4)] = chance.choice(np.array([0, 1, 127, 128, 255], np.uint8), 4)
        path.write_bytes(damaged.tobytes())
        caplog.clear()
        try:
            count, found = counted(path)
        except InputError as error:
            messages.append(str(error))
        else:
            assert count in (None, found) or any("damaged" in message for message in caplog.messages)
    assert messages
    assert not any("\n" in message for message in messages)


def test_damage_after_the_first_frame_does_not_stop_the_counting(tmp_path: Path) -> None:
    import av

    path = make(tmp_path, "v.mp4", encoder={"bf": "0", "tune": "zerolatency"})
    with av.open(str(path)) as container:
        entry = container.streams.video[0].index_entries[20]
        start, size = entry.pos, entry.size
    damaged = bytearray(path.read_bytes())
    damaged[start : start + size] = bytes(size)
    path.write_bytes(damaged)
    reader = open_frames(path)
    assert reader.frame_count == FRAMES
    with pytest.raises(InputError, match=r"frame \d+ cannot be decoded"):
        list(reader)


@pytest.mark.parametrize(
    ("boxes", "fragmented"),
    [
        (b"\0\0\0\x08moov\0\0\0\x08mdat", False),
        (b"\0\0\0\x08moov\0\0\0\x08moof\0\0\0\x08mdat", True),
        # a 64-bit length, and a box that extends to the end of the file
        (b"\0\0\0\x01mdat\0\0\0\0\0\0\0\x12xx\0\0\0\x08moof", True),
        (b"\0\0\0\x08moov\0\0\0\0mdat\0\0\0\x08moof", False),
        (b"\0\0\0\x08moov\0\0", False),
        # ambiguous: an invalid length, and one past the end
        (b"\0\0\0\x08moov\0\0\0\x04mdat", True),
        (b"\0\0\0\x08moov\0\0\0\x01mdat\xff\xff\xff\xff\xff\xff\xff\xff", True),
    ],
)
def test_fragments_of_mp4(boxes: bytes, fragmented: bool) -> None:
    assert containers.is_fragmented(io.BytesIO(boxes)) == fragmented


@pytest.mark.parametrize("length", [2**56 - 2, 2**40, 0])
def test_a_matroska_file_that_ends_with_its_header_states_no_end(length: int) -> None:
    header = b"\x1a\x45\xdf\xa3" + (2**56 + length).to_bytes(8, "big")
    assert containers.stated_end(io.BytesIO(header)) is None


def test_no_note_without_a_choice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert counted(make(tmp_path, "v.mp4")) == (FRAMES, FRAMES)
    assert caplog.messages == []
