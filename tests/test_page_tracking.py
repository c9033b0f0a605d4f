"""Tracking in a project of the page: equal to a run over the video, and what corrections do."""

import numpy as np
import pytest
import torch
from PIL import Image

import stm_fast
from stm_fast.config import MemoryConfig
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.errors import InputError
from stm_fast.frame_source import frame_source
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.objects import label
from stm_fast.inference.options import RunOptions
from stm_fast.inference.sightings import Sighting
from stm_fast.page.project import Project
from stm_fast.page.tracker import track_project
from stm_fast.runs import estimation
from stm_fast.runs.estimation import Workload
from stm_fast.runs.object_table import read_table
from stm_fast.runs.video import segment_video
from stm_fast.video import read_written_mask

FRAMES, HEIGHT, WIDTH = 16, 64, 96
LAST = FRAMES - 1
OPTIONS = RunOptions(min_size=HEIGHT)
LETTERS = {"found": "f", "doubtful": "d", "lost": "l"}


@pytest.fixture(scope="module")
def model():
    return stm_fast.load()


@pytest.fixture(scope="module")
def clip():
    return SyntheticClip(seed=5, frames=FRAMES, height=HEIGHT, width=WIDTH, objects=2, object_size=(0.2, 0.25))


@pytest.fixture(scope="module")
def frames(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    for index, picture in enumerate(clip):
        Image.fromarray(picture.image).save(folder / f"{index:05d}.png")
    return folder


@pytest.fixture
def project(frames, tmp_path):
    with_objects = Project.open(tmp_path / "project", frame_source(frames))
    for _ in range(2):
        with_objects.add_object()
    yield with_objects
    with_objects.close()


def give(project, index, ids):
    for one in project.objects:
        if (ids == one.id).any():
            project.give(index, one.id, ids == one.id)


def track(project, model, start, back=False, options=OPTIONS, stop_after=None):
    """What was told of each frame."""
    told = []
    count = track_project(project, model, options, start, back, lambda: len(told) == stop_after, told.append)
    assert count == len(told)
    return told


def shown(project):
    return np.stack([project.shown(index) for index in range(FRAMES)])


def jaccard(found, expected):
    return float((found & expected).sum() / (found | expected).sum())


@pytest.mark.parametrize(
    "memory",
    [MemoryConfig(), MemoryConfig(every=2, max_frames=3, evict="even"), MemoryConfig(every=None, storage="int8")],
    ids=["all", "capped", "int8"],
)
@pytest.mark.parametrize("given", [0, 5])
def test_one_given_frame_gives_the_masks_of_a_run(project, model, clip, frames, tmp_path, given, memory):
    give(project, given, clip.ids(given))
    options = RunOptions(memory, min_size=HEIGHT)
    told = track(project, model, given, options=options)
    assert [one.index for one in told] == list(range(given + 1, FRAMES))
    if given:
        told = track(project, model, given, back=True, options=options)
        assert [one.index for one in told] == list(range(given - 1, -1, -1))
    out = tmp_path / "out"
    segment_video(frames, project.folder / "given", out, model=model, both=True, memory=memory, min_size=HEIGHT)
    for index in range(FRAMES):
        expected = read_written_mask(out / f"masks/{index:05d}.png").ids
        assert expected.any()
        assert project.shown(index).tobytes() == expected.tobytes(), f"frame {index}"
    rows = list(read_table(out))
    assert len(rows) == 2 * FRAMES
    for row in rows:
        [seen] = [one for one in project.sightings(row.frame_index) if one.object_id == row.object_id]
        assert (seen.pixels, seen.state) == (row.pixels, row.state)
        assert (f"{seen.probability:.3f}", f"{seen.score:.3f}") == (row.probability, row.score)


@pytest.mark.parametrize("back", [False, True])
def test_given_frames_are_memorized_first_and_the_nearest_one_last(project, model, clip, back):
    masks = {0: clip.ids(0), 3: np.where(clip.ids(3) == 1, 1, 0), 9: clip.ids(9), 13: clip.ids(13)}
    for index, ids in masks.items():
        give(project, index, ids)
    track(project, model, 9, back)
    segmenter = VideoSegmenter(model, min_size=HEIGHT)
    pictures = [torch.from_numpy(picture.image).permute(2, 0, 1) for picture in clip]
    *others, nearest = [(pictures[index], torch.from_numpy(masks[index])) for index in (0, 3, 13, 9)]
    if back:
        segmenter.prime([*others, nearest])
    else:
        segmenter.clear_memory(frame_index=9)
        segmenter.prime(others)
        segmenter.step(*nearest)
    for index in range(8, -1, -1) if back else range(10, FRAMES):
        expected = label(segmenter.step(pictures[index]), segmenter.object_ids).numpy()
        for number in (1, 2):
            if number not in masks.get(index, ()):
                assert np.array_equal(project.shown(index) == number, expected == number), f"frame {index}"


def test_an_object_is_compared_with_its_mask_in_the_frame_before(project, model, clip, frames, tmp_path):
    whole = clip.ids(0) == 2
    part = whole & (np.arange(WIDTH) < np.quantile(np.nonzero(whole)[1], 0.4))
    project.give(0, 2, part)
    track(project, model, 0)
    segment_video(frames, project.folder / "given", tmp_path / "out", model=model, min_size=HEIGHT)
    assert project.states() == "g" + "".join(LETTERS[row.state] for row in read_table(tmp_path / "out"))[1:]
    [seen] = project.sightings(1)
    assert seen.pixels > 2 * part.sum()
    assert (seen.score > 0.75, seen.state) == (True, "doubtful")


def test_each_frame_is_told_once_it_is_kept(project, model, clip):
    give(project, 0, clip.ids(0))
    kept, told = [], []

    def tell(one):
        kept.append(project.shown(one.index).any())
        told.append(one)

    assert track_project(project, model, OPTIONS, 0, False, lambda: False, tell) == LAST
    assert kept == [True] * LAST
    assert [(one.done, one.total) for one in told] == [(done, LAST) for done in range(1, FRAMES)]
    assert project.states() == "g" + "".join(one.state for one in told)
    assert all(one.rate == pytest.approx(one.done / one.seconds) for one in told)


def test_soft_masks_are_kept(project, model, clip):
    give(project, 0, clip.ids(0))
    track(project, model, 0, stop_after=1)
    soft = project.soft(1)
    assert sorted(soft) == [1, 2]
    for number, plane in soft.items():
        assert jaccard(plane >= 128, project.shown(1) == number) > 0.95
        assert len(np.unique(plane)) > 2


def expected_from(model, pictures, memorized, begin, stop):
    """The masks after `begin`, with these frames memorized first: pairs of an index and its ids."""
    segmenter = VideoSegmenter(model, min_size=HEIGHT)
    *others, last = [(pictures[index], torch.from_numpy(ids)) for index, ids in memorized]
    segmenter.clear_memory(frame_index=begin)
    segmenter.prime(others)
    segmenter.step(*last)
    return [label(segmenter.step(pictures[i]), segmenter.object_ids).numpy() for i in range(begin + 1, stop)]


def test_frames_that_were_found_behind_are_memorized_once_a_mask_is_corrected(project, model, clip):
    pictures = [torch.from_numpy(picture.image).permute(2, 0, 1) for picture in clip]
    give(project, 0, clip.ids(0))
    track(project, model, 0)
    found = project.shown(5)  # every fifth frame is memorized
    give(project, 9, clip.ids(9))
    track(project, model, 9)
    expected = expected_from(model, pictures, [(0, clip.ids(0)), (5, found), (9, clip.ids(9))], 9, FRAMES)
    assert np.array_equal(shown(project)[10:], np.stack(expected))


def test_going_on_remembers_what_was_found_since_the_given_frame(project, model, clip):
    pictures = [torch.from_numpy(picture.image).permute(2, 0, 1) for picture in clip]
    give(project, 3, clip.ids(3))
    track(project, model, 3)
    five, twelve = project.shown(5), project.shown(12)
    track(project, model, 3, back=True)  # frame 0 is not between the given one and frame 12
    project.set_marks(0, 13)
    track(project, model, 12)
    ten = project.shown(10)
    memorized = [(3, clip.ids(3)), (5, five), (10, ten), (12, twelve)]
    assert np.array_equal(project.shown(13), expected_from(model, pictures, memorized, 12, 14)[0])


def test_between_two_given_masks_both_directions_count(project, model, clip):
    give(project, 0, clip.ids(0))
    track(project, model, 0)
    before = shown(project)
    wrong = np.roll(clip.ids(9), 12, axis=1)  # a correction that is none
    give(project, 9, wrong)
    track(project, model, 9, back=True)
    after = shown(project)
    kept = [jaccard(after[index] > 0, before[index] > 0) for index in range(1, 9)]
    assert kept[0] > 0.9, "near the first mask, what was tracked from there"
    assert kept[0] > kept[-1]


def test_a_correction_counts_from_its_frame_on_and_stays(project, model, clip, frames, tmp_path):
    give(project, 0, np.where(clip.ids(0) == 1, 1, 0))  # object 2 is not known yet
    track(project, model, 0)
    before = shown(project)
    give(project, 8, clip.ids(8))
    told = track(project, model, 8)
    assert [one.index for one in told] == list(range(9, FRAMES))
    after = shown(project)
    assert np.array_equal(after[:8], before[:8])
    assert np.array_equal(after[8], clip.ids(8))
    assert project.states()[8] == "g"
    scores = {
        number: [jaccard(masks[LAST] == number, clip.ids(LAST) == number) for masks in (before, after)]
        for number in (1, 2)
    }
    assert scores[2][0] == 0
    assert scores[2][1] > 0.75
    assert scores[1][1] > 0.75
    # a run with the same given masks
    segment_video(frames, project.folder / "given", tmp_path / "out", model=model, min_size=HEIGHT)
    for index in range(FRAMES):
        expected = read_written_mask(tmp_path / f"out/masks/{index:05d}.png").ids
        for number in (1, 2)[: 1 if index < 8 else 2]:
            assert jaccard(after[index] == number, expected == number) > 0.9, f"frame {index}"

    # back over the frames before: object 2 is found there too, and the first frame stays
    track(project, model, 8, back=True)
    assert np.array_equal(project.shown(0) == 1, clip.ids(0) == 1)
    assert jaccard(project.shown(4) == 2, clip.ids(4) == 2) > 0.75


def test_tracking_goes_on_where_it_was_stopped(project, model, clip):
    give(project, 0, clip.ids(0))
    calls = []

    def should_stop():
        calls.append(None)
        return len(calls) > 5

    told = []
    count = track_project(project, model, OPTIONS, 0, False, should_stop, told.append)
    assert 0 < count <= 5
    assert [one.index for one in told] == list(range(1, count + 1))
    assert project.states() == "g" + "f" * count + "." * (LAST - count)
    before = shown(project)
    # from a frame without a mask, which lies further on
    told = track(project, model, count + 3)
    assert [one.index for one in told] == list(range(count + 1, FRAMES))
    assert np.array_equal(shown(project)[: count + 1], before[: count + 1])
    # nearly as if it had not been stopped
    parts = shown(project)
    track(project, model, 0)
    assert min(jaccard(parts == one, shown(project) == one) for one in (1, 2)) > 0.9


def test_tracking_goes_on_before_a_damaged_mask(project, model, clip):
    give(project, 0, clip.ids(0))
    track(project, model, 0)
    before = shown(project)
    project.close()
    (project.folder / "masks" / "00005.png").write_bytes(b"")
    with Project.open(project.folder) as again:
        assert [one.index for one in track(again, model, 5)] == list(range(5, FRAMES))
        assert again.states() == "g" + "f" * LAST
        assert jaccard(again.shown(5) == 1, before[5] == 1) > 0.9


def test_tracking_goes_on_from_the_last_frame_with_an_object(project, model, clip):
    give(project, 0, clip.ids(0))
    project.set_marks(0, 2)
    track(project, model, 0)
    project.set_marks(0, LAST)
    for index, states in ((3, ("found", "lost")), (4, ("lost", "lost"))):
        ids = np.where(clip.ids(index) == 1, clip.ids(index), 0) * (states[0] == "found")
        seen = [Sighting(number, int((ids == number).sum()), 0.8, 0.8, state) for number, state in enumerate(states, 1)]
        project.keep(index, ids, seen, None, [])
    assert project.states()[:5] == "gffll"
    assert track(project, model, 6, stop_after=1)[0].index == 4


def test_before_the_first_mask_tracking_begins_with_the_frame_itself(project, model, clip):
    give(project, 8, clip.ids(8))
    told = track(project, model, 5)
    assert [one.index for one in told] == list(range(5, FRAMES))
    assert "".join(one.state for one in told)[3] == "g"
    assert np.array_equal(project.shown(8), clip.ids(8))
    assert not project.shown(4).any()
    assert jaccard(project.shown(5) == 1, clip.ids(5) == 1) > 0.7
    [told, *_] = track(project, model, 10, back=True)
    assert told.index == 9


def test_tracking_ends_at_the_marks(project, model, clip):
    give(project, 6, clip.ids(6))
    project.set_marks(3, 9)
    assert [one.index for one in track(project, model, 6)] == [7, 8, 9]
    assert [one.index for one in track(project, model, 6, back=True)] == [5, 4, 3]
    assert project.states() == "...fffgfff" + "." * 6


def test_what_cannot_be_tracked_is_said_in_one_line(project, model, clip):
    with pytest.raises(InputError, match="found no mask in any frame"):
        track(project, model, 0)
    give(project, LAST, clip.ids(LAST))
    with pytest.raises(InputError, match=f"found no frame after frame {LAST} within the marks, 0 to {LAST}"):
        track(project, model, LAST)
    give(project, 0, clip.ids(0))
    with pytest.raises(InputError, match=f"found no frame before frame 0 within the marks, 0 to {LAST}"):
        track(project, model, 0, back=True)


def test_given_masks_have_room_in_a_capped_memory(project, model, clip):
    for index in range(0, 8, 2):
        give(project, index, clip.ids(index))
    track(project, model, 6, options=RunOptions(MemoryConfig(max_frames=2), min_size=HEIGHT))
    assert project.states() == "g.g.g.g" + "f" * 9


def test_a_video_that_is_too_long_for_the_memory_is_tracked_with_fewer_frames(
    project, model, clip, frames, tmp_path, monkeypatch
):
    give(project, 0, clip.ids(0))
    options = RunOptions(MemoryConfig(every=1), min_size=HEIGHT)
    work = Workload(model, options, (HEIGHT, WIDTH), objects=2, frames=6, keep_prob=True)
    monkeypatch.setattr(estimation, "available_bytes", lambda _: estimation.estimate(work).memory_bytes)
    track(project, model, 0, options=options)
    monkeypatch.undo()
    memory = MemoryConfig(every=1, max_frames=3, evict="even")  # half of what would fit
    segment_video(frames, project.folder / "given", tmp_path / "out", model=model, memory=memory, min_size=HEIGHT)
    for index in range(FRAMES):
        assert np.array_equal(project.shown(index), read_written_mask(tmp_path / f"out/masks/{index:05d}.png").ids)


def test_a_run_that_does_not_fit_into_memory_is_refused(project, model, clip):
    give(project, 0, clip.ids(0))
    with pytest.raises(InputError, match="memory: the run needs"):
        track(project, model, 0, options=RunOptions(min_size=200_000))
    assert project.states() == "g" + "." * LAST


def test_an_error_while_keeping_a_frame_ends_the_tracking(project, model, clip):
    give(project, 0, clip.ids(0))

    def tell(one):
        raise InputError("disk full")

    with pytest.raises(InputError, match="disk full"):
        track_project(project, model, OPTIONS, 0, False, lambda: False, tell)
    assert project.states() == "gf" + "." * (LAST - 1)


def test_a_frame_that_cannot_be_decoded_ends_the_tracking(frames, project, model, clip, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in sorted(frames.iterdir()):
        (folder / path.name).write_bytes(path.read_bytes())
    damaged = Project.open(tmp_path / "other", frame_source(folder))
    damaged.add_object()
    damaged.give(0, 1, clip.ids(0) == 1)
    content = (folder / "00004.png").read_bytes()
    (folder / "00004.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"00004\.png"):
        track(damaged, model, 0)
    assert damaged.states() == "gfff" + "." * (FRAMES - 4)
    damaged.close()
