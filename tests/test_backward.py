"""Frames read backward, or from any one on, are exactly those that iterating gives, whatever the file.

Only a few of them are held at once.
"""

import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stm_fast.errors import InputError
from stm_fast.video import Frame, FrameReader
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
    damage_frame,
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

rewind = pytest.importorskip("stm_fast.video.rewind")  # which imports PyAV
packet_index = pytest.importorskip("stm_fast.video.packet_index")
video_file = pytest.importorskip("stm_fast.video.video_file")

MJPEG = {"codec": "mjpeg", "pix_fmt": "yuvj420p"}
SHORT_GROUPS = {"g": "10", "keyint_min": "10", "sc_threshold": "0"}


def check(reader: FrameReader) -> None:
    """Compares with iterating, exactly."""
    frames = list(reader)
    for start in (0, 1, 9, 10, 12, 21, len(frames) - 1, len(frames), 1000):
        assert_equal(list(reader.forward(start)), frames[start:])
    for before in (None, 17, 1, 0, 1000):
        assert_equal(list(reader.backward(before)), frames[:before][::-1])


def assert_equal(found: list[Frame], expected: list[Frame]) -> None:
    assert [(one.index, one.time, one.name) for one in found] == [(one.index, one.time, one.name) for one in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert one.image.flags.c_contiguous


@pytest.fixture(params=[None, 1], ids=["at once", "in parts"])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All frames of a test's video are held at once, or four."""
    monkeypatch.setattr(rewind, "HELD_BYTES", request.param or rewind.HELD_BYTES)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From which frames decoding was started, while four are held."""
    monkeypatch.setattr(rewind, "HELD_BYTES", 1)
    asked: list[int] = []
    decoded_from = video_file.VideoFile._decoded_from

    def noted(reader: Any, start: int, *rest: Any) -> Any:
        asked.append(start)
        return decoded_from(reader, start, *rest)

    monkeypatch.setattr(video_file.VideoFile, "_decoded_from", noted)
    return asked


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("name", [*VIDEOS, *UNKNOWN])
def test_every_kind_of_file(tmp_path: Path, name: str) -> None:
    check(open_frames(make(tmp_path, name, **(VIDEOS | UNKNOWN)[name])))


def short_groups(name: str) -> dict[str, Any]:
    options = (VIDEOS | UNKNOWN)[name]
    return options | {"encoder": SHORT_GROUPS | options.get("encoder", {})}


@pytest.mark.parametrize("name", [*VIDEOS, *UNKNOWN])
def test_every_kind_of_file_with_short_groups_of_pictures(tmp_path: Path, name: str, starts: list[int]) -> None:
    check(open_frames(make(tmp_path, name, **short_groups(name))))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain.mp4", [20, 20, 20, 10, 10, 10, 0, 0, 0]),
        ("open_groups.mp4", [20, 20, 20, 10, 10, 10, 0, 0, 0]),
        ("open_groups.mkv", [20, 20, 20, 10, 10, 10, 0, 0, 0]),
        ("fragments.mp4", [20, 20, 20, 10, 10, 10, 0, 0, 0]),
        # the first attempt finds none of the frames, because the file is positioned behind the key frame
        ("plain.ts", [20, 10, 10, 10, 0, 0, 0, 0, 0]),
        # no time stamps
        ("plain.h264", [0] * 7),
    ],
)
def test_decoding_starts_at_key_frames(tmp_path: Path, name: str, expected: list[int], starts: list[int]) -> None:
    assert len(list(open_frames(make(tmp_path, name, **short_groups(name))).backward())) == FRAMES
    assert starts == expected


# without usable time stamps, with a single key frame, or positioned far before or behind a key frame
NOT_POSITIONED = {
    "skipped.avi",
    "plain.h264",
    "plain.hevc",
    "plain.gif",
    "still.gif",
    "plain.ts",
    "mpeg2.mpg",
    "plain.nut",
}


@pytest.mark.parametrize("name", [name for name in VIDEOS if name not in NOT_POSITIONED])
def test_few_frames_are_decoded_for_a_late_one(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From key frame 20, and what a decoder holds back."""
    reader = open_frames(make(tmp_path, name, **short_groups(name)))
    decode, decoded = video_file._decode, []

    def noted(packets: Any) -> Any:
        for frame in decode(packets):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_file, "_decode", noted)
    assert number_of(next(reader.forward(25)).image) in (0, 25)
    assert len(decoded) <= 14


EDITS: dict[str, tuple[dict[str, Any], Callable[[list[Sent]], list[Sent]]]] = {
    "edit_list.mp4": ({"encoder": B_FRAMES | SHORT_GROUPS}, nine_frames_earlier),
    "edit_list.mov": ({"encoder": B_FRAMES}, nine_frames_earlier),
    **{
        f"cut_{codec}.{suffix}": (options, from_the_second_key)
        for codec, options in (("h264", OPEN_H264), ("hevc", OPEN_HEVC), ("mpeg2", MPEG2), ("mpeg4", MPEG4))
        for suffix in ("mp4", "mkv", "ts")
    },
    **{
        f"late_{codec}.{suffix}": (options, lambda packets: packets[3:])
        for codec, options in (("h264", OPEN_H264), ("hevc", OPEN_HEVC), ("mpeg2", MPEG2), ("mpeg4", MPEG4))
        for suffix in ("mp4", "mkv", "ts")
    },
    **{
        f"empty.{suffix}": ({"codec": "mjpeg", "pix_fmt": "yuvj420p"}, emptied)
        for suffix in ("avi", "mov", "mkv", "nut")
    },
    "hidden.webm": ({"codec": "libvpx", "encoder": {"g": "10"}}, with_hidden_frames_of_vp8),
    "joined.webm": ({"codec": "libvpx-vp9", "encoder": {"g": "10"}}, two_in_one_packet_of_vp9),
    **{f"repeated.{suffix}": ({"codec": "mpeg4"}, with_repeated_frames) for suffix in ("avi", "mp4")},
    **{f"packed.{suffix}": ({"codec": "mpeg4"}, packed) for suffix in ("avi", "mp4")},
    "spoiled.mkv": (OPEN_HEVC, lambda packets: packets[:5] + with_spoiled_keys(packets[5:])),
}


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("name", EDITS)
def test_edited_files(tmp_path: Path, name: str) -> None:
    options, edit = EDITS[name]
    suffix = "avi" if name.startswith("empty") else name.split(".")[1]
    check(open_frames(remux(make(tmp_path, f"whole.{suffix}", **options), tmp_path / name, edit)))


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_key_frames_from_which_not_all_can_be_decoded(tmp_path: Path, suffix: str) -> None:
    """A column of each frame is refreshed: a "key frame" is where this begins, and pixels are right a while later."""
    pictures = [np.roll(numbered_picture(k), 3 * k, axis=1) for k in range(60)]
    encoder = {"intra-refresh": "1", "g": "15", "x264-params": "bframes=0:qp=30:scenecut=0"}
    check(open_frames(write_video(tmp_path / f"v.{suffix}", pictures, encoder=encoder)))


def write_scenes(path: Path) -> Path:
    """Every ten frames another scene begins, whose later frames refer to the scene before as well."""
    pictures = [numbered_picture(k) for k in range(60)]
    scenes = [np.random.default_rng(k).integers(0, 255, (40, 64, 3), np.uint8) for k in range(2)]
    for index, picture in enumerate(pictures):
        scene = index // 10 % 2
        picture[8:] = scenes[scene]
        if index % 10 > 0:
            picture[28:] = scenes[1 - scene][20:]
    encoder = {"g": "1000", "keyint_min": "500", "bf": "0", "refs": "8", "crf": "10"}
    return write_video(path, pictures, encoder=encoder, clock=CLOCK)


def with_false_keys(packets: list[Sent]) -> list[Sent]:
    return [sent._replace(key=at % 10 == 0) for at, sent in enumerate(packets)]


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("suffix", ["mp4", "nut"])
def test_key_frames_across_which_others_refer(tmp_path: Path, suffix: str) -> None:
    whole = write_scenes(tmp_path / "whole.mkv")
    check(open_frames(remux(whole, tmp_path / f"v.{suffix}", with_false_keys)))


@pytest.mark.usefixtures("held")
def test_times_that_go_back(tmp_path: Path) -> None:
    path = tmp_path / "v.mpg"
    with path.open("wb") as file:
        for start in (0, 14, 7):
            times = [Fraction(k, 25) + start for k in range(FRAMES)]
            file.write(make(tmp_path, "part.mpg", times=times, **MPEG2).read_bytes())
    reader = open_frames(path)
    assert reader.frame_count == 3 * FRAMES
    check(reader)


@pytest.mark.parametrize(
    ("stamps", "keys", "ordered"),
    [
        ([0, 3, 1, 2, 4, 7, 5, 6], [0, 4], True),
        # pictures before a key frame that are stored after it
        ([0, 3, 1, 2, 6, 4, 5, 7], [0, 4], True),
        ([10, 11, 12, 20, 21, 22, 0, 1, 2], [0, 3, 6], False),
        ([0, 1, 12, 10, 11], [0, 3], False),
        # before the key frame before
        ([0, 1, 10, 11, 20, 9], [0, 2, 4], False),
        ([0, 2, 1], [], True),
    ],
)
def test_groups_of_pictures_in_order(stamps: list[int], keys: list[int], ordered: bool) -> None:
    assert packet_index._in_order(np.array(stamps), np.array(keys, np.int64)) == ordered


@pytest.mark.usefixtures("held")
def test_times_that_repeat(tmp_path: Path) -> None:
    part = make(tmp_path, "part.ts", encoder=SHORT_GROUPS).read_bytes()
    (tmp_path / "v.ts").write_bytes(part + part)
    check(open_frames(tmp_path / "v.ts"))


@pytest.mark.usefixtures("held")
def test_turned_frames_and_frames_of_an_odd_size(tmp_path: Path) -> None:
    turned = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    pictures = [numbered_picture(k) for k in range(FRAMES)]
    check(open_frames(write_video(tmp_path / "turned.mp4", pictures, matrix=turned)))
    odd = [picture[:47, :61] for picture in pictures]
    check(open_frames(write_video(tmp_path / "odd.mkv", odd, codec="ffv1", pix_fmt="yuv444p10le")))
    check(open_frames(write_video(tmp_path / "rgb.mkv", odd, codec="ffv1", pix_fmt="bgr0")))
    check(open_frames(write_video(tmp_path / "gray.mkv", odd, codec="ffv1", pix_fmt="gray16le")))


def test_images(tmp_path: Path) -> None:
    for number in range(20):
        Image.fromarray(numbered_picture(number)).save(tmp_path / f"frame{number}.png")
    check(open_frames(tmp_path))


def test_the_error_at_a_damaged_frame_is_the_same(tmp_path: Path) -> None:
    pictures = [numbered_picture(k) for k in range(30)]
    path = write_video(tmp_path / "v.mp4", pictures, encoder={"bf": "0", "tune": "zerolatency"})
    damage_frame(path, 20)
    reader = open_frames(path)
    with pytest.raises(InputError) as forward:
        list(reader)
    with pytest.raises(InputError) as backward:
        list(reader.backward())
    assert str(backward.value) == str(forward.value)
    assert [number_of(frame.image) for frame in reader.backward(12)] == list(range(12))[::-1]


def test_a_damaged_frame_does_not_matter_to_those_from_the_next_key_frame_on(tmp_path: Path) -> None:
    pictures = [numbered_picture(k) for k in range(30)]
    path = write_video(tmp_path / "v.mp4", pictures, encoder=SHORT_GROUPS | {"bf": "0", "tune": "zerolatency"})
    damage_frame(path, 13)
    reader = open_frames(path)
    assert [number_of(frame.image) for frame in reader.forward(20)] == list(range(20, 30))
    for late in (reader.forward(16), reader.forward(3), reader.backward(17)):
        with pytest.raises(InputError, match=r"v\.mp4: frame 13 cannot be decoded"):
            list(late)


def test_frames_that_a_decoder_drops_are_not_counted_once_they_are_noticed(tmp_path: Path) -> None:
    whole = make(tmp_path, "whole.mkv", **OPEN_HEVC)
    path = remux(
        whole, tmp_path / "v.mkv", lambda packets: packets[:5] + with_spoiled_keys(packets[5:15]) + packets[15:]
    )
    reader = open_frames(path)
    assert number_of(next(reader.forward(20)).image) == 20
    frames = list(reader)
    assert len(frames) < FRAMES
    check(reader)


def test_a_file_that_is_replaced_meanwhile_is_refused(tmp_path: Path, starts: list[int]) -> None:
    path = make(tmp_path, "v.mp4", encoder=SHORT_GROUPS)
    frames = open_frames(path).backward()
    assert number_of(next(frames).image) == FRAMES - 1
    write_video(path, [numbered_picture(99)] * 3)
    with pytest.raises(InputError, match="changed while it was read"):
        list(frames)


PEAK = """
import resource, sys
from pathlib import Path
from stm_fast.video import open_frames, rewind
rewind.HELD_BYTES = 64 * 2**20
reader = open_frames(Path(sys.argv[1]))
forward = sum(frame.index for frame in reader)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(frame.index for frame in reader.backward()) == forward
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_long_group_of_pictures_is_decoded_in_parts(tmp_path: Path) -> None:
    """All frames of this one would take 138 MB."""
    pictures = [numbered_picture(k % 256, 640, 480) for k in range(300)]
    path = write_video(tmp_path / "v.mp4", pictures, encoder={"g": "100000", "preset": "ultrafast"})
    run = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 90 * 1024  # KiB


def test_only_consecutive_frames_are_held() -> None:
    """A decoder may not show frames that refer to missing ones."""
    import av

    held = rewind.HeldFrames()
    for index in (3, 4, 6, 7):
        held.add(index, av.VideoFrame(16, 16, "yuv420p"))
    assert (held.first, held.last) == (6, 7)
    held.pop()
    held.pop()
    assert not held


@pytest.mark.usefixtures("starts")
@pytest.mark.parametrize(("interval", "notes"), [(250, ["decoded 19 times"]), (8, [])])
def test_a_note_if_frames_are_decoded_many_times(
    tmp_path: Path, interval: int, notes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    encoder = {"g": str(interval), "keyint_min": "8", "sc_threshold": "0"}
    path = write_video(tmp_path / "v.mp4", [numbered_picture(k) for k in range(150)], encoder=encoder)
    assert len(list(open_frames(path).backward())) == 150
    assert caplog.messages == [f"{path}: few key frames: to read it backward, frames are {note}" for note in notes]
