"""Masks in all forms that occur: every unambiguous form is accepted, with a note; others are refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from small_inputs import draw, given_masks, write_sequence
from stm_fast import listing
from stm_fast.data.images import image_source
from stm_fast.data.sequences import Objects, Sequence, annotated_sequences, folder
from stm_fast.errors import InputError
from stm_fast.evaluation.scoring import score_sequence, score_sequences
from stm_fast.runs.given import find_masks
from stm_fast.tasks.sets import open_results
from stm_fast.video import object_ids, open_frames, read_mask, write_mask
from stm_fast.video.antialiasing import find_shades

WIDTH, HEIGHT = 192, 128


def shapes(*values: int, scale: int = 1) -> Image.Image:
    """An ellipse of the first value and a triangle of the last one."""
    picture = Image.new("L", (WIDTH * scale, HEIGHT * scale))
    drawing = ImageDraw.Draw(picture)
    drawing.ellipse([scale * place for place in (20, 30, 90, 110)], fill=values[0])
    drawing.polygon([scale * place for place in (110, 20, 180, 45, 150, 100)], fill=values[-1])
    return picture


def smooth(*values: int) -> Image.Image:
    return shapes(*values, scale=4).resize((WIDTH, HEIGHT), Image.Resampling.BOX)


def on_transparent(color: int) -> Image.Image:
    alpha = shapes(255)
    return Image.merge("RGBA", [Image.new("L", alpha.size, color)] * 3 + [alpha])


def in_red(picture: Image.Image) -> Image.Image:
    return Image.merge("RGB", [picture.point(lambda value, full=full: value * full // 255) for full in (210, 40, 10)])


def agreement(ids: np.ndarray, truth: np.ndarray) -> float:
    return float((ids == truth).mean())


WHITE = np.array(shapes(255))
FORMS = {
    "RGB": (shapes(255).convert("RGB"), "m.png", {}),
    "RGBA": (shapes(255).convert("RGBA"), "m.png", {}),
    "LA": (shapes(255).convert("LA"), "m.png", {}),
    "white on transparent": (on_transparent(255), "m.png", {}),
    "black on transparent": (on_transparent(0), "m.png", {}),
    "another color": (in_red(shapes(255)), "m.png", {}),
    "soft": (smooth(255), "m.png", {}),
    "soft RGB": (smooth(255).convert("RGB"), "m.PNG", {}),
    "soft color": (in_red(smooth(255)), "m.png", {}),
    "brush": (shapes(255).filter(ImageFilter.GaussianBlur(2)), "m.png", {}),
    "feather": (shapes(255).filter(ImageFilter.GaussianBlur(6)), "m.png", {}),
    "JPEG": (shapes(255), "m.jpg", {"quality": 75}),
    "bad JPEG": (shapes(255), "m.jpeg", {"quality": 15}),
    "RGB JPEG": (shapes(255).convert("RGB"), "m.jpg", {"quality": 90}),
    "soft JPEG": (smooth(255), "m.jpg", {"quality": 85}),
    "WebP": (shapes(255).convert("RGB"), "m.webp", {"quality": 80}),
    "lossless WebP": (shapes(255).convert("RGB"), "m.webp", {"lossless": True}),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_object_is_read_however_it_was_saved(tmp_path: Path, form: str) -> None:
    picture, name, options = FORMS[form]
    picture.save(tmp_path / name, **options)
    mask = read_mask(tmp_path / name)
    assert object_ids(mask.ids) == [255]
    lossless = not options and "soft" not in form and form not in ("brush", "feather")
    assert agreement(mask.ids, WHITE) >= (1 if lossless else 0.98)
    assert mask.note is not None
    assert mask.note.startswith("found ")


@pytest.mark.parametrize("form", FORMS)
def test_one_object_is_object_1_of_a_run(tmp_path: Path, form: str) -> None:
    picture, name, options = FORMS[form]
    picture.save(tmp_path / name, **options)
    given = given_masks(tmp_path / name, open_frames(frames(tmp_path / "in")))
    assert given.ids == {0: [1]}
    np.testing.assert_array_equal(given.read(0) * np.uint8(255), read_mask(tmp_path / name).ids)
    (note,) = given.notes
    assert note.endswith("; it is object 1")


@pytest.mark.parametrize("scale", [2, 8])
def test_edges_of_an_upscaled_mask_are_not_objects(tmp_path: Path, scale: int) -> None:
    small = shapes(255).resize((WIDTH // scale, HEIGHT // scale), Image.Resampling.NEAREST)
    small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(tmp_path / "m.png")
    found = read_mask(tmp_path / "m.png").ids
    assert agreement(found, np.array(small.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST))) > 0.97


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("method", ["LANCZOS", "BICUBIC", "HAMMING", "BILINEAR"])
@pytest.mark.parametrize("scale", [0.4, 0.5, 2])
def test_thin_parts_of_a_resized_mask_are_not_objects(tmp_path: Path, scale: float, method: str, mode: str) -> None:
    large = shapes(255, scale=3)
    drawing = ImageDraw.Draw(large)
    for place in range(20, 500, 23):  # spokes, some of which fall between pixels
        drawing.line((place, 10, 560 - place, 380), fill=255, width=1 + place % 3)
    size = round(large.width * scale), round(large.height * scale)
    picture = large.resize(size, Image.Resampling[method]).convert(mode)
    picture.save(tmp_path / "m.png")
    found = read_mask(tmp_path / "m.png").ids
    assert object_ids(found) == [255]
    assert agreement(found > 0, np.array(picture.convert("L")) >= 128) > 0.999


def test_soft_edges_are_found_with_any_palette(tmp_path: Path) -> None:
    gray = smooth(255).convert("P")
    gray.putpalette([level for level in range(256) for _ in range(3)])
    gray.save(tmp_path / "m.png")
    assert object_ids(read_mask(tmp_path / "m.png").ids) == [255]


REFUSED = {
    "two colors": (Image.merge("RGB", [shapes(200, 0), shapes(0, 200), Image.new("L", (WIDTH, HEIGHT))]), "m.png"),
    "white and red": (Image.merge("RGB", [Image.new("L", (WIDTH, HEIGHT), 255), shapes(255), shapes(255)]), "m.png"),
    "gray levels in RGB": (shapes(100, 255).convert("RGB"), "m.png"),
    "gray levels in JPEG": (shapes(100, 255), "m.jpg"),
    "several soft objects": (smooth(60, 255), "m.png"),
    "soft ids": (smooth(3), "m.png"),
    "a gradient": (Image.linear_gradient("L"), "m.png"),
    "noise": (Image.effect_noise((WIDTH, HEIGHT), 80), "m.png"),
    "noise in JPEG": (Image.effect_noise((WIDTH, HEIGHT), 80), "m.jpg"),
    "a wide blur": (shapes(255).filter(ImageFilter.GaussianBlur(25)), "m.png"),
    "BMP": (shapes(255), "m.bmp"),
    "16 bits": (Image.fromarray(np.array(shapes(200, 3)).astype(np.uint16) * 2), "m.png"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_ambiguous_mask_is_refused(tmp_path: Path, kind: str) -> None:
    picture, name = REFUSED[kind]
    picture.save(tmp_path / name)
    with pytest.raises(InputError) as caught:
        read_mask(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: mask ")
    assert len(str(caught.value)) < len(str(tmp_path)) + 250


def blocks(values: np.ndarray, side: int) -> np.ndarray:
    return np.kron(values, np.ones((side, side), np.uint8)).astype(np.uint8)


def ring(inner: int, outer: int, width: int) -> np.ndarray:
    picture = Image.new("L", (200, 200))
    drawing = ImageDraw.Draw(picture)
    drawing.ellipse((40, 40, 160, 160), fill=outer)
    drawing.ellipse((40 + width, 40 + width, 160 - width, 160 - width), fill=inner)
    return np.array(picture)


def along(first: int, second: int) -> np.ndarray:
    """Two adjacent parallel stripes."""
    ids = np.zeros((60, 100), np.uint8)
    ids[20:22, 20:80], ids[22:30, 20:80] = first, second
    return ids


OBJECTS = {
    "255 in a grid": blocks(np.arange(256).reshape(16, 16), 5),
    "255 in any order": blocks(np.random.default_rng(0).permutation(256).reshape(16, 16), 4),
    "21 apart": np.pad(blocks(np.arange(1, 22).reshape(3, 7), 6), 9),
    "a tire": ring(3, 2, 4),
    "a border that is brighter": ring(5, 254, 2),
    "a thin one along another": along(1, 2),
    "a thin one beside a bright one": along(3, 200),
    "three stripes": np.pad(blocks(np.array([[1], [2], [3]]).repeat(30, 1), 2), 9),
    "one pixel each": np.array([[0, 1, 7], [254, 7, 0]], np.uint8),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_ids_of_any_number_and_shape_are_objects(tmp_path: Path, name: str) -> None:
    write_mask(tmp_path / "m.png", OBJECTS[name])
    found = read_mask(tmp_path / "m.png")
    np.testing.assert_array_equal(found.ids, OBJECTS[name])
    assert found.note is None


@pytest.mark.parametrize("side", [4, 6, 9, 40])
@pytest.mark.parametrize("shades", [(128,), (85, 170), (64, 192)])
def test_a_smoothed_edge_of_few_shades_is_not_an_object_however_small_the_mask(tmp_path, side, shades) -> None:
    mask = np.zeros((64, 96), np.uint8)
    for ring, shade in enumerate((*shades, 255)):
        mask[10 + ring : 10 + 2 * len(shades) + side - ring, 20 + ring : 20 + 2 * len(shades) + side - ring] = shade
    Image.fromarray(mask).save(tmp_path / "m.png")
    found = read_mask(tmp_path / "m.png")
    assert object_ids(found.ids) == [255]
    np.testing.assert_array_equal(found.ids > 0, mask >= 128)


def test_shades_are_recognized_by_their_position() -> None:
    shades = find_shades(np.array(smooth(255)))
    assert shades is not None
    assert shades.others == {255}
    assert 0 not in shades.edges
    moved = np.array(smooth(255))
    moved[5:15, 5:15] = 128  # the same value, away from any edge
    assert find_shades(moved) is None or not find_shades(moved).one_object


# palettes


@pytest.mark.parametrize("colors", [[128, 0, 0, 0, 0, 0], [255, 255, 255, 0, 0, 0], [90, 90, 90, 3, 1, 9]])
def test_a_background_that_is_not_index_0_is_reported(tmp_path: Path, colors: list[int]) -> None:
    picture = Image.fromarray((WHITE == 0).astype(np.uint8))
    picture.putpalette(colors)
    picture.save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"index 0, the background, has the color .* and black is index 1"):
        read_mask(tmp_path / "m.png")


def test_any_palette_with_black_at_0_or_without_black_is_fine(tmp_path: Path) -> None:
    for palette in (bytes(6), bytes([0, 0, 0, 9, 9, 9]), bytes([200, 0, 0, 0, 200, 0])):
        write_mask(tmp_path / "m.png", (WHITE > 0).astype(np.uint8), palette)
        assert object_ids(read_mask(tmp_path / "m.png").ids) == [1]


# size


def test_a_mask_with_the_aspect_ratio_of_the_frames_is_resized(tmp_path: Path) -> None:
    truth = np.array(shapes(1, 2))
    for name, scale in (("half.png", 0.5), ("double.png", 2)):
        size = round(WIDTH * scale), round(HEIGHT * scale)
        write_mask(tmp_path / name, np.array(Image.fromarray(truth).resize(size, Image.Resampling.NEAREST)))
        found = read_mask(tmp_path / name, (WIDTH, HEIGHT))
        assert found.note == f"found {size[0]}x{size[1]}, resized it to {WIDTH}x{HEIGHT} like the frames"
        assert found.ids.shape == (HEIGHT, WIDTH)
        assert object_ids(found.ids) == [1, 2]
        assert agreement(found.ids, truth) > 0.97


@pytest.mark.parametrize(
    ("found", "expected", "taken"),
    [
        ((427, 240), (854, 480), True),
        ((1920, 1080), (854, 480), True),
        ((854, 480), (1920, 1080), True),
        ((853, 480), (1280, 720), True),
        ((480, 854), (854, 480), False),
        ((640, 480), (854, 480), False),
        ((854, 400), (854, 480), False),
        ((1, 1), (64, 64), False),
        ((2, 2), (854, 480), False),
    ],
)
def test_aspect_ratios_are_compared_up_to_rounding(tmp_path, found, expected, taken) -> None:
    write_mask(tmp_path / "m.png", np.ones(found[::-1], np.uint8))
    if taken:
        assert read_mask(tmp_path / "m.png", expected).ids.shape == expected[::-1]
        return
    with pytest.raises(InputError, match=f"mask of {found[0]}x{found[1]}, expected {expected[0]}x{expected[1]}"):
        read_mask(tmp_path / "m.png", expected)


@pytest.mark.parametrize("size", [None, (64, 64), (96, 64)])
def test_a_huge_mask_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int] | None) -> None:
    header = struct.pack(">IIBBBBB", 13000, 13000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))  # without its pixels
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(InputError, match="mask of 13000x13000, expected"):
        read_mask(tmp_path / "m.png", size)


def test_a_mask_is_rotated_like_its_frames(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.array(shapes(1, 2)))
    for picture, name in ((turned, "m.png"), (shapes(255).convert("RGB"), "m.jpg")):
        picture.save(tmp_path / name, exif=exif, quality=95)
        found = read_mask(tmp_path / name, (HEIGHT, WIDTH))
        truth = np.array(picture.convert("L").transpose(Image.Transpose.ROTATE_270))
        assert agreement(found.ids, truth if name == "m.png" else (truth >= 128) * 255) > 0.999


# void


def voc(*ids: int) -> np.ndarray:
    """Objects with a border of 255 around each."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for place, object_id in enumerate(ids):
        mask[20:60, 10 + 60 * place : 50 + 60 * place] = 255
        mask[25:55, 15 + 60 * place : 45 + 60 * place] = object_id
    return mask


def frames(place: Path, count: int = 4) -> Path:
    place.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (WIDTH, HEIGHT), (index, 0, 0)).save(place / f"{index:05}.png")
    return place


def test_a_border_of_255_is_void_and_a_note_says_so(tmp_path: Path) -> None:
    reader = open_frames(frames(tmp_path / "in"))
    (tmp_path / "given").mkdir()
    write_mask(tmp_path / "given/00000.png", voc(1, 2))
    write_mask(tmp_path / "given/00002.png", np.where(voc(1, 2) == 2, 0, voc(1, 2)).astype(np.uint8))
    given = given_masks(tmp_path / "given", reader)
    assert given.ids == {0: [1, 2], 2: [1]}
    assert object_ids(given.read(0)) == [1, 2]
    assert given.read(1) is None
    note = "found 255 next to other ids, treated as void, which is background"
    assert given.notes == (f"{tmp_path / 'given/00000.png'} and 1 more: {note}",)
    alone = voc(1) * (voc(1) == 255)  # the object is gone, its border remains
    write_mask(tmp_path / "given/00002.png", alone)
    with pytest.raises(InputError, match=r"00002\.png: mask without objects: nothing but 255, which is void"):
        given_masks(tmp_path / "given", reader)
    write_mask(tmp_path / "00000.png", alone)
    lone = given_masks(tmp_path / "00000.png", reader)
    assert (lone.ids, lone.palette, object_ids(lone.read(0))) == ({0: [1]}, None, [1])
    assert lone.notes == (f"{tmp_path / '00000.png'}: found only 0 and 255, treated as object 1",)


def test_255_objects_are_objects(tmp_path: Path) -> None:
    write_mask(tmp_path / "00000.png", np.array(Image.fromarray(OBJECTS["255 in a grid"]).resize((WIDTH, HEIGHT), 0)))
    given = given_masks(tmp_path / "00000.png", open_frames(frames(tmp_path / "in")))
    assert (given.ids[0], given.white, given.notes) == (list(range(1, 256)), 255, ())


@pytest.mark.parametrize("objects", list(Objects))
def test_void_is_background_when_a_set_is_scored(tmp_path: Path, objects: Objects) -> None:
    truth, found = tmp_path / "truth/v", tmp_path / "found/v"
    truth.mkdir(parents=True)
    found.mkdir(parents=True)
    for index in range(4):
        mask = voc(1, 2) if index < 2 else np.where(np.isin(voc(1, 2), (0, 255)), voc(1, 2), 0).astype(np.uint8)
        write_mask(truth / f"{index:05}.png", mask)
        write_mask(found / f"{index:05}.png", np.where(mask == 255, 0, mask).astype(np.uint8))
    (sequence,) = annotated_sequences(tmp_path / "truth", objects)
    scores = score_sequence(sequence, found)
    assert [score.object_id for score in scores] == ([1] if objects is Objects.ONE else [1, 2])
    assert {score.J.mean for score in scores} == {1}
    assert {score.J.mean for score in score_sequence(sequence, truth)} == {1}
    assert sequence.note == "found 255 next to other ids, treated as void, which is background"
    assert sequence.given("00000", [])[1] == ([1] if objects is Objects.ONE else [1, 2])


# names


def test_suffixes_of_masks_and_frames_may_have_any_case(tmp_path: Path) -> None:
    source = frames(tmp_path / "in")
    (source / "00002.png").rename(source / "00002.PNG")
    (tmp_path / "given").mkdir()
    write_mask(tmp_path / "given/00000.png", np.array(shapes(1, 2)))
    write_mask(tmp_path / "given/00002.PNG", np.array(shapes(2, 1)))
    given = given_masks(tmp_path / "given", open_frames(source, find_masks(tmp_path / "given", source).files))
    assert given.ids.keys() == {0, 2}
    np.testing.assert_array_equal(given.read(2), np.array(shapes(2, 1)))
    write_mask(tmp_path / "given/00000.Png", np.array(shapes(2, 1)))
    with pytest.raises(InputError, match=r"00000\.\w+: same name as .*00000\.\w+, but for the suffix"):
        given_masks(tmp_path / "given", open_frames(source))


def test_other_pictures_are_left_out_beside_pngs_and_are_masks_without_them(tmp_path: Path) -> None:
    reader = open_frames(frames(tmp_path / "in"))
    (tmp_path / "given").mkdir()
    shapes(255).save(tmp_path / "given/00002.jpg")
    assert object_ids(given_masks(tmp_path / "given", reader).read(2)) == [1]
    write_mask(tmp_path / "given/00000.png", np.array(shapes(1, 2)))
    given = given_masks(tmp_path / "given", reader)
    assert given.ids.keys() == {0}
    assert given.notes == (f"{tmp_path / 'given/00002.jpg'}: ignored, because the masks next to it are PNGs",)


@pytest.mark.parametrize("kind", ["picture", "mask", "folder"])
def test_a_broken_link_is_named(tmp_path: Path, kind: str) -> None:
    pictures, masks = draw()
    for name in ("one", "two"):
        write_sequence(
            tmp_path / "JPEGImages" / name, tmp_path / "Annotations" / name, pictures, dict(enumerate(masks))
        )
    lost = {"picture": "JPEGImages/two/00003.jpg", "mask": "Annotations/two/00003.png", "folder": "Annotations/two"}
    (tmp_path / lost[kind]).rename(tmp_path / "moved")
    (tmp_path / lost[kind]).symlink_to("/nowhere")
    with pytest.raises(InputError, match=f"{lost[kind]}: found a broken link to /nowhere"):
        assert [sequence.fully_annotated for sequence in folder(tmp_path, "all")] == [True, True]


def test_hidden_files_and_folders_named_as_pictures_do_not_count(tmp_path: Path) -> None:
    source = frames(tmp_path / "in", 2)
    (source / "._00000.png").write_bytes(b"of a file system")
    (source / ".gone.png").symlink_to("/nowhere")
    (source / "folder.png").mkdir()
    assert [file.name for file in listing.list_images(source)] == ["00000.png", "00001.png"]


def test_stills_are_paired_with_suffixes_in_any_case(tmp_path: Path) -> None:
    for part in ("JPEGImages", "Annotations"):
        (tmp_path / part).mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "JPEGImages/a.JPG", format="JPEG")
    write_mask(tmp_path / "Annotations/a.PNG", voc(1, 2))
    assert object_ids(image_source(tmp_path).frame(0, 0).ids) == [1, 2]


def test_results_of_other_programs_are_found_by_name(tmp_path: Path) -> None:
    for part, suffix in (("truth", "png"), ("found", "PNG")):
        (tmp_path / part).mkdir()
        for index in range(3):
            write_mask(tmp_path / part / f"{index:05}.{suffix}", np.array(shapes(1, 2)))
    sequence = Sequence("v", None, tmp_path / "truth", Objects.ALL)
    assert [score.J.mean for score in score_sequence(sequence, tmp_path / "found")] == [1, 1]


def test_results_behind_a_broken_link_are_named(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "truth" / name).mkdir(parents=True)
        for index in range(3):
            write_mask(tmp_path / "truth" / name / f"{index:05}.png", np.array(shapes(1, 2)))
    (tmp_path / "found").mkdir()
    (tmp_path / "found/two").symlink_to("/nowhere")
    pairs = open_results(tmp_path / "found", tmp_path / "truth", "folder", None, "all")
    with pytest.raises(InputError, match=r"found/two/00001\.png: no such mask"):
        score_sequences(pairs, workers=1)
