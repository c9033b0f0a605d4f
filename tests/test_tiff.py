"""TIFF files as videos, and frames of more than 8 bits, which are scaled in the same way throughout a video."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from stm_fast.errors import InputError
from stm_fast.video import Frame, FrameReader
from stm_fast.video.image_folder import read_frame
from stm_fast.video.reader import open_frames
from tiff_files import write_png, write_tiff
from video_files import numbered_picture

HEIGHT, WIDTH, PAGES = 30, 40, 6


def gray_stack(dtype: str = "u2", low: int = 100, high: int = 4000) -> list[npt.NDArray[Any]]:
    """Pages of noise, of which the third has the smallest value and the last one the largest."""
    pages = [np.random.default_rng(k).integers(low + 1, high, (HEIGHT, WIDTH)).astype(dtype) for k in range(PAGES)]
    pages[2][3, 4], pages[-1][5, 6] = low, high
    return pages


def color_stack(dtype: str) -> list[npt.NDArray[Any]]:
    most = np.iinfo(dtype).max
    return [
        np.random.default_rng(k).integers(0, most, (HEIGHT, WIDTH, 3), dtype=dtype, endpoint=True) for k in range(PAGES)
    ]


def scaled(page: npt.NDArray[Any], black: float, white: float) -> npt.NDArray[np.uint8]:
    gray = np.rint(255 * (np.clip(page.astype(float), black, white) - black) / (white - black)).astype(np.uint8)
    return np.stack([gray] * 3, axis=2)


def check(reader: FrameReader, expected: list[npt.NDArray[np.uint8]]) -> None:
    """Compares frames in both directions."""
    frames, backward = list(reader), list(reader.backward())
    assert (reader.frame_count, reader.height, reader.width) == (len(expected), *expected[0].shape[:2])
    for found in (frames, backward[::-1]):
        assert [frame.index for frame in found] == list(range(len(expected)))
        for frame, image in zip(found, expected, strict=True):
            np.testing.assert_array_equal(frame.image, image)
            assert frame.image.flags.c_contiguous
    assert described(reader.backward(2)) == described(frames[:2][::-1])
    assert described(backward) == described(frames[::-1])


def described(frames: Any) -> list[tuple[int, float, str]]:
    return [(frame.index, frame.time, frame.name) for frame in frames if isinstance(frame, Frame)]


def refuses(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        list(open_frames(path))
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u2", "i2", "i4", "f4"])
def test_gray_pages_are_scaled_by_the_range_of_all(
    tmp_path: Path, dtype: str, order: str, caplog: pytest.LogCaptureFixture
) -> None:
    low = 100 if dtype == "u2" else -50
    pages = gray_stack(dtype, low)
    path = write_tiff(tmp_path / "stack.tif", pages, order=order)
    reader = open_frames(path)
    assert (reader.name, reader.name_of(3), reader.index_of("00003"), reader.index_of("6")) == (
        "stack",
        "00003",
        3,
        None,
    )
    check(reader, [scaled(page, low, 4000) for page in pages])
    note = f"{path}: more than 8 bits per pixel: gray values from {low} to 4000 become 0 to 255, the same in all frames"
    assert caplog.messages == [note]


def test_unsigned_values_of_32_bits(tmp_path: Path) -> None:
    pages = [np.array([[0, 2**31, 2**32 - 1]], np.uint32)]
    check(open_frames(write_tiff(tmp_path / "stack.tif", pages)), [scaled(pages[0], 0, 2**32 - 1)])


def test_the_brightest_and_darkest_hundredth_of_a_percent_is_left_out(tmp_path: Path) -> None:
    """Defective sensor elements must not make everything else black."""
    page = np.random.default_rng(0).integers(500, 1000, (200, 200)).astype(np.uint16)
    page[0, :4], page[1, :4], page[2, 0], page[2, 1] = 65_535, 0, 499, 1000
    check(open_frames(write_tiff(tmp_path / "stack.tif", [page])), [scaled(page, 499, 1000)])


def test_the_range_that_imagej_showed_is_used(tmp_path: Path) -> None:
    pages = gray_stack()
    text = "ImageJ=1.54f\nimages=6\nslices=6\nloop=false\nmin=200.0\nmax=1500.0\n"
    path = write_tiff(tmp_path / "stack.tif", pages, text)
    check(open_frames(path), [scaled(page, 200, 1500) for page in pages])
    for useless in ("min=5000.0\nmax=6000.0\n", "min=nan\nmax=3\n", "min=9\nmax=3\n", "min=\n", "max=1e999\nmin=0\n"):
        write_tiff(path, pages, f"ImageJ=1.54f\n{useless}")
        check(open_frames(path), [scaled(page, 100, 4000) for page in pages])


def test_a_stack_whose_zero_is_white(tmp_path: Path) -> None:
    pages = gray_stack("u2", 0, 255 * 15)
    path = write_tiff(tmp_path / "stack.tif", pages, zero=0)
    check(open_frames(path), [255 - scaled(page, 0, 255 * 15) for page in pages])


def test_a_constant_stack_is_black(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "stack.tif", [np.full((HEIGHT, WIDTH), 700, np.uint16)])
    check(open_frames(path), [np.zeros((HEIGHT, WIDTH, 3), np.uint8)])


@pytest.mark.parametrize("planes", [False, True])
def test_8_bits_are_taken_as_they_are(tmp_path: Path, planes: bool, caplog: pytest.LogCaptureFixture) -> None:
    gray, color = gray_stack("u1", 0, 200), color_stack("u1")
    check(open_frames(write_tiff(tmp_path / "gray.tif", gray)), [np.stack([page] * 3, axis=2) for page in gray])
    check(open_frames(write_tiff(tmp_path / "color.tiff", color, planes=planes)), color)
    assert caplog.messages == []


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_upper_8_bits_of_color_are_taken(tmp_path: Path, order: str, caplog: pytest.LogCaptureFixture) -> None:
    color = color_stack("u2")
    upper = [(page >> 8).astype(np.uint8) for page in color]
    path = write_tiff(tmp_path / "color.tif", color, order=order)
    check(open_frames(path), upper)
    assert caplog.messages == [f"{path}: 16 bits per channel: the upper 8 are used"]
    # of which Pillow would take the lower 8
    refuses(write_tiff(tmp_path / "planes.tif", color, order=order, planes=True), "16 bits in separate planes")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_compressed_pages(tmp_path: Path, compression: str) -> None:
    pages = [Image.fromarray(numbered_picture(k)) for k in range(PAGES)]
    path = tmp_path / "stack.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:], compression=compression)
    found = [frame.image.astype(int) for frame in open_frames(path)]
    assert len(found) == PAGES
    assert max(np.abs(image - numbered_picture(k)).max() for k, image in enumerate(found)) < (
        20 if compression == "jpeg" else 1
    )


def test_turned_pages(tmp_path: Path) -> None:
    pages = gray_stack()
    images = [Image.fromarray(page) for page in pages]
    images[0].save(tmp_path / "stack.tif", save_all=True, append_images=images[1:], tiffinfo={274: 6})
    check(open_frames(tmp_path / "stack.tif"), [scaled(np.rot90(page, -1), 100, 4000) for page in pages])


def test_a_file_is_recognized_by_its_content(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "stack.tif", gray_stack()).rename(tmp_path / "stack.lsm")
    assert open_frames(path).frame_count == PAGES


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("ImageJ=1.54f\nimages=6\nchannels=2\nframes=3\nhyperstack=true\n", "found 2 channels, expected one, or RGB"),
        ("ImageJ=1.54f\nimages=6\nslices=2\nframes=3\n", "found 2 slices at each of 3 times"),
        ("ImageJ=1.54f\nimages=60\nslices=60\n", "found 6 of 60 images"),
        ('<?xml version="1.0"?><OME><Pixels SizeZ="1" SizeC="3" SizeT="2"/></OME>', "found 3 channels"),
        (
            '<?xml version="1.0"?><OME><Pixels SizeZ="3" SizeC="1" SizeT="2"/></OME>',
            "found 3 slices at each of 2 times",
        ),
    ],
)
def test_stacks_with_several_axes_are_refused(tmp_path: Path, text: str, what: str) -> None:
    refuses(write_tiff(tmp_path / "stack.tif", gray_stack(), text), what)


@pytest.mark.parametrize(
    "text",
    [
        "ImageJ=1.54f\nimages=6\nslices=6\n",
        "ImageJ=1.54f\nimages=6\nframes=6\nslices=1\nchannels=1\nhyperstack=true\n",
        '<OME><Image><Pixels SizeZ="1" SizeC="1" SizeT="6"/></Image><Image><Pixels SizeC="9"/></Image></OME>',
        "ImageJ=\nchannels=x\nslices=999999999999999999\nframes=-3\n",
        '{"shape": [6, 30, 40]}',
        "channels=3",
    ],
)
def test_stacks_with_one_axis_are_read(tmp_path: Path, text: str) -> None:
    pages = gray_stack()
    check(open_frames(write_tiff(tmp_path / "stack.tif", pages, text)), [scaled(page, 100, 4000) for page in pages])


def test_the_colors_of_ome_are_not_channels(tmp_path: Path) -> None:
    color = color_stack("u1")
    text = '<?xml version="1.0"?><OME><Pixels SizeZ="1" SizeC="3" SizeT="6"/></OME>'
    check(open_frames(write_tiff(tmp_path / "stack.tif", color, text)), color)


def test_pages_that_differ_are_refused(tmp_path: Path) -> None:
    pages = gray_stack()
    refuses(write_tiff(tmp_path / "size.tif", [*pages, pages[0][:9]]), "frame 6 is 40x9, expected 40x30 like frame 0")
    refuses(write_tiff(tmp_path / "depth.tif", [*pages, pages[0].astype("u1")]), "frame 6", "depth")
    # a few bytes of a huge image
    huge = write_tiff(tmp_path / "huge.tif", [*pages, np.zeros((1, 1), np.uint16)])
    content = bytearray(huge.read_bytes())
    at = content.rindex(b"\0\1\4\0\1\0\0\0\1\0\0\0") + 8
    content[at : at + 4] = (10**9).to_bytes(4, "little")
    huge.write_bytes(content)
    refuses(huge, "frame 6 is 1000000000x1, expected 40x30")


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    pages = gray_stack("f4")
    pages[3][0, 0] = np.nan
    refuses(write_tiff(tmp_path / "stack.tif", pages), "frame 3", "not finite")


def test_damaged_files_raise_only_input_errors(tmp_path: Path) -> None:
    whole = write_tiff(tmp_path / "stack.tif", gray_stack()).read_bytes()
    path = tmp_path / "damaged.tif"
    path.write_bytes(whole[: len(whole) // 2])
    refuses(path)
    path.write_bytes(b"II*\0")
    refuses(path)
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(150):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(0, len(damaged), 40)] = rng.integers(0, 256, 40, dtype=np.uint8)
        path.write_bytes(damaged.tobytes())
        try:
            list(open_frames(path))
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert not any("\n" in message for message in messages)


# folders


def write_folder(folder: Path, pages: list[npt.NDArray[Any]], suffix: str) -> Path:
    folder.mkdir()
    for number, page in enumerate(pages):
        if suffix == "png":
            write_png(folder / f"{number}.png", page)
        else:
            write_tiff(folder / f"{number}.{suffix}", [page])
    return folder


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff"])
def test_a_folder_of_gray_images_is_scaled_by_the_range_of_all(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    pages = gray_stack()
    folder = write_folder(tmp_path / "clip", pages, suffix)
    reader = open_frames(folder)
    check(reader, [scaled(page, 100, 4000) for page in pages])
    assert [frame.name for frame in reader] == [str(number) for number in range(PAGES)]
    assert caplog.messages == [
        f"{folder}: more than 8 bits per pixel: gray values from 100 to 4000 become 0 to 255, the same in all frames"
    ]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_the_upper_8_bits_of_the_color_of_images_are_taken(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    color = color_stack("u2")
    folder = write_folder(tmp_path / "clip", color, suffix)
    check(open_frames(folder), [(page >> 8).astype(np.uint8) for page in color])
    assert caplog.messages == [f"{folder}: 16 bits per channel: the upper 8 are used"]


def test_transparent_images_of_16_bits(tmp_path: Path) -> None:
    color = np.random.default_rng(0).integers(0, 65_536, (HEIGHT, WIDTH, 4), dtype=np.uint16)
    folder = write_folder(tmp_path / "clip", [color, color[:, :, [0, 3]]], "png")
    upper = (color >> 8).astype(np.uint8)
    check(open_frames(folder), [upper[:, :, :3], np.repeat(upper[:, :, :1], 3, axis=2)])


def test_images_of_8_bits_next_to_deeper_ones_stay_as_they_are(tmp_path: Path) -> None:
    pages = gray_stack()
    folder = write_folder(tmp_path / "clip", pages, "tif")
    Image.fromarray(numbered_picture(7, WIDTH, HEIGHT)).save(folder / "9.png")
    expected = [scaled(page, 100, 4000) for page in pages]
    check(open_frames(folder), [*expected, numbered_picture(7, WIDTH, HEIGHT)])


def test_a_stack_in_a_folder_of_images_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clip", gray_stack()[:2], "tif")
    write_tiff(folder / "stack.tif", gray_stack())
    with pytest.raises(InputError, match=r"stack\.tif: found 6 pages in a folder of images"):
        open_frames(folder)


def test_a_single_frame_is_scaled_by_its_own_range(tmp_path: Path) -> None:
    page = gray_stack()[2]
    np.testing.assert_array_equal(read_frame(write_png(tmp_path / "0.png", page)), scaled(page, 100, page.max()))
