"""A video in, masks and overlays out: the files written, bounded memory, and a clean stop."""

import os
import threading
import weakref
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from small_inputs import given_masks
from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.inference import augmentation
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.network import STM, stm_resnet18
from stm_fast.runs import passes, sinks
from stm_fast.runs.given import find_masks
from stm_fast.runs.loop import FRAMES_WAITING
from stm_fast.runs.video import InterruptedRun, segment_video
from stm_fast.video import DAVIS_PALETTE, OverlayVideoWriter, open_frames, read_mask, write_mask

pytest.importorskip("av")

WIDTH, HEIGHT, RATE = 48, 32, Fraction(25)


@pytest.fixture(scope="module")
def model() -> STM:
    torch.manual_seed(0)
    return stm_resnet18(key_dim=16, value_dim=32, decoder_dim=16).eval()


@pytest.fixture(autouse=True)
def _no_thread_outlives_a_test():
    before = {thread for thread in threading.enumerate() if thread.name.startswith("stm_fast")}
    yield
    assert {thread for thread in threading.enumerate() if thread.name.startswith("stm_fast")} <= before


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def video(path, count=9, times=None):
    with OverlayVideoWriter(path, WIDTH, HEIGHT, RATE) as writer:
        for number in range(count):
            writer.write(picture(number), times[number] if times else number / 25)
    return path


def folder(path, names):
    path.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(picture(number)).save(path / name)
    return path


def square(object_id, left):
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[4:20, left : left + 12] = object_id
    return ids


def mask(path, ids=None, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(path, square(1, 4) + square(7, 24) if ids is None else ids, palette)
    return path


def files(folder):
    """All but the scores and the record, which have their own tests."""
    found = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in found if not name.endswith(("objects.csv", "run.json")))


def numbered(count, pattern="masks/{:05d}.png"):
    return [pattern.format(number) for number in range(count)]


# what is written


def test_a_video_becomes_masks_and_an_overlay(tmp_path, model):
    palette = bytes(range(24))
    source, given = video(tmp_path / "in.mp4"), mask(tmp_path / "first.png", palette=palette)
    done = []
    summary = segment_video(source, given, tmp_path / "out", model=model, progress=lambda *seen: done.append(seen))
    assert files(tmp_path / "out") == [*numbered(9), "overlay.mp4"]
    assert (summary.frames, summary.object_ids, summary.output) == (9, [1, 7], tmp_path / "out")
    assert summary.seconds > 0
    assert done == [(number, 9) for number in range(10)]
    for name in numbered(9):
        found = read_mask(tmp_path / "out" / name)
        assert found.ids.shape == (HEIGHT, WIDTH)
        assert set(np.unique(found.ids)) <= {0, 1, 7}
        assert found.palette == palette + DAVIS_PALETTE[24:]
    assert np.array_equal(read_mask(tmp_path / "out/masks/00000.png").ids, read_mask(given).ids)
    overlay = open_frames(tmp_path / "out/overlay.mp4")
    assert [frame.image.shape for frame in overlay] == [(HEIGHT, WIDTH, 3)] * 9


@pytest.mark.slow
@pytest.mark.parametrize("size", [{"max_size": 24}, {"min_size": 80}], ids=["smaller", "larger"])
def test_the_masks_are_those_of_the_engine(tmp_path, model, size):
    source = video(tmp_path / "in.mp4")
    mask(tmp_path / "given/00000.png"), mask(tmp_path / "given/00004.png", square(9, 30))
    memory = MemoryConfig(every=3)
    segment_video(source, tmp_path / "given", tmp_path / "out", model=model, memory=memory, **size)
    segmenter = VideoSegmenter(model, memory=memory, **size)
    given = {t: torch.from_numpy(read_mask(tmp_path / f"given/{t:05d}.png").ids) for t in (0, 4)}
    images = (torch.from_numpy(frame.image).permute(2, 0, 1) for frame in open_frames(source))
    for result in segmenter.propagate(images, given):
        found = read_mask(tmp_path / f"out/masks/{result.frame_index:05d}.png").ids
        assert np.array_equal(found, result.mask.numpy())
    assert segmenter.object_ids == [1, 7, 9]


def test_variable_frame_rate_is_kept_in_the_overlay(tmp_path, model):
    times = [0.0, 0.04, 0.1, 0.5, 0.51, 2.0]
    segment_video(
        video(tmp_path / "in.mp4", 6, times), mask(tmp_path / "first.png"), tmp_path / "out", model=model, max_size=16
    )
    found = [frame.time for frame in open_frames(tmp_path / "out/overlay.mp4")]
    assert found == pytest.approx(times, abs=1e-4)


def test_a_folder_keeps_its_names(tmp_path, model):
    source = folder(tmp_path / "in", ["f1.png", "f2.png", "f10.png"])
    mask(tmp_path / "given/f2.png", square(255, 8))
    summary = segment_video(
        source, tmp_path / "given", tmp_path / "out", model=model, write=("masks", "pictures", "csv")
    )
    assert files(tmp_path / "out") == sorted(
        [f"{kind}/f{n}.{suffix}" for n in (1, 2, 10) for kind, suffix in (("masks", "png"), ("overlay", "jpg"))]
    )
    assert summary.object_ids == [1]
    assert not read_mask(tmp_path / "out/masks/f1.png").ids.any(), "everything is background before the first mask"
    assert np.array_equal(read_mask(tmp_path / "out/masks/f2.png").ids, square(1, 8))


def test_masks_alone(tmp_path, model):
    segment_video(
        video(tmp_path / "in.mp4", 3), mask(tmp_path / "m.png"), tmp_path / "o", model=model, write=("masks", "csv")
    )
    assert files(tmp_path / "o") == numbered(3)


def test_overwriting_leaves_nothing_of_the_earlier_run(tmp_path, model):
    given, out = mask(tmp_path / "m.png"), tmp_path / "out"
    segment_video(video(tmp_path / "long.mp4", 5), given, out, model=model)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        segment_video(video(tmp_path / "short.mp4", 2), given, out, model=model)
    assert len(files(out)) == 7
    segment_video(tmp_path / "short.mp4", given, out, model=model, write=("masks", "csv"), overwrite=True)
    assert files(out) == [*numbered(2), "notes.txt"]


def test_the_bank_is_allocated_at_its_final_size(tmp_path, model, monkeypatch):
    made = []

    class Watched(VideoSegmenter):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(augmentation, "VideoSegmenter", Watched)
    segment_video(video(tmp_path / "in.mp4", 9), mask(tmp_path / "m.png"), tmp_path / "out", model=model)
    (segmenter,) = made
    rows = 2 * 3  # per frame
    assert segmenter.bank.nbytes == 4 * 2 * (2 + 1) * rows * (16 + 32)  # frames 0 and 5 stay, one is temporary
    assert segmenter.bank.rows == [3 * rows] * 2


# overlap


@pytest.mark.slow
def test_no_more_frames_are_alive_than_the_queues_hold(tmp_path, model, monkeypatch):
    alive, most = weakref.WeakSet(), []

    class Counted(type(open_frames(video(tmp_path / "in.mp4", 40)))):
        def __iter__(self):
            for frame in super().__iter__():
                alive.add(frame)
                yield frame

    original = sinks.Results.write

    def slow(self, segmented):
        threading.Event().wait(0.02)
        most.append(len(alive))
        original(self, segmented)

    monkeypatch.setattr(passes, "open_frames", lambda source, masks, **_: Counted(source.path))
    monkeypatch.setattr(sinks.Results, "write", slow)
    segment_video(tmp_path / "in.mp4", mask(tmp_path / "m.png"), tmp_path / "out", model=model, write=("masks", "csv"))
    assert len(most) == 40
    # the frames in the queues, and one held by each of the three threads
    assert max(most) <= 2 * FRAMES_WAITING + 3


@pytest.mark.slow
def test_frames_are_written_while_later_ones_are_segmented(tmp_path, model):
    seen = []
    source, given, out = video(tmp_path / "in.mp4", 30), mask(tmp_path / "m.png"), tmp_path / "out"
    segment_video(
        source,
        given,
        out,
        model=model,
        write=("masks", "csv"),
        progress=lambda *_: seen.append(len(files(out / "masks"))),
    )
    assert seen[-1] >= 30 - FRAMES_WAITING - 2
    assert all(a <= b for a, b in pairwise(seen))


# failures stop the run and leave only whole files


def assert_whole(out, expected_masks=None):
    found = [name for name in files(out) if not name.startswith(".resume")]
    assert not [name for name in found if "partial" in name or name.startswith(".")]
    assert "overlay.mp4" not in found
    if expected_masks is not None:
        assert found == numbered(expected_masks)
    for name in found:
        read_mask(out / name)


def test_a_frame_that_cannot_be_decoded_stops_the_run(tmp_path, model):
    source = folder(tmp_path / "in", [f"{number}.jpg" for number in range(8)])
    whole = (source / "5.jpg").read_bytes()
    (source / "5.jpg").write_bytes(whole[:-40])
    with pytest.raises(InputError, match=r"5\.jpg: not a readable image"):
        segment_video(source, mask(tmp_path / "m.png"), tmp_path / "out", model=model)
    assert files(tmp_path / "out") == [".resume.json", *(f"masks/{number}.png" for number in range(5))]


def test_a_failed_write_stops_the_run(tmp_path, model, monkeypatch):
    def full(self, segmented):
        if segmented.frame.index == 3:
            raise InputError("disk full while writing it")
        original(self, segmented)

    original = sinks.Results.write
    monkeypatch.setattr(sinks.Results, "write", full)
    done = []
    with pytest.raises(InputError, match="disk full"):
        segment_video(
            video(tmp_path / "in.mp4", 60),
            mask(tmp_path / "m.png"),
            tmp_path / "out",
            model=model,
            progress=lambda *seen: done.append(seen),
        )
    assert len(done) <= 3 + FRAMES_WAITING + 2
    assert_whole(tmp_path / "out", 3)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_stops_the_run(tmp_path, model, error):
    def interrupt(done, _):
        if done == 4:
            raise error

    with pytest.raises(error):
        segment_video(
            video(tmp_path / "in.mp4", 60), mask(tmp_path / "m.png"), tmp_path / "out", model=model, progress=interrupt
        )
    assert_whole(tmp_path / "out", 4)


@pytest.mark.slow
def test_a_full_disk_leaves_only_whole_files(tmp_path, small_disk, model):
    with pytest.raises(InputError, match="disk full while writing"):
        segment_video(video(tmp_path / "in.mp4", 80), mask(tmp_path / "m.png"), small_disk / "out", model=model)
    assert files(small_disk / "out")
    assert_whole(small_disk / "out")


# refused before anything is written


def refused(words, source, masks, out, model, **options):
    before = set(os.listdir(out.parent))
    with pytest.raises(InputError, match=words) as caught:
        segment_video(source, masks, out, model=model, **options)
    assert "\n" not in str(caught.value)
    assert set(os.listdir(out.parent)) == before


def test_masks_that_fit_no_frame_are_refused(tmp_path, model):
    source, out = video(tmp_path / "in.mp4", 4), tmp_path / "out"
    for name in ("00000.png", "00004.png"):
        mask(tmp_path / "late" / name)
    refused(r"00004\.png: no frame of in has this name", source, tmp_path / "late", out, model)
    for name in ("00000.png", "0.png"):
        mask(tmp_path / "double" / name)
    refused(r"00000\.png: a mask of the same frame as 0\.png", source, tmp_path / "double", out, model)
    refused("no such mask file or folder", source, tmp_path / "absent", out, model)
    (tmp_path / "empty").mkdir()
    refused("empty: no mask in this folder", source, tmp_path / "empty", out, model)
    mask(tmp_path / "small/00002.png", np.ones((16, 16), np.uint8))
    refused(r"00002\.png: mask of 16x16, expected 48x32", source, tmp_path / "small", out, model)


def test_a_mask_beyond_a_video_of_unknown_length_is_named_at_the_end(tmp_path, model, monkeypatch):
    source = video(tmp_path / "in.mp4", 4)

    def without_count(path, masks, **options):
        reader = open_frames(path, masks, **options)
        reader.frame_count = None
        return reader

    monkeypatch.setattr(passes, "open_frames", without_count)
    mask(tmp_path / "given/00000.png"), mask(tmp_path / "given/00009.png")
    with pytest.raises(InputError, match=r"00009\.png: no frame for this mask, the video ended after 4 frames"):
        segment_video(source, tmp_path / "given", tmp_path / "out", model=model)
    assert_whole(tmp_path / "out", 4)


def test_an_output_that_holds_an_input_is_refused(tmp_path, model):
    out, given = tmp_path / "out", mask(tmp_path / "m.png")
    segment_video(video(tmp_path / "in.mp4", 3), given, out, model=model, write=("masks", "pictures", "csv"))
    before = files(out)
    words = "the output folder holds the input"
    for source, masks in ((tmp_path / "in.mp4", out / "masks"), (out / "overlay", given)):
        refused(words, source, masks, out, model, overwrite=True)
    frames = folder(tmp_path / "frames", ["0.png", "1.png"])
    refused(words, frames, given, frames, model, overwrite=True)
    assert files(out) == before
    assert files(frames) == ["0.png", "1.png"]


@pytest.mark.parametrize("part", ["masks", "overlay"])
@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}, {}], ids=str)
def test_nothing_is_removed_or_written_through_a_link_in_the_output(tmp_path, model, part, options):
    """The link may point to any folder, here to the one with the given masks."""
    out, others = tmp_path / "out", tmp_path / "others"
    out.mkdir()
    given = mask(others / "00000.png")
    for name in ("mine.png", "mine.jpg", ".mine.png.7.partial"):
        (others / name).touch()
    (out / part).symlink_to("../others")
    before = files(tmp_path)
    words = f"out/{part}: found a symbolic link to ../others, expected a folder, because files in it are replaced"
    refused(words, video(tmp_path / "in.mp4", 2), given, out, model, **options)
    assert files(tmp_path) == sorted([*before, "in.mp4"])


def test_the_output_folder_may_be_a_link_and_so_may_files_that_are_replaced(tmp_path, model):
    """If a replaced file is a link, the link is removed and its target is kept."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    mask(disk / "masks/00000.png"), mask(disk / "masks/00007.png")
    out.symlink_to("disk")
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    for name in ("masks/00001.png", "overlay.mp4"):
        (disk / name).symlink_to(theirs)
    segment_video(video(tmp_path / "in.mp4", 2), mask(tmp_path / "m.png"), out, model=model, overwrite=True)
    assert files(disk) == [*numbered(2), "overlay.mp4"]
    assert theirs.read_text() == "theirs"


@pytest.mark.parametrize("kind", ["a file", "a file of a folder", "the folder", "a chain", "a link in the output"])
def test_an_input_that_links_into_the_output_is_refused(tmp_path, model, kind):
    source, out, given = video(tmp_path / "in.mp4", 2), tmp_path / "out", tmp_path / "given/00000.png"
    real = mask(tmp_path / "real.png")
    earlier = mask(out / "00000.png").rename(mask(out / "masks/00000.png"))
    if kind == "the folder":
        given.parent.symlink_to("out/masks")
    else:
        given.parent.mkdir()
        given.symlink_to(earlier)
    if kind in ("a chain", "a link in the output"):
        earlier.unlink()
        earlier.symlink_to(real)
    masks = {"a file": given, "the folder": given.parent, "a link in the output": earlier}.get(kind, given.parent)
    refused("out: the output folder holds the input", source, masks, out, model, overwrite=True)
    assert files(out) == ["masks/00000.png"]
    assert np.array_equal(read_mask(given).ids, read_mask(real).ids)


# which frame one mask belongs to


def frame_of(masks, source, mask_frame=None, **options):
    """The index, and whether the user is notified."""
    given = given_masks(masks, open_frames(source, **options), mask_frame)
    (index,) = given.ids
    assert all("\n" not in note and "mask_frame" in note for note in given.notes)
    return index, len(given.notes)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return video(tmp_path_factory.mktemp("clip") / "00005.mp4", 8)


@pytest.mark.parametrize(
    ("name", "index", "notified"),
    [
        ("00006", 6, True),
        ("00000", 0, False),
        ("first", 0, False),
        ("frame_00006", 0, False),
        ("6", 0, True),  # no frame has this name
        ("00008", 0, True),  # beyond the end
        ("00005", 0, True),  # the video has this name too
        ("0", 0, False),
        ("9" * 200, 0, True),
    ],
)
def test_a_mask_belongs_to_the_frame_whose_name_it_has(tmp_path, clip, name, index, notified):
    assert frame_of(mask(tmp_path / f"{name}.png"), clip) == (index, notified)


@pytest.mark.parametrize(
    ("name", "index", "notified"),
    [("f2", 1, True), ("f10", 2, True), ("f1", 0, False), ("f02", 0, False), ("F2", 0, False), ("2", 0, True)],
)
def test_a_mask_belongs_to_the_picture_whose_name_it_has(tmp_path, name, index, notified):
    source = folder(tmp_path / "in", ["f1.png", "f2.jpg", "f10.png"])
    assert frame_of(mask(tmp_path / f"{name}.png"), source) == (index, notified)


@pytest.mark.parametrize(
    ("mask_frame", "index"), [(6, 6), ("6", 6), ("00006", 6), (0, 0), ("0", 0), ("00005", 5), (7, 7), (np.int64(2), 2)]
)
def test_the_frame_of_a_mask_can_be_given(tmp_path, clip, mask_frame, index):
    assert frame_of(mask(tmp_path / "00003.png"), clip, mask_frame) == (index, False)


def test_the_frame_of_a_mask_can_be_given_by_the_name_of_an_image(tmp_path):
    given, source = mask(tmp_path / "m.png"), folder(tmp_path / "in", ["f1.png", "f2.png", "f10.png"])
    for mask_frame, index in (("f10", 2), ("2", 2), (1, 1), ("0", 0)):
        assert frame_of(given, source, mask_frame) == (index, False)
    counted = folder(tmp_path / "counted", ["0001.png", "0002.png", "0003.png"])
    for mask_frame, index in (("0002", 1), (2, 2)):
        assert frame_of(given, counted, mask_frame) == (index, False)
    with pytest.raises(InputError, match="mask_frame: found 2, but the frame at that index is 0003; expected a name"):
        given_masks(given, open_frames(counted), "2")


@pytest.mark.parametrize("mask_frame", [8, -1, 2.5, True, "8", "-1", "f1", "", "9" * 5000])
def test_a_mask_frame_that_does_not_exist_is_refused(tmp_path, clip, mask_frame):
    with pytest.raises(InputError, match=r"mask_frame: found .*, expected .* of 00005, or an index from 0 to 7"):
        given_masks(mask(tmp_path / "m.png"), open_frames(clip), mask_frame)


def test_mask_frame_cannot_be_given_for_a_folder_of_masks(tmp_path, clip):
    mask(tmp_path / "given/00002.png")
    with pytest.raises(InputError, match=r"mask_frame: found 3 with the folder .*given, expected a single mask"):
        given_masks(tmp_path / "given", open_frames(clip), 3)
    with pytest.raises(InputError, match="absent: no such mask file"):
        given_masks(tmp_path / "absent", open_frames(clip), 3)


def test_one_mask_of_a_later_frame_works_like_a_folder_that_holds_it(tmp_path, model, caplog):
    source, given = video(tmp_path / "in.mp4", 3), mask(tmp_path / "given/00001.png")
    for name, masks, options in (
        ("folder", given.parent, {}),
        ("file", given, {}),
        ("option", mask(tmp_path / "first.png"), {"mask_frame": 1}),
    ):
        caplog.clear()
        segment_video(source, masks, tmp_path / name, model=model, write=("masks", "csv"), **options)
        notes = [f"{given}: named after frame 00001, so used for that frame; mask_frame selects another"]
        assert caplog.messages == (notes if name == "file" else [])
    assert not read_mask(tmp_path / "file/masks/00000.png").ids.any(), "everything is background before the mask"
    for name in numbered(3):
        expected = (tmp_path / "folder" / name).read_bytes()
        assert {(tmp_path / other / name).read_bytes() for other in ("file", "option")} == {expected}


def test_a_run_is_resumed_only_with_its_mask_at_the_same_frame(tmp_path, model):
    source, given, out = video(tmp_path / "in.mp4", 3), mask(tmp_path / "00001.png"), tmp_path / "out"
    options = {"model": model, "write": ("masks", "csv"), "resume": True}
    with pytest.raises(InterruptedRun):
        segment_video(source, given, out, should_stop=lambda: True, **options)
    for mask_frame in (0, 2):
        with pytest.raises(InputError, match="holds results of another run; its masks"):
            segment_video(source, given, out, mask_frame=mask_frame, **options)
    assert segment_video(source, given, out, mask_frame="00001", **options).resumed_at == 1


# masks among the frames


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_mask_among_the_frames_is_not_a_frame(tmp_path, suffix, link):
    source = folder(tmp_path / "in", [f"img_{number}.{suffix}" for number in range(3)])
    given = mask(tmp_path / "first.png" if link else source / "first.png", np.ones((8, 8), np.uint8))
    if link:
        (source / "first.png").symlink_to(given)
    with pytest.raises(InputError, match=r"first\.png: image of 8x8|img_0.*: image of 48x32"):
        open_frames(source)
    mask(given)
    reader = open_frames(source, find_masks(given, source).files)
    assert [frame.name for frame in reader] == [f"img_{number}" for number in range(3)]
    notes = (f"{source / 'first.png'}: given as a mask, so excluded from the frames",)
    found = given_masks(given, reader)
    assert (found.ids, found.white, found.palette, found.notes) == ({0: [1, 7]}, 255, DAVIS_PALETTE, notes)
    assert found.masks[0].label == str(given)


def test_a_run_with_a_mask_among_its_frames(tmp_path, model, caplog):
    source, out = folder(tmp_path / "in", ["img_0.jpg", "img_1.jpg"]), tmp_path / "out"
    given = mask(source / "first.png")
    segment_video(source, given, out, model=model, write=("masks", "csv"))
    assert files(out) == ["masks/img_0.png", "masks/img_1.png"]
    assert caplog.messages == [f"{given}: given as a mask, so excluded from the frames"]
    assert np.array_equal(read_mask(out / "masks/img_0.png").ids, read_mask(given).ids)


def test_masks_beside_the_frames_with_the_same_names(tmp_path):
    source = folder(tmp_path / "in", ["0.jpg", "1.jpg", "2.jpg"])
    for name in ("1", "2"):
        mask(source / f"{name}.png")
    with pytest.raises(InputError, match="same name as"):
        open_frames(source)
    reader = open_frames(source, find_masks(source, source).files)
    given = given_masks(source, reader)
    assert (reader.frame_count, given.ids.keys()) == (3, {1, 2})
    assert given.notes == (f"{source / '1.png'} and 1 more: given as a mask, so excluded from the frames",)
    (source / "1.png").unlink()
    reader = open_frames(source, [source / "2.png"])
    assert (reader.frame_count, given_masks(source / "2.png", reader).ids.keys()) == (3, {2})


def test_a_file_that_could_be_a_mask_or_a_frame_is_refused(tmp_path, model):
    out = tmp_path / "out"
    frames = folder(tmp_path / "in", ["f1.png", "f3.png"])
    mask(frames / "f2.png")
    refused(r"f2\.png: given as a mask, but named like a frame", frames, frames / "f2.png", out, model)
    refused("no images besides the masks", frames, frames, out, model)
    picture = mask(tmp_path / "clip.png")
    refused(r"clip\.png: found as video and as mask", picture, picture, out, model)
    (tmp_path / "link.png").symlink_to("clip.png")
    refused(r"link\.png: found as video and as mask", picture, tmp_path / "link.png", out, model)


def test_folders_of_masks_and_frames_may_be_nested(tmp_path):
    frames = folder(tmp_path / "frames", ["0.jpg", "1.jpg"])
    mask(frames / "masks/1.png")
    inner = folder(frames / "masks/frames", ["0.jpg", "1.jpg"])
    for source in (frames, inner):
        given = given_masks(frames / "masks", open_frames(source, find_masks(frames / "masks", source).files))
        assert (given.ids.keys(), given.notes) == ({1}, ())


def test_other_wrong_options_are_refused(tmp_path, model):
    source, given, out = video(tmp_path / "in.mp4", 3), mask(tmp_path / "m.png"), tmp_path / "out"
    refused("found a file, expected an output folder", source, given, source, model)
    refused("write: found 'hologram', expected some of masks, ", source, given, out, model, write=["hologram"])
    refused("write: found nothing, expected some of masks, ", source, given, out, model, write=[])
    refused("backend: found 'abacus'", source, given, out, model, backend="abacus")
    refused("max_size: found 3", source, given, out, model, max_size=3)
