"""coco.json and rle.json: what other programs read in them are the masks of the run."""

import csv
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from small_inputs import HEIGHT, WIDTH, given_masks, small_network, write_video
from stm_fast.runs import annotations
from stm_fast.runs.video import InterruptedRun, segment_video
from stm_fast.video import open_frames, read_written_mask, write_mask
from stm_fast.video.run_lengths import encode

pytest.importorskip("av")
coco_mask = pytest.importorskip("pycocotools.mask")

# pycocotools predates NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

FRAMES = 6
EVERYTHING = ("masks", "csv", "coco", "rle")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Object 4 is given in frame 1, object 200 in frame 3."""
    folder = tmp_path_factory.mktemp("clip")
    write_video(folder / "clip.mp4", FRAMES)
    for index, (number, left) in {1: (4, 2), 3: (200, 30)}.items():
        ids = np.zeros((HEIGHT, WIDTH), np.uint8)
        ids[4:20, left : left + 12] = number
        (folder / "given").mkdir(exist_ok=True)
        write_mask(folder / f"given/{index:05d}.png", ids)
    return folder


def segment(clip, output, *, source="clip.mp4", stop_at=None, write=EVERYTHING, **options):
    done = []
    return segment_video(
        clip / source,
        clip / "given",
        output,
        model=small_network(),
        write=write,
        should_stop=lambda: done[-1] == stop_at,
        progress=lambda frames, _: done.append(frames),
        **options,
    )


@pytest.fixture(scope="module")
def out(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    segment(clip, folder)
    return folder


def ids_of(folder, index):
    return read_written_mask(folder / f"masks/{index:05d}.png").ids


def box_of(own):
    y, x = np.nonzero(own)
    return [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]


def test_pycocotools_reads_the_masks_in_coco_json(out, capsys):
    from pycocotools.coco import COCO

    coco = COCO(str(out / "coco.json"))
    capsys.readouterr()
    names = [image["file_name"] for image in coco.loadImgs(coco.getImgIds())]
    assert names == [f"{index:05d}.jpg" for index in range(FRAMES)]
    categories = [(one["id"], one["name"]) for one in coco.loadCats(coco.getCatIds())]
    assert categories == [(4, "object 4"), (200, "object 200")]
    with (out / "objects.csv").open() as file:
        scores = {(int(row["index"]), int(row["object"])): float(row["score"]) for row in csv.DictReader(file)}
    for index in range(FRAMES):
        image = coco.imgs[index]
        assert (image["height"], image["width"]) == (HEIGHT, WIDTH)
        found = np.zeros((HEIGHT, WIDTH), np.uint8)
        for one in coco.loadAnns(coco.getAnnIds(imgIds=index, iscrowd=0)):
            own = coco.annToMask(one) == 1
            found[own] = one["object_id"]
            assert one["category_id"] == one["object_id"]
            assert (one["area"], one["bbox"]) == (own.sum(), box_of(own))
            assert one["score"] == scores[index, one["object_id"]]
        assert np.array_equal(found, ids_of(out, index))
    assert min(coco.anns) == 1


def test_rle_json_has_every_frame_of_every_object(out):
    content = json.loads((out / "rle.json").read_text())
    [video] = content["videos"]
    assert video.pop("file_names") == [f"{index:05d}.jpg" for index in range(FRAMES)]
    assert video == {"id": 1, "name": "clip", "height": HEIGHT, "width": WIDTH, "length": FRAMES}
    assert [one["id"] for one in content["annotations"]] == [4, 200]
    for one in content["annotations"]:
        assert (one["video_id"], one["category_id"], one["iscrowd"]) == (1, one["id"], 0)
        assert len(one["segmentations"]) == len(one["bboxes"]) == len(one["areas"]) == FRAMES
        for index, shape in enumerate(one["segmentations"]):
            own = ids_of(out, index) == one["object_id"]
            if not own.any():
                assert shape is one["bboxes"][index] is one["areas"][index] is None
                continue
            assert np.array_equal(coco_mask.decode(shape) == 1, own)
            assert (one["areas"][index], one["bboxes"][index]) == (own.sum(), box_of(own))
    assert [shape is None for shape in content["annotations"][1]["segmentations"][:4]] == [True] * 3 + [False]


def test_images_of_a_folder_keep_their_names(clip, tmp_path):
    names = ["1.png", "2.JPG", "10.webp"]
    (tmp_path / "in").mkdir()
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "in" / name)
    write_mask(tmp_path / "first.png", read_written_mask(clip / "given/00001.png").ids)
    first, out, write = tmp_path / "first.png", tmp_path / "out", ("coco", "rle")
    segment_video(tmp_path / "in", first, out, model=small_network(), write=write)
    coco, video = (json.loads((out / f"{name}.json").read_text()) for name in write)
    assert [image["file_name"] for image in coco["images"]] == names
    assert video["videos"][0]["file_names"] == names
    assert sorted(os.listdir(out)) == ["coco.json", "rle.json", "run.json"]


@pytest.mark.parametrize("name", ["coco.json", "rle.json"])
def test_they_can_be_given_as_masks(clip, out, tmp_path, name):
    reader = open_frames(clip / "clip.mp4")
    given = given_masks(out / name, reader)
    assert given.names == {4: "object 4", 200: "object 200"}
    masks = {index: ids_of(out, index) for index in range(FRAMES)}
    assert sorted(given.ids) == [index for index, ids in masks.items() if ids.any()]
    for index in given.ids:
        assert np.array_equal(given.read(index), masks[index])
    segment_video(clip / "clip.mp4", out / name, tmp_path, model=small_network(), write=("masks", "coco", "rle"))
    for index, ids in masks.items():
        assert np.array_equal(ids_of(tmp_path, index), ids)


@pytest.mark.parametrize("both", [False, True])
def test_a_resumed_run_writes_the_same_annotations(clip, tmp_path, both):
    segment(clip, tmp_path / "whole", both=both)
    for stop_at in (1, 4):
        output = tmp_path / str(stop_at)
        with pytest.raises(InterruptedRun):
            segment(clip, output, stop_at=stop_at, both=both)
        assert not {"coco.json", "rle.json"} & set(os.listdir(output))
        segment(clip, output, both=both, resume=True)
        for name in ("coco.json", "rle.json"):
            assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("name", ["coco", "rle"])
def test_a_run_that_dies_while_it_writes_them_can_be_resumed(clip, out, tmp_path, monkeypatch, name):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(annotations._WRITERS, name, die)
        with pytest.raises(KeyboardInterrupt):
            segment(clip, tmp_path, checkpoint_seconds=0)
    assert not (tmp_path / f"{name}.json").exists()
    assert (tmp_path / ".resume.json").exists()
    assert segment(clip, tmp_path, resume=True).frames == FRAMES
    for file in ("coco.json", "rle.json", "objects.csv"):
        assert (tmp_path / file).read_bytes() == (out / file).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["coco.json", "masks", "objects.csv", "rle.json", "run.json"]


def test_a_new_run_removes_those_of_an_earlier_one(clip, out, tmp_path):
    segment(clip, tmp_path)
    segment(clip, tmp_path, write=("masks",), overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["masks", "run.json"]


def test_pycocotools_is_not_needed(clip, out, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    segment(clip, tmp_path)
    assert (tmp_path / "coco.json").read_bytes() == (out / "coco.json").read_bytes()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (31, 17), (300, 400)])
@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 1])
def test_run_lengths_are_those_of_pycocotools(shape, share):
    for seed in range(4):
        own = np.random.default_rng(seed).random(shape) < share
        expected = coco_mask.encode(np.asfortranarray(own.astype(np.uint8)))
        assert encode(own) == {"size": list(shape), "counts": expected["counts"].decode()}


def test_long_and_short_runs_alternate():
    own = np.zeros((3000, 4000), bool)
    own[::7, ::1000] = True
    own[5, 3999] = True
    expected = coco_mask.encode(np.asfortranarray(own.astype(np.uint8)))
    assert encode(own)["counts"] == expected["counts"].decode()
