"""Mutations of file formats that keep lengths and checksums valid, so that readers reach the mutated part."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random

from fuzz.mutate import NUMBERS, WIDE_NUMBERS, mutated_bytes, mutated_tree

Mutation = Callable[[bytes, Random, Sequence[bytes]], bytes]

_PNG = b"\x89PNG\r\n\x1a\n"


def either(structured: Mutation, share: float = 0.7) -> Mutation:
    """The structured mutation, or one of any bytes, which is also used for samples that it cannot parse."""

    def mutated(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
        if draw.random() < share:
            try:
                return structured(data, draw, others)
            except (struct.error, ValueError, IndexError, KeyError, zlib.error, zipfile.BadZipFile):
                pass
        return mutated_bytes(data, draw, others)

    return mutated


def png(data: bytes, draw: Random, _others: Sequence[bytes]) -> bytes:
    """A PNG with a chunk changed, removed, repeated, moved or added; every chunk has the right checksum."""
    chunks, at = [], len(_PNG)
    if data[:at] != _PNG:
        raise ValueError("not a PNG")
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunks.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    at = draw.randrange(len(chunks))
    kind, content = chunks[at]
    match draw.randrange(8):
        case 0:
            del chunks[at]
        case 1:
            chunks.insert(draw.randint(0, len(chunks)), chunks[at])
        case 2:
            draw.shuffle(chunks)
        case 3:
            chunks.insert(draw.randint(1, len(chunks)), _png_chunk(draw))
        case 4:
            pixels = mutated_bytes(zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT")), draw)
            chunks = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
            chunks.insert(max(1, len(chunks) - 1), (b"IDAT", zlib.compress(pixels)))
        case 5 | 6:
            width, height, depth, color, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
            field = draw.randrange(4)
            fields = [width, height, depth, color]
            fields[field] = draw.choice(NUMBERS) if field < 2 else draw.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *fields, *rest))
        case _:
            chunks[at] = (kind, mutated_bytes(content, draw))
    return _PNG + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def _png_chunk(draw: Random) -> tuple[bytes, bytes]:
    name = draw.choice(
        (b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"tRNS", b"PLTE", b"gAMA", b"pHYs", b"acTL", b"fcTL", b"fdAT")
    )
    bodies = (
        b"",
        b"a",
        b"icc\0\0" + zlib.compress(b"x" * 100),
        b"a\0\0" + zlib.compress(bytes(2**20)),
        draw.randbytes(26),
    )
    return name, tiff(EXIF, draw) if name == b"eXIf" else draw.choice(bodies)


# orientation 6, as a SHORT in the first directory
EXIF = (
    b"II*\0\x08\0\0\0" + struct.pack("<HHHIIHHIII", 2, 0x112, 3, 1, 6, 0x11A, 5, 1, 38, 0) + struct.pack("<II", 72, 1)
)


def tiff(data: bytes, draw: Random, _others: Sequence[bytes] = ()) -> bytes:
    """An EXIF directory with a field of an entry changed."""
    changed = bytearray(data)
    entries = struct.unpack_from("<H", data, 8)[0]
    for _ in range(draw.choice((1, 1, 2))):
        at = 10 + 12 * draw.randrange(max(1, entries))
        match draw.randrange(5):
            case 0:
                struct.pack_into("<H", changed, at + 2, draw.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 99)))
            case 1:
                struct.pack_into("<I", changed, at + 4, draw.choice(NUMBERS))
            case 2:
                struct.pack_into("<I", changed, at + 8, draw.choice(NUMBERS))
            case 3:
                struct.pack_into("<H", changed, at, draw.choice((0x112, 0x11A, 0x8769, 0x8825, 0x201, 0x111)))
            case _:
                changed = bytearray(mutated_bytes(bytes(changed), draw))
    return bytes(changed)


def jpeg(data: bytes, draw: Random, _others: Sequence[bytes]) -> bytes:
    """A JPEG with a segment changed, removed, repeated or moved, or with other EXIF; lengths stay right."""
    segments, at = [], 2
    if data[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG")
    while data[at] == 0xFF and data[at + 1] != 0xDA:
        length = struct.unpack_from(">H", data, at + 2)[0]
        segments.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + length
    scan = data[at:]
    index = draw.randrange(len(segments))
    marker, body = segments[index]
    match draw.randrange(6):
        case 0:
            del segments[index]
        case 1:
            segments.insert(draw.randint(0, len(segments)), segments[index])
        case 2:
            segments.insert(0, (0xE1, b"Exif\0\0" + tiff(EXIF, draw)))
        case 3:
            frame = next(n for n, (name, _) in enumerate(segments) if 0xC0 <= name <= 0xC2)
            header = bytearray(segments[frame][1])
            struct.pack_into(">H", header, draw.choice((1, 3)), draw.choice(NUMBERS) % 65536)
            segments[frame] = (segments[frame][0], bytes(header))
        case 4:
            scan = mutated_bytes(scan, draw)
        case _:
            segments[index] = (marker, mutated_bytes(body, draw)[:65000])
    written = (bytes((0xFF, name)) + struct.pack(">H", len(body) + 2) + body for name, body in segments)
    return b"\xff\xd8" + b"".join(written) + scan


# these contain boxes in turn
_NESTED_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex", b"dinf")


def boxes(data: bytes, draw: Random, _others: Sequence[bytes]) -> bytes:
    """An MP4 with a box changed, removed, repeated or with a wrong size; the sizes of outer boxes are right."""
    return _changed_boxes(data, draw, top=True)


def _changed_boxes(data: bytes, draw: Random, top: bool = False) -> bytes:
    found, at = [], 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8 or at + size > len(data):
            raise ValueError("not boxes")
        found.append((kind, data[at + 8 : at + size]))
        at += size
    inner = [n for n, (kind, _) in enumerate(found) if kind in _NESTED_BOXES]
    written = [struct.pack(">I", len(body) + 8) + kind + body for kind, body in found]
    if inner and draw.random() < (0.9 if top else 0.7):
        index = draw.choice(inner)
        kind, body = found[index][0], _changed_boxes(found[index][1], draw)
        written[index] = struct.pack(">I", len(body) + 8) + kind + body
        return b"".join(written)
    index = draw.randrange(len(found))
    kind, body = found[index]
    match draw.randrange(6):
        case 0:
            del written[index]
        case 1:
            written.insert(draw.randint(0, len(written)), written[index])
        case 2:
            written[index] = struct.pack(">I", draw.choice(NUMBERS)) + kind + body
        case _:
            changed = bytearray(body)
            if len(changed) >= 4:
                struct.pack_into(">I", changed, 4 * draw.randrange(len(changed) // 4), draw.choice(NUMBERS))
            written[index] = struct.pack(">I", len(changed) + 8) + kind + changed
    return b"".join(written)


def riff(data: bytes, draw: Random, _others: Sequence[bytes]) -> bytes:
    """An AVI or WebP with a chunk changed, removed or repeated, or with a wrong size."""
    if data[:4] != b"RIFF":
        raise ValueError("not RIFF")
    body = _changed_chunks(data[12:], draw)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + data[8:12] + body


def _changed_chunks(data: bytes, draw: Random) -> bytes:
    found, at = [], 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        found.append((kind, data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    written = [_chunk(kind, body) for kind, body in found]
    index = draw.randrange(len(found))
    kind, body = found[index]
    if kind == b"LIST" and body[:4] != b"movi" and draw.random() < 0.9:
        written[index] = _chunk(kind, body[:4] + _changed_chunks(body[4:], draw))
        return b"".join(written)
    match draw.randrange(6):
        case 0:
            del written[index]
        case 1:
            written.insert(draw.randint(0, len(written)), written[index])
        case 2:
            written[index] = kind + struct.pack("<I", draw.choice(NUMBERS)) + body
        case 3:
            written.insert(draw.randint(0, len(written)), _chunk(b"EXIF", tiff(EXIF, draw)))
        case _:
            changed = bytearray(body)
            if len(changed) >= 4:
                struct.pack_into("<I", changed, 4 * draw.randrange(min(len(changed) // 4, 64)), draw.choice(NUMBERS))
            written[index] = _chunk(kind, bytes(changed))
    return b"".join(written)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def safetensors(data: bytes, draw: Random, _others: Sequence[bytes]) -> bytes:
    """A safetensors file with a changed header, header length or numbers."""
    length = struct.unpack_from("<Q", data)[0]
    header, numbers = data[8 : 8 + length], data[8 + length :]
    match draw.randrange(8):
        case 0:
            numbers = mutated_bytes(numbers, draw)
        case 1:
            numbers = b"\xff" * len(numbers)  # NaN
        case 2:
            return struct.pack("<Q", draw.choice(WIDE_NUMBERS) % 2**64) + header + numbers
        case 3:
            header = mutated_bytes(header, draw)
        case _:
            header = json.dumps(mutated_tree(json.loads(header), draw)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + numbers


def zipped(data: bytes, draw: Random, _others: Sequence[bytes]) -> bytes:
    """A PyTorch file with an entry changed, removed, renamed, repeated, enlarged or compressed; checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    pickled = next(n for n, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
    index = pickled if draw.random() < 0.5 else draw.randrange(len(entries))
    name, content = entries[index]
    compression = zipfile.ZIP_STORED
    match draw.randrange(8):
        case 0:
            del entries[index]
        case 1:
            entries[index] = (draw.choice((f"{name}x", "a", "../a", name.upper(), "data.pkl")), content)
        case 2:
            entries.append((f"{name}2", content))
        case 3:
            compression = zipfile.ZIP_DEFLATED
            entries[index] = (name, content if draw.random() < 0.5 else bytes(2**22))
        case 4:
            entries[index] = (name, draw.choice(entries)[1])
        case _:
            entries[index] = (name, mutated_bytes(content, draw))
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return written.getvalue()


def mat(data: bytes, draw: Random, _others: Sequence[bytes]) -> bytes:
    """A MATLAB file with changed tags (type and size) or dimensions, also inside compressed elements."""
    head, at, elements = data[:128], 128, []
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        elements.append((kind, data[at + 8 : at + 8 + size]))
        at += 8 + size
    index = draw.randrange(len(elements))
    kind, content = elements[index]
    inside = bytearray(zlib.decompress(content) if kind == 15 else content)
    for _ in range(draw.choice((1, 1, 2))):
        struct.pack_into(
            "<I", inside, 4 * draw.randrange(min(len(inside) // 4, 80)), draw.choice((*range(20), *NUMBERS))
        )
    elements[index] = (kind, zlib.compress(bytes(inside)) if kind == 15 else bytes(inside))
    if draw.random() < 0.1:
        elements.append(elements[index])
    return head + b"".join(struct.pack("<II", kind, len(content)) + content for kind, content in elements)
