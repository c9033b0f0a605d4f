"""Masks keep the user's ids and colors, and anything else is refused in one line."""

import os
import random
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from stm_fast.errors import InputError
from stm_fast.video import masks, read_mask, read_written_mask
from stm_fast.video.writer import MaskWriter, OverlayImageWriter

SHARED = Path(__file__).resolve().parents[2] / "shared"
IDS = np.array([[0, 1, 7], [255, 7, 0]], np.uint8)
# not the DAVIS colors
PALETTE = bytes(range(200, 0, -1)) + bytes(568)


def refuses(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_mask(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for word in words:
        assert word in message


def test_davis_palette_has_the_published_colors() -> None:
    assert len(masks.DAVIS_PALETTE) == 768
    colors = np.frombuffer(masks.DAVIS_PALETTE, np.uint8).reshape(256, 3).tolist()
    assert colors[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colors[8] == [64, 0, 0]
    assert colors[255] == [224, 224, 192]


@pytest.mark.parametrize("palette", [None, PALETTE, PALETTE[:6]], ids=["davis", "own", "short"])
def test_ids_and_palette_come_back(tmp_path: Path, palette: bytes | None) -> None:
    masks.write_mask(tmp_path / "m.png", IDS, palette)
    found = read_written_mask(tmp_path / "m.png")
    np.testing.assert_array_equal(found.ids, IDS)
    assert found.ids.dtype == np.uint8
    assert found.palette == masks.full_palette(palette)
    assert found.palette[: len(palette or b"")] == (palette or b"")
    assert found.palette[len(palette or b"") :] == masks.DAVIS_PALETTE[len(palette or b"") :]
    assert masks.object_ids(found.ids) == [1, 7, 255]


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    writer = MaskWriter(tmp_path / "new" / "folder")
    writer.write("00003", IDS)
    writer.write("00003", IDS.T)
    assert os.listdir(tmp_path / "new" / "folder") == ["00003.png"]
    np.testing.assert_array_equal(read_written_mask(tmp_path / "new" / "folder" / "00003.png").ids, IDS.T)


def test_a_failed_write_leaves_the_old_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks.write_mask(tmp_path / "m.png", IDS)

    def half_a_file(self: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half_a_file)
    with pytest.raises(InputError, match=re.escape(f"disk full while writing {tmp_path / 'm.png'}")):
        masks.write_mask(tmp_path / "m.png", IDS.T)
    assert os.listdir(tmp_path) == ["m.png"]
    np.testing.assert_array_equal(read_written_mask(tmp_path / "m.png").ids, IDS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write"):
        MaskWriter(tmp_path / "masks")


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "masks").write_text("a file")
    with pytest.raises(InputError, match="cannot write"):
        MaskWriter(tmp_path / "masks")


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [("L", [[0, 255]], [[0, 255]]), ("L", [[0, 3]], [[0, 3]]), ("1", [[0, 1]], [[0, 1]])],
    ids=["binary 255", "gray ids", "one bit"],
)
def test_gray_values_are_ids(tmp_path: Path, mode: str, values: list[list[int]], expected: list[list[int]]) -> None:
    dtype = np.bool_ if mode == "1" else np.uint8
    Image.fromarray(np.array(values, dtype)).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png")
    assert mask.ids.tolist() == expected
    assert mask.ids.dtype == np.uint8
    assert mask.palette is None


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_values_of_few_bits_are_ids(tmp_path: Path, bits: int) -> None:
    values = np.arange(2**bits, dtype=np.uint8)[None]  # [1, W]
    packed = np.packbits(np.unpackbits(values.T, axis=1)[:, -bits:].ravel()).tobytes()
    header = struct.pack(">IIBBBBB", values.shape[1], 1, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + packed)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").ids, values)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_ids_may_be_stored_in_more_bits(tmp_path: Path, dtype: type) -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(4, 3)
    file = tmp_path / ("m.png" if dtype is np.uint16 else "m.tif")
    Image.fromarray(ids.astype(dtype)).save(file)
    np.testing.assert_array_equal(read_mask(file).ids, ids)
    Image.fromarray((ids > 4).astype(dtype) * dtype(2000)).save(file)
    np.testing.assert_array_equal(read_mask(file).ids, (ids > 4) * np.uint8(255))
    Image.fromarray(ids.astype(dtype) * dtype(25)).save(file)
    refuses(file, "values from 0 to 275, expected object ids")


@pytest.mark.parametrize("value", [np.nan, 1.5, -1, np.inf])
def test_numbers_that_are_not_ids_are_refused(tmp_path: Path, value: float) -> None:
    Image.fromarray(np.array([[0, 1], [2, value]], np.float32)).save(tmp_path / "m.tif")
    refuses(tmp_path / "m.tif", "expected object ids from 0 to 255")


def test_missing_text_and_truncated_files_are_refused(tmp_path: Path) -> None:
    refuses(tmp_path / "none.png", "no such mask")
    (tmp_path / "text.png").write_text("not a picture")
    refuses(tmp_path / "text.png", "not a readable mask (unknown image format)")
    noise = np.random.default_rng(0).integers(0, 9, (64, 64), dtype=np.uint8)
    masks.write_mask(tmp_path / "cut.png", noise)
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    refuses(tmp_path / "cut.png", "not a readable mask")


def test_damaged_files_raise_only_input_errors(tmp_path: Path) -> None:
    masks.write_mask(tmp_path / "m.png", np.random.default_rng(0).integers(0, 9, (16, 16), dtype=np.uint8))
    whole = (tmp_path / "m.png").read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / "damaged.png").write_bytes(damaged)
        try:
            read_mask(tmp_path / "damaged.png")
        except InputError:
            refused += 1
    assert refused > 100


def test_a_mask_without_objects(tmp_path: Path) -> None:
    masks.write_mask(tmp_path / "m.png", np.zeros((3, 4), np.uint8))
    mask = read_mask(tmp_path / "m.png")
    assert masks.object_ids(mask.ids) == []
    with pytest.raises(InputError, match="without objects"):
        masks.require_objects(mask.ids, tmp_path / "m.png")
    masks.require_objects(IDS, tmp_path / "m.png")


@pytest.mark.parametrize(("ids", "error"), [(IDS.astype(np.int64), TypeError), (IDS[None], ValueError)])
def test_invalid_arrays_are_programming_errors(
    tmp_path: Path, ids: npt.NDArray[np.uint8], error: type[Exception]
) -> None:
    with pytest.raises(error, match="ids"):
        masks.write_mask(tmp_path / "m.png", ids)


def test_overlay_pictures(tmp_path: Path) -> None:
    image = np.full((16, 24, 3), (200, 40, 90), np.uint8)
    OverlayImageWriter(tmp_path / "overlay").write("00012", image)
    assert os.listdir(tmp_path / "overlay") == ["00012.jpg"]
    with Image.open(tmp_path / "overlay" / "00012.jpg") as picture:
        assert np.abs(np.array(picture).astype(int) - image).max() <= 3


@pytest.mark.skipif(not SHARED.is_dir(), reason="no sample data")
def test_real_masks(tmp_path: Path) -> None:
    folder = SHARED / "data" / "clips" / "Annotations" / "480p"
    assert masks.object_ids(read_mask(folder / "bike" / "00000.png").ids) == [1, 2]
    for added, path in enumerate(sorted((folder / "judo").glob("*.png")), start=1):
        mask = read_mask(path)
        assert masks.object_ids(mask.ids) == [added]
        assert mask.palette is not None
        assert mask.palette[:9] == masks.DAVIS_PALETTE[:9]
        masks.write_mask(tmp_path / path.name, mask.ids, mask.palette)
        np.testing.assert_array_equal(read_mask(tmp_path / path.name).ids, mask.ids)
