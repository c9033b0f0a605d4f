"""The export of a project: each result is read back and compared with the masks that the project shows."""

import csv
import itertools
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from small_inputs import HEIGHT, WIDTH, contents, write_video
from stm_fast.choices import RESULTS
from stm_fast.errors import InputError
from stm_fast.frame_source import frame_source
from stm_fast.inference.objects import label
from stm_fast.inference.sightings import Watch
from stm_fast.page.export import export
from stm_fast.page.project import Project
from stm_fast.runs.output_folder import ANNOTATIONS, VIDEOS
from stm_fast.video import VIDEO_WRITERS, open_frames
from video_files import damage_frame, decoded, hear, needs_av, rgba, write_sound_video

# pycocotools predates NumPy 2
pytestmark = [needs_av, pytest.mark.filterwarnings("ignore:__array__ implementation")]

COUNT = 8
MARKS = range(1, 7)
EDITED = 5  # given after it was tracked
NAMES = {1: "cat, the gray one", 2: "cap"}
COLORS = {1: "#10c0e0", 2: "#f08020"}
FILES = {
    "masks": "masks",
    "overlay": "overlay.mp4",
    "pictures": "overlay",
    "matte": "matte.mp4",
    "alpha": "alpha.mov",
    "webm": "alpha.webm",
    "cutout": "cutout",
    "soft": "soft",
    "csv": "objects.csv",
    "coco": "coco.json",
    "rle": "rle.json",
}


def disk(x, y, radius):
    """A soft one, in [0, 1]."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.clip((radius - np.hypot(rows - y, columns - x)) / 5, 0, 1).astype(np.float32)


def tracked(index):
    """The probabilities [1 + 3, H, W] of a frame, as a network gives them; object 2 is gone from frame 4 on."""
    planes = np.stack([disk(10 + index, 14, 12), disk(32, 16, 12) * (index < 4), disk(44, 4, 8)])
    planes /= np.maximum(planes.sum(0), 1)
    return torch.from_numpy(np.concatenate([1 - planes.sum(0, keepdims=True), planes]))


def fill(project):
    """Objects 1 and 3 are given in frame 1, object 2 in frame 2; the others are found; object 3 is deleted."""
    for _ in range(3):
        project.add_object()
    for number, name in NAMES.items():
        project.change_object(number, name, COLORS[number])
    for number in (1, 3):
        project.give(1, number, tracked(1)[number].numpy() >= 0.5)
    project.give(2, 2, tracked(2)[2].numpy() >= 0.5)
    watch = Watch()
    for index in range(2, COUNT):
        prob = tracked(index)
        ids = label(prob, [1, 2, 3])
        project.keep(index, ids.numpy(), watch.see(prob, ids, [1, 2, 3]), prob, [1, 2, 3])
    # takes pixels from object 1, whose probability was high there
    project.give(EDITED, 2, disk(12, 20, 8) > 0)
    project.delete_object(3)
    project.set_marks(MARKS.start, MARKS.stop - 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    write_video(folder / "clip.mp4", COUNT)
    with Project.open(folder / "project", frame_source(folder / "clip.mp4")) as project:
        fill(project)
    return folder


@pytest.fixture(scope="module")
def project(place):
    with Project.open(place / "project", frame_source(place / "clip.mp4")) as project:
        yield project


@pytest.fixture(scope="module")
def out(project, tmp_path_factory):
    """All results."""
    folder = tmp_path_factory.mktemp("all") / "results"
    told = []
    export(project, folder, RESULTS, lambda: False, lambda *done: told.append(done))
    assert told == [(done, len(MARKS)) for done in range(len(MARKS) + 1)]
    return folder


def run(project, folder, write=("masks", "csv"), stop_at=None):
    calls = itertools.count()
    export(project, folder, write, lambda: next(calls) == stop_at, lambda done, total: None)


def soft_of(out, index):
    """The exported probabilities of each object, by id."""
    planes = {}
    for path in sorted((out / "soft").glob(f"{index:05d}.*.png")):
        with Image.open(path) as image:
            assert image.mode == "I;16"
            planes[int(path.name.split(".")[1])] = np.asarray(image).astype(np.float64) / 65535
    return planes


def matte_of(out, index):
    return sum(soft_of(out, index).values())


def test_each_result_alone_is_one_file_or_folder(project, tmp_path):
    assert set(FILES) == set(RESULTS)
    for result in RESULTS:
        run(project, tmp_path / result, (result,))
        assert sorted(os.listdir(tmp_path / result)) == sorted([FILES[result], "run.json"])


def test_all_results_together(out):
    assert sorted(os.listdir(out)) == sorted([*FILES.values(), "run.json"])
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    record = json.loads((out / "run.json").read_text())
    assert record["objects"] == {"1": NAMES[1], "2": NAMES[2]}
    assert record["run"] == {
        "video": "clip.mp4",
        "frames": [MARKS.start, MARKS.stop - 1],
        "given": [1, 2, EDITED],
        "write": sorted(RESULTS),
    }


def test_masks_are_those_shown_in_the_colors_of_the_objects(project, out):
    assert sorted(os.listdir(out / "masks")) == [f"{index:05d}.png" for index in MARKS]
    assert sorted(np.unique([project.shown(index) for index in MARKS])) == [0, 1, 2]
    for index in MARKS:
        with Image.open(out / f"masks/{index:05d}.png") as image:
            assert np.array_equal(np.asarray(image), project.shown(index))
            palette = image.getpalette()
        for number, color in COLORS.items():
            assert bytes(palette[3 * number : 3 * number + 3]).hex() == color[1:]


def test_the_table_has_a_line_for_each_object(project, out):
    with (out / "objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {}
    for row in rows:
        index = MARKS[int(row["index"])]
        assert row["frame"] == f"{index:05d}"
        assert float(row["time"]) == pytest.approx(int(row["index"]) / 25, abs=1e-3)
        own = project.shown(index) == int(row["object"])
        assert int(row["pixels"]) == own.sum()
        if own.any():
            y, x = np.nonzero(own)
            box = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert [int(row[name]) for name in ("x", "y", "width", "height")] == box
        found[index, int(row["object"])] = row["state"]
    assert found[1, 1] == "found"
    assert (1, 2) not in found
    assert [found[index, 2] for index in MARKS[1:]] == ["found", "found", "lost", "found", "lost"]
    assert len(rows) == 1 + 2 * 5


def test_soft_masks_are_those_of_the_network_where_nothing_was_edited(project, out):
    for index in MARKS:
        shown, soft = project.shown(index), soft_of(out, index)
        assert sorted(soft) == [1] if index == 1 else [1, 2]
        planes = np.stack([1 - matte_of(out, index), *(soft.get(number, 0 * shown) for number in (1, 2))])
        assert planes.min() > -1e-4
        assert np.array_equal(planes.argmax(0), shown)
        if index in (3, 4, 6):
            alone = tracked(index)[3].numpy() == 0  # beside the deleted object
            assert np.abs(planes[1:] - tracked(index)[1:3].numpy())[:, alone].max() < 1 / 255
    assert np.array_equal(soft_of(out, 1)[1], project.shown(1) == 1)
    edited = soft_of(out, EDITED)
    given = disk(12, 20, 8) > 0
    assert np.array_equal(edited[2], given)
    assert not edited[1][given].any()
    assert np.abs(edited[1] - tracked(EDITED)[1].numpy())[~given].max() < 1 / 255


@pytest.mark.parametrize("name", ["matte.mp4", "alpha.mov", "alpha.webm"])
def test_mattes_show_the_soft_masks(place, out, name):
    frames = decoded(out / name)
    pictures = [frame.image for frame in open_frames(place / "clip.mp4")]
    assert len(frames) == len(MARKS)
    for index, frame in zip(MARKS, frames, strict=True):
        found, matte = rgba(frame)[:HEIGHT, :WIDTH].astype(int), 255 * matte_of(out, index)
        alpha = found[..., 0 if name == "matte.mp4" else 3]
        assert np.abs(alpha - matte).mean() < 6, f"frame {index}"
        assert float(frame.pts * frame.time_base) == pytest.approx((index - MARKS.start) / 25, abs=1e-3)
        if name == "alpha.mov":
            assert np.abs(found[..., :3] - pictures[index].astype(int)).mean() < 2


def test_cutouts_are_the_frames_with_the_matte_as_alpha(place, out):
    assert len(os.listdir(out / "cutout")) == len(MARKS)
    for frame in open_frames(place / "clip.mp4"):
        if frame.index in MARKS:
            with Image.open(out / f"cutout/{frame.name}.png") as image:
                pixels = np.asarray(image)
            assert np.abs(pixels[..., 3] - 255 * matte_of(out, frame.index)).max() <= 0.51
            assert np.array_equal(pixels[..., :3], np.where(pixels[..., 3:] > 0, frame.image, 0))


def test_overlays_tint_the_objects_only(place, project, out):
    assert len(decoded(out / "overlay.mp4")) == len(MARKS)
    assert sorted(os.listdir(out / "overlay")) == [f"{index:05d}.jpg" for index in MARKS]
    for frame in open_frames(place / "clip.mp4"):
        if frame.index in MARKS:
            with Image.open(out / f"overlay/{frame.name}.jpg") as image:
                changed = np.abs(np.asarray(image).astype(int) - frame.image).mean(2)
            own = project.shown(frame.index) > 0
            assert changed[own].mean() > 2 * changed[~own].mean()


def test_pycocotools_reads_the_masks(project, out, capsys):
    pytest.importorskip("pycocotools")
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO

    coco = COCO(str(out / "coco.json"))
    capsys.readouterr()
    assert {one["id"]: one["name"] for one in coco.loadCats(coco.getCatIds())} == NAMES
    video = json.loads((out / "rle.json").read_text())
    assert {one["id"]: one["name"] for one in video["categories"]} == NAMES
    assert video["videos"][0]["file_names"] == [f"{index:05d}.jpg" for index in MARKS]
    for place, index in enumerate(MARKS):
        found = np.zeros((HEIGHT, WIDTH), np.uint8)
        for one in coco.loadAnns(coco.getAnnIds(imgIds=place)):
            found[coco.annToMask(one) == 1] = one["object_id"]
        assert np.array_equal(found, project.shown(index))
        for track in video["annotations"]:
            own, shape = project.shown(index) == track["id"], track["segmentations"][place]
            assert np.array_equal(coco_mask.decode(shape) == 1, own) if own.any() else shape is None


def test_the_overlay_has_the_sound_of_its_frames(tmp_path):
    video = write_sound_video(tmp_path / "clip.mp4", [("aac", 0.0)])  # clicks at 0, 0.5, 1 and 1.5 s
    with Project.open(tmp_path / "project", frame_source(video)) as project:
        project.set_marks(10, 39)
        run(project, tmp_path / "results", ("overlay",))
    assert len(decoded(tmp_path / "results/overlay.mp4")) == 30
    [heard] = hear(tmp_path / "results/overlay.mp4")
    assert heard.clicks == pytest.approx([0.1, 0.6, 1.1], abs=0.03)


def test_an_empty_project_gives_empty_masks(place, tmp_path):
    with Project.open(tmp_path / "project", frame_source(place / "clip.mp4")) as project:
        run(project, tmp_path / "results", RESULTS)
    assert len(decoded(tmp_path / "results/alpha.mov")) == COUNT
    for path in (tmp_path / "results/masks").iterdir():
        with Image.open(path) as image:
            assert not np.asarray(image).any()
    for name in ANNOTATIONS.values():
        assert json.loads((tmp_path / "results" / name).read_text())["annotations"] == []


def test_an_earlier_export_is_replaced_by_a_whole_one_only(project, tmp_path):
    folder = tmp_path / "results"
    run(project, folder, RESULTS, stop_at=2)
    assert os.listdir(tmp_path) == []
    run(project, folder, ("masks", "csv", "webm"))
    before = contents(folder)
    for stop_at in (0, 1, len(MARKS) - 1):
        run(project, folder, RESULTS, stop_at=stop_at)
        assert contents(folder) == before
        assert os.listdir(tmp_path) == ["results"]
    # left by a killed process
    for name in ("results", "results.earlier"):
        (tmp_path / f".{name}.7.partial").mkdir()
    run(project, folder, ("rle", "cutout"))
    assert sorted(os.listdir(folder)) == ["cutout", "rle.json", "run.json"]
    assert os.listdir(tmp_path) == ["results"]


@pytest.mark.parametrize("name", ["notes.txt", "masks/notes.txt", "final/00000.png", "overlay/00000.png"])
def test_other_files_are_never_removed(project, tmp_path, name):
    run(project, tmp_path / "results")
    own = tmp_path / "results" / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    before = contents(tmp_path / "results")
    with pytest.raises(InputError, match=r"found among the results of an export.*move it elsewhere"):
        run(project, tmp_path / "results", ("csv",))
    assert contents(tmp_path / "results") == before


def test_a_file_that_comes_during_the_export_is_not_removed(project, tmp_path):
    folder = tmp_path / "results"
    run(project, folder)

    def progress(done, total):
        (folder / "notes.txt").write_text("mine")

    with pytest.raises(InputError, match=r"notes\.txt: found among the results"):
        export(project, folder, ("csv",), lambda: False, progress)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "masks").is_dir()
    assert os.listdir(tmp_path) == ["results"]


def test_a_link_is_not_replaced(project, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="results: found a symbolic link"):
        run(project, tmp_path / "results")
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(("write", "message"), [((), "write: found nothing"), (("mask",), "write: found 'mask'")])
def test_an_unknown_result_is_refused(project, tmp_path, write, message):
    with pytest.raises(InputError, match=message):
        run(project, tmp_path / "results", write)
    assert os.listdir(tmp_path) == []


def test_a_missing_encoder_is_reported_before_any_work(project, tmp_path, monkeypatch):
    for kind in VIDEO_WRITERS:
        monkeypatch.setattr(kind, "encoder", "another")
        with pytest.raises(InputError, match=f"no encoder another; leave {kind.result} out of write"):
            export(project, tmp_path / "results", (kind.result,), lambda: False, lambda *done: pytest.fail("began"))
    assert os.listdir(tmp_path) == []


def test_a_frame_that_cannot_be_decoded_leaves_the_earlier_export(place, tmp_path):
    video = shutil.copy(place / "clip.mp4", tmp_path / "clip.mp4")
    with Project.open(tmp_path / "project", frame_source(video)) as project:
        run(project, tmp_path / "results")
        before = contents(tmp_path / "results")
        damage_frame(video, 4)
        with pytest.raises(InputError, match=r"frame \d cannot be decoded"):
            run(project, tmp_path / "results", RESULTS)
    assert contents(tmp_path / "results") == before
    assert sorted(os.listdir(tmp_path)) == ["clip.mp4", "project", "results"]


def test_objects_that_come_and_go_during_the_export_do_not_change_it(place, tmp_path):
    with Project.open(tmp_path / "project", frame_source(place / "clip.mp4")) as project:
        fill(project)

        def progress(done, total):
            if done == 2:
                added = project.add_object("late")
                for index in MARKS:
                    project.give(index, added.id, disk(40, 26, 5) > 0)
                project.delete_object(1)

        export(project, tmp_path / "results", RESULTS, lambda: False, progress)
    for name in ANNOTATIONS.values():
        categories = json.loads((tmp_path / "results" / name).read_text())["categories"]
        assert {one["id"]: one["name"] for one in categories} == NAMES
    last = tmp_path / f"results/masks/{MARKS[-1]:05d}.png"
    with Image.open(last) as image:
        assert not np.asarray(image).any()
    assert {path.name for path in (tmp_path / "results").iterdir()} >= set(VIDEOS.values())
