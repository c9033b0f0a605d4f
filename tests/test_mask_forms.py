"""Masks given as annotations of COCO, YouTube-VIS and LabelMe, as pages of a TIFF, and as arrays."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from small_inputs import HEIGHT, WIDTH, draw, given_masks, small_network, write_sequence, write_video
from stm_fast.errors import InputError
from stm_fast.frame_source import frame_source
from stm_fast.runs.given import GivenMasks, find_masks, match_masks
from stm_fast.runs.mask_sources import Masks
from stm_fast.runs.output_folder import Job
from stm_fast.runs.video import segment_video
from stm_fast.video import open_frames, read_mask, write_mask

FRAMES = 4
PICTURES, IDS = draw(5, frames=FRAMES)  # objects 1 and 2
SIZE = {"height": HEIGHT, "width": WIDTH}


@pytest.fixture
def clip(tmp_path):
    """A folder of frames 00000.jpg to 00003.jpg."""
    write_sequence(tmp_path / "clip", tmp_path / "truth", PICTURES, {})
    return tmp_path / "clip"


def given(masks: Masks, clip: Path, mask_frame: int | str | None = None) -> GivenMasks:
    return match_masks(find_masks(masks, clip), open_frames(clip), mask_frame)


def saved(path: Path, content: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def packed(mask: np.ndarray) -> dict[str, object]:
    """Run lengths as text, written by pycocotools."""
    encoded = pytest.importorskip("pycocotools.mask").encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}


def counted(mask: np.ndarray) -> dict[str, object]:
    """Run lengths as numbers."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(int), [-1]])
    starts = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], starts]))
    assert counts.sum() == mask.size
    return {"size": [HEIGHT, WIDTH], "counts": counts.tolist()}


def outlined(mask: np.ndarray) -> list[list[float]]:
    """Polygons around the pixels, as in COCO."""
    cv2 = pytest.importorskip("cv2")
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [(contour + 0.5).ravel().tolist() for contour in contours if len(contour) > 2]


def image(number: int, name: str | None = None) -> dict[str, object]:
    return {"id": number, "file_name": name or f"{number:05}.jpg", **SIZE}


def annotation(number: int, frame: int, segmentation: object, category: int = 7, **more: object) -> dict[str, object]:
    return {"id": number, "image_id": frame, "category_id": category, "segmentation": segmentation, **more}


def coco(images: list[object], annotations: list[object]) -> dict[str, object]:
    names = [{"id": 7, "name": "blob"}, {"id": 9, "name": "star"}]
    return {"images": images, "annotations": annotations, "categories": names}


def all_frames(keys: tuple[object, object], **shape: object) -> dict[str, object]:
    """A COCO file with the objects of every frame, told apart by a key."""
    (name,) = shape
    annotations = [
        annotation(10 * frame + one, frame, packed(IDS[frame] == one), **{name: shape[name](keys[one - 1])})
        for frame in range(FRAMES)
        for one in (1, 2)
    ]
    return coco([image(frame) for frame in range(FRAMES)], annotations)


# COCO


@pytest.mark.parametrize("form", [packed, counted, outlined])
def test_shapes_of_coco(tmp_path, clip, form):
    shapes = [annotation(one, 0, form(IDS[0] == one), 5 + 2 * one) for one in (1, 2)]
    found = given(saved(tmp_path / "a.json", coco([image(0)], shapes)), clip)
    assert found.ids == {0: [1, 2]}
    assert found.names == {1: "blob", 2: "star"}
    agreement = (found.read(0) == IDS[0]).mean()
    assert agreement == 1 if form is not outlined else agreement > 0.97


@pytest.mark.parametrize("key", ["track_id", "instance_id", "object_id", "attributes"])
def test_a_key_says_which_annotations_are_one_object(tmp_path, clip, key):
    content = all_frames((40, 5), **{key: lambda one: {"track_id": one} if key == "attributes" else one})
    found = given(saved(tmp_path / "a.json", content), clip)
    assert found.ids == {frame: [5, 40] for frame in range(FRAMES)}
    for frame in range(FRAMES):
        np.testing.assert_array_equal(found.read(frame), np.choose(IDS[frame], (0, 40, 5)))


@pytest.mark.parametrize("keys", [("b", "a"), (1, 0), (300, 17), ("x10", "x9")])
def test_keys_that_are_no_ids_are_numbered_in_order(tmp_path, clip, keys):
    found = given(saved(tmp_path / "a.json", all_frames(keys, track_id=lambda one: one)), clip)
    np.testing.assert_array_equal(found.read(2), np.choose(IDS[2], (0, 2, 1)))


def test_categories_tell_objects_of_several_images_apart(tmp_path, clip):
    shapes = [
        annotation(10 * frame + one, frame, packed(IDS[frame] == one), 11 - 2 * one)
        for frame in (0, 2)
        for one in (1, 2)
    ]
    images = [image(frame) for frame in range(FRAMES)]
    found = given(saved(tmp_path / "a.json", coco(images, shapes)), clip)
    assert (found.ids, found.names) == ({0: [7, 9], 2: [7, 9]}, {7: "blob", 9: "star"})
    np.testing.assert_array_equal(found.read(2), np.choose(IDS[2], (0, 9, 7)))
    shapes.append(annotation(99, 2, packed(IDS[2] == 1), 9))
    with pytest.raises(InputError, match=r"a\.json: found 2 annotations of category 9 in one image, and no track_id"):
        given(saved(tmp_path / "a.json", coco(images, shapes)), clip)


def test_an_annotation_without_the_key_of_the_others_is_refused(tmp_path, clip):
    content = all_frames((1, 2), track_id=lambda one: one)
    del content["annotations"][3]["track_id"]
    with pytest.raises(InputError, match=r"a\.json: annotation 12 has no track_id, expected one as in the others"):
        given(saved(tmp_path / "a.json", content), clip)


def test_id_255_of_annotations_is_an_object_and_not_void(tmp_path, clip):
    found = given(saved(tmp_path / "a.json", all_frames((255, 3), track_id=lambda one: one)), clip)
    assert (found.ids[0], found.notes) == ([3, 255], ())
    np.testing.assert_array_equal(found.read(0), np.choose(IDS[0], (0, 255, 3)))


def test_the_smaller_of_two_objects_is_in_front(tmp_path, clip):
    inner, outer = np.zeros((2, HEIGHT, WIDTH), bool)
    inner[10:14, 10:14] = outer[5:25, 5:30] = True
    for order in ((inner, outer), (outer, inner)):
        shapes = [annotation(number, 0, packed(mask)) for number, mask in enumerate(order)]
        found = given(saved(tmp_path / "a.json", coco([image(0)], shapes)), clip).read(0)
        assert (np.unique(found[inner]).size, len(np.unique(found))) == (1, 3)


def test_images_in_the_folder_of_the_video_count(tmp_path, clip):
    images = [image(1, "other/00000.jpg"), image(2, "train/clip/00001.jpg"), image(3, "00000.jpg")]
    shapes = [annotation(number, number, packed(IDS[1] == 1)) for number in (1, 2, 3)]
    assert given(saved(tmp_path / "a.json", coco(images, shapes)), clip).ids == {1: [1]}


def test_one_image_with_another_name_is_the_first_frame_or_that_of_mask_frame(tmp_path, clip):
    file = saved(tmp_path / "a.json", coco([image(0, "photo.png")], [annotation(1, 0, packed(IDS[0] == 1))]))
    assert given(file, clip).ids == {0: [1]}
    assert given(file, clip, "00002").ids == {2: [1]}
    several = saved(tmp_path / "b.json", all_frames((1, 2), track_id=lambda one: one))
    with pytest.raises(InputError, match=r"mask_frame: found 2 with the masks of .*b\.json, expected a single mask"):
        given(several, clip, 2)
    with pytest.raises(InputError, match="mask_frame: found 2 with masks by frame, expected a single mask"):
        given({0: IDS[0]}, clip, 2)


def test_annotations_of_another_size_are_resized(tmp_path, clip):
    mask = np.kron(IDS[0] == 1, np.ones((2, 2), bool))
    shape = {"size": [2 * HEIGHT, 2 * WIDTH], "counts": pytest.importorskip("pycocotools.mask").encode(
        np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()}  # fmt: skip
    large = {"id": 0, "file_name": "00000.jpg", "height": 2 * HEIGHT, "width": 2 * WIDTH}
    found = given(saved(tmp_path / "a.json", coco([large], [annotation(1, 0, shape)])), clip)
    np.testing.assert_array_equal(found.read(0), IDS[0] == 1)
    assert found.notes == (
        f"{tmp_path / 'a.json'}: image '00000.jpg': found 96x64, resized it to 48x32 like the frames",
    )


MISTAKES = {
    "no frame": (coco([image(0), image(9)], [annotation(1, 0, [[0, 0, 9, 0, 9, 9]], track_id=1),
                                             annotation(2, 9, [[0, 0, 9, 0, 9, 9]], track_id=1)]),
                 "image '00009.jpg': no frame of clip has this name"),
    "no shape": (coco([image(0)], []), "no shape in this file, expected a file of COCO"),
    "other runs": (coco([image(0)], [annotation(1, 0, {"size": [32, 48], "counts": [5, 6]})]),
                   "image '00000.jpg': found runs of .* pixels, expected 1536 in all"),
    "huge": (coco([{**image(0), "height": 10**9}], [annotation(1, 0, [[0, 0, 9, 0, 9, 9]])]),
             "image '00000.jpg': found height 1000000000, expected 1 to"),
    "another shape": (coco([{**image(0), "height": 500}], [annotation(1, 0, [[0, 0, 9, 0, 9, 9]])]),
                      "image '00000.jpg': mask of 48x500, expected 48x32 like the frames"),
    "no name": (coco([{"id": 0}], []), "found the image {'id': 0}, expected an id and a file_name"),
    "two names": (coco([image(0), {**image(1), "file_name": "x/00000.png"}],
                       [annotation(n, n, [[0, 0, 9, 0, 9, 9]]) for n in (0, 1)]), "found two images of this name"),
    "too many": (coco([image(0)], [annotation(n, 0, [[0, 0, 9, 0, 9, 9]]) for n in range(256)]), "found 256 objects"),
    "a list": ([1, 2], r"found JSON with \[1, 2\], expected a file of COCO, YouTube-VIS or LabelMe"),
    "other keys": ({"a": 1}, r"found JSON with the keys \['a'\], expected a file of COCO"),
    "images": ({"images": 3, "annotations": []}, "found images 3, expected a list of entries"),
    "entries": ({"images": [], "annotations": [3]}, r"found annotations \[3\], expected a list of entries"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, clip, kind):
    content, words = MISTAKES[kind]
    with pytest.raises(InputError, match=words) as caught:
        given(saved(tmp_path / "a.json", content), clip)
    assert str(caught.value).startswith(f"{tmp_path / 'a.json'}: ")
    assert len(str(caught.value)) < len(str(tmp_path)) + 250


def test_polygons_without_pycocotools_name_the_extra(tmp_path, clip, monkeypatch):
    shapes = [annotation(1, 0, [[0, 0, 9, 0, 9, 9]])]
    file = saved(tmp_path / "a.json", coco([image(0)], shapes))
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setattr("stm_fast.video.coco_shapes.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"drawing polygons needs pycocotools: pip install pycocotools$"):
        given(file, clip)
    shapes[0]["segmentation"] = counted(IDS[0] == 1)
    assert given(saved(file, coco([image(0)], shapes)), clip).ids == {0: [1]}


# YouTube-VIS


def youtube_vis(*videos: dict[str, object], ids: tuple[int, int] = (1, 2)) -> dict[str, object]:
    """Object 2 is not in frame 1, and nothing is in frame 3."""
    annotations = [
        {
            "id": ids[one - 1],
            "video_id": 1,
            "category_id": 5 + 2 * one,
            "segmentations": [
                None if frame == 3 or (frame, one) == (1, 2) else packed(IDS[frame] == one) for frame in range(FRAMES)
            ],
        }
        for one in (1, 2)
    ]
    return {"videos": list(videos), "annotations": annotations, "categories": coco([], [])["categories"]}


@pytest.mark.parametrize("names", [[f"clip/{frame:05}.jpg" for frame in range(FRAMES)], None])
def test_youtube_vis(tmp_path, clip, names):
    video = {"id": 1, **SIZE} | ({"file_names": names} if names else {})
    found = given(saved(tmp_path / "a.json", youtube_vis(video)), clip)
    assert found.ids == {0: [1, 2], 1: [1], 2: [1, 2]}
    assert found.names == {1: "blob", 2: "star"}
    for frame in (0, 2):
        np.testing.assert_array_equal(found.read(frame), IDS[frame])
    np.testing.assert_array_equal(found.read(1), IDS[1] == 1)
    assert found.read(3) is None


def test_a_video_of_youtube_vis_is_found_by_its_name(tmp_path, clip):
    names = [f"clip/{frame:05}.jpg" for frame in range(FRAMES)]
    videos = ({"id": 3, "file_names": ["a/00000.jpg"], **SIZE}, {"id": 1, "file_names": names, **SIZE})
    found = given(saved(tmp_path / "a.json", youtube_vis(*videos, ids=(900, 800))), clip)
    np.testing.assert_array_equal(found.read(0), np.choose(IDS[0], (0, 2, 1)))
    named = given(saved(tmp_path / "a.json", youtube_vis(videos[0], {"id": 1, "name": "clip", **SIZE})), clip)
    assert named.ids.keys() == {0, 1, 2}
    with pytest.raises(InputError, match=r"a\.json: found 0 videos named clip among 2, expected one"):
        given(saved(tmp_path / "a.json", youtube_vis(videos[0], {**videos[0], "id": 1})), clip)


# LabelMe


def labelme(*shapes: dict[str, object]) -> dict[str, object]:
    sizes = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    return {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": "x.jpg", "imageData": None, **sizes}


def shape(label: str, kind: str, *points: tuple[float, float], group: int | None = None) -> dict[str, object]:
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}}


TRIANGLE = ((5, 5), (20, 5), (5, 20))
BOX = shape("a", "rectangle", (30, 8), (40, 4))
DISC = shape("b", "circle", (24, 24), (24, 29))


def test_shapes_of_labelme(tmp_path, clip):
    file = saved(tmp_path / "first.json", labelme(shape("c", "polygon", *TRIANGLE), DISC, BOX))
    found = given(file, clip)
    assert (found.ids, found.names) == ({0: [1, 2, 3]}, {1: "a", 2: "b", 3: "c"})
    ids = found.read(0)
    expected = np.zeros_like(ids)
    expected[4:9, 30:41] = 1
    np.testing.assert_array_equal(ids == 1, expected)
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    assert ((ids == 2) == ((x - 24) ** 2 + (y - 24) ** 2 <= 5.5**2)).mean() > 0.99
    assert ((ids == 3) == ((x >= 5) & (y >= 5) & (x + y <= 25))).mean() > 0.99


def test_a_folder_of_labelme_files_next_to_the_frames(tmp_path, clip):
    saved(clip / "00000.json", labelme(BOX))
    saved(clip / "00002.json", labelme(DISC, shape("a", "polygon", *TRIANGLE)))
    saved(clip / "00003.json", labelme())
    saved(clip / "other.json", {"a": 1})
    found = given(clip, clip)
    assert (found.ids, found.names, found.notes) == ({0: [1], 2: [1, 2]}, {1: "a", 2: "b"}, ())
    assert open_frames(clip, find_masks(clip, clip).files).frame_count == FRAMES
    saved(clip / "nowhere.json", labelme(BOX))
    with pytest.raises(InputError, match=r"nowhere\.json: no frame of clip has this name"):
        given(clip, clip)
    (clip / "nowhere.json").write_text("{")
    with pytest.raises(InputError, match=r"nowhere\.json: not JSON"):
        given(clip, clip)


def test_groups_and_labels_of_labelme_become_ids(tmp_path, clip):
    grouped = labelme(shape("a", "polygon", *TRIANGLE, group=2), {**BOX, "group_id": 1}, DISC)
    assert given(saved(tmp_path / "m.json", grouped), clip).names == {1: "a 1", 2: "a 2", 3: "b"}
    numbered = labelme({**BOX, "label": "7"}, {**DISC, "label": "3"})
    assert given(saved(tmp_path / "m.json", numbered), clip).ids == {0: [3, 7]}
    united = given(saved(tmp_path / "m.json", labelme(BOX, shape("a", "polygon", *TRIANGLE), DISC)), clip)
    assert united.ids == {0: [1, 2]}
    assert united.notes == (
        f"{tmp_path / 'm.json'}: found 2 shapes labeled 'a', treated as one object; a group_id separates them",
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"shape_type": "line"}, "found a shape of type 'line', expected one of type polygon, rectangle, circle"),
        ({"points": [[1, 2]]}, r"found a rectangle with the points \[\[1, 2\]\], expected 2 of them"),
        ({"points": [[1, 2], [float("nan"), 3]]}, "expected x and y near the image"),
        ({"points": [[1, 2], [1e9, 3]]}, "expected x and y near the image"),
        ({"label": None}, "found label None and group_id None"),
    ],
)
def test_a_wrong_shape_of_labelme_is_refused(tmp_path, clip, changed, words):
    with pytest.raises(InputError, match=rf"m\.json: .*{words}"):
        given(saved(tmp_path / "m.json", labelme({**BOX, **changed})), clip)
    with pytest.raises(InputError, match=r"m\.json: imageHeight, imageWidth: found height None"):
        given(saved(tmp_path / "m.json", {"shapes": [BOX]}), clip)


# TIFF


def test_pages_of_a_tiff_are_the_masks_of_frames(tmp_path, clip):
    pages = [Image.fromarray(ids) for ids in (IDS[0], np.zeros_like(IDS[0]), IDS[2])]
    pages[0].save(tmp_path / "m.tif", save_all=True, append_images=pages[1:], compression="tiff_deflate")
    found = given(tmp_path / "m.tif", clip)
    assert (found.ids, found.notes) == ({0: [1, 2], 2: [1, 2]}, ())
    for frame in (2, 0, 2):
        np.testing.assert_array_equal(found.read(frame), IDS[frame])
    assert found.read(1) is None


@pytest.mark.parametrize(
    ("dtype", "imagej"), [("uint16", True), ("uint16", False), ("uint8", True), ("float32", False)]
)
def test_label_stacks_of_other_programs(tmp_path, clip, dtype, imagej):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "m.tif", IDS.astype(dtype), imagej=imagej, photometric="minisblack")
    found = given(tmp_path / "m.tif", clip)
    for frame in range(FRAMES):
        np.testing.assert_array_equal(found.read(frame), IDS[frame])


def test_single_tiffs_are_masks_like_pngs(tmp_path, clip):
    Image.fromarray(IDS[2]).save(tmp_path / "00002.tif")
    assert given(tmp_path / "00002.tif", clip).ids == {2: [1, 2]}
    (tmp_path / "given").mkdir()
    for frame in (0, 2):
        Image.fromarray(IDS[frame]).save(tmp_path / f"given/{frame:05}.tiff")
        Image.fromarray(PICTURES[frame]).save(tmp_path / f"given/x{frame:05}.jpg")
    found = given(tmp_path / "given", clip)
    assert found.ids.keys() == {0, 2}
    assert found.notes == (
        f"{tmp_path / 'given/x00000.jpg'} and 1 more: ignored, because the masks next to it are TIFFs",
    )


def test_pages_that_cannot_be_masks_are_named(tmp_path, clip):
    pages = [Image.fromarray(ids) for ids in (*IDS, IDS[0])]
    pages[0].save(tmp_path / "m.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=r"m\.tif: page 4: no frame for this mask, the video ended after 4 frames"):
        given(tmp_path / "m.tif", clip)
    pages[0].save(tmp_path / "m.tif", save_all=True, append_images=[pages[1].resize((9, 90))])
    with pytest.raises(InputError, match=r"m\.tif: page 1: mask of 9x90, expected 48x32"):
        given(tmp_path / "m.tif", clip)
    empty = Image.new("L", (WIDTH, HEIGHT))
    empty.save(tmp_path / "m.tif", save_all=True, append_images=[empty])
    with pytest.raises(InputError, match=r"m\.tif: found no mask, expected one at least"):
        given(tmp_path / "m.tif", clip)


# arrays


@pytest.mark.parametrize(
    "form",
    [
        np.asarray,
        torch.from_numpy,
        lambda ids: ids.astype(np.int64),
        lambda ids: torch.from_numpy(ids).int(),
        lambda ids: np.asfortranarray(ids.astype(np.uint16)),
        Image.fromarray,
        lambda ids: np.kron(ids, np.ones((2, 2), np.uint8)),
    ],
)
def test_arrays_of_ids(clip, form):
    np.testing.assert_array_equal(given(form(IDS[0]), clip).read(0), IDS[0])
    assert given(form(IDS[0]), clip, 2).ids == {2: [1, 2]}


def test_a_boolean_array_is_object_1_and_so_is_a_white_one(clip):
    for values in (IDS[0] > 0, torch.from_numpy(IDS[0] > 0), (IDS[0] > 0) * np.uint8(255)):
        np.testing.assert_array_equal(given(values, clip).read(0), IDS[0] > 0)
    assert given((IDS[0] > 0) * 255, clip).notes == ("masks: found only 0 and 255, treated as object 1",)


def test_an_array_is_copied(clip):
    values = IDS[0].copy()
    found = given(values, clip)
    values[:] = 9
    np.testing.assert_array_equal(found.read(0), IDS[0])


def test_masks_by_frame(tmp_path, clip):
    write_mask(tmp_path / "m.png", IDS[3])
    found = given({0: IDS[0], "00002": torch.from_numpy(IDS[2]), np.int64(3): tmp_path / "m.png", "1": IDS[1]}, clip)
    for frame in range(FRAMES):
        np.testing.assert_array_equal(found.read(frame), IDS[frame])


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (
            np.ones((3, HEIGHT, WIDTH), np.uint8),
            r"masks: found uint8 of shape \(3, 32, 48\), expected a file, or object",
        ),
        (np.ones((HEIGHT, WIDTH)), "masks: found float64 of shape"),
        (np.full((HEIGHT, WIDTH), 256), "masks: found values from 256 to 256, expected object ids from 0 to 255"),
        (np.full((HEIGHT, WIDTH), -1), "masks: found values from -1 to -1"),
        (np.zeros((HEIGHT, WIDTH), bool), "masks: mask without objects"),
        (np.ones((HEIGHT, HEIGHT), bool), "masks: mask of 32x32, expected 48x32 like the frames"),
        (None, "masks: missing, expected masks, or boxes"),
        ({}, "masks: found no mask, expected one at least"),
        ({7: IDS[0]}, "masks: frame 7: no frame for this mask, the video ended after 4 frames"),
        ({-1: IDS[0]}, "masks: frame -1: found a negative index"),
        ({"a": IDS[0]}, "masks: frame 'a': found 'a', expected the name of a frame of clip, or an index from 0 to 3"),
        ({0: IDS[0], "00000": IDS[0]}, "masks: frame '00000': a mask of the same frame as masks: frame 0"),
        ({1.5: IDS[0]}, "masks: frame 1.5: expected the index or the name of a frame"),
        ({0: IDS[0], 1: "nowhere.png"}, "nowhere.png: no such mask file"),
        (3, r"masks: found int64 of shape \(\), expected a file, or object ids"),
    ],
)
def test_other_masks_from_python_are_refused(clip, masks, words):
    with pytest.raises(InputError, match=words):
        given(masks, clip)


# runs


def test_files_are_read_again_when_their_frame_comes(tmp_path, clip):
    for frame in range(2):
        (tmp_path / "given").mkdir(exist_ok=True)
        write_mask(tmp_path / f"given/{frame:05}.png", IDS[frame])
    found = given_masks(tmp_path / "given", open_frames(clip))
    (tmp_path / "given/00001.png").unlink()
    np.testing.assert_array_equal(found.read(0), IDS[0])
    with pytest.raises(InputError, match=r"00001\.png: no such mask"):
        found.read(1)


def test_every_form_of_the_same_mask_gives_the_same_results(tmp_path, clip):
    write_mask(tmp_path / "m.png", IDS[0])
    Image.fromarray(IDS[0]).save(tmp_path / "m.tif")
    shapes = [annotation(one, 0, packed(IDS[0] == one)) for one in (1, 2)]
    forms: dict[str, Masks] = {
        "png": tmp_path / "m.png",
        "text": str(tmp_path / "m.png"),
        "tif": tmp_path / "m.tif",
        "coco": saved(tmp_path / "m.json", coco([image(0)], shapes)),
        "array": IDS[0],
        "mapping": {0: torch.from_numpy(IDS[0])},
    }
    model = small_network()
    for name, masks in forms.items():
        summary = segment_video(clip, masks, tmp_path / name, model=model, write=("masks",))
        assert summary.object_ids == [1, 2]
        for frame in range(FRAMES):
            expected = read_mask(tmp_path / f"png/masks/{frame:05}.png").ids
            np.testing.assert_array_equal(read_mask(tmp_path / f"{name}/masks/{frame:05}.png").ids, expected)


@pytest.mark.parametrize("result", ["coco", "rle"])
def test_annotations_that_a_run_writes_are_masks_of_all_its_frames(tmp_path, clip, result):
    for source in (clip, write_video(tmp_path / "clip.mp4", FRAMES)):
        out = tmp_path / f"out of {source.name}"
        segment_video(source, IDS[0], out, model=small_network(), write=("masks", result))
        found = given(out / f"{result}.json", source)
        for frame in range(FRAMES):
            ids = read_mask(out / f"masks/{frame:05}.png").ids
            np.testing.assert_array_equal(found.read(frame) if ids.any() else 0, ids)
        assert found.names[1] == "object 1"


@pytest.mark.parametrize("name", ["clip.json", "clip.tif", "clip.png", "clip"])
def test_the_masks_of_one_of_several_videos_may_have_any_form(tmp_path, clip, name):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / name).touch()
    job = Job(frame_source(clip), tmp_path / "masks", tmp_path / "out").with_own_masks()
    assert job.masks == tmp_path / "masks" / name
    assert job.inputs == [clip, tmp_path / "masks" / name]
