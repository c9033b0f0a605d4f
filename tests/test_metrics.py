"""J, F and their statistics: cases counted by hand, and random masks against plain code of the definitions."""

import itertools
import math

import numpy as np
import pytest

from stm_fast.evaluation import contour_accuracy, region_similarity, statistics
from stm_fast.evaluation.metrics import boundary


def box(height, width, top, bottom, left, right):
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


EMPTY = np.zeros((10, 12), bool)
PIXEL = box(10, 12, 4, 5, 6, 7)


def test_region_similarity_of_two_boxes():
    # 4 x 4 and 4 x 4, shifted by 2 columns: 8 pixels shared, 16 + 16 - 8 = 24 together
    assert region_similarity(box(10, 12, 2, 6, 2, 6), box(10, 12, 2, 6, 4, 8)) == 8 / 24


def test_region_similarity_of_empty_masks():
    assert region_similarity(EMPTY, EMPTY) == 1
    assert region_similarity(PIXEL, EMPTY) == 0
    assert region_similarity(EMPTY, PIXEL) == 0


def test_region_similarity_does_not_count_void_pixels():
    # columns 4 and 5 are shared, 2, 3, 6 and 7 are not; without column 7: 8 of 20
    void = box(10, 12, 0, 10, 7, 12)
    assert region_similarity(box(10, 12, 2, 6, 2, 6), box(10, 12, 2, 6, 4, 8), void) == 8 / 20
    assert region_similarity(PIXEL, EMPTY, PIXEL) == 1


def test_the_boundary_of_one_pixel_is_half_a_pixel_towards_the_origin():
    # the pixel differs from its right and lower neighbors, and three pixels before it see it there
    assert np.argwhere(boundary(PIXEL)).tolist() == [[3, 5], [3, 6], [4, 5], [4, 6]]


def test_the_boundary_does_not_follow_the_image_border():
    assert not boundary(np.ones((5, 6), bool)).any()
    # the lower right quarter: above it, left of it, and the corner that sees it along the diagonal
    quarter = box(5, 6, 2, 5, 3, 6)
    assert np.argwhere(boundary(quarter)).tolist() == [[1, 2], [1, 3], [1, 4], [1, 5], [2, 2], [3, 2], [4, 2]]
    # the last corner has no neighbors, so a pixel there has three boundary pixels before it
    assert np.argwhere(boundary(box(5, 6, 4, 5, 5, 6))).tolist() == [[3, 4], [3, 5], [4, 4]]


def test_contour_accuracy_within_and_beyond_the_bound():
    # diagonal of 10 x 12: 15.6; 0.008 of it: 0.12, so one pixel; distances along a row and a diagonal: 2 and sqrt(2)
    one_right, two_right = np.roll(PIXEL, 1, 1), np.roll(PIXEL, 2, 1)
    assert contour_accuracy(PIXEL, PIXEL) == 1
    assert contour_accuracy(one_right, PIXEL) == 1
    # columns 5, 6 against 7, 8: 6 and 7 are one apart, so 2 of 4 both ways
    assert contour_accuracy(two_right, PIXEL) == 0.5
    assert contour_accuracy(np.roll(PIXEL, 3, 1), PIXEL) == 0
    assert contour_accuracy(np.roll(PIXEL, 3, 1), PIXEL, bound=3) == 1
    # one step down and right: only 3 of 4 have a neighbor of the other within one pixel, both ways
    assert contour_accuracy(np.roll(one_right, 1, 0), PIXEL) == 0.75


def test_contour_accuracy_is_the_harmonic_mean():
    # two pixels far apart against one of them: precision 4 / 8, recall 4 / 4
    two = PIXEL | box(10, 12, 1, 2, 1, 2)
    assert contour_accuracy(two, PIXEL) == 2 * 0.5 * 1 / (0.5 + 1)
    assert contour_accuracy(PIXEL, two) == 2 * 0.5 * 1 / (0.5 + 1)


def test_contour_accuracy_without_a_contour():
    full = np.ones_like(EMPTY)
    assert contour_accuracy(EMPTY, EMPTY) == 1
    assert contour_accuracy(full, EMPTY) == 1  # a full mask has no boundary either
    assert contour_accuracy(PIXEL, EMPTY) == 0
    assert contour_accuracy(EMPTY, PIXEL) == 0
    assert contour_accuracy(PIXEL, EMPTY, void=PIXEL) == 1


def test_statistics():
    # nine frames: bins of frames 1-3, 3-5, 5-7, 7-9
    per_frame = np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    mean, recall, decay = statistics(per_frame)
    assert mean == pytest.approx(5.4 / 9)
    assert recall == pytest.approx(5 / 9)  # 0.5 is not above the threshold
    assert decay == pytest.approx(2.7 / 3 - 0.9 / 3)


def test_statistics_of_few_frames():
    assert statistics(np.array([0.7])) == pytest.approx((0.7, 1, 0))
    # borders 1, 1.25, 1.5, 1.75, 2 become 1, 1, 2, 2, 2: frame 1 against frame 2
    assert statistics(np.array([1.0, 0.0])) == pytest.approx((0.5, 0.5, 1))
    with pytest.raises(ValueError, match="no frame"):
        statistics(np.array([]))


def test_decay_of_a_long_sequence_uses_its_last_quarter():
    per_frame = np.ones(1001)
    per_frame[-251:] = 0
    assert statistics(per_frame).decay == 1


@pytest.mark.parametrize("measure", [region_similarity, contour_accuracy])
def test_different_shapes_are_refused(measure):
    with pytest.raises(ValueError, match="expected the same"):
        measure(EMPTY, EMPTY[:-1])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("voids", [False, True])
def test_random_masks_against_the_definitions(seed, voids):
    generator = np.random.default_rng(seed)
    shape = (3, *generator.integers(3, 24, 2))
    prediction, truth = (blobs(generator, shape) for _ in range(2))
    void = blobs(generator, shape) if voids else None
    bound = generator.integers(1, 5) if seed % 2 else 0.08
    regions = region_similarity(prediction, truth, void)
    contours = contour_accuracy(prediction, truth, void, bound)
    assert regions.shape == contours.shape == (3,)
    for index in range(3):
        masks = prediction[index], truth[index], None if void is None else void[index]
        assert regions[index] == pytest.approx(plain_region(*masks), abs=1e-15)
        assert contours[index] == pytest.approx(plain_contour(*masks, bound), abs=1e-15)


def blobs(generator, shape):
    """Random masks with holes, specks and touching borders; some empty, some full."""
    masks = generator.random(shape) < generator.choice([0, 0.05, 0.5, 1], size=(shape[0], 1, 1))
    for mask in masks:
        top, left = generator.integers(0, shape[1]), generator.integers(0, shape[2])
        mask[top : top + shape[1] // 2, left : left + shape[2] // 2] ^= True
    return masks


def plain_region(prediction, truth, void):
    shared = together = 0
    for y, x in itertools.product(*map(range, truth.shape)):
        if void is None or not void[y, x]:
            shared += prediction[y, x] and truth[y, x]
            together += prediction[y, x] or truth[y, x]
    return 1 if together == 0 else shared / together


def plain_contour(prediction, truth, void, bound):
    radius = bound if bound >= 1 else math.ceil(bound * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    found = plain_boundary(prediction if void is None else prediction & ~void)
    true = plain_boundary(truth if void is None else truth & ~void)
    if not found or not true:
        return float(not found and not true)
    precision = sum(any(math.dist(a, b) <= radius for b in true) for a in found) / len(found)
    recall = sum(any(math.dist(a, b) <= radius for b in found) for a in true) / len(true)
    return 0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def plain_boundary(mask):
    """Pixels that differ from a right, lower or lower right neighbor that is in the image."""
    height, width = mask.shape
    points = []
    for y, x in itertools.product(range(height), range(width)):
        neighbors = [(y, x + 1), (y + 1, x)]
        if y < height - 1 and x < width - 1:
            neighbors.append((y + 1, x + 1))
        if any(a < height and b < width and mask[a, b] != mask[y, x] for a, b in neighbors):
            points.append((y, x))
    return points
