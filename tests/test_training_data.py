"""Training clips: frame and mask stay aligned, every item is a function of seed and key, bad data are reported."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.utils.data import DataLoader

from stm_fast.data.augmentation import Augmentation
from stm_fast.data.clips import ClipDataset, SampleKey, collate, renumbered
from stm_fast.data.geometry import Motion, crop_view, draw_path, draw_warps, mirrored, resample, sampling_grid
from stm_fast.data.images import image_source
from stm_fast.data.sequences import Objects, Sequence, davis16, folder
from stm_fast.data.source import draw_frames, read_image
from stm_fast.data.synthetic import FIRST_TRAINING_SEED, SyntheticClip
from stm_fast.data.synthetic_source import SyntheticSource, draw_occlusion
from stm_fast.data.videos import VideoSource, draw_times
from stm_fast.errors import InputError
from stm_fast.training.config_file import from_plain
from stm_fast.video import write_mask
from training_runs import SMALL, STILL, WILD, color_of, inner, painted, write_pair, write_stills, write_video

SHARED = Path(__file__).resolve().parents[2] / "shared"
SIZE = (48, 64)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def stills(tmp_path):
    return write_stills(tmp_path / "stills")


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "video")


def dataset(*sources, augmentation=STILL, skip_corrupt=False, seed=0, frames=3, size=SIZE, max_objects=3):
    return ClipDataset(
        [(source, 1.0) for source in sources],
        length=100,
        frames=frames,
        size=size,
        max_objects=max_objects,
        augmentation=augmentation,
        seed=seed,
        skip_corrupt=skip_corrupt,
    )


def same(first, second):
    tensors = all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True))
    return tensors and first[2:] == second[2:]


# --- an item is a function of seed and key


@pytest.mark.slow
def test_items_do_not_depend_on_worker_order_or_process(stills, video):
    clips = dataset(image_source(stills), VideoSource(folder(video, "all")), augmentation=WILD, size=(24, 24))
    keys = [SampleKey(epoch, index, 3) for epoch in (0, 5) for index in range(6)]
    direct = {key: clips[key] for key in reversed(keys)}
    loader = DataLoader(clips, 1, sampler=keys, num_workers=2, multiprocessing_context="fork", collate_fn=list)
    for key, [clip] in zip(keys, loader, strict=True):
        assert same(clip, direct[key])
    assert not same(direct[keys[0]], direct[keys[6]]), "two epochs drew the same"
    assert not same(direct[keys[0]], dataset(image_source(stills), augmentation=WILD, seed=1)[keys[0]])


def test_a_batch_is_the_clips_stacked(stills):
    clips = dataset(image_source(stills))
    drawn = [clips[SampleKey(0, index, 0)]._replace(faults=("broken",) * index) for index in range(3)]
    batch = collate(drawn)
    assert batch.frames.shape == (3, 3, 3, *SIZE)
    assert batch.ids.shape == (3, 3, *SIZE)
    assert batch.frames.dtype == batch.ids.dtype == torch.uint8
    assert torch.equal(batch.frames[1], drawn[1].frames)
    assert torch.equal(batch.ids[2], drawn[2].ids)
    assert batch.objects == [clip.objects for clip in drawn]
    assert batch.names == [clip.name for clip in drawn]
    assert batch.faults == ["broken"] * 3


# --- frame and mask move together


@pytest.mark.slow
@pytest.mark.parametrize("size", [(48, 64), (80, 40)])
def test_colors_still_identify_objects_after_motion(stills, video, size):
    # all ids are kept, so that colors identify them
    clips = dataset(image_source(stills), VideoSource(folder(video, "all")), augmentation=WILD, size=size)
    seen = set()
    for index in range(30):
        clip = clips[SampleKey(0, index, 5)]
        frames = clip.frames.permute(0, 2, 3, 1)  # [T, h, w, 3]
        for label in range(1, clip.objects + 1):
            own = (clip.ids == label) & inner(clip.ids)
            colors = frames[own].unique(dim=0)
            assert len(colors) <= 1, f"{clip.name}: object {label} has the colors {colors.tolist()}"
            seen.update(map(tuple, colors.tolist()))
    known = {label: tuple(color_of(label).tolist()) for label in (1, 3, 7, 9, 4)}
    assert {known[label] for label in (1, 3, 7, 9)} <= seen <= set(known.values())


def test_without_augmentation_a_clip_repeats_the_image(tmp_path):
    ids = painted(*SIZE, {1: (5, 5, 40, 60)})
    write_pair(tmp_path, "one", ids)
    clip = dataset(image_source(tmp_path))[SampleKey(0, 0, 0)]
    for frame, mask in zip(clip.frames, clip.ids, strict=True):
        assert np.array_equal(frame.permute(1, 2, 0), color_of(ids))
        assert np.array_equal(mask, ids)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_decoded_at_a_reduced_size_fit_their_masks(tmp_path, suffix):
    ids = painted(403, 517, {1: (101, 50, 303, 255), 2: (10, 300, 390, 510)})
    write_pair(tmp_path, "large", ids, suffix)
    clips = dataset(image_source(tmp_path), size=(48, 60))  # 8 pixels become one
    clip = clips[SampleKey(0, 0, 0)]
    expected = {tuple(color_of(label).tolist()) for label in (1, 2)}
    frames = clip.frames.permute(0, 2, 3, 1).int()
    for label in (1, 2):
        colors = frames[(clip.ids == label) & inner(clip.ids)]
        own = colors[0]
        assert (colors - own).abs().max() <= 3
        assert min(int((own - torch.tensor(color)).abs().max()) for color in expected) <= 3


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_a_reduced_picture_is_the_mean_of_blocks(tmp_path, suffix, shrink):
    ids = painted(61, 45, {1: (16, 8, 48, 40)})
    write_pair(tmp_path, "a", ids, suffix)
    image = read_image(tmp_path / "JPEGImages" / f"a.{suffix}", (61, 45), Path("mask.png"), shrink)
    assert image.shape == (-(-61 // shrink), -(-45 // shrink), 3)
    inside = image[16 // shrink : 48 // shrink, 8 // shrink : 40 // shrink].astype(int)
    assert abs(inside - color_of(1).astype(int)).max() <= 3


@pytest.mark.parametrize("shrink", [1, 2])
def test_images_of_any_mode_become_rgb_and_deep_ones_are_refused(tmp_path, shrink):
    file = tmp_path / "a.png"
    grey = Image.fromarray(np.full((8, 12), 200, np.uint8))
    for picture in (grey, grey.convert("P"), grey.convert("1", dither=Image.Dither.NONE), grey.convert("LA")):
        picture.save(file)
        found = read_image(file, (8, 12), file, shrink)
        assert found.shape == (8 // shrink, 12 // shrink, 3)
        assert (found == np.array(picture.convert("RGB"))[0, 0]).all()
    Image.fromarray(np.full((8, 12), 3000, np.uint16)).save(file)
    with pytest.raises(InputError, match=r"a\.png: image of mode I;16, expected 8 bits per channel"):
        read_image(file, (8, 12), file, shrink)


def test_exif_orientation_is_applied(tmp_path):
    ids = painted(20, 40, {1: (0, 0, 20, 10)})
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turn it clockwise
    stored = Image.fromarray(color_of(ids)).transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=exif)
    for shrink in (1, 2):
        image = read_image(tmp_path / "a.jpg", ids.shape, Path("mask.png"), shrink).astype(int)
        assert abs(image - color_of(ids[::shrink, ::shrink])).max() <= 6


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_reduced_picture_is_sampled_at_the_same_points(shrink):
    columns = torch.arange(61.0).expand(1, 1, 40, 61)
    view = crop_view((40, 61), (10, 10), 0.1, 1.0, (20.0, 42.0))
    views = mirrored(view) @ draw_path(Motion(5, 5, 0.1, 0.1), 2, 10, np.random.default_rng(0))
    blocks = torch.nn.functional.avg_pool2d(columns, shrink, ceil_mode=True)
    full, small = (
        resample(picture, sampling_grid(views, (10, 10), (40, 61), shrink=s))
        for picture, s in ((columns, 1), (blocks, shrink))
    )
    assert full.max() - full.min() > 10
    assert torch.allclose(full, small, atol=1e-3)


def test_each_frame_moves_on_from_the_previous_one():
    motion = Motion(rotation=10, shear=5, zoom=0.1, translation=0.2)
    paths = np.stack([draw_path(motion, 4, 100, np.random.default_rng(seed)) for seed in range(200)])  # [200, T, 3, 3]
    places = paths[:, :, :2, 2]
    assert abs(places[:, 0]).max() <= 20
    assert abs(np.diff(places, axis=1)).max() <= 20
    assert places[:, 3].std() > 1.7 * places[:, 0].std()
    zooms = np.sqrt(np.linalg.det(paths[:, :, :2, :2]))
    assert abs(np.log(zooms[:, 0])).max() <= 0.1


def test_a_thin_plate_goes_through_its_control_points_and_bends():
    warps = draw_warps(0.1, 2, (65, 65), np.random.default_rng(0))  # [T, h, w, 2]
    points = np.random.default_rng(0).uniform(-6.5, 6.5, (2, 4, 4, 2)).cumsum(0)  # [T, x, y, 2]
    for x, y in ((0, 0), (0, 3), (3, 0), (3, 3)):
        assert abs(warps[:, y // 3 * 64, x // 3 * 64].numpy() - points[:, x, y]).max() < 0.4
    assert warps.diff(n=2, dim=1).abs().max() > 0.01, "the warps are only affine"


# --- objects


def test_objects_are_drawn_and_renumbered(video):
    clips = dataset(VideoSource(folder(video, "all")))
    with_both = 0
    for index in range(30):
        clip = clips[SampleKey(0, index, 8)]
        assert clip.ids[0].unique().tolist() == list(range(clip.objects + 1))
        assert int(clip.ids.max()) == clip.objects
        with_both += clip.objects == 2
        time = int(Path(clip.name).stem)
        assert clip.objects == (2 if time >= 20 else 1), "object 4 counts only if the first frame shows it"
    assert 0 < with_both < 30


def test_number_of_objects_is_limited(tmp_path):
    boxes = {label: (0, 8 * at, 30, 8 * at + 8) for at, label in enumerate((3, 50, 100, 200, 254))}
    write_pair(tmp_path, "row", painted(30, 40, boxes))
    drawn = [dataset(image_source(tmp_path), max_objects=2)[SampleKey(0, index, 0)] for index in range(20)]
    assert {clip.objects for clip in drawn} == {2}
    places = {tuple(int((clip.ids[0] == label).any(0).nonzero()[0]) for label in (1, 2)) for clip in drawn}
    assert len(places) > 5, "different objects, in different orders"


def test_renumbering_is_exact():
    ids = torch.tensor([[0, 5, 255], [9, 5, 1]], dtype=torch.uint8)
    assert renumbered(ids, [255, 5]).tolist() == [[0, 2, 1], [0, 2, 0]]


def test_pasted_objects_get_new_ids(stills):
    plain = dataset(image_source(stills), max_objects=9)
    pasting = dataset(image_source(stills), augmentation=Augmentation(paste=1, paste_most=2, warp=0), max_objects=9)
    assert max(plain[SampleKey(0, index, 0)].objects for index in range(20)) == 2
    assert max(pasting[SampleKey(0, index, 0)].objects for index in range(20)) == 4


def test_objects_pasted_over_a_full_mask_get_an_id(tmp_path):
    write_pair(tmp_path, "full", painted(60, 60, {1: (0, 0, 60, 60)}))
    clips = dataset(image_source(tmp_path), augmentation=replace(STILL, paste=1.0, paste_most=1))
    assert all(clips[SampleKey(0, index, 0)].ids.unique().tolist() == [1, 2] for index in range(5))


def test_pasted_objects_move_against_the_background(stills):
    clips = dataset(image_source(stills), augmentation=replace(STILL, paste=1.0, paste_translation=0.2))
    clip = next(clip for clip in (clips[SampleKey(0, index, 0)] for index in range(9)) if clip.objects > 1)
    stays = [torch.equal(clip.ids[0] == label, clip.ids[2] == label) for label in range(1, clip.objects + 1)]
    assert not all(stays)


def test_a_crop_holds_an_object_however_small(tmp_path, monkeypatch):
    monkeypatch.setattr("stm_fast.data.clips.TRIES", 1)
    write_pair(tmp_path, "corner", painted(200, 200, {1: (180, 180, 196, 196)}))
    tight = Augmentation(crop_area=(0.05, 0.1), paste=0, still_translation=0, warp=0)
    clips = dataset(image_source(tmp_path), augmentation=tight)
    assert all((clips[SampleKey(0, index, 0)].ids[0] == 1).any() for index in range(20))


@pytest.mark.slow
def test_clips_without_an_object_are_drawn_again(tmp_path):
    write_pair(tmp_path, "empty", painted(40, 40, {}))
    write_pair(tmp_path, "speck", painted(40, 40, {1: (0, 0, 1, 1)}))
    with pytest.raises(InputError, match="50 clips drawn and none can be used, expected objects"):
        dataset(image_source(tmp_path))[SampleKey(0, 0, 0)]
    write_pair(tmp_path, "full", painted(40, 40, {1: (5, 5, 30, 30)}))
    clips = dataset(image_source(tmp_path))
    assert {Path(clips[SampleKey(0, index, 0)].name).stem for index in range(10)} == {"full"}


# --- time


@pytest.mark.parametrize("max_skip", [0, 1, 4])
def test_times_increase_by_at_most_the_skip(max_skip):
    generator = np.random.default_rng(0)
    drawn = np.array([draw_times(40, 3, max_skip, generator) for _ in range(300)])
    steps = np.diff(drawn)
    assert set(steps.flatten()) == set(range(1, max_skip + 2))
    assert drawn.min() == 0
    assert drawn.max() == 39


def test_a_short_video_limits_the_skip():
    generator = np.random.default_rng(0)
    drawn = np.array([draw_times(5, 3, 25, generator) for _ in range(50)])
    assert drawn.min() == 0
    assert drawn.max() == 4
    assert set(np.diff(drawn).flatten()) == {1, 2}
    assert draw_times(3, 3, 25, generator) == [0, 1, 2]
    assert draw_times(1, 1, 25, generator) == [0]


def test_the_skip_of_a_sample_key_reaches_the_video_and_is_divided(video):
    def steps(max_skip, divisor):
        source = VideoSource(folder(video, "all"), divisor)
        drawn = [draw_frames(source, 0, 3, max_skip, np.random.default_rng(seed)) for seed in range(40)]
        return {int(step) for shots in drawn for step in np.diff([int(Path(shot.name).stem) for shot in shots])}

    assert steps(0, 1) == {1}
    assert steps(5, 1) == {1, 2, 3, 4, 5, 6}
    assert steps(5, 5) == {1, 2}


def test_videos_can_be_played_backwards(video):
    backwards = replace(STILL, reverse=1.0)
    clip = dataset(VideoSource(folder(video, "all")), augmentation=backwards)[SampleKey(0, 0, 5)]
    lefts = [int((ids == 1).any(0).nonzero()[0]) for ids in clip.ids]
    assert lefts == sorted(lefts, reverse=True) != sorted(lefts)


# --- colors


def test_colors_vary_less_within_a_clip_than_between_clips(stills):
    vivid = replace(STILL, brightness=0.3, contrast=0.3, saturation=0.3, hue=20.0)
    drawn = [dataset(image_source(stills), augmentation=vivid)[SampleKey(0, index, 0)] for index in range(20)]
    means = torch.stack([clip.frames.float().mean((2, 3)) for clip in drawn])  # [20, T, 3]
    within, between = means.std(1).mean(), means[:, 0].std(0).mean()
    assert 0.2 < within < between / 2


def test_gray_clips_have_no_color(stills):
    grey = replace(STILL, grey=1.0, brightness=0.2, contrast=0.2, hue=10.0, saturation=0.2)
    frames = dataset(image_source(stills), augmentation=grey)[SampleKey(0, 0, 0)].frames
    assert int(frames.int().amax(1).sub(frames.int().amin(1)).max()) <= 1
    assert len(frames.unique()) > 2


@pytest.mark.parametrize(
    "numbers",
    [
        {"crop_area": (0.0, 1.0)},
        {"crop_area": (0.8, 0.5)},
        {"paste_size": (0.5, 1.5)},
        {"paste": 1.5},
        {"hue": -1.0},
        {"still_zoom": float("nan")},
        {"crop_stretch": 0.5},
        {"paste_most": 0},
    ],
)
def test_numbers_out_of_range_are_refused(numbers):
    (name,) = numbers
    with pytest.raises(InputError, match=rf"test: augmentation\.{name}\b.*: found .* expected"):
        from_plain(SMALL | {"augmentation": numbers}, "test")


# --- bad data


@pytest.fixture
def corrupt(stills):
    """Twelve good stills, a truncated one, and a file that is not a picture."""
    for index in range(10):
        write_pair(stills, f"good{index}", painted(40, 40, {1: (5, 5, 30, 30)}))
    for name in ("cut", "noise"):
        write_pair(stills, name, painted(40, 40, {1: (5, 5, 30, 30)}), "jpg")
    cut, noise = (stills / "JPEGImages" / f"{name}.jpg" for name in ("cut", "noise"))
    cut.write_bytes(cut.read_bytes()[:300])
    noise.write_bytes(b"not a picture")
    return stills


def test_corrupt_pictures_are_named(corrupt):
    clips = dataset(image_source(corrupt))
    with pytest.raises(InputError, match=r"(cut|noise)\.jpg: not a readable image"):
        [clips[SampleKey(0, index, 0)] for index in range(30)]


def test_corrupt_pictures_are_skipped_logged_and_counted_reproducibly(corrupt, caplog):
    clips = dataset(image_source(corrupt), skip_corrupt=True)
    batch = collate([clips[SampleKey(0, index, 0)] for index in range(30)])
    assert len(batch.names) == 30
    assert len(batch.faults) == len(caplog.records) > 0
    assert {Path(fault.split(":")[0]).name for fault in batch.faults} == {"cut.jpg", "noise.jpg"}
    assert not {Path(name).stem for name in batch.names} & {"cut", "noise"}
    assert collate([clips[SampleKey(0, index, 0)] for index in range(30)]).names == batch.names


def test_an_epoch_of_only_corrupt_pictures_ends(tmp_path):
    write_pair(tmp_path, "only", painted(40, 40, {1: (5, 5, 30, 30)}))
    (tmp_path / "JPEGImages" / "only.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none can be used.*only\.png"):
        dataset(image_source(tmp_path), skip_corrupt=True)[SampleKey(0, 0, 0)]


def test_a_frame_without_mask_is_named_before_training(video):
    (video / "Annotations" / "walk" / "00013.png").unlink()
    with pytest.raises(InputError, match=r"walk/00013\.png: frame without mask"):
        VideoSource(folder(video, "all"))


def test_frames_that_are_not_requested_need_no_mask(video):
    (video / "Annotations" / "walk" / "00013.png").unlink()
    names = frozenset(f"{time:05d}" for time in range(0, 30, 5))
    sequence = Sequence("walk", video / "JPEGImages/walk", video / "Annotations/walk", Objects.ALL, names)
    shots = draw_frames(VideoSource([sequence]), 0, 3, 0, np.random.default_rng(0))
    assert np.diff([int(Path(shot.name).stem) for shot in shots]).tolist() == [5, 5]


def test_sizes_that_differ_are_named(stills, video):
    write_mask(stills / "Annotations" / "tall.png", painted(91, 50, {1: (30, 10, 70, 40)}))
    with pytest.raises(InputError, match=r"Annotations/tall\.png: mask of 50x91, expected 50x90 like tall\.png"):
        [dataset(image_source(stills))[SampleKey(0, index, 0)] for index in range(20)]
    for time in range(1, 30, 2):
        write_pair(video, f"walk/{time:05d}", painted(61, 100, {1: (5, 5, 30, 30)}))
    with pytest.raises(InputError, match=r"mask of 100x6[01], expected 100x6[01] like .*walk/000"):
        dataset(VideoSource(folder(video, "all")))[SampleKey(0, 0, 0)]


def test_missing_folders_empty_splits_and_short_videos_are_named(tmp_path, video):
    with pytest.raises(InputError, match=r"nowhere/JPEGImages: no such folder"):
        image_source(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere: no such folder of images"):
        image_source(tmp_path / "nowhere", "*.jpg", "*.png")
    with pytest.raises(InputError, match="no images found"):
        image_source(tmp_path, "*.jpg", "*.png")
    with pytest.raises(InputError, match="none given"):
        VideoSource([])
    lists = video / "ImageSets" / "2016"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n")
    with pytest.raises(InputError, match=r"train\.txt: found no sequence"):
        davis16(video, "train")
    for pattern in ("/*.jpg", ""):
        with pytest.raises(InputError, match=re.escape(f"{tmp_path}: found the pattern '{pattern}'")):
            image_source(tmp_path, pattern, "*.png")
    source = VideoSource(folder(video, "all"))
    with pytest.raises(InputError, match="walk: 30 frames, expected at least 31"):
        draw_frames(source, 0, 31, 0, np.random.default_rng(0))
    with pytest.raises(InputError, match="walk: 30 frames, expected at least 31"):
        dataset(source, frames=31)
    assert dataset(source, frames=31, skip_corrupt=True)
    for file in (video / "JPEGImages" / "walk").glob("*.png"):
        file.unlink()
    with pytest.raises(InputError, match="no frames in it"):
        VideoSource(folder(video, "all"))


def test_a_still_without_mask_is_named(stills):
    (stills / "Annotations" / "tall.png").unlink()
    with pytest.raises(InputError, match=r"tall\.png: no mask of this name"):
        image_source(stills)


def test_stills_and_masks_that_cannot_be_told_apart_are_refused(stills):
    for name in ("JPEGImages/tall.png", "Annotations/tall.png"):
        (stills / "more").mkdir(exist_ok=True)
        (stills / "more/tall.png").write_bytes((stills / name).read_bytes())
    for patterns in (("*/tall.png", "Annotations/*.png"), ("JPEGImages/*.png", "[Am]*/*.png")):
        with pytest.raises(InputError, match=r"tall\.png: same name as .*tall\.png"):
            image_source(stills, *patterns)
    with pytest.raises(InputError, match=r"\.png: found as image and as mask, expected two files"):
        image_source(stills, "Annotations/*.png", "Annotations/*.png")
    (stills / "Annotations").rename(stills / "masks")
    (stills / "Annotations").symlink_to("JPEGImages")
    with pytest.raises(InputError, match=r"\.png: found as image and as mask, expected two files"):
        image_source(stills)


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [float("nan")]])
def test_invalid_weights_of_sources_are_refused(stills, weights):
    with pytest.raises(InputError, match="data: weights"):
        ClipDataset(
            [(image_source(stills), weight) for weight in weights],
            length=1,
            frames=3,
            size=SIZE,
            max_objects=1,
            augmentation=STILL,
            seed=0,
            skip_corrupt=False,
        )


# --- sources


def ids_of(source, index=0):
    return draw_frames(source, index, 1, 0, np.random.default_rng(0))[0].ids


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("P", [0, 1, 2, 255], [0, 1, 2, 0]),  # VOC: 255 is void
        ("P", [0, 255, 255, 0], [0, 255, 255, 0]),  # one object
        ("L", [0, 1, 2, 3], [0, 1, 2, 3]),
        ("L", [0, 255, 128, 100], [0, 1, 1, 0]),  # a saliency map
        ("1", [0, 255, 255, 0], [0, 1, 1, 0]),
        ("RGB", [0, 255, 200, 10], [0, 1, 1, 0]),
        ("RGBA", [0, 255, 255, 0], [0, 255, 255, 0]),
    ],
)
def test_masks_of_stills_are_ids_or_saliency(tmp_path, mode, values, expected):
    picture = Image.fromarray(np.array([values], np.uint8))
    if mode == "P":
        picture.putpalette(list(range(256)) * 3)
    if mode == "RGBA":  # white on transparent
        picture = Image.merge("RGBA", [Image.new("L", picture.size, 255)] * 3 + [picture])
    Image.new("RGB", (4, 1)).save(tmp_path / "a.jpg")
    picture.convert(mode).save(tmp_path / "a.png")
    assert ids_of(image_source(tmp_path, "*.jpg", "*.png")).tolist() == [expected]


def test_synthetic_clips_have_their_own_seeds():
    clip = dataset(SyntheticSource(5, 64, 80))[SampleKey(0, 0, 3)]
    kind, seed, _ = clip.name.split(":")
    assert kind == "synthetic"
    assert FIRST_TRAINING_SEED <= int(seed) < FIRST_TRAINING_SEED + 5
    assert 1 <= clip.objects <= 3
    with pytest.raises(InputError, match="frames: synthetic clips of 2, expected at least 3"):
        draw_frames(SyntheticSource(5, 64, 80, frames=2), 0, 3, 0, np.random.default_rng(0))


def test_masks_of_sbd(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    Image.new("RGB", (40, 30), (10, 20, 30)).save(tmp_path / "a.jpg")
    ids = np.zeros((30, 40), np.uint8)
    ids[3:9, 4:20], ids[12:20, 10:30] = 1, 2
    scipy_io.savemat(tmp_path / "a.mat", {"GTinst": {"Segmentation": ids, "Categories": [[5], [7]]}})
    (shot,) = draw_frames(image_source(tmp_path, "*.jpg", "*.mat"), 0, 1, 0, np.random.default_rng(0))
    assert np.array_equal(shot.ids, ids)


def hidden_share(clip, times):
    """The share of its area at both ends that the best hidden object loses in between."""
    areas = np.array([np.bincount(clip.ids(time).ravel(), minlength=4)[1:4] for time in times])
    ends = np.minimum(areas[0], areas[-1])
    return ((ends - areas.min(0)) / np.maximum(ends, 1)).max()


@pytest.mark.slow
def test_an_occlusion_hides_an_object_between_frames_that_show_it():
    shares: dict[str, list[float]] = {"occlusion": [], "ordinary": []}
    for seed in range(12):
        clip = SyntheticClip(FIRST_TRAINING_SEED + seed, frames=100, height=48, width=80)
        generator = np.random.default_rng(seed)
        times = draw_occlusion(clip, 4, 22, generator)
        assert times is not None
        assert len(times) == 4
        assert times == sorted(set(times))
        assert 0 <= times[0] < times[-1] <= min(times[0] + 2 * 22, 99)
        assert times == draw_occlusion(clip, 4, 22, np.random.default_rng(seed))
        shares["occlusion"].append(hidden_share(clip, times))
        shares["ordinary"].append(hidden_share(clip, draw_times(100, 4, 14, generator)))
    assert np.mean(shares["occlusion"]) > 0.7 > 0.4 > np.mean(shares["ordinary"])


def test_no_occlusion_without_motion_or_without_objects():
    generator = np.random.default_rng(0)
    still = SyntheticClip(3, frames=30, height=48, width=80, speed=0.0)
    assert draw_occlusion(still, 3, 10, generator) is None
    assert draw_occlusion(SyntheticClip(3, frames=30, height=48, width=80, objects=0), 3, 10, generator) is None
    source = SyntheticSource(3, 48, 80, 6, hidden=1.0)
    assert len(draw_frames(source, 0, 2, 1, generator)) == 2


@pytest.fixture
def coco(tmp_path):
    """Two pictures: a small box on a larger one and a crowd in the first, nothing in the second."""
    pytest.importorskip("pycocotools")
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (40, 30), (10, 20, 30)).save(tmp_path / name)

    def box(number, left, top, right, bottom, crowd=0):
        outline: list = [[left, top, right, top, right, bottom, left, bottom]]
        counts = {"size": [30, 40], "counts": [0, 1200]}
        area = (right - left) * (bottom - top)
        segmentation = counts if crowd else outline
        return {
            "id": number,
            "image_id": 1,
            "iscrowd": crowd,
            "category_id": 1,
            "area": area,
            "segmentation": segmentation,
        }

    images = [{"id": n, "file_name": f"{n}.jpg", "height": 30, "width": 40} for n in (1, 2)]
    boxes = [box(1, 12, 12, 18, 18), box(2, 5, 5, 25, 25), box(3, 0, 0, 40, 30, crowd=1)]
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1}]}))
    return file


def test_coco_instances_are_objects(coco, capsys):
    from stm_fast.data.coco import CocoSource

    source = CocoSource(coco.parent, coco)
    assert len(source) == 1
    assert capsys.readouterr().out == ""
    assert np.array_equal(ids_of(source), painted(30, 40, {1: (5, 5, 25, 25), 2: (12, 12, 18, 18)}))
    clip = dataset(source, size=(30, 40))[SampleKey(0, 0, 0)]
    assert clip.objects == 2
    assert clip.frames[0, :, 0, 0].tolist() == [10, 20, 30]


def test_bad_coco_is_named(coco, tmp_path, monkeypatch):
    from stm_fast.data import coco as module

    with pytest.raises(InputError, match=r"none\.json: no such file"):
        module.CocoSource(tmp_path, tmp_path / "none.json")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        module.CocoSource(tmp_path / "nowhere", coco)
    broken = (("[", "not JSON"), ("[1]", "not a COCO instances file"), ('{"images": 1}', "not a COCO instances file"))
    for text, message in (*broken, ("{}", "no instances, expected"), ("\udcff", "found invalid UTF-8 at byte 0")):
        coco.write_text(text, errors="surrogateescape")
        with pytest.raises(InputError, match=rf"instances\.json: {message}"):
            module.CocoSource(tmp_path, coco)
    monkeypatch.setattr("stm_fast.video.coco_shapes.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"COCO needs pycocotools: pip install pycocotools$"):
        module.CocoSource(tmp_path, coco)


@pytest.mark.skipif(not (SHARED / "data" / "static").is_dir(), reason="shared data are absent")
def test_real_data_give_clips():
    data = SHARED / "data"
    videos, stills = VideoSource(davis16(data / "davis16-train", "train")), image_source(data / "static")
    assert (len(videos), len(stills)) == (26, 792)
    clips = dataset(videos, stills, augmentation=Augmentation(video_paste=0.5), size=(96, 96))
    for index in range(6):
        clip = clips[SampleKey(0, index, 5)]
        assert clip.ids[0].unique().tolist() == list(range(clip.objects + 1))
        assert clip.frames.float().std() > 5
