"""The sound of a video file, copied into another file while its video is written."""

import io
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from fractions import Fraction
from itertools import chain
from typing import TypeAlias

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.filter import Graph
from av.packet import Packet
from av.stream import Discard
from av.video.stream import VideoStream

from stm_fast.errors import reason_of

logger = logging.getLogger(__name__)

AudioPacket: TypeAlias = "Packet[AudioStream]"  # not a generic type at run time

# codecs that players expect in MP4; anything else is encoded as AAC
_IN_MP4 = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"})
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_AAC_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
_BITS_PER_CHANNEL = 80_000  # per second
# seconds before the first frame, which players decode but do not play: a packet also needs those before it
_PREROLL = Fraction(1, 10)


class Sound:
    """The audio streams of a file, read while the frames of a video are written next to them.

    Each part of the sound keeps its time relative to the first frame.
    """

    def __init__(
        self, path: object, opened: AbstractContextManager[tuple[InputContainer, VideoStream]], origin: Fraction
    ) -> None:
        """Opens the file.

        Args:
            path: of the file, or its URL, for messages.
            opened: the file, with all streams but its video discarded; it is closed with the sound.
            origin: the time stamp of the first frame, in seconds.
        """
        self._path, self._origin = path, origin
        self._tracks: dict[int, _Copied | _Encoded | _Ended] = {}
        self._waiting: AudioPacket | None = None
        with ExitStack() as stack:
            container, video = stack.enter_context(opened)
            self._container = container
            video.discard = Discard.all
            for stream in container.streams.audio:
                stream.discard = Discard.default
            self._file = stack.pop_all()

    def add_to(self, container: OutputContainer) -> None:
        """Adds the audio streams to an MP4 file; one that cannot be read is left out, with a warning."""
        for stream in self._container.streams.audio:
            start = round(self._origin / stream.time_base) if stream.time_base else 0
            try:
                self._tracks[stream.index] = (_Copied if _can_copy(stream) else _Encoded)(stream, container, start)
            except (av.FFmpegError, ValueError) as error:
                logger.warning("%s: its sound is left out: it cannot be copied (%s)", self._path, reason_of(error))
        self._packets = self._read()
        self._waiting = next(self._packets, None)

    def until(self, time: Fraction) -> Iterator[AudioPacket]:
        """The packets to be written that start before `time`, in seconds since the first frame."""
        while self._waiting is not None and self._time(self._waiting) < time:
            packet, index = self._waiting, self._waiting.stream_index
            try:
                yield from self._tracks[index].packets(packet)
            except (av.FFmpegError, ValueError) as error:
                self._tracks[index] = _Ended()
                self._warn_of_rest(error)
            self._waiting = next(self._packets, None)

    def rest(self) -> Iterator[AudioPacket]:
        """The packets that encoders still hold."""
        for track in self._tracks.values():
            yield from track.rest()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _read(self) -> Iterator[AudioPacket]:
        """The packets with a time stamp."""
        streams = [self._container.streams[index] for index in self._tracks]
        try:
            for packet in self._container.demux(streams) if streams else ():
                if packet.size and packet.time_base and packet.pts is not None:
                    yield packet  # type: ignore[misc]
        except (av.FFmpegError, OSError) as error:
            self._warn_of_rest(error)

    def _warn_of_rest(self, error: Exception) -> None:
        logger.warning("%s: the rest of its sound is left out (%s)", self._path, reason_of(error))

    def _time(self, packet: AudioPacket) -> Fraction:
        assert packet.pts is not None
        return packet.pts * packet.time_base - self._origin


class _Ended:
    """A stream that is not read any further."""

    def packets(self, packet: AudioPacket) -> Iterator[AudioPacket]:
        yield from ()

    def rest(self) -> Iterator[AudioPacket]:
        yield from ()


class _Copied:
    """A stream whose packets are copied. `start` is the time stamp of the first frame, in its time base."""

    def __init__(self, source: AudioStream, container: OutputContainer, start: int) -> None:
        self._start = start
        self._target = container.add_stream_from_template(source)
        self._last: int | None = None

    def packets(self, packet: AudioPacket) -> Iterator[AudioPacket]:
        assert packet.pts is not None
        stamp = (packet.pts if packet.dts is None else packet.dts) - self._start
        # MP4 needs increasing time stamps
        if stamp * packet.time_base > -_PREROLL and (self._last is None or stamp > self._last):
            self._last = stamp
            packet.pts, packet.dts, packet.stream = packet.pts - self._start, stamp, self._target
            yield packet

    def rest(self) -> Iterator[AudioPacket]:
        yield from ()


class _Encoded:
    """A stream that is decoded and encoded as AAC, with silence where it has gaps; `start` as in `_Copied`."""

    def __init__(self, source: AudioStream, container: OutputContainer, start: int) -> None:
        if source.codec_context is None:
            raise ValueError("unknown codec")
        self._start = start
        rate = source.sample_rate if source.sample_rate in _AAC_RATES else 48_000
        layout = _AAC_LAYOUTS.get(source.channels, "stereo")
        self._target: AudioStream = container.add_stream("aac", rate=rate, layout=layout)
        self._target.bit_rate = _BITS_PER_CHANNEL * self._target.channels
        self._without_gaps: Graph | None = None
        self._end: int | None = None  # of the sound so far

    def packets(self, packet: AudioPacket) -> Iterator[AudioPacket]:
        try:
            frames = packet.decode()
        except av.FFmpegError:
            return  # damaged: the time stamps of the others stay right
        for frame in frames:
            yield from self._encode(frame)

    def rest(self) -> Iterator[AudioPacket]:
        if self._without_gaps is not None:
            self._without_gaps.push(None)
            yield from self._filled(self._without_gaps)
        yield from self._target.encode(None)

    def _encode(self, frame: AudioFrame) -> Iterator[AudioPacket]:
        if frame.pts is not None and frame.time_base:
            frame.pts -= self._start
            # not what ends before the first frame
            if frame.pts * frame.time_base + Fraction(frame.samples, frame.sample_rate) > 0:
                self._without_gaps = self._without_gaps or _filling_gaps(frame)
                for part in chain(self._silence_before(frame), [frame]):
                    self._without_gaps.push(part)
                    yield from self._filled(self._without_gaps)

    def _silence_before(self, frame: AudioFrame) -> Iterator[AudioFrame]:
        """Single silent samples, a second apart: the filter fills one gap at once, in memory."""
        assert frame.pts is not None
        assert frame.time_base is not None
        second = round(1 / frame.time_base)
        level = b"\x80" if frame.format.name.startswith("u8") else b"\0"
        while self._end is not None and frame.pts - self._end > second:
            self._end += second
            silent = AudioFrame(frame.format.name, frame.layout, 1)
            for plane in silent.planes:
                plane.update(level * plane.buffer_size)
            silent.sample_rate, silent.time_base, silent.pts = frame.sample_rate, frame.time_base, self._end
            yield silent
        self._end = frame.pts + round(Fraction(frame.samples, frame.sample_rate) / frame.time_base)

    def _filled(self, graph: Graph) -> Iterator[AudioPacket]:
        with suppress(av.BlockingIOError, av.EOFError):  # nothing left for now, or at all
            while True:
                yield from self._target.encode(graph.pull())  # type: ignore[arg-type]


def _filling_gaps(frame: AudioFrame) -> Graph:
    """A filter that makes the sound of such frames continuous: an encoder ignores their time stamps."""
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=frame.sample_rate, format=frame.format, layout=frame.layout, time_base=frame.time_base
    )
    filling, end = graph.add("aresample", "async=1:min_hard_comp=0.02"), graph.add("abuffersink")
    source.link_to(filling)
    filling.link_to(end)
    graph.configure()
    return graph


def _can_copy(stream: AudioStream) -> bool:
    """Whether an MP4 file can hold the stream as it is."""
    if stream.codec_context is None or stream.codec_context.codec.canonical_name not in _IN_MP4:
        return False
    try:
        with av.open(io.BytesIO(), "w", format="mp4") as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True
