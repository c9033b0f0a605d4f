"""The orientation of images: size, frames and training images always agree."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from stm_fast.data.source import read_image
from stm_fast.errors import InputError
from stm_fast.video.image_folder import read_frame
from stm_fast.video.reader import open_frames

Pixels = npt.NDArray[np.uint8]

WIDTH, HEIGHT = 45, 31
# EXIF 2.32, section 4.6.4: where the first row and the first column are
TURNED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored[::-1].transpose(1, 0, 2),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored[:, ::-1].transpose(1, 0, 2),
}
BYTE, ASCII, SHORT, LONG, RATIONAL, SBYTE, SSHORT, SLONG, FLOAT = 1, 2, 3, 4, 5, 6, 8, 9, 11
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def stored_picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Smooth, so that JPEG preserves it, and different from all its rotations and reflections."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([200 * x // width, 200 * y // height, x + y], axis=-1).astype(np.uint8))


def entry(order: str, tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")


def directory(order: str, *entries: bytes, trailing: bytes = b"") -> bytes:
    """EXIF data whose first directory has these entries."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(entries))
    return b"Exif\0\0" + head + b"".join(entries) + bytes(4) + trailing


def orientation_data(order: str, kind: int, value: bytes, count: int = 1) -> bytes:
    return directory(order, entry(order, 0x0112, kind, count, value))


def check_agreement(file: Path, expected: int, stored: Pixels) -> None:
    """The size, the frame and the training image are those of this orientation."""
    upright = TURNED[expected](stored)
    height, width = upright.shape[:2]
    reader = open_frames(file.parent)
    assert (reader.width, reader.height) == (width, height)
    (frame,) = reader
    assert np.array_equal(frame.image, upright)
    assert frame.image.flags.c_contiguous
    assert np.array_equal(read_image(file, (height, width), Path("mask.png"), 1), upright)


def save(file: Path, **options: Any) -> Pixels:
    """Writes the image; returns the pixels as stored."""
    stored_picture().save(file, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged EXIF data
        with Image.open(file) as stored:
            return np.array(stored.convert("RGB"))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_orientation_is_applied(tmp_path: Path, suffix: str, order: str, orientation: int) -> None:
    file = tmp_path / f"a.{suffix}"
    exif = orientation_data(order, SHORT, struct.pack(f"{order}H", orientation))
    check_agreement(file, orientation, save(file, exif=exif))


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(45, 31), (17, 8), (5, 3), (9, 1), (16, 16)])
def test_reduced_training_images_are_turned_too(tmp_path: Path, size: tuple[int, int], shrink: int) -> None:
    stored = stored_picture(*size)
    for orientation, turned in TURNED.items():
        expected = turned(np.array(stored.reduce(shrink)))
        width, height = size if orientation < 5 else size[::-1]
        exif = orientation_data("<", SHORT, struct.pack("<H", orientation))
        for suffix, tolerance in (("png", 0), ("jpg", 12)):
            file = tmp_path / f"a.{suffix}"
            stored.save(file, exif=exif, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))
            found = read_image(file, (height, width), Path("mask.png"), shrink)
            assert found.shape == (-(-height // shrink), -(-width // shrink), 3)
            assert np.abs(found.astype(int) - expected).max() <= tolerance
            with pytest.raises(InputError, match=f"mask of {height + 1}x{width}, expected {width}x{height} like"):
                read_image(file, (width, height + 1), Path("mask.png"), shrink)


NEGATIVE = struct.pack("<i", -5)
DATA = {
    "LONG": (orientation_data("<", LONG, struct.pack("<I", 6)), 6),
    "LONG, big-endian": (orientation_data(">", LONG, struct.pack(">I", 6)), 6),
    "SSHORT": (orientation_data("<", SSHORT, struct.pack("<h", 6)), 6),
    "SLONG": (orientation_data("<", SLONG, struct.pack("<i", 6)), 6),
    "BYTE": (orientation_data("<", BYTE, b"\6"), 1),
    "SBYTE": (orientation_data("<", SBYTE, b"\6"), 1),
    "text": (orientation_data("<", ASCII, b"6\0", count=2), 1),
    "RATIONAL": (directory("<", entry("<", 0x0112, RATIONAL, 1, b"\x1a"), trailing=struct.pack("<II", 6, 1)), 1),
    "FLOAT": (orientation_data("<", FLOAT, struct.pack("<f", 6)), 1),
    "two numbers": (orientation_data("<", SHORT, struct.pack("<HH", 6, 6), count=2), 1),
    "no number": (orientation_data("<", SHORT, struct.pack("<H", 6), count=0), 1),
    "0": (orientation_data("<", SHORT, b"\0"), 1),
    "9": (orientation_data("<", SHORT, b"\x09"), 1),
    "-2": (orientation_data("<", SSHORT, struct.pack("<h", -2)), 1),
    "6 in the other byte order": (orientation_data("<", SHORT, b"\0\6"), 1),
    "unknown type": (orientation_data("<", 99, b"\6"), 1),
    # Pillow cannot write this
    "negative width": (directory("<", entry("<", 0x0100, SLONG, 1, NEGATIVE), entry("<", 0x0112, SHORT, 1, b"\6")), 6),
    "negative resolution": (
        directory(
            "<",
            entry("<", 0x0112, SHORT, 1, b"\6"),
            entry("<", 0x011A, 10, 1, struct.pack("<I", 38)),
            trailing=struct.pack("<ii", -1, 0),
        ),
        6,
    ),
    "other entries beyond the end": (
        directory("<", entry("<", 0x010F, ASCII, 999, b"\xff\xff"), entry("<", 0x0112, SHORT, 1, b"\6")),
        6,
    ),
    "cut off": (orientation_data("<", SHORT, b"\6")[:-8], 1),
    "directory beyond the end": (b"Exif\0\0II*\0\xff\xff\xff\xff", 1),
    "no entries": (directory("<"), 1),
    "no EXIF": (b"Exif\0\0hello", 1),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_readers_agree_on_unusual_exif_data(tmp_path: Path, suffix: str, name: str) -> None:
    exif, expected = DATA[name]
    file = tmp_path / f"a.{suffix}"
    check_agreement(file, expected, save(file, exif=exif))


def test_readers_agree_on_a_damaged_orientation(tmp_path: Path) -> None:
    exif = DATA["negative resolution"][0]
    rng = np.random.default_rng(0)
    file = tmp_path / "a.png"
    found = set()
    for _ in range(100):
        damaged = np.frombuffer(exif, np.uint8).copy()
        damaged[rng.integers(6, len(damaged), 2)] = rng.choice(np.array([0, 1, 3, 6, 255], np.uint8), 2)
        stored = save(file, exif=damaged.tobytes())
        frame = read_frame(file)
        agreeing = [turn for turn, turned in TURNED.items() if np.array_equal(frame, turned(stored))]
        check_agreement(file, *agreeing, stored)
        found.update(agreeing)
    assert {1, 6} <= found


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_xmp_is_consulted_if_exif_has_no_orientation(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"

    def with_xmp(**options: Any) -> Pixels:
        if suffix == "png":
            text = PngInfo()
            text.add_itxt("XML:com.adobe.xmp", XMP.decode())
            return save(file, pnginfo=text, **options)
        return save(file, xmp=XMP, **options)

    check_agreement(file, 6, with_xmp())
    check_agreement(file, 6, with_xmp(exif=directory("<", entry("<", 0x010F, ASCII, 4, b"abc\0"))))
    check_agreement(file, 3, with_xmp(exif=orientation_data("<", SHORT, b"\3")))
    check_agreement(file, 1, with_xmp(exif=orientation_data("<", BYTE, b"\3")))


def test_exif_after_the_pixels_of_a_png_is_ignored(tmp_path: Path) -> None:
    """The header decides, because only the header is read before any work."""
    file = tmp_path / "a.png"
    stored = save(file)
    exif = orientation_data("<", SHORT, b"\6")[6:]
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    whole = file.read_bytes()
    file.write_bytes(whole[:-12] + chunk + whole[-12:])
    check_agreement(file, 1, stored)


@pytest.mark.parametrize(("digits", "expected"), [(orientation_data("<", SHORT, b"\6").hex(), 6), ("no digits", 1)])
def test_exif_that_imagemagick_wrote_into_a_png(tmp_path: Path, digits: str, expected: int) -> None:
    text = PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(digits) // 2:8}\n{digits}\n", zip=True)
    file = tmp_path / "a.png"
    check_agreement(file, expected, save(file, pnginfo=text))


# other properties of images


def test_only_the_first_picture_of_a_file_is_read(tmp_path: Path) -> None:
    other = Image.new("RGB", (WIDTH, HEIGHT), "red")
    for name, kind in (("mpo.jpg", "MPO"), ("animated.png", "PNG"), ("animated.webp", "WEBP")):
        folder = tmp_path / name
        folder.mkdir()
        exif = orientation_data("<", SHORT, b"\6")
        stored = save(folder / name, format=kind, save_all=True, append_images=[other], exif=exif)
        assert not np.array_equal(stored, np.array(other))
        check_agreement(folder / name, 6, stored)


def test_colors_of_transparent_pixels_are_kept(tmp_path: Path) -> None:
    palette = stored_picture().quantize(16)
    expected = np.array(palette.convert("RGB"))
    file = tmp_path / "a.png"
    palette.save(file, transparency=bytes(range(16)))
    check_agreement(file, 1, expected)
    palette.save(file, transparency=3)
    check_agreement(file, 1, expected)
    stored_picture().save(file, transparency=(0, 0, 0))
    check_agreement(file, 1, np.array(stored_picture()))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture = stored_picture().convert(mode)
    picture.save(file, exif=orientation_data("<", SHORT, b"\6"))
    with Image.open(file) as stored:
        assert stored.mode == mode
        check_agreement(file, 6, np.array(stored.convert("RGB")))


def test_a_broken_color_profile_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    save(file, icc_profile=profile)
    whole = file.read_bytes()
    at = whole.index(b"iCCP") + 4
    (length,) = struct.unpack(">I", whole[at - 8 : at - 4])
    # a name without its terminator
    spoiled = b"a" * length
    chunk = spoiled + struct.pack(">I", zlib.crc32(b"iCCP" + spoiled))
    file.write_bytes(whole[:at] + chunk + whole[at + length + 4 :])
    with pytest.raises(InputError, match=r"a\.png: not a readable image"):
        read_frame(file)
    with pytest.raises(InputError, match=r"a\.png: not a readable image"):
        read_image(file, (HEIGHT, WIDTH), file, 1)


def test_a_large_picture_is_read_without_a_warning_and_a_huge_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow warns above its limit, and refuses above twice that."""
    file = tmp_path / "a.jpg"
    stored = save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT - 1)
    check_agreement(file, 1, stored)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT // 2 - 1)
    with pytest.raises(InputError, match=r"a\.jpg: not a readable image .*exceeds limit"):
        read_frame(file)


def test_sizes_are_compared_before_pixels_are_decoded(tmp_path: Path) -> None:
    """A file of a few kilobytes may hold an image that takes gigabytes."""
    file = tmp_path / "b.png"
    stored_picture().save(tmp_path / "a.png")
    save(file)
    reader = open_frames(tmp_path)
    stored_picture(WIDTH + 1).save(file)
    file.write_bytes(file.read_bytes()[:60])  # its pixels cannot be decoded
    with pytest.raises(InputError, match=r"b\.png: image of 46x31, expected 45x31 like a\.png"):
        list(reader)
    with pytest.raises(InputError, match=r"mask of 45x31, expected 46x31 like b\.png"):
        read_image(file, (HEIGHT, WIDTH), Path("mask.png"), 1)
    with pytest.raises(InputError, match=r"b\.png: not a readable image \(.*truncated"):
        read_frame(file)


def test_formats_that_need_other_programs_are_refused(tmp_path: Path) -> None:
    """Pillow starts Ghostscript for PostScript, whatever the file's name."""
    drawing = io.BytesIO()
    stored_picture().save(drawing, "EPS")
    (tmp_path / "a.png").write_bytes(drawing.getvalue())
    with pytest.raises(InputError, match=r"a\.png: not a readable image \(unknown image format\)"):
        open_frames(tmp_path)
