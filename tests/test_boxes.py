"""Boxes around objects: their forms, where they belong, and the masks that are made of them."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from small_inputs import HEIGHT, WIDTH, draw, small_network, write_sequence, write_weights
from stm_fast.__main__ import app
from stm_fast.boxes import NO_BOXES, Box, BoxPrompt, boxes_of, boxes_of_options, parse_box, read_boxes
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.errors import InputError
from stm_fast.runs.given import GivenMasks, find_masks, match_masks
from stm_fast.runs.video import InterruptedRun, segment_video
from stm_fast.video import object_ids, open_frames, read_mask, write_mask
from stm_fast.video.first_mask import mask_from_box

cv2 = pytest.importorskip("cv2")

FRAMES = 4
PICTURES, IDS = draw(5, frames=FRAMES)
(LARGE,) = SyntheticClip(seed=1, frames=1, height=160, width=240, objects=1)


def box_of(mask: np.ndarray, pad: int = 3) -> Box:
    rows, columns = np.nonzero(mask)
    left, top = int(columns.min()) - pad, int(rows.min()) - pad
    return Box(left, top, int(columns.max()) + pad + 1 - left, int(rows.max()) + pad + 1 - top)


FIRST = {one: box_of(IDS[0] == one) for one in (1, 2)}


@pytest.fixture
def clip(tmp_path):
    write_sequence(tmp_path / "clip", tmp_path / "truth", PICTURES, {})
    return tmp_path / "clip"


def given(boxes: object, clip: Path, masks: object = None, mask_frame: int | str | None = None) -> GivenMasks:
    return match_masks(find_masks(masks, clip), open_frames(clip), mask_frame, boxes_of(boxes))


def text(box: Box) -> str:
    return ",".join(map(str, box))


# forms


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("1,2,3,4", ((1, 2, 3, 4), None, None)),
        ("-1.5, +2. ,.5,4", ((-1.5, 2, 0.5, 4), None, None)),
        ("7:1,2,3,4", ((1, 2, 3, 4), 7, None)),
        ("1,2,3,4@00012", ((1, 2, 3, 4), None, "00012")),
        ("255:1,2,3,4@a frame@2", ((1, 2, 3, 4), 255, "a frame@2")),
    ],
)
def test_the_option(option, expected):
    assert parse_box(option)[:3] == expected


@pytest.mark.parametrize(
    "option", ["", "1,2,3", "1,2,3,4,5", "a,2,3,4", "nan,2,3,4", "1e3,2,3,4", "1,2,3,4@", "x:1,2,3,4"]
)
def test_another_option_is_refused(option):
    with pytest.raises(InputError, match=rf"box: found {re.escape(repr(option))}, expected x,y,width,height in pixels"):
        parse_box(option)


@pytest.mark.parametrize("number", [0, 256, 10**8])
def test_an_object_that_no_mask_can_hold_is_refused(number):
    with pytest.raises(InputError, match=f"box: found object '{number}', expected 1 to 255"):
        parse_box(f"{number}:1,2,3,4")


TABLES = {
    "ours": "frame,object,x,y,width,height\n0,1,1,2,3,4\n00002,7,5,6,7.5,8\n",
    "other names": "track_id,frame,w,h,x,y\r\n1,0,3,4,1,2\r\n7,00002,7.5,8,5,6\r\n",
    "more columns": "\ufeffframe,object,state,x,y,width,height\n0,1,found,1,2,3,4\n1,1,lost,,,,\n\n"
    "00002,7,found,5,6,7.5,8\n",
    "json": '{"0": {"1": [1, 2, 3, 4]}, "00002": {"7": [5, 6, 7.5, 8]}}',
}


@pytest.mark.parametrize("form", TABLES)
def test_files(tmp_path, form):
    file = tmp_path / "boxes.txt"
    file.write_text(TABLES[form])
    found = [prompt[:3] for prompt in read_boxes(file)]
    assert found == [((1, 2, 3, 4), 1, "0"), ((5, 6, 7.5, 8), 7, "00002")]
    assert boxes_of_options(["1,2,3,4"], file).files == (file,)
    assert len(boxes_of_options(["1,2,3,4"], file).prompts) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "line 1: found '', expected a header with frame: frame,object,x,y,width,height"),
        ("frame,object,x,y,width\n", "expected a header with height"),
        ("0,1,1,2,3,4\n", "line 1: found '0,1,1,2,3,4', expected a header with frame"),
        ("frame,object,x,y,width,height\n", "no box in this file, expected boxes as CSV"),
        ("frame,object,x,y,width,height\n0,1,2,3,4\n", "line 2: found 5 cells, expected 6 as in the header"),
        ("frame,object,x,y,width,height\n0,1,2,3,4,x\n", r"line 2: found \['2', '3', '4', 'x'\], expected a box"),
        ("frame,object,x,y,width,height\n0,0,2,3,4,5\n", "line 2: found object '0', expected 1 to 255"),
        ("frame,object,x,y,width,height\n0,a,2,3,4,5\n", "line 2: found 'a', expected a whole number"),
        ('frame,object,x,y,width,height\n0,"a"b,2,3,4,5\n', "line 2: not CSV"),
        ("{", "not JSON"),
        ("[]", r"found \[\], expected boxes as CSV"),
        ("{}", "no box in this file"),
        ('{"0": {"1": [1, 2, 3]}}', r"frame 0: object 1: found \[1, 2, 3\], expected a box"),
        ('{"0": {"1": {"x": 1}}}', "frame 0: object 1: found {'x': 1}, expected a box"),
        ('{"0": {"1": "1234"}}', "frame 0: object 1: found '1234', expected x, y, width, height"),
        ('{"0": 3}', "frame 0: found 3, expected boxes"),
        ('{"0": {"300": [1, 2, 3, 4]}}', "frame 0: found object '300', expected 1 to 255"),
    ],
)
def test_another_file_is_refused(tmp_path, content, words):
    (tmp_path / "boxes").write_text(content)
    with pytest.raises(InputError, match=f"boxes: .*{words}") as caught:
        read_boxes(tmp_path / "boxes")
    assert str(caught.value).startswith(str(tmp_path / "boxes"))


def test_boxes_from_python():
    one = BoxPrompt(Box(1, 2, 3, 4))
    assert boxes_of(None) == NO_BOXES
    for form in ((1, 2, 3, 4), Box(1, 2, 3, 4), [(1, 2, 3, 4)], np.array([[1, 2, 3, 4]]), np.arange(1, 5)):
        assert boxes_of(form).prompts == (one,)
    by_frame = boxes_of({3: {7: (1, 2, 3, 4)}, "a": [(1, 2, 3, 4)], np.int64(5): Box(1, 2, 3, 4)})
    assert [prompt[:3] for prompt in by_frame.prompts] == [(one.box, 7, 3), (one.box, None, "a"), (one.box, None, 5)]
    for wrong in (
        5,
        [(1, 2, 3)],
        (1, 2, 3),
        {0: {0: (1, 2, 3, 4)}},
        {1.5: (1, 2, 3, 4)},
        [[1, 2, 3, None]],
        {0: {True: 1}},
    ):
        with pytest.raises(InputError, match=r"^boxes: "):
            boxes_of(wrong)


# where they belong


def test_boxes_without_an_id_are_new_objects(clip):
    found = given({0: [FIRST[1]], 2: {1: box_of(IDS[2] == 2)}}, clip)
    assert found.ids == {0: [2], 2: [1]}
    assert given([FIRST[1], FIRST[2]], clip).ids == {0: [1, 2]}
    assert given([FIRST[1]], clip, mask_frame="00001").ids == {1: [1]}


def test_boxes_and_masks_complement_each_other(clip):
    masks = np.where(IDS[0] == 2, 2, 0).astype(np.uint8)
    found = given([FIRST[1]], clip, masks)
    assert found.ids == {0: [1, 2]}
    np.testing.assert_array_equal(found.read(0) == 2, masks == 2)
    assert given({2: {2: box_of(IDS[2] == 2)}}, clip, masks).ids == {0: [2], 2: [2]}
    # a mask in black and white is object 1
    assert given([FIRST[1]], clip, masks > 0).ids == {0: [1, 2]}
    with pytest.raises(InputError, match="boxes: frame 0: found a mask of object 2 in the same frame, expected one"):
        given({0: {2: FIRST[2]}}, clip, masks)


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ({9: (1, 2, 3, 4)}, "boxes: frame 9: found 9, expected the name of a frame of clip, or an index from 0 to 3"),
        ({"x": (1, 2, 3, 4)}, "boxes: frame x: found 'x', expected the name of a frame"),
        ((48, 2, 3, 4), r"boxes: found the box 48,2,3,4, expected one inside the frame of 48x32"),
        ((-5, 2, 5, 4), "boxes: found the box -5,2,5,4, expected one inside the frame"),
        ((5, 2, 0, 4), "boxes: found the box 5,2,0,4, expected finite numbers, and a width and height above 0"),
        ((5, 2, 4, -4), "expected finite numbers"),
        ((5, 2, 4, float("nan")), "boxes: found the box 5,2,4,nan, expected finite numbers"),
        ((5, 2, float("inf"), 2), "boxes: found the box 5,2,inf,2, expected finite numbers"),
        ({0: {1: FIRST[1]}, "00000": {1: FIRST[1]}}, "boxes: frame 00000: found a box of object 1 in the same frame"),
        ([FIRST[1], FIRST[1]], "boxes: object 1 is covered by those of other boxes"),
        ([(n % 40, 3, 4, 4) for n in range(256)], "boxes: found more than 255 objects, expected at most 255"),
    ],
)
def test_a_box_that_belongs_nowhere_is_refused(clip, boxes, words):
    with pytest.raises(InputError, match=words):
        given(boxes, clip)


# the masks


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """J."""
    return float(np.count_nonzero(one & other) / np.count_nonzero(one | other))


def test_grabcut_finds_the_object_in_a_box():
    truth = LARGE.ids == 1
    found = mask_from_box(LARGE.image, box_of(truth))
    assert found.found
    assert overlap(found.mask, truth) > 0.9
    ellipse = overlap(drawn_ellipse(box_of(truth), truth.shape), truth)
    assert overlap(found.mask, truth) > ellipse + 0.05


def drawn_ellipse(box: Box, shape: tuple[int, int]) -> np.ndarray:
    y, x = np.ogrid[: shape[0], : shape[1]]
    half_width, half_height = box.width / 2, box.height / 2
    return ((x + 0.5 - box.x - half_width) / half_width) ** 2 + (
        (y + 0.5 - box.y - half_height) / half_height
    ) ** 2 <= 1


def test_an_object_that_is_not_found_is_the_ellipse_in_its_box(clip, tmp_path, monkeypatch):
    flat = np.full((60, 80, 3), 90, np.uint8)
    mask, found = mask_from_box(flat, Box(10, 20, 30, 24))
    assert not found
    assert overlap(mask, drawn_ellipse(Box(10, 20, 30, 24), mask.shape)) > 0.95
    write_sequence(tmp_path / "flat", tmp_path / "none", flat[None], {})
    monkeypatch.setattr("stm_fast.clicks.prompter.mask_in", lambda network, image, inside: np.zeros_like(inside))
    assert given({0: (10, 20, 30, 24)}, tmp_path / "flat").notes == (
        "boxes: frame 0: found no object, took the ellipse in the box",
    )


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_mask_does_not_depend_on_the_number_of_threads_or_on_random_numbers(threads):
    box = box_of(LARGE.ids == 1, pad=9)
    expected, before = mask_from_box(LARGE.image, box).mask, cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        cv2.setRNGSeed(threads)
        np.testing.assert_array_equal(mask_from_box(LARGE.image, box).mask, expected)
        assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 240, 160),
        (-50, -50, 1000, 1000),
        (100, 80, 1, 1),
        (100.4, 80.4, 0.2, 0.2),
        (239, 159, 9, 9),
        (0, 80, 240, 1),
    ],
)
def test_any_box_in_the_frame_has_a_mask(box):
    mask = mask_from_box(LARGE.image, Box(*box)).mask
    assert mask.shape == (160, 240)
    assert mask.any()
    rows, columns = np.nonzero(mask)
    assert columns.min() >= int(max(box[0], 0))
    assert columns.max() <= box[0] + box[2]
    assert rows.max() <= box[1] + box[3]


def test_without_opencv_the_extra_is_named(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"need OpenCV, which cannot be .*: pip install opencv-python-headless$"):
        given([FIRST[1]], clip)


# runs


def test_the_masks_of_boxes_are_written_and_reproduce_the_run(tmp_path, clip):
    model, boxes = small_network(), {0: [FIRST[1]], 2: {2: box_of(IDS[2] == 2)}}
    segment_video(clip, None, tmp_path / "out", model=model, boxes=boxes, write=("masks",))
    assert sorted(file.name for file in (tmp_path / "out/given").iterdir()) == ["00000.png", "00002.png"]
    assert object_ids(read_mask(tmp_path / "out/given/00002.png").ids) == [2]
    segment_video(clip, tmp_path / "out/given", tmp_path / "again", model=model, write=("masks",))
    for frame in range(FRAMES):
        one, other = (tmp_path / f"{name}/masks/{frame:05}.png" for name in ("out", "again"))
        assert one.read_bytes() == other.read_bytes()
    # those of an earlier run are removed
    segment_video(clip, None, tmp_path / "out", model=model, boxes=FIRST[1], write=("masks",), overwrite=True)
    assert [file.name for file in (tmp_path / "out/given").iterdir()] == ["00000.png"]
    segment_video(clip, IDS[0], tmp_path / "out", model=model, write=("masks",), overwrite=True)
    assert not [*(tmp_path / "out/given").glob("*")]


def test_a_run_with_boxes_is_resumed_only_with_the_same_boxes(tmp_path, clip):
    options = {"model": small_network(), "write": ("masks",), "resume": True}
    boxes = {0: [FIRST[1]], 2: [box_of(IDS[2] == 2)]}
    segment_video(clip, None, tmp_path / "whole", boxes=boxes, **options)
    with pytest.raises(InterruptedRun):
        segment_video(clip, None, tmp_path / "out", boxes=boxes, should_stop=lambda: True, **options)
    with pytest.raises(InputError, match="holds results of another run; its masks"):
        segment_video(clip, None, tmp_path / "out", boxes=FIRST[1], **options)
    assert segment_video(clip, None, tmp_path / "out", boxes=boxes, **options).resumed_at == 1
    for file in (tmp_path / "whole").rglob("*.png"):
        assert file.read_bytes() == (tmp_path / "out" / file.relative_to(tmp_path / "whole")).read_bytes()


def test_the_command(tmp_path, clip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_weights(Path("w.safetensors"))
    Path("boxes.json").write_text(json.dumps({"00002": {"9": list(box_of(IDS[2] == 2))}}))
    write_mask("first.png", np.where(IDS[0] == 2, 2, 0).astype(np.uint8))
    options = ["segment", "clip", "--weights", "w.safetensors", "--write", "masks"]

    def run(*more: str) -> str:
        result = CliRunner().invoke(app, [*options, *more])
        return "" if result.exit_code == 0 else result.stderr

    assert run("-o", "a", "--box", text(FIRST[1]), "--box", f"5:{text(box_of(IDS[1] == 2))}@00001") == ""
    assert [object_ids(read_mask(f"a/given/0000{frame}.png").ids) for frame in (0, 1)] == [[1], [5]]
    assert run("-o", "b", "--boxes", "boxes.json", "--box", text(FIRST[1]), "-m", "first.png") == ""
    assert [object_ids(read_mask(f"b/given/0000{frame}.png").ids) for frame in (0, 2)] == [[1, 2], [9]]
    assert "--masks: missing, expected masks, or --box or --boxes" in run("-o", "c")
    assert "--box '90,2,3,4': found the box 90,2,3,4, expected one inside" in run("-o", "c", "--box", "90,2,3,4")
    assert "--box: found '1,2', expected x,y" in run("-o", "c", "--box", "1,2")
    assert "--box: found with 2 videos, expected one" in run("truth", "-o", "c", "--box", "1,2,3,4")
    assert "b: the output folder is not empty" in run("-o", "b", "--boxes", "boxes.json")
    assert not Path("c").exists()
    assert read_mask("a/given/00000.png").ids.shape == (HEIGHT, WIDTH)
