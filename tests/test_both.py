"""Both directions: frames before the first given mask are segmented backwards from it, the others as always."""

import itertools
import shutil

import numpy as np
import pytest
import torch

import stm_fast
from small_inputs import HEIGHT, WIDTH, contents, small_network, write_video
from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.objects import label
from stm_fast.inference.sightings import Watch
from stm_fast.runs.object_table import read_table
from stm_fast.runs.video import InterruptedRun, segment_video
from stm_fast.video import open_frames, read_written_mask, write_mask

pytest.importorskip("av")

COUNT, FIRST, LATER = 11, 4, 7  # frames, and those with a given mask
EVERYTHING = ("masks", "overlay", "pictures", "csv")


@pytest.fixture(scope="module")
def model():
    return small_network()


def square(object_id, left):
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[4:20, left : left + 12] = object_id
    return ids


GIVEN = {FIRST: square(3, 4) + square(7, 24), LATER: square(3, 8) + square(9, 30)}  # 9 appears later


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    write_video(folder / "clip.mp4", COUNT)
    (folder / "given").mkdir()
    for index, ids in GIVEN.items():
        write_mask(folder / f"given/{index:05d}.png", ids)
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


def masks(folder):
    return np.stack([read_written_mask(file).ids for file in sorted((folder / "masks").iterdir())])


def frames_of(place):
    return [torch.from_numpy(frame.image).permute(2, 0, 1) for frame in open_frames(place / "clip.mp4")]


def test_primed_frames_are_memorized_and_do_not_count(place, model):
    frames = frames_of(place)
    one, other = (VideoSegmenter(model, memory=MemoryConfig(every=1)) for _ in range(2))
    one.prime([(frames[FIRST], GIVEN[FIRST])])
    other.step(frames[FIRST], GIVEN[FIRST])
    for index in reversed(range(FIRST)):
        assert torch.equal(one.step(frames[index]), other.step(frames[index]))
    assert one.bank.frames == [[0, 0, 1, 2]] * 2
    assert other.bank.frames == [[0, 1, 2, 3]] * 2
    assert [result.frame_index for result in one.propagate(frames[:2])] == [4, 5]


def test_a_wrong_pair_leaves_those_before_it(place, model):
    frames = frames_of(place)
    segmenter = VideoSegmenter(model)
    with pytest.raises(InputError, match="found no object"):
        segmenter.prime([(frames[FIRST], GIVEN[FIRST]), (frames[0], np.zeros((HEIGHT, WIDTH), np.uint8))])
    assert segmenter.object_ids == [3, 7]
    assert next(segmenter.propagate(frames)).frame_index == 0


def test_frames_before_the_mask_are_segmented_backwards_and_the_others_as_always(place, tmp_path, model):
    segment(place, tmp_path / "forwards", model)
    summary = segment(place, tmp_path / "both", model, both=True, write=EVERYTHING)
    assert (summary.frames, summary.object_ids) == (COUNT, [3, 7, 9])
    alone, both = masks(tmp_path / "forwards"), masks(tmp_path / "both")
    assert not alone[:FIRST].any()
    assert np.array_equal(both[FIRST:], alone[FIRST:])

    frames = frames_of(place)
    segmenter = VideoSegmenter(model)
    # of the objects of the first mask; the frame nearest to the others comes last
    segmenter.prime([(frames[LATER], square(3, 8)), (frames[FIRST], GIVEN[FIRST])])
    for index in reversed(range(FIRST)):
        expected = label(segmenter.step(frames[index]), segmenter.object_ids).numpy()
        assert expected.any()
        assert np.array_equal(both[index], expected), f"frame {index}"

    assert len(list(open_frames(tmp_path / "both/overlay.mp4"))) == COUNT
    assert len(list((tmp_path / "both/overlay").iterdir())) == COUNT


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, FIRST - 1, FIRST, FIRST + 1, COUNT + FIRST - 2])
def test_an_interrupted_run_resumes_to_the_same_results(place, tmp_path, model, stop_at):
    options = {"both": True, "write": EVERYTHING}
    segment(place, tmp_path / "whole", model, **options)
    with pytest.raises(InterruptedRun) as caught:
        segment(place, tmp_path / "out", model, stop_at=stop_at, **options)
    # the frames before the mask are decoded again for the overlay
    assert caught.value.frames == (stop_at if stop_at <= FIRST else max(FIRST, stop_at - FIRST))
    assert not (tmp_path / "out/overlay.mp4").exists()
    summary = segment(place, tmp_path / "out", model, resume=True, **options)
    assert summary.resumed_at == caught.value.frames
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_run_of_the_other_kind_is_not_resumed(place, tmp_path, model):
    with pytest.raises(InterruptedRun):
        segment(place, tmp_path / "out", model, stop_at=2, both=True)
    with pytest.raises(InputError, match="its both: found True, expected False"):
        segment(place, tmp_path / "out", model, resume=True)


def test_results_come_lazily_and_equal_those_of_a_run(place, tmp_path, model):
    segment(place, tmp_path / "out", model, both=True)
    written = masks(tmp_path / "out")
    results = stm_fast.segment(place / "clip.mp4", place / "given", model=model, both=True, min_size=1)
    found = list(results)
    assert [result.frame_index for result in found] == [*reversed(range(FIRST)), *range(FIRST, COUNT)]
    watch = Watch({3: 16 * 12, 7: 16 * 12})  # the pixels of the first mask
    frames = list(open_frames(place / "clip.mp4"))
    for result in found:
        assert np.array_equal(result.mask.numpy(), written[result.frame_index])
        assert (result.frame.index, result.frame.time) == (result.frame_index, frames[result.frame_index].time)
        assert np.array_equal(result.frame.image, frames[result.frame_index].image)
        if result.frame_index < FIRST:
            assert result.sightings == watch.see(result.prob, result.mask, [3, 7])
    table = [(row.frame_index, row.object_id, row.state) for row in read_table(tmp_path / "out")]
    assert table == sorted(
        (result.frame_index, one.object_id, one.state) for result in found for one in result.sightings
    )
    assert found[0].object_ids == [3, 7]
    assert found[-1].object_ids == [3, 7, 9]


@pytest.mark.parametrize("every", [1, 3, 5])
def test_the_same_frames_are_memorized_after_the_mask_in_either_case(place, model, every):
    options = {"model": model, "memory": MemoryConfig(every=every), "min_size": 1}
    alone = list(stm_fast.segment(place / "clip.mp4", place / "given", **options))[FIRST:]
    both = list(stm_fast.segment(place / "clip.mp4", place / "given", both=True, **options))[FIRST:]
    assert [result.frame_index for result in both] == [result.frame_index for result in alone]
    for result, expected in zip(both, alone, strict=True):
        assert torch.equal(result.prob, expected.prob), f"frame {result.frame_index}"
        assert result.sightings == expected.sightings


def test_a_mask_of_the_first_frame_needs_one_pass(place, tmp_path, model):
    write_mask(tmp_path / "first.png", GIVEN[FIRST])
    for name, both in (("one", False), ("two", True)):
        segment_video(place / "clip.mp4", tmp_path / "first.png", tmp_path / name, model=model, both=both)
    assert contents(tmp_path / "one/masks") == contents(tmp_path / "two/masks")


def test_wrong_input_is_reported_at_once(place, tmp_path, model):
    with pytest.raises(InputError, match=r"absent\.mp4: no such file"):
        stm_fast.segment(tmp_path / "absent.mp4", place / "given", model=model)
    shutil.copy(place / "clip.mp4", tmp_path / "clip.mp4")
    results = stm_fast.segment(tmp_path / "clip.mp4", place / "given", model=model)
    next(results)
    results.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4"], "nothing is written"
