"""What the page makes of a gesture: the masks of boxes, lassos, clicks, brushes and erasers."""

import math
import re

import numpy as np
import pytest

import first_masks
from stm_fast.clicks.prompting import SIDE
from stm_fast.clicks.regions import Region
from stm_fast.clicks.user import box_around, next_click, points_of
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.errors import InputError
from stm_fast.page.prompters import make_prompter
from stm_fast.page.prompts import GrabCut, Stroke, painted
from stm_fast.video import grabcut
from stm_fast.video.first_mask import Box, bounds, enclosed
from stm_fast.video.grabcut import Part

cv2 = pytest.importorskip("cv2")

HEIGHT, WIDTH = 160, 240
(FRAME,) = SyntheticClip(seed=1, frames=1, height=HEIGHT, width=WIDTH, objects=1)
TRUTH = FRAME.ids == 1
SIZE = (WIDTH, HEIGHT)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """J."""
    return float(np.count_nonzero(one & other) / np.count_nonzero(one | other))


def box(*numbers: float) -> Region:
    return Region(Box(*numbers), ())


def lasso(*points: tuple[float, float]) -> Region:
    return Region(None, points)


LASSO = Region(None, points_of(first_masks.lasso_around(TRUTH)))


@pytest.fixture(scope="module", params=["network", "grabcut"])
def prompter(request):
    """A prompter that needs nothing else."""
    return make_prompter(request.param)


def pieces(mask: np.ndarray) -> int:
    """How many connected regions a mask has."""
    return int(cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0]) - 1


# regions


def test_a_lasso_and_a_box_find_the_object(prompter):
    by_lasso, by_box = prompter.from_region(FRAME.image, LASSO), prompter.from_region(FRAME.image, box_of_truth())
    assert by_lasso.found
    assert by_box.found
    assert overlap(by_lasso.mask, TRUTH) > 0.9
    assert overlap(by_box.mask, TRUTH) > 0.9
    assert overlap(enclosed(LASSO.lasso, SIZE), TRUTH) < 0.8, "the lasso itself"


def box_of_truth() -> Region:
    return Region(box_around(TRUTH, 3))


def test_where_nothing_is_found_a_lasso_is_its_area():
    flat = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    mask, found = GrabCut().from_region(flat, lasso((20, 30), (80, 30), (80, 90), (20, 90)))
    assert not found
    np.testing.assert_array_equal(mask, enclosed(((20, 30), (80, 30), (80, 90), (20, 90)), SIZE))


def test_pictures_with_few_colors_are_varied_slightly():
    """OpenCV searches for seconds where all edges cost the same."""
    flat = np.full((50, 80, 3), 255, np.uint8)
    flat[20:30, 30:50] = 0
    varied = grabcut._varied_if_flat(flat)
    assert {254, 255} >= set(np.unique(varied[:20]))
    np.testing.assert_array_equal(varied, grabcut._varied_if_flat(flat))
    assert np.abs(varied.astype(int) - flat).max() == 1
    assert grabcut._varied_if_flat(FRAME.image) is FRAME.image
    one_column = flat[:, :1]
    assert grabcut._varied_if_flat(one_column) is one_column


SQUARE = ((40.0, 40.0), (120.0, 40.0), (120.0, 100.0), (40.0, 100.0))


def test_a_lasso_encloses_the_pixels_inside_its_line():
    mask = enclosed(SQUARE, SIZE)
    inner = np.zeros_like(mask)
    inner[40:100, 40:120] = True
    assert not (inner & ~mask).any()
    left, top, right, bottom = bounds(mask)
    assert min(left, top) >= 39
    assert right <= 121
    assert bottom <= 101
    np.testing.assert_array_equal(enclosed(SQUARE[::-1], SIZE), mask)


def test_a_line_that_crosses_itself_leaves_no_hole():
    once = enclosed(SQUARE, SIZE)
    twice = enclosed((*SQUARE, *SQUARE), SIZE)
    np.testing.assert_array_equal(twice, once)
    eight = enclosed(((20, 20), (100, 100), (100, 20), (20, 100)), SIZE)
    assert eight[60, 30]
    assert eight[60, 90]
    assert not eight[30, 60]


@pytest.mark.parametrize(
    "region",
    [
        lasso((10, 10), (50, 50), (90, 90)),  # a line without an area
        lasso((30, 30), (30, 30), (30, 30)),
        lasso((-500, -500), (900, -500), (900, 900), (-500, 900)),  # all around the frame
        lasso((0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT)),
        lasso((-1e30, 20), (1e30, 20), (100, 1e30)),
        lasso((200, 100), (400, 100), (400, 300)),  # partly outside
        lasso((20, 20), (100, 100), (100, 20), (20, 100)),
        box(0, 0, WIDTH, HEIGHT),
        box(-1e300, -1e300, 1e301, 1e301),
        box(WIDTH - 0.5, HEIGHT - 0.5, 9, 9),
    ],
)
def test_a_region_in_the_frame_always_has_a_mask(prompter, region):
    first, second = prompter.from_region(FRAME.image, region), prompter.from_region(FRAME.image, region)
    assert first.mask.shape == TRUTH.shape
    assert first.mask.dtype == bool
    assert first.mask.any()
    np.testing.assert_array_equal(first.mask, second.mask)
    if region.lasso:
        assert not (first.mask & ~enclosed(region.lasso, SIZE)).any(), "outside the lasso"


@pytest.mark.parametrize(
    ("region", "words"),
    [
        (Region(None, ()), "found no box or lasso, or both, expected one of them"),
        (Region(Box(1, 1, 5, 5), SQUARE), "found no box or lasso, or both, expected one of them"),
        (lasso((10, 10), (50, 50)), "found a lasso of 2 points, expected 3 to 10000"),
        (lasso(*[(10.0, 10.0)] * 10_001), "found a lasso of 10001 points, expected 3 to 10000"),
        (lasso((10, 10), (50, math.nan), (90, 90)), "found a point that is not finite, expected numbers of pixels"),
        (lasso((10, 10), (math.inf, 50), (90, 90)), "found a point that is not finite, expected numbers of pixels"),
        (
            lasso((300, 10), (400, 10), (400, 90)),
            "found a lasso outside the frame, expected one inside its 240x160 pixels",
        ),
        # its corners are on all sides of the frame
        (
            lasso((300, -90), (500, 90), (300, 300), (490, 90)),
            "found a lasso outside the frame, expected one inside its 240x160 pixels",
        ),
        (box(300, 10, 5, 5), "found the box 300,10,5,5, expected one inside the frame of 240x160"),
        (
            box(10, 10, math.nan, 5),
            "found the box 10,10,nan,5, expected finite numbers, and a width and height above 0",
        ),
    ],
)
def test_a_region_that_is_none_is_refused(prompter, region, words):
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        prompter.from_region(FRAME.image, region)


# clicks


def test_clicks_lead_to_the_object(prompter):
    bad = enclosed(LASSO.lasso, SIZE)
    bad[:, : bounds(TRUTH)[0] + 12] = False  # too much on one side, too little on the other
    shown, values = bad, [overlap(bad, TRUTH)]
    for _ in range(8):
        click = next_click(shown, TRUTH)
        shown = prompter.from_click(FRAME.image, shown, *click)
        values.append(overlap(shown, TRUTH))
    assert values[-1] > values[0] + 0.1
    assert values[-1] > 0.8


@pytest.mark.parametrize("seed", range(12))
def test_a_click_changes_one_region_around_it_in_one_direction(prompter, seed):
    random = np.random.default_rng(seed)
    shown = np.roll(TRUTH, tuple(random.integers(-30, 30, 2)), (0, 1))
    add, x, y = bool(seed % 2), random.uniform(0, WIDTH), random.uniform(0, HEIGHT)
    before = shown.copy()
    found = prompter.from_click(FRAME.image, shown, (x, y), add)
    np.testing.assert_array_equal(found, prompter.from_click(FRAME.image, shown, (x, y), add))
    np.testing.assert_array_equal(shown, before)
    assert found.dtype == bool
    assert found[int(y), int(x)] == add
    changed = found != shown
    assert not changed[shown == add].any(), "adding only adds, taking away only removes"
    if shown[int(y), int(x)] == add:
        assert not changed.any()
    else:
        assert changed[int(y), int(x)]
        assert pieces(changed) == 1
        if isinstance(prompter, GrabCut):
            assert np.count_nonzero(changed) <= max(0.2 * np.count_nonzero(shown), 40)


@pytest.mark.parametrize("pixels", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("offset", [0.0, 0.5, 0.999])
def test_a_click_of_grabcut_corrects_a_small_object_by_a_part_of_it(pixels, offset):
    """One with the usual radius would cover it."""
    small = np.zeros_like(TRUTH)
    small[70 : 70 + pixels, 100 : 100 + pixels] = True
    for add, x in ((True, 100 + pixels), (False, 100)):
        changed = GrabCut().from_click(FRAME.image, small, (x + offset, 70 + offset), add) != small
        assert changed[70, x]
        assert np.count_nonzero(changed) <= max(1, pixels**2 / 2)


@pytest.mark.parametrize(
    ("point", "shown"),
    [((0, 0), TRUTH), ((WIDTH - 0.01, HEIGHT - 0.01), TRUTH), ((0.5, 80), ~TRUTH), ((120, 80), np.ones_like(TRUTH))],
)
def test_clicks_at_the_border_and_on_full_masks_work(prompter, point, shown):
    add = not shown[int(point[1]), int(point[0])]
    assert prompter.from_click(FRAME.image, shown, point, add)[int(point[1]), int(point[0])] == add


@pytest.mark.parametrize("threads", [1, 4])
def test_a_correction_does_not_depend_on_threads_or_random_numbers(prompter, threads):
    shown = enclosed(LASSO.lasso, SIZE)
    click = next_click(shown, TRUTH)
    expected, before = prompter.from_click(FRAME.image, shown, *click), cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        cv2.setRNGSeed(threads)
        np.testing.assert_array_equal(prompter.from_click(FRAME.image, shown, *click), expected)
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("point", [(-0.1, 5), (WIDTH, 5), (5, HEIGHT), (math.nan, 5), (5, math.inf)])
def test_a_click_outside_the_frame_is_refused(prompter, point):
    with pytest.raises(InputError, match=r"^found a click at .*, expected one inside the frame of 240x160$"):
        prompter.from_click(FRAME.image, TRUTH, point, True)


def test_grabcut_refuses_a_click_without_a_mask():
    assert not GrabCut.clicks_alone
    with pytest.raises(InputError, match=r"^found a click where no mask is shown, expected a box or a lasso"):
        GrabCut().from_click(FRAME.image, np.zeros_like(TRUTH), (5, 5), True)


# strokes

NOTHING = np.zeros((HEIGHT, WIDTH), bool)


def test_a_brush_is_round():
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    away = np.hypot(x + 0.5 - 100.5, y + 0.5 - 60.5)
    mask = painted(NOTHING, Stroke(((100.5, 60.5),), 9, True))
    np.testing.assert_array_equal(mask, away <= 9)


@pytest.mark.parametrize("point", [(0.5, 0.5), (WIDTH - 0.5, HEIGHT - 0.5), (99.9, 50.2)])
def test_a_stroke_of_one_point_paints_a_dot(point):
    """As a tap does; the smallest brush paints the pixel that it is in."""
    for points in ((point,), (point, point)):
        mask = painted(NOTHING, Stroke(points, 0.5, True))
        assert np.argwhere(mask).tolist() == [[int(point[1]), int(point[0])]]
    assert not painted(mask, Stroke((point,), 0.5, False)).any()


def test_a_stroke_paints_along_its_line_and_the_eraser_takes_it_away():
    points = ((20.0, 20.0), (120.0, 90.0), (200.0, 30.0))
    mask = painted(NOTHING, Stroke(points, 5, True))
    assert pieces(mask) == 1
    assert all(mask[int(y), int(x)] for x, y in points)
    assert mask[55, 70]
    assert bounds(mask)[0] in {14, 15}
    assert not painted(mask, Stroke(points, 5, False)).any()
    thinner = painted(mask, Stroke(points, 2, False))
    assert 0 < np.count_nonzero(thinner) < np.count_nonzero(mask)
    assert not (thinner & ~mask).any()


@pytest.mark.parametrize("point", [(-4.0, 80.0), (WIDTH + 4.0, 80.0), (120.0, -4.0), (120.0, HEIGHT + 4.0)])
def test_a_brush_beside_the_frame_paints_what_it_touches(point):
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    away = np.hypot(x + 0.5 - point[0], y + 0.5 - point[1])
    mask = painted(NOTHING, Stroke((point,), 8, True))
    assert mask.any()
    assert not mask[away > 9].any()
    assert mask[away < 7].all()


def test_a_stroke_far_outside_paints_nothing():
    assert not painted(NOTHING, Stroke(((-1e30, -1e30), (-1e30, 1e30)), 9, True)).any()
    assert not painted(NOTHING, Stroke(((1e9, 1e9),), 9, True)).any()


@pytest.mark.parametrize(
    ("stroke", "words"),
    [
        (Stroke((), 5, True), "found a stroke of 0 points, expected 1 to 10000"),
        (Stroke(((1.0, 1.0),) * 10_001, 5, True), "found a stroke of 10001 points, expected 1 to 10000"),
        (Stroke(((1, math.nan),), 5, True), "found a point that is not finite, expected numbers of pixels"),
        (Stroke(((1, 1),), 0, True), "found the brush radius 0, expected one above 0 and at most 60"),
        (Stroke(((1, 1),), 61, True), "found the brush radius 61, expected one above 0 and at most 60"),
        (Stroke(((1, 1),), math.nan, True), "found the brush radius nan, expected one above 0 and at most 60"),
    ],
)
def test_a_stroke_that_is_none_is_refused(stroke, words):
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        painted(NOTHING, stroke)


# 4K


@pytest.mark.slow
def test_a_large_frame_is_processed_at_a_small_size(prompter, monkeypatch):
    image = cv2.resize(FRAME.image, (3840, 2160), interpolation=cv2.INTER_CUBIC)
    truth = cv2.resize(FRAME.ids, (3840, 2160), interpolation=cv2.INTER_NEAREST) == 1
    sizes, original = [], Part.scaled
    monkeypatch.setattr(Part, "scaled", lambda part, frame: sizes.append(part.scaled_size) or original(part, frame))
    mask = prompter.from_region(image, lasso(*[(16 * x, 13.5 * y) for x, y in LASSO.lasso])).mask
    assert overlap(mask, truth) > 0.9
    for _ in range(2):
        mask = prompter.from_click(image, mask, *next_click(mask, truth))
    painted(mask, Stroke(tuple((37.0 * i % 3840, 7.0 * i % 2160) for i in range(9000)), 900, True))
    assert len(sizes) == 3
    assert max(max(size) for size in sizes) <= SIDE


def test_grabcut_takes_no_weights():
    assert isinstance(make_prompter("grabcut"), GrabCut)
    with pytest.raises(InputError, match="prompter_weights: found 'folder', expected none with grabcut"):
        make_prompter("grabcut", "folder")
