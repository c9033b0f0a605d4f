"""The number of frames of a video stream, counted without decoding: from its packets, or from a complete index."""

from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeAlias

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from stm_fast.video import containers

VideoPacket: TypeAlias = "Packet[VideoStream]"  # Packet is generic in the stubs only
# the number of frames of a packet; None if it does not tell
Shown: TypeAlias = Callable[[VideoPacket], int | None]

# every packet of these codecs is a frame, and no frame refers to a later one
_IN_ORDER = frozenset(
    {"av1", "cinepak", "ffv1", "flv", "gif", "libaom-av1", "libdav1d", "png", "qtrle", "snow", "svq1", "theora", "zmbv"}
)
# every packet of these is a frame, but decoders drop frames before the first key frame whose references are missing
_REORDERED = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"})
# values of AVFieldOrder: unknown, and progressive
_WHOLE_FRAMES = (0, 1)
# a packet of MPEG-4 part 2 that repeats the previous frame, for which decoders give no frame, usually has 8 bytes
_LONGEST_REPEAT = 12
# of an H.264 or HEVC unit, and of an MPEG-4 part 2 picture
_START_CODE = b"\x00\x00\x01"
_VOP_START = b"\x00\x00\x01\xb6"


class PacketCount:
    """Counts the frames of a stream while its packets pass through.

    The count always agrees with decoding; if packets are not enough to know it, it is None.
    """

    def __init__(self, file: BinaryIO, container: InputContainer, stream: VideoStream) -> None:
        self._stream = stream
        codec = stream.codec_context.codec
        self._shown = shown_of(stream)
        self._reordered = codec.name in _REORDERED and stream.codec_context.has_b_frames
        self._needs_key = not codec.intra_only
        self._known = codec.intra_only or codec.name in _IN_ORDER | _REORDERED | _SHOWN.keys()
        # two fields may be two packets
        if codec.name == "h264" and stream.codec_context.field_order not in _WHOLE_FRAMES:
            self._known = False
        self._count = 0
        self._first_stamp: int | None = None
        # whether it is settled that decoding does not start in the middle of a group of pictures
        self._started = False
        index_is_whole = "mp4" in container.format.name and not containers.is_fragmented(file)
        #: whether its index counts the frames, so that not all packets have to be read
        self.has_index = index_is_whole and codec.name not in _SHOWN

    def watch(self, packets: Iterator[VideoPacket]) -> Iterator[VideoPacket]:
        """Passes the packets on and counts them."""
        for packet in packets:
            if packet.size and self._known:
                self._add(packet)
            yield packet

    def finish(self, packets: Iterator[VideoPacket]) -> int | None:
        """The number of frames, or None if unknown. Consumes as many of the watched packets as needed."""
        while self._known and not (self.has_index and self._started) and next(packets, None) is not None:
            pass
        if not self._known:
            return None
        if self.has_index:
            return sum(entry.size > 0 and not entry.is_discard for entry in self._stream.index_entries) or None
        return self._count or None

    def _add(self, packet: VideoPacket) -> None:
        shown = self._shown(packet)
        if shown is None or packet.is_corrupt:
            self._known = False
        elif not packet.is_discard:
            self._count += shown
        if not self._started:
            self._start(packet)

    def _start(self, packet: VideoPacket) -> None:
        """Checks whether the stream starts with frames that cannot be decoded."""
        if not self._reordered:
            self._started = True
            self._known &= packet.is_keyframe or not self._needs_key
        elif self._first_stamp is None:
            self._first_stamp = packet.pts
            # a raw stream has no time stamps
            self._started = packet.pts is None and _starts_anew(self._stream.codec_context.name, packet)
            self._known &= packet.is_keyframe and (self._started or packet.pts is not None)
        elif packet.pts is None or (packet.pts < self._first_stamp and not packet.is_discard):
            self._known = False
        else:
            self._started = packet.pts > self._first_stamp


def _starts_anew(codec: str, packet: VideoPacket) -> bool:
    """Whether the packet of a raw stream has an IDR picture: no later frame can refer to an earlier one."""
    shift, mask, kinds = {"h264": (0, 0x1F, {5}), "hevc": (1, 0x3F, {19, 20})}.get(codec, (0, 0, set[int]()))
    units = bytes(packet).split(_START_CODE)[1:]
    return any(unit and unit[0] >> shift & mask in kinds for unit in units)


def shown_of(stream: VideoStream) -> Shown:
    """How to count the frames of a packet of a stream."""
    return _SHOWN.get(stream.codec_context.codec.name, _one)


def _one(packet: VideoPacket) -> int | None:
    return 1


def _shown_of_mpeg4(packet: VideoPacket) -> int | None:
    """None for two frames in one packet, and for a possible repetition of the previous frame."""
    return 1 if packet.size > _LONGEST_REPEAT and bytes(packet).count(_VOP_START) == 1 else None


def _shown_of_vp8(packet: VideoPacket) -> int | None:
    """0 for a hidden reference frame: bit 4 of the frame header (RFC 6386, section 9.1)."""
    return memoryview(packet)[0] >> 4 & 1


def _shown_of_vp9(packet: VideoPacket) -> int | None:
    """Hidden and shown frames share a packet, followed by an index (VP9 bitstream, annex B)."""
    data = memoryview(packet)
    last = data[-1]
    frames, width = (last & 7) + 1, (last >> 3 & 3) + 1
    index = len(data) - 2 - frames * width
    if last & 0xE0 != 0xC0 or index < 0 or data[index] != last:
        return _is_shown_vp9(data[0])
    at = shown = 0
    for entry in range(index + 1, len(data) - 1, width):
        size = int.from_bytes(data[entry : entry + width], "little")
        if size and at < index:
            shown += _is_shown_vp9(data[at])
        at += size
    return shown


def _is_shown_vp9(first: int) -> bool:
    """From the first byte of the uncompressed header (VP9 bitstream, section 6.2)."""
    # profile 3 has one more reserved bit
    after_profile = first << 1 if first & 0x30 == 0x30 else first
    show_existing, show = after_profile & 0x08, after_profile & 0x02
    return bool(show_existing or show)


_SHOWN: dict[str, Shown] = {
    "mpeg4": _shown_of_mpeg4,
    "vp8": _shown_of_vp8,
    "vp9": _shown_of_vp9,
}
