"""Clips drawn on the device: frame and mask stay together, a batch is a function of seed and keys."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from stm_fast.data.augmentation import Augmentation
from stm_fast.data.clips import SampleKey
from stm_fast.data.device_clips import DeviceClips
from stm_fast.data.geometry import Motion, crop_view, draw_path, mirrored, offsets, resample, sampling_grid
from stm_fast.data.images import image_source
from stm_fast.data.sequences import folder
from stm_fast.data.store import LEVELS, ImageStore
from stm_fast.data.synthetic_source import SyntheticSource
from stm_fast.data.videos import VideoSource
from stm_fast.errors import InputError
from training_runs import STILL, WILD, color_of, inner, painted, write_pair, write_stills, write_video

SIZE = (48, 64)
CPU = torch.device("cpu")


@pytest.fixture
def stills(tmp_path):
    return write_stills(tmp_path / "stills")


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "video")


def clips_of(*sources, augmentation=STILL, seed=0, frames=3, size=SIZE, max_objects=3):
    clips = DeviceClips(
        [(source, 1.0) for source in sources],
        length=100,
        frames=frames,
        size=size,
        max_objects=max_objects,
        augmentation=augmentation,
        seed=seed,
        skip_corrupt=False,
    )
    return clips.to(CPU)


def keys(count, epoch=0, max_skip=3):
    return [SampleKey(epoch, index, max_skip) for index in range(count)]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True)) and first[2:] == second[2:]


# --- a batch is a function of seed and keys


@pytest.mark.slow
def test_a_batch_depends_only_on_the_seed_and_the_sample_keys(stills, video):
    def sources():
        return image_source(stills), VideoSource(folder(video, "all")), SyntheticSource(2, 48, 64, frames=6)

    clips = clips_of(*sources(), augmentation=WILD)
    batch = clips.batch(keys(20))
    clips.batch(keys(3, epoch=1))
    assert same(batch, clips.batch(keys(20)))
    assert same(batch, clips_of(*sources(), augmentation=WILD).batch(keys(20)))
    assert not torch.equal(batch.frames, clips_of(*sources(), augmentation=WILD, seed=1).batch(keys(20)).frames)
    assert not torch.equal(batch.frames, clips.batch(keys(20, epoch=1)).frames)


@pytest.mark.slow
def test_a_clip_does_not_depend_on_its_batch(stills, video):
    clips = clips_of(image_source(stills), VideoSource(folder(video, "all")), augmentation=WILD)
    together = clips.batch(keys(18))
    for index, key in enumerate(keys(18)):
        alone = clips.batch([key])
        # sums of products may be rounded differently in other batches
        assert (alone.frames[0].int() - together.frames[index].int()).abs().max() <= 1
        assert (alone.ids[0] != together.ids[index]).float().mean() < 1e-3
        assert alone.names[0] == together.names[index]


# --- frame and mask move together


def test_without_augmentation_a_clip_repeats_the_image(tmp_path):
    ids = painted(*SIZE, {1: (5, 5, 40, 60)})
    write_pair(tmp_path, "one", ids)
    batch = clips_of(image_source(tmp_path)).batch(keys(2))
    for frame, mask in zip(batch.frames.flatten(0, 1), batch.ids.flatten(0, 1), strict=True):
        assert np.array_equal(frame.permute(1, 2, 0), color_of(ids))
        assert np.array_equal(mask, ids)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(48, 64), (80, 40)])
def test_colors_still_identify_objects_after_motion(stills, video, size):
    clips = clips_of(image_source(stills), VideoSource(folder(video, "all")), augmentation=WILD, size=size)
    batch = clips.batch(keys(30, max_skip=5))
    seen = set()
    for frames, ids, objects, name in zip(batch.frames, batch.ids, batch.objects, batch.names, strict=True):
        pixels = frames.permute(0, 2, 3, 1)  # [T, h, w, 3]
        for label in range(1, objects + 1):
            colors = pixels[(ids == label) & inner(ids)].unique(dim=0).int()
            assert len(colors) == 0 or (colors - colors[0]).abs().max() <= 1, f"{name}: {label}: {colors.tolist()}"
            seen.update(map(tuple, colors[:1].tolist()))
    known = {label: tuple(color_of(label).tolist()) for label in (1, 3, 7, 9, 4)}
    nearest = {
        min(known, key=lambda label: sum(abs(a - b) for a, b in zip(known[label], one, strict=True))) for one in seen
    }
    assert {1, 3, 7, 9} <= nearest
    assert all(any(max(abs(a - b) for a, b in zip(one, of, strict=True)) <= 1 for of in known.values()) for one in seen)


def test_pictures_far_larger_than_the_crop_are_averaged(tmp_path):
    noise = np.random.default_rng(0).integers(0, 2, (400, 600)).astype(np.uint8)
    write_pair(tmp_path, "noise", noise)
    batch = clips_of(image_source(tmp_path), size=(48, 64)).batch(keys(1))
    expected = color_of(1).astype(float) / 2
    assert abs(batch.frames.float().mean((0, 1, 3, 4)).numpy() - expected).max() < 3
    assert batch.frames[0, 0, 0].float().std() < 0.25 * color_of(1)[0]


@pytest.mark.parametrize("level", range(LEVELS))
def test_sampling_the_store_matches_sampling_single_pictures(tmp_path, level):
    write_pair(tmp_path, "a", painted(61, 45, {2: (16, 8, 48, 40)}))
    write_pair(tmp_path, "b", painted(40, 64, {5: (3, 8, 30, 40), 6: (31, 8, 38, 60)}))
    source = image_source(tmp_path)
    store, shot, picture, crop = ImageStore([source], CPU), source.frame(1, 0), (40, 64), (20, 30)
    view = crop_view(picture, crop, 0.9, 1.0, (20.0, 42.0))
    views = mirrored(view) @ draw_path(Motion(20, 5, 0.1, 0.3), 3, 20, np.random.default_rng(0))  # beyond the edges
    columns, rows = (side.expand(crop).flatten() for side in offsets(crop))
    x, y = torch.from_numpy(views).float().matmul(torch.stack([columns, rows, torch.ones(600)])).unbind(1)  # [3, 600]
    assert x.max() > 64
    number = torch.ones(3, dtype=torch.int64)

    small = torch.from_numpy(shot.read(1 << level)).permute(2, 0, 1)[None]
    expected = resample(small, sampling_grid(views, crop, picture, shrink=1 << level)).flatten(2).mT
    found = store.colors(number, torch.full((3,), level), x, y)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)

    grid = sampling_grid(views, crop, picture)
    object_5 = torch.from_numpy(shot.ids == 5)[None, None]
    cover = store.cover(number, torch.tensor([1, 1, 1]), x, y)
    torch.testing.assert_close(cover, resample(object_5, grid, padding="zeros").flatten(1), atol=1e-3, rtol=0)
    mask = tv_tensors.Mask(torch.from_numpy(shot.ids)[None, None])
    labels = resample(mask, grid).flatten(1)  # ids 0, 5 and 6 are labels 0, 1 and 2
    assert (store.ids(number, x, y) != (labels - 4).clamp_min(0)).float().mean() < 0.01


# --- objects


def test_ids_stay_ids_and_all_objects_are_in_the_first_frame(stills, video):
    clips = clips_of(
        image_source(stills),
        VideoSource(folder(video, "all")),
        SyntheticSource(2, 48, 64, frames=6),
        augmentation=replace(Augmentation(), warp=1.0, paste=1.0, video_paste=1.0),
    )
    batch = clips.batch(keys(40))
    assert batch.frames.shape == (40, 3, 3, *SIZE)
    assert batch.ids.shape == (40, 3, *SIZE)
    assert batch.frames.dtype == batch.ids.dtype == torch.uint8
    assert batch.frames.float().std() > 20
    for ids, objects in zip(batch.ids, batch.objects, strict=True):
        assert set(ids[0].unique().tolist()) - {0} == set(range(1, objects + 1))
        assert int(ids.max()) == objects
    assert max(batch.objects) == 3


def test_objects_appear_where_the_first_frame_shows_them(video):
    batch = clips_of(VideoSource(folder(video, "all"))).batch(keys(30, max_skip=8))
    for name, objects in zip(batch.names, batch.objects, strict=True):
        assert objects == (2 if int(Path(name).stem) >= 20 else 1)
    assert set(batch.objects) == {1, 2}


def test_number_of_objects_is_limited_and_their_order_random(tmp_path):
    boxes = {label: (0, 8 * at, 30, 8 * at + 8) for at, label in enumerate((3, 50, 100, 200, 254))}
    write_pair(tmp_path, "row", painted(30, 40, boxes))
    batch = clips_of(image_source(tmp_path), max_objects=2).batch(keys(20))
    assert set(batch.objects) == {2}
    places = {tuple(int((ids[0] == label).any(0).nonzero()[0]) for label in (1, 2)) for ids in batch.ids}
    assert len(places) > 5


def test_pasted_objects_get_new_ids_and_move_relative_to_the_background(stills):
    plain = clips_of(image_source(stills), max_objects=9).batch(keys(20))
    changes = {"paste": 1.0, "paste_most": 2, "paste_translation": 0.2}
    pasted = clips_of(image_source(stills), augmentation=replace(STILL, **changes), max_objects=9).batch(keys(20))
    assert max(plain.objects) == 2
    assert max(pasted.objects) == 4
    ids = next(ids for ids, objects in zip(pasted.ids, pasted.objects, strict=True) if objects == 4)
    assert not all(torch.equal(ids[0] == label, ids[2] == label) for label in range(1, 5))


def test_a_crop_holds_an_object_however_small(tmp_path):
    write_pair(tmp_path, "corner", painted(200, 200, {1: (180, 180, 196, 196)}))
    tight = Augmentation(crop_area=(0.05, 0.1), paste=0, still_translation=0, warp=0)
    clips = clips_of(image_source(tmp_path), augmentation=tight)
    for key in keys(20):
        assert (clips.batch([key]).ids[0, 0] == 1).any()


def test_clips_without_an_object_are_replaced(tmp_path):
    write_pair(tmp_path, "empty", painted(40, 40, {}))
    write_pair(tmp_path, "speck", painted(40, 40, {1: (0, 0, 1, 1)}))
    with pytest.raises(InputError, match="5 clips drawn and none can be used, expected objects"):
        clips_of(image_source(tmp_path)).batch(keys(5))
    write_pair(tmp_path, "full", painted(40, 40, {1: (5, 5, 30, 30)}))
    batch = clips_of(image_source(tmp_path)).batch(keys(12))
    assert {Path(name).stem for name in batch.names} == {"full"}
    assert set(batch.objects) == {1}
    assert (batch.ids[:, 0] == 1).flatten(1).any(1).all()


def test_a_broken_picture_is_named(stills):
    (stills / "JPEGImages" / "wide.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"wide\.png"):
        clips_of(image_source(stills))
