"""Procedural clips: the same seed gives the same bytes, the masks are exact, objects cross."""

import hashlib

import numpy as np
import pytest

from stm_fast.data.synthetic import MAX_OBJECTS, SyntheticClip


def test_shapes_and_ids() -> None:
    images, ids = SyntheticClip(3, frames=4, height=90, width=121, objects=2).stack()
    assert images.shape == (4, 90, 121, 3)
    assert ids.shape == (4, 90, 121)
    assert images.dtype == ids.dtype == np.uint8
    assert set(np.unique(ids)) == {0, 1, 2}


def test_the_same_seed_gives_the_same_bytes_in_any_order() -> None:
    images, ids = SyntheticClip(5, frames=9, height=96, width=128).stack()
    again = SyntheticClip(5, frames=9, height=96, width=128)
    for index in (7, 0, 8, -1):
        np.testing.assert_array_equal(again[index].image, images[index])
        np.testing.assert_array_equal(again[index].ids, ids[index])
    other = SyntheticClip(6, frames=9, height=96, width=128)
    assert (other[0].image != images[0]).mean() > 0.5


def test_a_longer_clip_starts_like_a_shorter_one() -> None:
    short, long = SyntheticClip(1, frames=3, height=64, width=96), SyntheticClip(1, frames=5000, height=64, width=96)
    np.testing.assert_array_equal(short[2].image, long[2].image)
    assert long[4999].ids.any()
    assert len(long) == 5000
    with pytest.raises(IndexError):
        long[5000]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_objects_start_in_sight_move_and_cross(seed: int) -> None:
    _, ids = SyntheticClip(seed).stack()  # [40, 240, 432]
    areas = np.stack([(ids == label).sum((1, 2)) for label in (1, 2, 3)])  # [3, 40]
    assert (areas[:, 0] > 500).all()
    # the swing in scale alone takes no object below (0.82 / 1.18)**2 = 0.48 of its largest area
    assert (areas.min(1) < 0.45 * areas.max(1)).any()
    for label in (1, 2, 3):
        rows, columns = np.nonzero(ids[0] == label)
        later_rows, later_columns = np.nonzero(ids[15] == label)
        if later_rows.size:
            assert np.hypot(later_rows.mean() - rows.mean(), later_columns.mean() - columns.mean()) > 10


def test_nothing_moves_at_speed_zero() -> None:
    clip = SyntheticClip(2, frames=30, height=96, width=160, speed=0)
    np.testing.assert_array_equal(clip[0].image, clip[29].image)


def test_masks_are_exact() -> None:
    """An object changes the picture only inside its mask and at its soft edge, half a pixel outside."""
    clip = SyntheticClip(4, frames=20, height=120, width=200, objects=3)
    frame = clip[10]
    background = clip._background.render(10)
    changed = np.abs(frame.image - background).max(2) > 1  # [H, W]
    inside = frame.ids > 0
    grown = inside.copy()
    for shift, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
        grown |= np.roll(inside, shift, axis)
    assert not (changed & ~grown).any()
    assert (changed & inside).sum() > 0.97 * inside.sum()


def test_edges_are_soft_in_the_picture_only() -> None:
    clip = SyntheticClip(4, frames=2, height=120, width=200, objects=1)
    frame = clip[0]
    background = clip._background.render(0)
    changed = np.abs(frame.image - background).max(2) > 1
    assert (changed & (frame.ids == 0)).any()


@pytest.mark.parametrize("objects", [0, 1, 5])
def test_any_number_of_objects(objects: int) -> None:
    clip = SyntheticClip(0, frames=2, height=120, width=400, objects=objects, object_size=(0.08, 0.12))
    assert set(np.unique(clip[0].ids)) == set(range(objects + 1))


@pytest.mark.parametrize(
    "options",
    [
        {"frames": 0},
        {"height": 8},
        {"objects": MAX_OBJECTS + 1},
        {"object_size": (0.3, 0.2)},
        {"object_size": (0, 1)},
        {"hidden": (0, 3)},
        {"hidden": (3, 2)},
    ],
    ids=str,
)
def test_numbers_outside_the_limits_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SyntheticClip(0, **options)


def test_objects_are_hidden_and_come_back() -> None:
    clip, shown = (SyntheticClip(3, frames=200, height=48, width=64, objects=2, hidden=h) for h in ((10, 20), None))
    visible = np.array([[label in clip.ids(time) for label in (1, 2)] for time in range(200)])
    assert visible[:10].all()
    for column in visible.T:
        changes = np.flatnonzero(np.diff(column)) + 1
        lengths = np.diff(changes)
        assert len(lengths) > 4
        assert lengths.min() >= 10
        assert lengths.max() <= 20
    assert not np.array_equal(*visible.T)
    for time in (0, int(np.argmin(visible.all(1)))):
        hidden = [label for label in (1, 2) if label not in clip.ids(time)]
        same = ~np.isin(shown.ids(time), hidden)
        assert np.array_equal(clip.ids(time)[same], shown.ids(time)[same])
    assert hidden
    assert np.array_equal(clip[0].image, shown[0].image)


@pytest.mark.slow
def test_objects_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        SyntheticClip(0, height=64, width=64, objects=12, object_size=(0.4, 0.5))


def test_the_bytes_of_a_seed_are_pinned() -> None:
    """The figures that the demo prints hold for these bytes; a change of the drawing changes both."""
    images, ids = SyntheticClip(0, frames=3, height=64, width=96).stack()
    digest = hashlib.sha256(images.tobytes() + ids.tobytes()).hexdigest()[:16]
    assert digest == "ca09cefeae7b6e7d"
