"""Results made from the probabilities: each is read back, compared with them, and the same after a resumed run."""

import itertools
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from small_inputs import HEIGHT, WIDTH, contents, small_network, write_video
from stm_fast.errors import InputError
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.runs.loop import Segmented, run
from stm_fast.runs.output_folder import VIDEOS
from stm_fast.runs.video import InterruptedRun, segment_video
from stm_fast.video import VIDEO_WRITERS, open_frames, read_written_mask, write_mask
from stm_fast.video.video_writer import AlphaVideoWriter, MatteVideoWriter, WebmVideoWriter
from video_files import decoded, rgba

av = pytest.importorskip("av")

COUNT, LATER = 7, 4  # frames, and the one with the second given mask
PIXELS = ("matte", "alpha", "webm", "cutout", "soft")
VIDEO_NAMES = ("alpha.mov", "alpha.webm", "matte.mp4")


def square(object_id, left):
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[4:20, left : left + 12] = object_id
    return ids


GIVEN = {0: square(3, 4) + square(7, 24), LATER: square(200, 30)}


@pytest.fixture(scope="module")
def model():
    return small_network()


@pytest.fixture(scope="module")
def place(tmp_path_factory, model):
    """A clip with two given masks, and all results of a run over it."""
    folder = tmp_path_factory.mktemp("results")
    write_video(folder / "clip.mp4", COUNT)
    (folder / "given").mkdir()
    for index, ids in GIVEN.items():
        write_mask(folder / f"given/{index:05d}.png", ids)
    segment(folder, folder / "out", model, write=("masks", *PIXELS))
    return folder


def segment(place, output, model, stop_at=None, **options):
    frames = itertools.count(1)
    return segment_video(
        place / "clip.mp4",
        place / "given",
        output,
        model=model,
        should_stop=lambda: next(frames) == stop_at,
        **options,
    )


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def probabilities(place, model):
    """Of each frame and object, from the engine itself."""
    segmenter = VideoSegmenter(model)
    for frame in open_frames(place / "clip.mp4"):
        mask = GIVEN.get(frame.index)
        picture = torch.from_numpy(frame.image).permute(2, 0, 1)
        prob = segmenter.step(picture, None if mask is None else torch.from_numpy(mask))
        yield frame, segmenter.object_ids, prob.numpy()


# writers


def disk(number, height=48, width=64):
    """A soft disk that moves."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2, x - width / 2 + 2 * number)
    return np.clip(255 * (16 - distance) / 6, 0, 255).astype(np.uint8)


def gradient(height=48, width=64):
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x // (width - 1), 255 * y // (height - 1), 128 + 0 * x], 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "name", "codec", "pixels", "container", "error"),
    [
        (MatteVideoWriter, "matte.mp4", "h264", "yuv420p", "mp4", 8),
        (AlphaVideoWriter, "alpha.mov", "prores", "yuva444p12le", "mov", 1),
        (WebmVideoWriter, "alpha.webm", "vp9", "yuva420p", "webm", 8),
    ],
)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63)])
def test_a_video_is_read_back(tmp_path, kind, name, codec, pixels, container, error, height, width):
    times = [0.0, 0.04, 0.1, 0.5, 0.51, 2.0]
    colors = gradient(height, width)
    with kind(tmp_path / name, width, height, Fraction(25)) as writer:
        for number, time in enumerate(times):
            matte = disk(number, height, width)
            writer.write(matte if kind is MatteVideoWriter else np.dstack((colors, matte)), time)
        assert not (tmp_path / name).exists()
    with av.open(str(tmp_path / name)) as file:
        (stream,) = file.streams
        assert stream.codec_context.codec.canonical_name == codec
        assert container in file.format.name.split(",")
        assert (stream.metadata.get("alpha_mode") == "1") == (name == "alpha.webm")
    frames = decoded(tmp_path / name)
    assert [frame.format.name for frame in frames] == [pixels] * len(times)
    assert [float(frame.pts * frame.time_base) for frame in frames] == pytest.approx(times, abs=1e-3)
    assert {(frame.colorspace, frame.color_range) for frame in frames} == {(1, 1)}
    for number, frame in enumerate(frames):
        found, matte = rgba(frame)[:height, :width].astype(int), disk(number, height, width)
        alpha = found[..., 0 if kind is MatteVideoWriter else 3]
        assert np.abs(alpha - matte).max() <= 2 * error
        assert np.abs(alpha - matte).mean() <= error / 4
        if kind is not MatteVideoWriter:
            assert np.abs(found[..., :3] - colors).mean() <= error


def test_extreme_levels_of_a_matte_are_black_and_white(tmp_path):
    with MatteVideoWriter(tmp_path / "matte.mp4", 64, 48, Fraction(25)) as writer:
        writer.write(np.zeros((48, 64), np.uint8), 0.0)
        writer.write(np.full((48, 64), 255, np.uint8), 0.04)
    black, white = (frame.image for frame in open_frames(tmp_path / "matte.mp4"))
    assert black.max() == 0
    assert white.min() == 255


@pytest.mark.parametrize("kind", VIDEO_WRITERS)
def test_a_missing_encoder_is_reported_before_anything_is_replaced(place, model, tmp_path, monkeypatch, kind):
    segment(place, tmp_path / "out", model, write=("masks",))
    before = contents(tmp_path / "out")
    monkeypatch.setattr(kind, "encoder", "another")
    with pytest.raises(InputError, match=f"no encoder another; leave {kind.result} out of write") as caught:
        segment(place, tmp_path / "out", model, write=("masks", kind.result), overwrite=True)
    assert "\n" not in str(caught.value)
    assert VIDEOS[kind.result] in str(caught.value)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("kind", VIDEO_WRITERS)
def test_without_pyav_the_result_to_leave_out_is_named(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=f"pip install av, or leave {kind.result} out of write$"):
        kind(tmp_path / "video", 64, 48, Fraction(25))


# a run


def test_results_show_the_probabilities(place, model):
    out = place / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "alpha.mov",
        "alpha.webm",
        "cutout",
        "masks",
        "matte.mp4",
        "run.json",
        "soft",
    ]
    videos = {name: decoded(out / name) for name in VIDEO_NAMES}
    assert {len(frames) for frames in videos.values()} == {COUNT}
    soft_masks = set()
    for frame, ids, prob in probabilities(place, model):
        matte = np.rint(255 * (1 - prob[0])).astype(np.uint8)
        with Image.open(out / f"cutout/{frame.name}.png") as cutout:
            assert cutout.mode == "RGBA"
            pixels = np.asarray(cutout)
        assert np.array_equal(pixels[..., 3], matte)
        assert np.array_equal(pixels[..., :3], np.where(matte[..., None] > 0, frame.image, 0))
        for object_id, plane in zip(ids, prob[1:], strict=True):
            soft_masks.add(f"{frame.name}.{object_id}.png")
            with Image.open(out / f"soft/{frame.name}.{object_id}.png") as soft:
                assert soft.mode == "I;16"
                assert np.array_equal(np.asarray(soft), np.rint(65535 * plane).astype(np.uint16))
        for name, frames in videos.items():
            found = rgba(frames[frame.index])
            alpha = found[..., 0 if name == "matte.mp4" else 3].astype(int)
            assert np.abs(alpha - matte).mean() < 4, f"{name}, frame {frame.index}"
            clear = np.abs(matte - 128.0) > 16
            assert overlap((alpha >= 128)[clear], (matte >= 128)[clear]) > 0.99, f"{name}, frame {frame.index}"
            assert float(frames[frame.index].pts * frames[frame.index].time_base) == pytest.approx(frame.time, abs=1e-3)
            if name == "alpha.mov":
                assert np.abs(found[..., :3].astype(int) - frame.image).mean() < 2
        if frame.index == 0:
            assert np.array_equal(matte == 255, GIVEN[0] > 0)
    assert {path.name for path in (out / "soft").iterdir()} == soft_masks
    assert f"{COUNT - 1:05d}.200.png" in soft_masks


@pytest.mark.slow
@pytest.mark.parametrize("result", PIXELS)
@pytest.mark.parametrize("both", [False, True])
def test_an_interrupted_run_resumes_to_the_same_bytes(place, model, tmp_path, result, both):
    (tmp_path / "given").mkdir()
    (tmp_path / "clip.mp4").symlink_to(place / "clip.mp4")
    for index, ids in GIVEN.items():
        write_mask(tmp_path / f"given/{index + 2 * both:05d}.png", ids)
    options = {"write": (result,), "both": both}
    segment(tmp_path, tmp_path / "whole", model, **options)
    for stop_at in (1, 3, 5):
        with pytest.raises(InterruptedRun):
            segment(tmp_path, tmp_path / "out", model, stop_at=stop_at, resume=True, **options)
        assert (tmp_path / "out/.matte").exists() == (result in VIDEOS)
        assert not {path.name for path in (tmp_path / "out").iterdir()} & set(VIDEOS.values())
    segment(tmp_path, tmp_path / "out", model, resume=True, **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_missing_matte_of_a_finished_frame_is_named(place, model, tmp_path):
    with pytest.raises(InterruptedRun):
        segment(place, tmp_path / "out", model, stop_at=3, write=("matte",))
    (tmp_path / "out/.matte/00001.png").unlink()
    with pytest.raises(InputError, match=r"\.matte/00001\.png: no such file, .* start again with overwrite=True"):
        segment(place, tmp_path / "out", model, write=("matte",), resume=True)


def test_mattes_are_kept_as_they_are(place, model, tmp_path):
    with pytest.raises(InterruptedRun):
        segment(place, tmp_path / "out", model, stop_at=3, write=("webm",))
    for frame, _, prob in probabilities(place, model):
        if frame.index < 3:
            matte = read_written_mask(tmp_path / f"out/.matte/{frame.name}.png").ids
            assert np.array_equal(matte, np.rint(255 * (1 - prob[0])))


def test_only_earlier_results_are_replaced(place, model, tmp_path):
    with pytest.raises(InterruptedRun):
        segment(place, tmp_path / "out", model, stop_at=3, write=("masks", "overlay", "pictures", *PIXELS))
    own = {"cutout/notes.txt", "soft/0.jpg", "overlay/0.png", "alpha.mp4", ".matte/notes.txt", "other/0.png"}
    (tmp_path / "out/other").mkdir()
    for name in own:
        (tmp_path / "out" / name).write_text("mine")
    for name in VIDEOS.values():
        (tmp_path / "out" / name).write_text("an earlier one")
    segment(place, tmp_path / "out", model, write=("csv",), overwrite=True)
    found = contents(tmp_path / "out")
    assert found.keys() - {"run.json"} == own | {"objects.csv"}
    assert all(found[name] == b"mine" for name in own)


@pytest.mark.parametrize("name", ["cutout", "soft", ".matte"])
def test_a_folder_of_results_must_not_be_a_link(place, model, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{name}: found a symbolic link"):
        segment(place, tmp_path / "out", model, write=("masks", "cutout"), overwrite=True)


def test_probabilities_are_kept_only_if_a_result_needs_them(place, model):
    for keep in (False, True):
        found: list[Segmented] = []
        frames = list(open_frames(place / "clip.mp4"))[:2]
        run(
            frames,
            lambda frame, _: None if frame.index else (GIVEN[0], None),
            VideoSegmenter(model),
            found.append,
            keep_prob=keep,
        )
        shapes = [None if one.prob is None else tuple(one.prob.shape) for one in found]
        assert shapes == [(3, HEIGHT, WIDTH) if keep else None] * 2
        assert [list(one.object_ids) for one in found] == [[3, 7] if keep else []] * 2
