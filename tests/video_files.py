"""Videos for tests, whose frames show their numbers."""

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
    return path


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
