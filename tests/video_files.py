"""Videos for tests, whose frames show their numbers."""

import os
from collections.abc import Callable
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

needs_av = pytest.mark.skipif(find_spec("av") is None, reason="PyAV is not installed")


def numbered_picture(number: int, width: int = 64, height: int = 48) -> npt.NDArray[np.uint8]:
    """An image that shows its number: eight dark or bright bars are the bits."""
    bits = [(number >> k) & 1 for k in range(8)]
    row = np.repeat(np.array(bits, np.uint8) * 200 + 20, width // 8)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def number_of(image: npt.NDArray[np.uint8]) -> int:
    width = image.shape[1] // 8
    return sum(int(image[image.shape[0] // 2, k * width + width // 2, 0] > 120) << k for k in range(8))


def write_video(path: Path, pictures: list[npt.NDArray[np.uint8]], **options: Any) -> Path:
    """Encodes with PyAV itself, not with the writer under test."""
    import av

    rate = Fraction(25)
    times = options.get("times") or [index / rate for index in range(len(pictures))]
    clock = options.get("clock", Fraction(1, 90_000))
    with av.open(str(path), "w", options=options.get("container", {})) as container:
        stream = container.add_stream(options.get("codec", "libx264"), rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = options.get("pix_fmt", "yuv420p")
        stream.options = options.get("encoder", {})
        stream.time_base = stream.codec_context.time_base = clock
        if "matrix" in options:
            stream.set_display_matrix(options["matrix"])
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = round(Fraction(time) / clock), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if options.get("codec") == "libsvtav1":
        # as root it makes the calling thread a real-time one, which then stalls every other thread of the tests
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def decoded(path: Path) -> list[Any]:
    """The frames of a video as PyAV gives them, with alpha."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if path.suffix != ".webm":
            return list(container.decode(stream))
        # FFmpeg's own decoder ignores alpha
        decoder = av.CodecContext.create("libvpx-vp9", "r")
        packets = [packet if packet.size else None for packet in container.demux(stream)]
        return [frame for packet in packets for frame in decoder.decode(packet)]


def rgba(frame: Any) -> npt.NDArray[np.uint8]:
    """The pixels [H, W, 4] of a decoded frame in full range."""
    pixels: npt.NDArray[np.uint8] = frame.reformat(
        format="rgba", src_colorspace="ITU709", dst_color_range="JPEG"
    ).to_ndarray()
    return pixels


def damage_frame(path: Path, number: int) -> None:
    """Overwrites a frame of an MP4 file with zeros."""
    import av

    with av.open(str(path)) as container:
        start, size = [(entry.pos, entry.size) for entry in container.streams.video[0].index_entries][number]
    damaged = bytearray(path.read_bytes())
    damaged[start : start + size] = bytes(size)
    path.write_bytes(damaged)


class Sent(NamedTuple):
    """A packet on its way from one file to another."""

    data: bytes
    pts: int
    dts: int
    key: bool
    duration: int


def remux(source: Path, target: Path, edit: Callable[[list[Sent]], list[Sent]], **container: str) -> Path:
    """Copies the packets of a video to another file, edited but not decoded."""
    import av

    with av.open(str(source)) as read, av.open(str(target), "w", options=container) as written:
        stream = read.streams.video[0]
        copy = written.add_stream_from_template(stream)
        packets = [p for p in read.demux(stream) if p.size]
        for sent in edit([Sent(bytes(p), p.pts, p.dts, p.is_keyframe, p.duration) for p in packets]):
            packet = av.Packet(sent.data)
            packet.pts, packet.dts, packet.is_keyframe, packet.duration = sent[1:]
            packet.time_base, packet.stream = stream.time_base, copy
            written.mux(packet)
    return target


FRAMES = 30
CLOCK = Fraction(1, 25)
B_FRAMES = {"bf": "3", "b-adapt": "0"}
OPEN_GROUPS = "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3"
OPEN_HEVC = {"codec": "libx265", "encoder": {"x265-params": f"{OPEN_GROUPS}:log-level=none"}}
OPEN_H264 = {"encoder": {"x264-params": f"{OPEN_GROUPS}:b-adapt=0"}}
MPEG2 = {"codec": "mpeg2video", "encoder": {"bf": "2", "g": "10"}}
MPEG4 = {"codec": "mpeg4", "encoder": {"bf": "2", "g": "10"}}
SPARSE = [Fraction(3 * k, 25) for k in range(FRAMES)]
VIDEOS: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "b_frames.mp4": {"encoder": B_FRAMES},
    "open_groups.mp4": OPEN_H264,
    "open_groups.mkv": OPEN_HEVC,
    "plain.mov": {},
    "fragments.mp4": {"container": {"movflags": "frag_keyframe"}, "encoder": {"g": "10"}},
    "stream.mp4": {"container": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}, "encoder": {"g": "10"}},
    "later.mp4": {"times": [Fraction(k, 25) + 7 for k in range(FRAMES)]},
    "varying.mp4": {"times": [Fraction(k * k, 100) for k in range(FRAMES)]},
    "plain.mkv": {"encoder": B_FRAMES},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "av1.mkv": {"codec": "libsvtav1", "encoder": {"preset": "10"}},
    "plain.avi": {"codec": "mpeg4"},
    "skipped.avi": {"times": SPARSE},
    "mpeg4_skipped.avi": {"codec": "mpeg4", "times": SPARSE},
    # packets of equal frames are long only with several slices, of which FFmpeg otherwise makes one per core
    "still.avi": {"codec": "mpeg4", "still": True, "encoder": {"threads": "1", "slices": "4"}},
    "pictures.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "plain.ts": {"encoder": B_FRAMES},
    "mpeg2.ts": MPEG2,
    "mpeg2.mpg": MPEG2,
    "mpeg2.m2v": MPEG2,
    "plain.flv": {"encoder": B_FRAMES},
    "old.flv": {"codec": "flv"},
    "plain.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "still.gif": {"codec": "gif", "pix_fmt": "rgb8", "still": True},
    "plain.mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "plain.h264": {"encoder": B_FRAMES},
    "plain.hevc": OPEN_HEVC,
    "lossless.mkv": {"codec": "ffv1"},
    "plain.nut": {},
}
UNKNOWN: dict[str, dict[str, Any]] = {
    "still_short.avi": {"codec": "mpeg4", "still": True, "encoder": {"threads": "1"}},
    "plain.wmv": {"codec": "wmv2"},
    # fields may be separate packets
    "interlaced.mp4": {"encoder": {"flags": "+ildct", "x264-params": "tff=1"}},
}


def make(folder: Path, name: str, *, still: bool = False, **options: Any) -> Path:
    import av

    try:
        av.codec.Codec(options.get("codec", "libx264"), "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip("this PyAV has no such encoder")
    pictures = [numbered_picture(0 if still else k) for k in range(FRAMES)]
    return write_video(folder / name, pictures, clock=CLOCK if "times" not in options else Fraction(1, 100), **options)


def nine_frames_earlier(packets: list[Sent]) -> list[Sent]:
    step = packets[0].duration
    return [sent._replace(pts=sent.pts - 9 * step, dts=sent.dts - 9 * step) for sent in packets]


def from_the_second_key(packets: list[Sent]) -> list[Sent]:
    second = [at for at, sent in enumerate(packets) if sent.key][1]
    return packets[second:]


def emptied(packets: list[Sent]) -> list[Sent]:
    return [sent._replace(data=b"") if at % 6 == 4 else sent for at, sent in enumerate(packets)]


def with_spoiled_keys(packets: list[Sent]) -> list[Sent]:
    return [sent._replace(data=sent.data[:5] + bytes(len(sent.data) - 5)) if sent.key else sent for sent in packets]


def every_fifth(packets: list[Sent], change: Callable[[bytes], bytes]) -> list[Sent]:
    return [sent._replace(data=change(sent.data)) if at % 5 == 3 else sent for at, sent in enumerate(packets)]


def with_hidden_frames_of_vp8(packets: list[Sent]) -> list[Sent]:
    return every_fifth(packets, lambda data: bytes([data[0] & ~0x10]) + data[1:])


def two_in_one_packet_of_vp9(packets: list[Sent]) -> list[Sent]:
    first, second = packets[1].data, packets[2].data
    marker = bytes([0b110_01_001])
    index = marker + len(first).to_bytes(2, "little") + len(second).to_bytes(2, "little") + marker
    return [packets[0], packets[1]._replace(data=first + second + index), *packets[3:]]


VOP = b"\0\0\1\xb6"


def with_repeated_frames(packets: list[Sent]) -> list[Sent]:
    """A repeated picture: type P, no second, and the bit for "not coded"."""
    return every_fifth(packets, lambda data: data[: data.index(VOP)] + VOP + b"\x50\x5f")


def packed(packets: list[Sent]) -> list[Sent]:
    """As DivX packs B-frames: two pictures in a packet, and one that is not coded after them."""
    both = packets[1]._replace(data=packets[1].data + packets[2].data)
    return [packets[0], both, packets[2]._replace(data=VOP + b"\x51\x5f"), *packets[3:]]


SAMPLES = 48_000  # per second


def write_sound_video(
    path: Path, tracks: list[tuple[str, float]], *, start: float = 0.0, seconds: float = 2.0, sound: float = 2.0
) -> Path:
    """A video with a click at each half second of its sound.

    Args:
        path: of the file, whose ending gives its format.
        tracks: codec of each audio stream, and its first time stamp in seconds.
        start: the time stamp of the first frame in seconds.
        seconds: of the video.
        sound: seconds of the sound.
    """
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.options = {"bf": "0"}
        audio = [container.add_stream(codec, rate=SAMPLES, layout="mono") for codec, _ in tracks]
        for index in range(round(25 * seconds)):
            frame = av.VideoFrame.from_ndarray(numbered_picture(index), format="rgb24")
            frame.pts, frame.time_base = index + round(25 * start), Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        at = np.arange(round(SAMPLES * sound)) % (SAMPLES // 2)
        clicks = (np.sin(at * 2 * np.pi * 1000 / SAMPLES) * (at < SAMPLES // 100)).astype(np.float32)  # of 10 ms
        for stream, (_, first) in zip(audio, tracks, strict=True):
            for begin in range(0, len(clicks), 1024):
                part = av.AudioFrame.from_ndarray(clicks[None, begin : begin + 1024], format="fltp", layout="mono")
                part.sample_rate, part.time_base = SAMPLES, Fraction(1, SAMPLES)
                part.pts = begin + round(SAMPLES * first)
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    return path


class Heard(NamedTuple):
    """An audio stream, in seconds since the first frame of the video."""

    codec: str
    first: float
    last: float
    clicks: list[float]


def hear(path: Path) -> list[Heard]:
    """The audio streams of a video."""
    import av

    with av.open(str(path)) as container:
        origin = next(container.decode(video=0)).time
        count = len(container.streams.audio)
    return [_hear(path, number, origin or 0.0) for number in range(count)]


def _hear(path: Path, number: int, origin: float) -> Heard:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.audio[number]
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLES)
        parts = [part for frame in container.decode(stream) for part in resampler.resample(frame)]
        codec = stream.codec_context.codec.canonical_name
    first = (parts[0].time or 0.0) - origin
    wave = np.concatenate([part.to_ndarray().ravel() for part in parts])
    loud = np.flatnonzero(np.abs(wave) > 0.3)
    begins = loud[np.diff(loud, prepend=-SAMPLES) > SAMPLES // 10]
    return Heard(codec, first, first + len(wave) / SAMPLES, (begins / SAMPLES + first).tolist())
