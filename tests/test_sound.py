"""The sound of a video in its overlay: copied or encoded again, in sync with the frames, up to the last one."""

import itertools
import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from small_inputs import small_network
from stm_fast.errors import InputError
from stm_fast.runs.video import InterruptedRun, segment_video
from stm_fast.video import OverlayVideoWriter, open_frames, write_mask
from video_files import hear, needs_av, write_sound_video

pytestmark = needs_av
KEPT = [0.5, 1.0, 1.5]  # clicks of two seconds of sound; that at 0 may be cut into


def copied(source: Path, target: Path) -> Path:
    reader = open_frames(source)
    with OverlayVideoWriter(target, reader.width, reader.height, reader.frame_rate, reader.sound()) as writer:
        for frame in reader:
            writer.write(frame.image, frame.time)
    return target


@pytest.mark.parametrize(
    ("name", "codec", "expected"),
    [
        ("a.mp4", "aac", "aac"),
        ("a.ts", "aac", "aac"),
        ("a.mp4", "libmp3lame", "mp3"),
        ("a.mkv", "ac3", "ac3"),
        ("a.mkv", "libopus", "opus"),
        ("a.mkv", "flac", "flac"),
        ("a.mov", "alac", "alac"),
        ("a.mov", "pcm_s16le", "aac"),
        ("a.mkv", "pcm_f32le", "aac"),
        ("a.avi", "pcm_s16le", "aac"),
        ("a.ts", "mp2", "aac"),
    ],
)
@pytest.mark.parametrize(("start", "first"), [(0.0, 0.0), (7.0, 6.7), (1.0, 1.2)])
def test_sound_is_in_sync(tmp_path: Path, name: str, codec: str, expected: str, start: float, first: float) -> None:
    if name.endswith(".avi") and (start, first) != (0, 0):
        pytest.skip("AVI has no time stamps")
    source = write_sound_video(tmp_path / name, [(codec, first)], start=start)
    (before,) = hear(source)
    (after,) = hear(copied(source, tmp_path / "overlay.mp4"))
    assert after.codec == expected
    inside = [time for time in before.clicks if 0.1 < time < 2]
    assert len(inside) >= 3
    assert [time for time in after.clicks if time > 0.1] == pytest.approx(inside, abs=2e-3)
    assert 1.9 < after.last < 2.1 or after.last == pytest.approx(before.last, abs=0.05)
    assert [frame.time for frame in open_frames(tmp_path / "overlay.mp4")] == pytest.approx(np.arange(50) / 25)


def test_the_sound_is_closed_even_if_the_video_cannot_be_opened(tmp_path: Path) -> None:
    source = write_sound_video(tmp_path / "a.mp4", [("aac", 0.0)])
    (tmp_path / "file").touch()
    for target, width in ((tmp_path / "file" / "overlay.mp4", 64), (tmp_path / "overlay.mp4", 2**40)):
        sound = open_frames(source).sound()
        assert sound is not None
        with pytest.raises((InputError, OverflowError)):
            OverlayVideoWriter(target, width, 48, Fraction(25), sound)
        with pytest.raises(AssertionError, match="not open"):
            next(sound._container.demux())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "file"]


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
@pytest.mark.parametrize("sound", [0.7, 5.0])
def test_sound_ends_with_the_video_or_earlier(tmp_path: Path, codec: str, sound: float) -> None:
    source = write_sound_video(tmp_path / "a.mov", [(codec, 0.0)], sound=sound)
    (heard,) = hear(copied(source, tmp_path / "overlay.mp4"))
    assert heard.last == pytest.approx(min(sound, 2.0), abs=0.05)
    assert len([time for time in heard.clicks if time < 1.9]) == (2 if sound < 2 else 4)


def test_every_audio_stream_is_copied(tmp_path: Path) -> None:
    source = write_sound_video(tmp_path / "a.mkv", [("aac", 0.0), ("pcm_s16le", 0.2), ("flac", 0.1)])
    found = hear(copied(source, tmp_path / "overlay.mp4"))
    assert [heard.codec for heard in found] == ["aac", "aac", "flac"]
    for heard, first in zip(found, (0.0, 0.2, 0.1), strict=True):
        assert [time for time in heard.clicks if time > first + 0.1] == pytest.approx(np.add(KEPT, first), abs=2e-3)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le", "pcm_u8", "mp2"])
def test_a_long_gap_stays_silent(tmp_path: Path, codec: str) -> None:
    """Of two minutes: a click, and another one with the last frame."""
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream(codec, rate=48_000, layout="stereo")
        click = np.tile(np.sin(np.arange(4096) / 8).astype(np.float32), (2, 1))
        for second in (0, 120):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = 25 * second, Fraction(1, 25)
            container.mux(video.encode(frame))
            for begin in range(0, 4096, 1024):
                part = av.AudioFrame.from_ndarray(click[:, begin : begin + 1024].copy(), format="fltp", layout="stereo")
                part.sample_rate, part.time_base, part.pts = 48_000, Fraction(1, 48_000), 48_000 * second + begin
                container.mux(sound.encode(part))
        container.mux([*video.encode(None), *sound.encode(None)])
    (heard,) = hear(copied(tmp_path / "a.mkv", tmp_path / "overlay.mp4"))
    assert heard.codec == "aac"
    if codec == "aac":  # copied with its gap: a player goes by the time stamps
        assert heard.first == pytest.approx(0, abs=0.03)
    else:
        assert heard.clicks == pytest.approx([0.0, 120.0], abs=2e-3)


def test_sound_that_starts_after_the_video_is_left_out(tmp_path: Path) -> None:
    for codec in ("aac", "pcm_s16le"):
        source = write_sound_video(tmp_path / "a.mkv", [(codec, 5.0)])
        target = copied(source, tmp_path / "overlay.mp4")
        assert len(list(open_frames(target))) == 50


def test_sound_without_a_decoder_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_sound_video(tmp_path / "a.mov", [("pcm_s16le", 0.0)])
    add = "stm_fast.video.sound._Encoded.__init__"
    monkeypatch.setattr(add, lambda *_: (_ for _ in ()).throw(ValueError("unknown codec")))
    with caplog.at_level(logging.WARNING):
        assert hear(copied(source, tmp_path / "overlay.mp4")) == []
    assert f"{source}: its sound is left out: it cannot be copied (unknown codec)" in caplog.text


def test_damaged_sound_does_not_end_a_run(tmp_path: Path) -> None:
    source = write_sound_video(tmp_path / "a.ts", [("mp2", 0.0)])
    data = bytearray(source.read_bytes())
    packets = [at for at in range(0, len(data), 188) if data[at + 1] & 0x1F == 1 and data[at + 2] == 1]
    assert len(packets) > 50
    for at in packets[10:30]:
        data[at + 20 : at + 180] = np.random.default_rng(at).bytes(160)
    source.write_bytes(data)
    (heard,) = hear(copied(source, tmp_path / "overlay.mp4"))
    assert heard.codec == "aac"
    assert heard.clicks[-1] == pytest.approx(1.5, abs=2e-3)


def test_pictures_and_silent_videos_have_no_sound(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "0.png")
    assert open_frames(tmp_path).sound() is None
    with OverlayVideoWriter(tmp_path / "silent.mp4", 64, 48, Fraction(25)) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8), 0.0)
    assert open_frames(tmp_path / "silent.mp4").sound() is None


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_a_resumed_run_writes_the_same_sound(tmp_path: Path, codec: str) -> None:
    source = write_sound_video(tmp_path / "a.mov", [(codec, 0.0)], seconds=0.6, sound=3.0)
    ids = np.zeros((48, 64), np.uint8)
    ids[4:20, 8:24] = 3
    write_mask(tmp_path / "first.png", ids)
    model = small_network()

    def segment(name: str, stop_at: int | None = None, resume: bool = False) -> None:
        frames = itertools.count(1)
        segment_video(
            source,
            tmp_path / "first.png",
            tmp_path / name,
            model=model,
            write=("overlay", "matte"),
            resume=resume,
            should_stop=lambda: next(frames) == stop_at,
        )

    segment("whole")
    with pytest.raises(InterruptedRun):
        segment("out", stop_at=6)
    segment("out", resume=True)
    whole, resumed = (tmp_path / name / "overlay.mp4" for name in ("whole", "out"))
    assert whole.read_bytes() == resumed.read_bytes()
    (heard,) = hear(resumed)
    assert heard.clicks == pytest.approx([0.0, 0.5], abs=2e-3)
    assert hear(tmp_path / "out/matte.mp4") == []
