"""The moving picture of README."""

import numpy as np
import pytest
from PIL import Image

import moving_picture
from moving_picture import BAR, LOOKING, pages, write_webp
from small_inputs import write_video
from stm_fast.boxes import Box
from stm_fast.video.overlay_colors import overlay_colors


def frames(count=3, height=40, width=60):
    """A gray object of 10 x 10 pixels that moves right on black."""
    for index in range(count):
        ids = np.zeros((height, width), np.uint8)
        ids[10:20, 10 + index : 20 + index] = 1
        yield np.repeat(ids[..., None] * np.uint8(100), 3, axis=2), ids


def test_pages_show_the_box_the_mask_and_the_tracked_object():
    found = list(pages(list(frames()), {1: Box(8, 8, 14, 14)}, 120, "credit", 80))
    assert [page.duration for page in found] == [LOOKING, LOOKING, 80, 80, LOOKING]
    assert {page.picture.size for page in found} == {(120, 80 + BAR)}
    boxed, *overlays = [np.asarray(page.picture)[:80] for page in found]
    red, green, blue = overlay_colors(None)[1].tolist()

    def bright(picture):
        return np.abs(picture.astype(int) - (red, green, blue)).sum(2) < 60

    columns = np.nonzero(bright(boxed))[1]
    assert abs(columns.min() - 16) <= 2
    assert abs(columns.max() - 44) <= 2
    # the object itself is as it was
    assert not bright(boxed)[24:36, 24:36].any()
    lefts = [np.nonzero(bright(picture).any(0))[0].min() for picture in overlays]
    assert lefts == [20, 20, 22, 24]


def test_the_picture_is_animated_and_repeated(tmp_path):
    output = tmp_path / "demo.webp"
    write_webp(list(pages(list(frames()), {}, 60, "", 80)), output)
    with Image.open(output) as picture:
        assert (picture.n_frames, picture.info["loop"], picture.size) == (5, 0, (60, 40 + BAR))


@pytest.mark.slow
def test_the_picture_of_a_clip(tmp_path, capsys):
    pytest.importorskip("cv2")
    write_video(tmp_path / "clip.mp4", 3)
    output = tmp_path / "demo.webp"
    moving_picture.main(tmp_path / "clip.mp4", output, ["1:8,8,24,24"], max_size=64, step=2, width=80)
    assert "demo.webp" in capsys.readouterr().out
    with Image.open(output) as picture:
        assert picture.n_frames == 4
