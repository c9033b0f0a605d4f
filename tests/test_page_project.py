"""The document of the page: what a project's folder keeps, whatever happens."""

import json
import os
import random
import shutil
import signal
from itertools import count, pairwise
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from processes import CONTEXT, PATIENCE
from stm_fast.errors import InputError
from stm_fast.frame_source import FrameSource, frame_source
from stm_fast.inference.sightings import Sighting
from stm_fast.page import history
from stm_fast.page.project import Change, Project
from stm_fast.runs.given import find_masks, match_masks
from stm_fast.video import read_mask, read_written_mask, write_mask
from video_files import UNKNOWN, make, needs_av, numbered_picture, write_video

WIDTH, HEIGHT = 32, 24
NAMES = ["Größe 11", "shot.2", "shot.3", "shot.9", "shot.10", "shot.10.5"]
FRAMES = len(NAMES)


def write_frames(folder, names=NAMES, size=(WIDTH, HEIGHT)):
    """A folder of images with names that are not numbers."""
    folder.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(np.full((*size[::-1], 3), 40 * number, np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def video(tmp_path):
    return write_frames(tmp_path / "frames")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "project"


@pytest.fixture
def project(folder, video):
    with Project.open(folder, frame_source(video)) as project:
        project.add_object()
        project.add_object()
        yield project


def box(left, top, right, bottom):
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


NOTHING = box(0, 0, 0, 0)


def ids_of(masks):
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for object_id, mask in masks.items():
        ids[mask] = object_id
    return ids


def track(project, index, masks, state="found", *, prob=True):
    """Keeps these masks, by object, as if tracking had found them."""
    ids = ids_of(masks)
    planes = np.stack([np.where(ids == one, 0.8, 0.2) for one in (0, *masks)]).astype(np.float32)
    sightings = [Sighting(one, int((ids == one).sum()), 0.8, 0.75, state) for one in masks]
    return project.keep(index, ids, sightings, planes if prob else None, list(masks))


def frame_content(project, index):
    given, soft = project.given(index), project.soft(index)
    assert sorted(soft) == [one.object_id for one in project.sightings(index)]
    return None if given is None else given.tolist(), project.shown(index).tolist(), project.sightings(index)


def content(project):
    """Everything that a project shows."""
    frames = [frame_content(project, index) for index in range(project.frame_count)]
    return project.objects, project.marks, project.states(), frames


def on_disk(project, kind, index):
    return read_written_mask(project.folder / kind / f"{NAMES[index]}.png")


def test_a_new_project_is_empty(folder, video):
    with Project.open(folder, frame_source(video)) as project:
        assert project.states() == "......"
        assert project.objects == []
        assert project.marks == range(FRAMES)
        assert project.given_frames() == []
        assert not project.shown(3).any()
        assert project.given(3) is None
        assert (project.can_undo, project.can_redo) == (False, False)


def test_masks_are_given_and_found(project, folder):
    assert project.give(1, 1, box(0, 0, 8, 8)) == Change((1,), False)
    assert track(project, 2, {1: box(2, 0, 10, 8), 2: box(20, 10, 30, 20)}) == Change((2,), False)
    track(project, 3, {1: box(3, 0, 11, 8), 2: NOTHING}, "doubtful")
    track(project, 4, {1: NOTHING, 2: NOTHING}, "lost")
    assert project.states() == ".gfdl."
    assert project.given_frames() == [1]
    assert (project.shown(1) == ids_of({1: box(0, 0, 8, 8)})).all()
    assert project.sightings(1) == [Sighting(1, 64, 1.0, 1.0, "found")]
    assert project.sightings(3) == [Sighting(1, 64, 0.8, 0.75, "doubtful"), Sighting(2, 0, 0.8, 0.75, "doubtful")]
    assert (project.soft(2)[2] == np.where(box(20, 10, 30, 20), 204, 51)).all()
    assert (on_disk(project, "masks", 2).ids == project.shown(2)).all()
    before = content(project)
    project.close()
    with Project.open(folder) as again:
        assert content(again) == before


def test_the_worst_object_gives_the_state(project):
    ids = ids_of({1: box(0, 0, 8, 8)})
    for states, letter in [("found found", "f"), ("found doubtful", "d"), ("lost doubtful", "l"), ("found lost", "l")]:
        seen = [Sighting(one, 64, 0.8, 0.75, state) for one, state in enumerate(states.split(), 1)]
        project.keep(5, ids, seen, None, [])
        assert project.states() == "....." + letter


def test_a_given_mask_takes_pixels_from_others(project):
    project.give(1, 1, box(0, 0, 8, 8))
    track(project, 1, {1: box(0, 0, 9, 9), 2: box(8, 0, 16, 8)})
    third = project.add_object().id
    project.give(1, third, box(4, 0, 12, 8))
    expected = ids_of({1: box(0, 0, 4, 8), third: box(4, 0, 12, 8)})
    assert (project.given(1) == expected).all()
    assert (on_disk(project, "given", 1).ids == expected).all()
    expected[box(12, 0, 16, 8)] = 2
    assert (project.shown(1) == expected).all()
    assert (on_disk(project, "masks", 1).ids == expected).all()
    assert [(one.object_id, one.pixels) for one in project.sightings(1)] == [(1, 32), (2, 32), (third, 64)]
    # soft masks too
    assert project.soft(1)[2].max() == 204
    assert not project.soft(1)[2][box(0, 0, 12, 8)].any()


def test_objects_that_lose_all_pixels_are_not_given_or_lost(project):
    project.give(1, 1, box(0, 0, 4, 4))
    track(project, 1, {2: box(4, 4, 8, 8)})
    third = project.add_object().id
    project.give(1, third, box(0, 0, 16, 16))
    assert project.sightings(1) == [Sighting(2, 0, 0.0, 0.0, "lost"), Sighting(third, 256, 1.0, 1.0, "found")]
    assert sorted(np.unique(project.given(1))) == [0, third]


def test_an_empty_mask_takes_an_object_back(project, folder):
    track(project, 1, {1: box(0, 0, 8, 8), 2: box(8, 8, 16, 16)})
    project.give(1, 1, box(0, 0, 4, 4))
    project.give(1, 1, NOTHING)
    assert project.given(1) is None
    assert project.states() == ".f...."
    assert (project.shown(1) == ids_of({2: box(8, 8, 16, 16)})).all(), "the mask that was found is not restored"
    assert project.give(1, 2, NOTHING) == Change((1,), False)
    assert project.states() == "......"
    assert not list((folder / "given").iterdir()) + list((folder / "masks").iterdir())
    assert project.give(1, 2, NOTHING) == Change((), False)


def test_given_objects_stay_as_given(project):
    project.give(2, 1, box(0, 0, 8, 8))
    track(project, 2, {1: box(0, 0, 20, 20), 2: box(6, 0, 16, 8)})
    assert (project.shown(2) == ids_of({2: box(6, 0, 16, 8), 1: box(0, 0, 8, 8)})).all()
    assert project.states() == "..g..."
    assert (project.given(2) == ids_of({1: box(0, 0, 8, 8)})).all()
    assert [(one.object_id, one.probability) for one in project.sightings(2)] == [(1, 1.0), (2, 0.8)]
    assert (project.soft(2)[1] == np.where(box(0, 0, 8, 8), 255, 0)).all()


def test_without_probabilities_soft_masks_are_hard(project):
    track(project, 2, {1: box(0, 0, 8, 8)})
    track(project, 2, {1: box(0, 0, 9, 9)}, prob=False)
    assert (project.soft(2)[1] == np.where(box(0, 0, 9, 9), 255, 0)).all()


def test_tracking_may_know_objects_that_were_deleted(project):
    project.delete_object(2)
    track(project, 2, {1: box(0, 0, 8, 8), 2: box(8, 8, 16, 16)})
    assert (project.shown(2) == ids_of({1: box(0, 0, 8, 8)})).all()
    assert [one.object_id for one in project.sightings(2)] == [1]


def test_what_a_given_object_covered_is_not_counted_once_it_is_deleted(project):
    project.give(2, 1, box(0, 0, 8, 8))
    track(project, 2, {2: box(4, 0, 12, 8)})
    project.delete_object(1)
    assert (project.shown(2) == ids_of({2: box(8, 0, 12, 8)})).all()
    assert [one.pixels for one in project.sightings(2)] == [32]


def test_deleted_objects_disappear_at_once(project, folder):
    project.give(1, 1, box(0, 0, 4, 4))
    project.give(1, 2, box(8, 8, 16, 16))
    project.give(3, 2, box(8, 8, 16, 16))
    track(project, 4, {1: box(0, 0, 4, 4), 2: box(8, 8, 16, 16)})
    track(project, 5, {2: box(8, 8, 16, 16)}, "lost")
    before = content(project)
    assert project.delete_object(2) == Change((1, 3, 4, 5), True)
    assert [one.id for one in project.objects] == [1]
    assert project.states() == ".g..f."
    assert not any((project.shown(index) == 2).any() for index in range(FRAMES))
    assert [path.name for path in (folder / "given").iterdir()] == ["shot.2.png"]
    assert not (on_disk(project, "given", 1).ids == 2).any()
    assert project.undo() == Change((1, 3, 4, 5), True)
    assert content(project) == before
    project.redo()
    project.close()
    with Project.open(folder) as again:
        assert not any((again.shown(index) == 2).any() for index in range(FRAMES))


def test_ids_are_never_used_again(project, folder):
    assert project.add_object().id == 3
    project.undo()
    assert [one.id for one in project.objects] == [1, 2]
    assert project.add_object().id == 4
    project.delete_object(4)
    project.close()
    with Project.open(folder) as again:
        assert again.add_object().id == 5


def test_there_are_no_more_objects_than_a_mask_can_hold(project, folder):
    project.close()
    path = folder / "project.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"next_id": 254}))
    with Project.open(folder) as again:
        assert again.add_object().id == 254
        with pytest.raises(InputError, match="found 254 objects, deleted ones included"):
            again.add_object()


def test_objects_have_names_and_colors(project, folder):
    assert [one.name for one in project.objects] == ["object 1", "object 2"]
    assert project.objects[0].color == "#cb21a8"
    project.give(1, 1, box(0, 0, 8, 8))
    assert project.change_object(1, name=" Ängel ", color="#12AB34") == Change((1,), True)
    assert project.objects[0] == (1, "Ängel", "#12ab34")
    assert project.palette[3:6] == bytes.fromhex("12ab34")
    assert on_disk(project, "given", 1).palette[3:6] == bytes.fromhex("12ab34")
    project.undo()
    assert on_disk(project, "given", 1).palette[3:6] == bytes.fromhex("cb21a8")
    project.redo()
    project.close()
    with Project.open(folder) as again:
        assert again.objects[0] == (1, "Ängel", "#12ab34")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p.give(FRAMES, 1, NOTHING), "frame: found 6, expected one from 0 to 5"),
        (lambda p: p.shown(-1), "frame: found -1"),
        (lambda p: p.sightings(6), "frame: found 6"),
        (lambda p: p.give(0, 3, NOTHING), r"object: found 3, expected one of \[1, 2\]"),
        (lambda p: p.delete_object(0), "object: found 0"),
        (lambda p: p.change_object(1, name=" "), "name: found ''"),
        (lambda p: p.add_object("a\nb"), "name: found"),
        (lambda p: p.change_object(1, name="a" * 101), "expected 1 to 100 printable characters"),
        (lambda p: p.change_object(1, color="#12345"), "color: found '#12345', expected #rrggbb"),
        (lambda p: p.change_object(1, color="red"), "color: found 'red'"),
        (lambda p: p.set_marks(3, 2), "marks: found 3 and 2, expected a first and a last one of 6 frames"),
        (lambda p: p.set_marks(0, 6), "marks: found 0 and 6"),
    ],
)
def test_impossible_edits_are_refused(project, edit, message):
    before, steps = content(project), len(project._history.past)
    with pytest.raises(InputError, match=message):
        edit(project)
    assert content(project) == before
    assert len(project._history.past) == steps


def random_edit(project, chance):
    """One edit of any kind."""
    ids = [one.id for one in project.objects]
    kind = chance.choice(["give", "give", "give", "take back", "add", "delete", "color", "name", "marks"])
    index, object_id = chance.randrange(FRAMES), chance.choice(ids) if ids else None
    left, top = chance.randrange(WIDTH - 4), chance.randrange(HEIGHT - 4)
    if kind == "add" or object_id is None:
        project.add_object()
    elif kind == "give":
        project.give(index, object_id, box(left, top, left + 9, top + 9))
    elif kind == "take back":
        project.give(index, object_id, NOTHING)
    elif kind == "delete":
        project.delete_object(object_id)
    elif kind == "color":
        project.change_object(object_id, color=f"#{chance.randrange(2**24):06x}")
    elif kind == "name":
        project.change_object(object_id, name=f"name {chance.randrange(100)}")
    else:
        first = chance.randrange(FRAMES)
        project.set_marks(first, chance.randrange(first, FRAMES))


def files_of(project):
    names = [path for kind in ("given", "masks") for path in (project.folder / kind).iterdir()]
    return {path: path.read_bytes() for path in names}


@pytest.mark.parametrize("seed", range(5))
def test_every_edit_can_be_undone_and_redone(project, folder, seed):
    chance = random.Random(seed)
    for index in (1, 2, 4):
        track(project, index, {1: box(index, 0, 12, 12), 2: box(12, index, 20, 20)})
    seen, files = [content(project)], [files_of(project)]
    while len(seen) < 25:
        steps = len(project._history.past)
        random_edit(project, chance)
        if len(project._history.past) > steps:
            seen.append(content(project))
            files.append(files_of(project))
        assert not project.can_redo
    for step in reversed(range(len(seen) - 1)):
        assert project.undo() is not None
        assert (content(project), files_of(project)) == (seen[step], files[step])
    for step in range(1, len(seen)):
        assert project.redo() is not None
        assert (content(project), files_of(project)) == (seen[step], files[step])
    assert project.redo() is None
    project.close()
    with Project.open(folder) as again:
        assert content(again) == seen[-1]


def test_undo_leaves_frames_that_were_tracked_since(project):
    project.give(1, 1, box(0, 0, 8, 8))
    track(project, 2, {1: box(0, 0, 9, 9)})
    project.undo()  # the mask
    assert project.states() == "..f..."
    project.undo()  # object 2
    project.undo()  # object 1
    assert project.states() == "......"
    assert project.undo() is None
    project.redo()
    assert project.states() == "..f..."


def test_undo_of_an_object_leaves_what_was_found_since(project, folder):
    project.give(1, 1, box(0, 0, 8, 8))
    for edit in (lambda: project.change_object(1, color="#123456"), lambda: project.delete_object(1)):
        before = project.objects
        track(project, 1, {2: box(20, 0, 24, 8)})
        edit()
        track(project, 1, {2: box(6, 0, 28, 8)})
        project.undo()
        assert project.objects == before
        assert (project.shown(1) == ids_of({2: box(6, 0, 28, 8), 1: box(0, 0, 8, 8)})).all()
        assert [(one.object_id, one.pixels) for one in project.sightings(1)] == [(1, 64), (2, 160)]
        project.redo()
        assert (project.shown(1)[box(8, 0, 28, 8)] == 2).all()
        project.undo()
    before = content(project)
    project.close()
    with Project.open(folder) as again:
        assert content(again) == before


def test_the_last_hundred_edits_can_be_undone(project):
    for last in range(120):
        project.set_marks(0, last % 5)
    undone = 0
    while project.undo() is not None:
        undone += 1
    assert undone == history.MOST_EDITS
    assert project.marks == range(19 % 5 + 1)


def test_undo_is_bounded_in_bytes(project, monkeypatch):
    noise = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.5
    project.give(1, 1, noise)
    size = len((project.folder / "given" / "shot.2.png").read_bytes())
    monkeypatch.setattr(history, "MOST_BYTES", 6 * size)
    for _ in range(10):
        noise = ~noise
        project.give(1, 1, noise)
    assert len(project._history.past) == 3, "each holds a given mask and the mask of all objects"
    while project.undo() is not None:
        pass
    assert len(project._history.future) == 3


def test_given_masks_can_be_segmented(project, folder, video):
    project.give(1, 2, box(0, 0, 8, 8))
    project.give(5, 1, box(4, 4, 16, 16))
    given = match_masks(find_masks(folder / "given", video), project.reader)
    assert given.ids == {1: [2], 5: [1]}
    assert given.palette == project.palette
    assert not given.notes
    assert all((given.read(index) == project.given(index)).all() for index in (1, 5))


def test_a_thin_rim_of_one_object_around_another_is_no_soft_edge(project, folder, video):
    ids = ids_of({1: box(3, 3, 21, 21), 2: box(4, 4, 20, 20)})
    for object_id in (1, 2):
        project.give(1, object_id, ids == object_id)
    write_mask(folder.parent / "unmarked.png", ids)
    with pytest.raises(InputError, match="mask looks anti-aliased"):
        read_mask(folder.parent / "unmarked.png")
    given = match_masks(find_masks(folder / "given", video), project.reader)
    assert (given.read(1) == ids).all()


def test_masks_may_be_read_and_written_by_many_threads(project):
    def work(object_id):
        for step in range(20):
            index = step % FRAMES
            if object_id == 1:
                track(project, index, {1: box(0, 0, 8, 8), 2: box(16, 0, 24, 8)})
            else:
                project.give(index, 2, box(16, 0, 24, 8 + step))
            project.soft(index)
            seen.append(set(np.unique(project.shown(index)).tolist()) <= {0, 1, 2})
            project.undo()
            project.redo()

    for _ in range(10):  # so that the objects stay
        project.add_object()
    seen = []
    threads = [Thread(target=work, args=(object_id,)) for object_id in (1, 2, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 60


@needs_av
def test_the_frames_of_a_video_have_numbers(folder, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", [numbered_picture(index) for index in range(4)])
    with Project.open(folder, frame_source(clip)) as project:
        project.add_object()
        project.give(3, 1, np.ones((48, 64), np.bool_))
        assert (folder / "given" / "00003.png").exists()
        assert json.loads((folder / "project.json").read_text())["video"] == {
            "kind": "path",
            "source": "../clip.mp4",
            "width": 64,
            "height": 48,
            "frames": 4,
            "rate": "25",
        }


@needs_av
def test_a_video_whose_frames_are_not_counted_is_refused(folder, tmp_path):
    clip = make(tmp_path, "plain.wmv", **UNKNOWN["plain.wmv"])
    with pytest.raises(InputError, match="the number of frames is unknown"):
        Project.open(folder, frame_source(clip))
    assert not folder.exists()


@pytest.mark.parametrize(
    "source", [FrameSource("camera:0", "camera"), FrameSource("-", "pipe"), FrameSource("http://a/b.mp4", "url")]
)
def test_live_sources_are_refused(folder, source):
    with pytest.raises(InputError, match="found a live source or a URL, expected a file or a folder"):
        Project.open(folder, source)
    assert not folder.exists()


def test_images_may_be_a_glob(folder, video, monkeypatch):
    inside = video.parent / "take [1]"
    inside.mkdir()
    video.rename(inside / "frames")
    monkeypatch.chdir(inside)
    with Project.open(folder, frame_source("frames/shot.?.png")) as project:
        assert project.frame_count == 3
        project.add_object()
        project.give(0, 1, box(0, 0, 8, 8))
    monkeypatch.chdir("/")
    with Project.open(folder) as again:
        assert again.source.kind == "glob"
        assert again.states() == "g.."


@pytest.mark.parametrize("inside", [False, True])
def test_a_project_is_moved_with_its_video(tmp_path, inside):
    home = tmp_path / "home"
    folder = home / "project"
    folder.mkdir(parents=True)
    video = write_frames(folder / "frames" if inside else home / "frames")
    Project.open(folder, frame_source(video)).close()
    home.rename(tmp_path / "moved")
    with Project.open(tmp_path / "moved" / "project") as project:
        assert project.reader.path.is_relative_to(tmp_path / "moved")


def test_a_video_is_found_beside_a_project_that_came_without_it(tmp_path, folder):
    (tmp_path / "far").mkdir()
    video = write_frames(tmp_path / "far" / "frames")
    Project.open(folder, frame_source(video)).close()
    assert json.loads((folder / "project.json").read_text())["video"]["source"] == str(video)
    video.rename(tmp_path / "frames")
    Project.open(folder).close()
    assert json.loads((folder / "project.json").read_text())["video"]["source"] == "../frames"
    (tmp_path / "frames").rename(tmp_path / "renamed")
    with pytest.raises(InputError, match=r"no such file or folder, which was the video of the project .*; open"):
        Project.open(folder)
    Project.open(folder, frame_source(tmp_path / "renamed")).close()
    Project.open(folder).close()


def test_a_name_that_is_not_unicode_is_refused(tmp_path, folder):
    video = write_frames(tmp_path / os.fsdecode(b"\xff"))
    with pytest.raises(InputError, match="found a name that is not Unicode"):
        Project.open(folder, frame_source(video))
    assert not folder.exists()


def test_the_folder_of_the_process_does_not_matter(tmp_path, video, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Project.open("project", frame_source("frames")).close()
    monkeypatch.chdir("/")
    Project.open(tmp_path / "project").close()


def test_another_video_is_refused(tmp_path, folder, video):
    Project.open(folder, frame_source(video)).close()
    other = write_frames(tmp_path / "other")
    with pytest.raises(InputError, match=r"found the project of .*frames, expected that of .*other"):
        Project.open(folder, frame_source(other))
    (video / f"{NAMES[0]}.png").unlink()
    found = "found 5 frames of 32x24 at 24/s, expected 6 frames of 32x24 at 24/s"
    with pytest.raises(InputError, match=rf"frames: not the video of the project .*project: {found}"):
        Project.open(folder)


def test_a_folder_with_something_else_is_left_alone(folder, video):
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"found 'thesis.txt', expected a project, or an empty folder for one"):
        Project.open(folder, frame_source(video))
    with pytest.raises(InputError, match="no project in this folder"):
        Project.open(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_a_project_is_started_again_after_a_kill(folder, video):
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".project.json.17.partial").write_text("{")
    with Project.open(folder, frame_source(video)):
        assert not list(folder.glob("*.partial"))


def test_one_process_at_a_time(project, folder):
    with pytest.raises(InputError, match="open in another process or page, expected one at a time"):
        Project.open(folder)
    project.close()
    project.close()
    Project.open(folder).close()


def test_a_closed_project_is_not_changed(project, folder):
    track(project, 1, {1: box(0, 0, 8, 8)})
    project.close()
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for edit in (
        lambda: track(project, 1, {1: box(0, 0, 9, 9)}),
        lambda: project.give(1, 1, box(0, 0, 9, 9)),
        lambda: project.undo(),
        lambda: project.delete_object(1),
    ):
        with pytest.raises(InputError, match="project: the project is closed"):
            edit()
    assert files == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert project.states() == ".f...."


def changed(**entries):
    return lambda record: record | entries


def in_video(**entries):
    return lambda record: record | {"video": record["video"] | entries}


OBJECT = {"id": 1, "name": "a", "color": "#123456"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [], "not a project"),
        (changed(format=2), "format: found 2, expected 1"),
        (changed(other=1), "other: found 1"),
        (lambda record: {key: record[key] for key in record if key != "objects"}, "objects: missing"),
        (changed(objects=[OBJECT, OBJECT]), r"objects: found the ids \[1, 1\], expected different ones"),
        (changed(objects=[OBJECT | {"id": 3}]), r"objects: found the ids \[3\], expected different ones below next_id"),
        (changed(objects=[OBJECT | {"id": 255}], next_id=255), "objects.0.id: found 255"),
        (changed(objects=[OBJECT | {"id": "1"}]), "objects.0.id: found '1'"),
        (changed(objects=[OBJECT | {"name": "a" * 101}]), "objects.0.name"),
        (changed(objects=[OBJECT | {"name": "a\nb"}]), "objects.0.name"),
        (changed(objects=[OBJECT | {"color": "red"}]), "objects.0.color"),
        (changed(marks=[3, 2]), r"marks: found \[3, 2\]"),
        (changed(marks=[0, 6]), r"marks: found \[0, 6\]"),
        (in_video(kind="url", source="http://a/b.mp4"), "video.kind: found 'url'"),
        (in_video(source="a\0b"), "video.source"),
        (in_video(frames=2**40), "video.frames"),
        (in_video(rate="24/0"), "video.rate: found a denominator of 0"),
        (in_video(rate="0"), "video.rate: found 0"),
        (in_video(rate="1e9"), "video.rate"),
        (in_video(rate="25"), "found 6 frames of 32x24 at 24/s, expected 6 frames of 32x24 at 25/s"),
    ],
)
def test_a_damaged_project_gives_one_line(project, folder, change, message):
    project.close()
    path = folder / "project.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=message) as raised:
        Project.open(folder)
    assert str(path) in str(raised.value) or str(folder) in str(raised.value)


@pytest.mark.parametrize(
    "line",
    [
        b'[6,[[1,5,0.5,0.5,"found"]]]',  # no frame of the video
        b'[2,[[1,5,NaN,0.5,"found"]]]',
        b'[2,[[1,5,1.5,0.5,"found"]]]',
        b'[2,[[255,5,0.5,0.5,"found"]]]',
        b'[2,[[1,5,0.5,0.5,"seen"]]]',
        b"[2,[],[]",
        b"[2,[]],[1,[]]",
        b"[-1,[]]",
        b"[99999999999,[]]",
        b"nothing",
        b"",
        b"\0\0\xff\0",
    ],
)
def test_a_damaged_line_of_the_journal_loses_its_frame_only(project, folder, caplog, line):
    for index in (1, 2, 3):
        track(project, index, {1: box(0, 0, 8, 8)})
    before = content(project)[3]
    project.close()
    path = folder / "states.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line, lines[2], b""]))
    for notes in (1, 0):  # the damaged line is gone then
        with Project.open(folder) as again:
            lost = line.startswith(b"[2,")
            assert again.states() == (".f.f.." if lost else ".fff..")
            assert [frame for index, frame in enumerate(content(again)[3]) if index != 2 or not lost] == [
                frame for index, frame in enumerate(before) if index != 2 or not lost
            ]
            assert not (lost and again.shown(2).any())
        assert len(caplog.messages) == notes
        assert not notes or f"{path}: found 1 damaged line; what was found" in caplog.text
        caplog.clear()


def test_a_later_line_counts_in_spite_of_a_damaged_one(project, folder):
    track(project, 1, {1: box(0, 0, 8, 8)})
    project.close()
    path = folder / "states.jsonl"
    path.write_bytes(b"[1,\n" + path.read_bytes())
    with Project.open(folder) as again:
        assert again.states() == ".f...."


def test_half_a_line_is_left_out(project, folder):
    track(project, 1, {1: box(0, 0, 8, 8)})
    track(project, 2, {1: box(0, 0, 8, 8)})
    project.close()
    path = folder / "states.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with Project.open(folder) as again:
        assert again.states() == ".f...."
        track(again, 3, {1: box(0, 0, 8, 8)})
    with Project.open(folder) as again:
        assert again.states() == ".f.f.."


def test_the_journal_does_not_grow_for_ever(project, folder):
    for _ in range(20):
        track(project, 1, {1: box(0, 0, 8, 8)})
    project.close()
    Project.open(folder).close()
    assert len((folder / "states.jsonl").read_text().splitlines()) == 1


def test_a_mask_that_was_removed_is_not_found(project, folder):
    track(project, 1, {1: box(0, 0, 8, 8)})
    project.close()
    (folder / "masks" / "shot.2.png").unlink()
    with Project.open(folder) as again:
        assert again.states() == "......"


@pytest.mark.parametrize("size", [0, 20])
def test_a_damaged_mask_is_not_found(project, folder, caplog, size):
    track(project, 1, {1: box(0, 0, 8, 8)})
    project.give(2, 1, box(0, 0, 8, 8))
    track(project, 2, {2: box(20, 0, 28, 8)})
    project.close()
    for name in ("shot.2.png", "shot.3.png"):
        path = folder / "masks" / name
        path.write_bytes(path.read_bytes()[:size])
    with Project.open(folder) as again:
        assert not again.shown(1).any()
        assert (again.shown(2) == ids_of({1: box(0, 0, 8, 8)})).all()
        assert again.states() == "..g..."
        assert again.sightings(1) == []
        assert [one.object_id for one in again.sightings(2)] == [1]
        assert "shot.2.png" in caplog.messages[0]
        assert "track the frame again" in caplog.messages[0]
        assert len(caplog.messages) == 2
        track(again, 1, {1: box(0, 0, 9, 9)})
        again.give(2, 2, box(20, 0, 28, 8))
        before = content(again)
    with Project.open(folder) as again:
        assert content(again) == before


def test_a_damaged_soft_mask_is_as_hard_as_the_mask(project, folder, caplog):
    track(project, 1, {1: box(0, 0, 8, 8)})
    (folder / ".soft" / "shot.2.1.png").write_bytes(b"")
    assert (project.soft(1)[1] == np.where(box(0, 0, 8, 8), 255, 0)).all()
    assert "shot.2.1.png" in caplog.text


def test_given_masks_survive_a_power_failure(project, folder, monkeypatch):
    synced, fsync = set(), os.fsync

    def noted(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    track(project, 1, {1: box(0, 0, 8, 8)})
    assert not synced, "tracking does not wait for the disk"
    project.give(1, 1, box(0, 0, 8, 8))
    assert synced == {path.stat().st_ino for path in (folder / "given", folder / "given" / "shot.2.png")}
    synced.clear()
    project.give(1, 1, NOTHING)
    assert synced == {(folder / "given").stat().st_ino}
    synced.clear()
    project.add_object()
    assert {path.stat().st_ino for path in (folder, folder / "project.json")} <= synced


def test_masks_of_no_frame_are_refused(project, folder):
    project.give(1, 1, box(0, 0, 8, 8))
    project.close()
    (folder / "given" / "shot.2.png").rename(folder / "given" / "shot.4.png")
    with pytest.raises(InputError, match=r"shot\.4\.png: no frame of frames has this name"):
        Project.open(folder)


def test_masks_of_another_size_are_refused(project, folder):
    project.give(1, 1, box(0, 0, 8, 8))
    Image.fromarray(np.ones((4, 4), np.uint8)).save(folder / "given" / "shot.2.png")
    project.close()
    with (
        Project.open(folder) as again,
        pytest.raises(InputError, match=r"shot\.2\.png: found PNG of mode L and 4x4, expected a PNG of ids of 32x24"),
    ):
        again.shown(1)


@pytest.mark.parametrize("name", ["given", "masks"])
def test_pipes_are_not_read(project, folder, name):
    os.mkfifo(folder / name / "shot.2.png")
    project.close()
    with (
        Project.open(folder) as again,
        pytest.raises(InputError, match=r"shot\.2\.png: (not a regular|found something)"),
    ):
        again.give(1, 1, box(0, 0, 8, 8))


@pytest.mark.parametrize("name", ["given", "masks", ".soft"])
def test_links_out_of_the_folder_are_refused(project, folder, tmp_path, name):
    project.close()
    (folder / name).rmdir()
    (folder / name).symlink_to(tmp_path)
    with pytest.raises(InputError, match="found a symbolic link"):
        Project.open(folder)


@pytest.mark.parametrize("name", ["states.jsonl", ".lock"])
def test_files_behind_links_are_not_written(project, folder, tmp_path, name):
    project.close()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match="cannot write"):
        Project.open(folder)
    assert not (tmp_path / "other").exists()


STEPS = [
    lambda p: p.give(1, 1, box(0, 0, 8, 8)),
    lambda p: track(p, 2, {1: box(0, 0, 9, 9), 2: box(12, 0, 20, 8)}),
    lambda p: track(p, 2, {1: box(0, 0, 7, 7), 2: box(12, 0, 22, 8)}),
    lambda p: p.give(2, 2, box(4, 4, 20, 20)),
    lambda p: p.give(2, 1, NOTHING),
    lambda p: p.undo(),
    lambda p: p.give(2, 2, NOTHING),
    lambda p: track(p, 1, {1: box(0, 0, 9, 9), 2: box(12, 0, 22, 8)}),
    lambda p: track(p, 1, {1: box(0, 0, 9, 9), 2: box(13, 0, 22, 8)}),
    lambda p: p.give(3, 2, box(4, 4, 20, 20)),
    lambda p: p.give(1, 2, box(4, 4, 20, 20)),
    lambda p: p.delete_object(2),
    lambda p: p.undo(),
    lambda p: p.redo(),
    lambda p: p.add_object(),
]


def die_at(folder, moment):
    """Makes all steps, and is killed at one of the moments at which a file changes, half through with a line."""
    moments = count()

    def dying(call):
        def at(*arguments):
            if next(moments) == moment:
                if call is write:
                    write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)

        return at

    project = Project.open(folder)
    write = os.write
    os.write, os.replace, os.unlink = dying(os.write), dying(os.replace), dying(os.unlink)
    for step in STEPS:
        step(project)
    os._exit(0)


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_at_most_one_frame(project, folder, tmp_path):
    stages = [content(project)]
    project.close()
    shutil.copytree(folder, tmp_path / "reference")
    with Project.open(tmp_path / "reference") as reference:
        for step in STEPS:
            step(reference)
            stages.append(content(reference))
    for moment in count():
        copy = shutil.copytree(folder, tmp_path / "killed")
        process = CONTEXT.Process(target=die_at, args=(copy, moment))
        process.start()
        process.join(PATIENCE)
        with Project.open(copy) as found:
            assert not list(copy.rglob("*.partial"))
            check_stage(found, stages)
        shutil.rmtree(copy)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert moment > 2 * len(STEPS)


def check_stage(found, stages):
    """That a project is at one of the stages, or between two, where one frame lacks at most what was found in it."""
    objects, _, _, frames = content(found)
    alive = {one.id for one in objects}
    for index in found.given_frames():
        raw = read_written_mask(found.folder / "given" / f"{NAMES[index]}.png").ids
        assert set(np.unique(raw).tolist()) <= alive | {0}
    for before, after in pairwise(stages):
        for stage, other in ((before, after), (after, before)):
            differing = [index for index in range(FRAMES) if frames[index] != stage[3][index]]
            if objects != stage[0] or len(differing) > 1:
                continue
            if not differing or is_whole(frames[differing[0]], stage[3][differing[0]], other[3][differing[0]]):
                return
    raise AssertionError(f"found {found.states()} and {objects}, which is none of the stages")


def is_whole(frame, *stages):
    """Whether a frame is one of those, or has the given masks of one and nothing else."""
    given, ids, sightings = frame
    alone = ids == (given or ids_of({}).tolist()) and all(one.probability == 1 for one in sightings)
    return frame in stages or (alone and given in [stage[0] for stage in stages])


def work_until_killed(folder, sending):
    """Tracks and edits frames for ever; reports each call that returned."""
    project = Project.open(folder)
    for step in count():
        index = step % FRAMES
        size = 2 + step // FRAMES % 12
        if step % 4 == 3:
            project.give(index, 1, box(0, 0, size, size))
        else:
            track(project, index, {1: box(0, 0, size, size), 2: box(16, 0, 16 + size, size)})
        sending.send(step)


@pytest.mark.parametrize("steps", [1, 10, 40, 100])
def test_a_killed_process_loses_nothing_that_was_kept(project, folder, steps):
    project.close()
    receiving, sending = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=work_until_killed, args=(folder, sending))
    process.start()
    sending.close()
    done = [receiving.recv() for _ in range(steps)]
    process.kill()
    process.join(PATIENCE)
    try:
        while True:
            done.append(receiving.recv())
    except EOFError:
        pass
    with Project.open(folder) as found:
        assert not list(folder.rglob("*.partial"))
        written = (done[-1] + 1) % FRAMES
        for index in {step % FRAMES for step in done} - {written}:
            assert found.states()[index] in "gf"
            assert set(np.unique(found.shown(index)).tolist()) <= {0, 1, 2}
            for one in found.sightings(index):
                assert one.pixels == (found.shown(index) == one.object_id).sum() > 0


def test_a_frame_that_cannot_be_written_is_not_found(project, folder, monkeypatch):
    track(project, 1, {1: box(0, 0, 8, 8)})
    replace = os.replace

    def full(source, target):
        if "masks" in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"disk full while writing .*masks"):
        track(project, 1, {1: box(0, 0, 9, 9)})
    monkeypatch.undo()
    assert project.states() == "......"
    assert not project.shown(1).any()
    before = content(project)
    project.close()
    with Project.open(folder) as again:
        assert content(again) == before


def test_a_full_disk_leaves_everything_as_it_was(project, folder, monkeypatch):
    track(project, 1, {1: box(0, 0, 8, 8)})
    before = content(project)
    write = os.write

    def full(file, data):
        write(file, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(InputError, match=r"disk full while writing .*states\.jsonl"):
        track(project, 2, {1: box(0, 0, 8, 8)})
    monkeypatch.undo()
    track(project, 3, {1: box(0, 0, 8, 8)})
    project.close()
    with Project.open(folder) as again:
        assert again.states() == ".f.f.."
        assert content(again)[3][1] == before[3][1]
