"""Exports from the page: every kind, downloaded by a browser and parsed."""

import csv
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from browser import needs_browser
from page_driver import write_clip
from stm_fast.choices import RESULTS
from stm_fast.data.synthetic import SyntheticClip

# pycocotools predates NumPy 2
pytestmark = [needs_browser, pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array__ implementation")]

FRAMES = 6
SIZE = (96, 160)
MOST_DOWNLOADS = 10  # then Chromium asks


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    synthetic = SyntheticClip(3, frames=FRAMES, height=SIZE[0], width=SIZE[1], objects=2, object_size=(0.22, 0.28))
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", synthetic)


def tracked(visit, clip):
    """Somebody who has drawn and tracked two objects."""
    person = visit.open(clip.path)
    person.lasso(clip.own(0, 1))
    person.changed(lambda: person.press("n"))
    person.lasso(clip.own(0, 2))
    person.finished(lambda: person.press("Enter"))
    return person


def exported(person, kinds):
    """Chooses these kinds in the dialog, waits, and downloads everything that it offers: the bytes by name."""
    person.page.click("#export")
    person.page.wait_for_selector("#export-dialog")
    for box in person.page.locator("#export-dialog input[type=checkbox]").all():
        box.set_checked(box.get_attribute("value") in kinds)
    person.picture("export dialog")
    person.finished(lambda: person.page.click("#export-start"))
    person.picture("exported")
    links = person.page.locator("#results a").all()
    files = dict(person.downloaded(link) for link in links[:MOST_DOWNLOADS])
    for link in links[MOST_DOWNLOADS:]:
        files[link.inner_text()] = person.get(link.get_attribute("href")).body()
    return files


def pictures(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {
            name.rsplit("/", 1)[-1]: np.array(Image.open(archive.open(name))) for name in sorted(archive.namelist())
        }


def decoded(data, pixels):
    import av

    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format=pixels) for frame in container.decode(video=0)]


def test_every_kind_of_result_is_downloaded_whole(visit, clip, tmp_path):
    person = tracked(visit, clip)
    files = exported(person, RESULTS)
    ids = [person.ids(index) for index in range(FRAMES)]
    names = {name.rsplit(".", 1)[0] if name.endswith(".zip") else name for name in files}
    assert names >= {"masks", "overlay.mp4", "overlay", "matte.mp4", "alpha.mov", "alpha.webm", "cutout", "soft"}, names
    assert names >= {"objects.csv", "coco.json", "rle.json"}, names

    masks = pictures(files["masks.zip"])
    assert len(masks) == FRAMES
    assert all(np.array_equal(mask, own) for mask, own in zip(masks.values(), ids, strict=True))
    for name in ("overlay.zip", "cutout.zip"):
        assert len(pictures(files[name])) >= FRAMES, name
    for name in ("overlay.mp4", "matte.mp4", "alpha.mov", "alpha.webm"):
        frames = decoded(files[name], "rgba")
        assert len(frames) == FRAMES, name
        assert frames[0].shape[:2] == SIZE
    matte = decoded(files["matte.mp4"], "gray")
    assert matte[-1][ids[-1] > 0].mean() > 200 > 50 > matte[-1][ids[-1] == 0].mean()
    alpha = decoded(files["alpha.mov"], "rgba")[-1][..., 3]
    assert alpha[ids[-1] > 0].mean() > 200 > 50 > alpha[ids[-1] == 0].mean()

    rows = list(csv.DictReader(io.StringIO(files["objects.csv"].decode())))
    assert len(rows) == 2 * FRAMES
    from pycocotools.coco import COCO

    (tmp_path / "coco.json").write_bytes(files["coco.json"])
    coco = COCO(tmp_path / "coco.json")
    assert len(coco.imgs) == FRAMES
    last = max(coco.imgs)
    areas = {item["category_id"]: coco.annToMask(item).sum() for item in coco.loadAnns(coco.getAnnIds(imgIds=[last]))}
    assert sorted(areas.values()) == sorted(np.count_nonzero(ids[-1] == object_id) for object_id in (1, 2))
    assert json.loads(files["rle.json"])


def test_marks_limit_what_is_exported(visit, clip):
    person = tracked(visit, clip)
    person.go(1)
    person.changed(lambda: person.press("i"))
    person.go(3)
    person.changed(lambda: person.press("o"))
    files = exported(person, ("masks", "overlay"))
    assert set(files) == {"masks.zip", "overlay.mp4", "run.json"}
    assert len(decoded(files["overlay.mp4"], "rgb24")) == 3
    masks = pictures(files["masks.zip"])
    assert len(masks) == 3
    for mask, index in zip(masks.values(), (1, 2, 3), strict=True):
        assert np.array_equal(mask, person.ids(index))
