"""The overlay: colors that everyone can tell apart, lines and numbers that grow with the frame, the user's colors."""

import itertools

import numpy as np
import pytest

from color_vision import VISION, ciede2000, lab
from stm_fast.video import DAVIS_PALETTE
from stm_fast.video.object_label import draw_labels
from stm_fast.video.overlay import draw_overlay
from stm_fast.video.overlay_colors import BRIGHT_COLORS, outline_colors, overlay_colors

BACKGROUNDS = [(0, 0, 0), (255, 255, 255), (128, 128, 128)]
SIZES = {"240p": (240, 426), "480p": (480, 854), "1080p": (1080, 1920)}


def disk(size, center=(0.5, 0.5), radius=0.3, object_id=1):
    """A mask with one round object; the radius is relative to the height."""
    height, width = size
    rows, columns = np.ogrid[:height, :width]
    inside = np.hypot(rows - center[0] * height, columns - center[1] * width) < radius * height
    return np.where(inside, np.uint8(object_id), np.uint8(0))


def noise(size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [  # from Sharma, Wu and Dalal, 2005
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, -1.0, 2.0), (50.0, 0.0, 0.0), 2.3669),
        ((50.0, 2.5, 0.0), (61.0, -5.0, 29.0), 22.8977),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
        ((90.8027, -2.0831, 1.441), (91.1528, -1.6435, 0.0447), 1.4441),
    ],
)
def test_the_color_difference_is_that_of_the_standard(first, second, expected):
    assert abs(ciede2000(np.array(first), np.array(second)) - expected) < 1e-4


@pytest.mark.parametrize(
    ("vision", "least"), [("normal", 18.9), *((kind, 12.6) for kind in VISION if kind != "normal")]
)
def test_twelve_colors_are_told_apart_on_any_background(vision, least):
    assert len(BRIGHT_COLORS) == 12
    seen = lab(np.array([*BRIGHT_COLORS, *BACKGROUNDS]), vision)
    for one, other in itertools.combinations(range(len(seen)), 2):
        if min(one, other) < 12:
            assert ciede2000(seen[one], seen[other]) >= least, (one, other)


def test_every_color_is_bright_and_has_a_black_outline():
    assert lab(np.array(BRIGHT_COLORS))[:, 0].min() > 45
    assert not outline_colors(overlay_colors())[1:].any()


def test_colors_that_a_user_chose_are_kept():
    chosen = bytes([0, 0, 0, 10, 200, 30, *DAVIS_PALETTE[6:9], 0, 0, 0, 9, 9, 9, 40, 0, 0])
    colors = overlay_colors(chosen + DAVIS_PALETTE[len(chosen) :]).tolist()
    bright = overlay_colors().tolist()
    assert colors[1] == [10, 200, 30]
    assert colors[2] == bright[2], "the DAVIS color is no choice"
    assert colors[3:5] == bright[3:5], "neither is black, nor a ramp of gray"
    assert colors[5] == [40, 0, 0]
    assert colors[6:] == bright[6:]
    assert outline_colors(overlay_colors(chosen))[5].tolist() == [255, 255, 255], "a dark color is seen against white"


def test_the_davis_palette_is_drawn_as_none():
    image, ids = noise((60, 80)), disk((60, 80), object_id=3)
    assert np.array_equal(draw_overlay(image, ids, DAVIS_PALETTE), draw_overlay(image, ids))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_objects_are_tinted_and_the_rest_is_left(alpha):
    image, ids = noise((60, 80)), disk((60, 80))
    before = image.copy()
    drawn = draw_overlay(image, ids, alpha=alpha)
    assert np.array_equal(image, before)
    inner, outer = disk((60, 80), radius=0.2) > 0, disk((60, 80), radius=0.4) == 0
    inner &= ~disk((60, 80), radius=0.1).astype(bool)  # the number
    assert np.array_equal(drawn[outer], image[outer])
    expected = image[inner] * (1 - alpha) + np.array(BRIGHT_COLORS[0]) * alpha
    assert np.abs(drawn[inner] - expected).max() <= 1 + alpha


def test_bright_pixels_do_not_wrap():
    white = np.full((12, 16, 3), 255, np.uint8)  # too small for a number
    drawn = draw_overlay(white, disk((12, 16), object_id=2), bytes([0, 0, 0, 9, 9, 9, 255, 255, 255]))
    assert set(np.unique(drawn)) <= {0, 255}, "the object, and its black outline"


@pytest.mark.parametrize(("name", "contour", "outline"), [("240p", 1, 1), ("480p", 2, 1), ("1080p", 5, 2)])
def test_the_contour_grows_with_the_frame(name, contour, outline):
    size = SIZES[name]
    gray = np.full((*size, 3), 128, np.uint8)
    row = draw_overlay(gray, disk(size))[size[0] // 2].tolist()
    edge = int(np.flatnonzero(disk(size)[size[0] // 2])[0])
    assert row[edge - outline - 1] == [128, 128, 128]
    assert row[edge - outline : edge] == [[0, 0, 0]] * outline
    assert row[edge : edge + contour] == [list(BRIGHT_COLORS[0])] * contour
    assert row[edge + contour] == [(128 + channel) // 2 for channel in BRIGHT_COLORS[0]]


def test_objects_that_touch_have_contours_on_both_sides_and_none_at_the_edge_of_the_frame():
    gray, ids = np.full((480, 640, 3), 128, np.uint8), np.ones((480, 640), np.uint8)
    ids[:, 320:] = 2
    row = draw_overlay(gray, ids)[10].tolist()
    assert row[318:322] == [list(BRIGHT_COLORS[0])] * 2 + [list(BRIGHT_COLORS[1])] * 2
    assert row[0] == row[317] == [(128 + channel) // 2 for channel in BRIGHT_COLORS[0]]
    assert row[639] == row[322] == [(128 + channel) // 2 for channel in BRIGHT_COLORS[1]]


@pytest.mark.parametrize(("first", "kind"), [(1, "plain"), (13, "rising"), (25, "falling"), (37, "crossed")])
def test_further_objects_have_the_same_colors_in_stripes(first, kind):
    gray = np.full((240, 240, 3), 128, np.uint8)
    drawn = draw_overlay(gray, disk((240, 240), object_id=first + 1))
    tinted = (drawn[100:110, 60:80] != 128).any(-1)  # [10, 20], beside the number
    if kind == "plain":
        assert tinted.all()
        return
    assert 0.4 < tinted.mean() < 0.6
    rising, falling = tinted[1:, :-1] == tinted[:-1, 1:], tinted[1:, 1:] == tinted[:-1, :-1]
    assert rising.all() == (kind == "rising")
    assert falling.all() == (kind == "falling")
    color = np.unique(drawn[100:110, 60:80][tinted], axis=0)
    assert color.tolist() == [[(128 + channel) // 2 for channel in BRIGHT_COLORS[1]]]


def label_of(size, ids):
    """The rows and columns of the numbers drawn on gray."""
    drawn = np.full((*size, 3), 128, np.uint8)
    draw_labels(drawn, ids)
    return np.nonzero((drawn != 128).any(-1))


@pytest.mark.parametrize("name", SIZES)
def test_the_number_grows_with_the_frame(name):
    rows, columns = label_of(SIZES[name], disk(SIZES[name], (0.4, 0.6)))
    height, width = SIZES[name]
    assert 0.02 * height < np.ptp(rows) < 0.05 * height
    assert abs(rows.mean() / height - 0.4) < 0.02
    assert abs(columns.mean() / width - 0.6) < 0.02


def test_the_number_is_black_and_white_and_each_is_another():
    size, pictures = (480, 640), []
    for object_id in (1, 7, 12, 255):
        drawn = np.full((*size, 3), 128, np.uint8)
        draw_labels(drawn, disk(size, object_id=object_id))
        assert {0, 255} <= set(np.unique(drawn).tolist())
        pictures.append(drawn.tobytes())
    assert len(set(pictures)) == 4


def test_the_number_is_inside_an_object_with_a_hole_and_of_any_shape():
    ring = disk((480, 640)) & ~disk((480, 640), radius=0.15)
    crescent = disk((480, 640)) * (disk((480, 640), (0.5, 0.6), 0.32) == 0)
    for ids in (ring, crescent):
        rows, columns = label_of((480, 640), ids)
        assert ids[rows, columns].mean() > 0.95


@pytest.mark.parametrize("center", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_the_number_is_whole_in_a_corner(center):
    size = (480, 640)
    whole = label_of(size, disk(size))
    found = label_of(size, disk(size, center, 0.08))
    assert len(found[0]) == len(whole[0])


def test_an_object_smaller_than_its_number_has_none():
    assert len(label_of((480, 640), disk((480, 640), radius=0.01))[0]) == 0
    assert len(label_of((480, 640), disk((480, 640), radius=0.05))[0]) > 0


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 40), (40, 1), (8, 8)])
def test_tiny_frames_are_drawn(size):
    ids = np.full(size, 200, np.uint8)
    assert draw_overlay(noise(size), ids).shape == (*size, 3)


def test_a_frame_without_objects_is_left():
    image = noise((30, 40))
    drawn = draw_overlay(image, np.zeros((30, 40), np.uint8))
    assert np.array_equal(drawn, image)
    assert drawn is not image


def test_the_arguments_are_checked():
    image = np.zeros((3, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="ids: shape"):
        draw_overlay(image, np.zeros((4, 3), np.uint8))
    with pytest.raises(ValueError, match="alpha"):
        draw_overlay(image, np.zeros((3, 4), np.uint8), alpha=1.5)
