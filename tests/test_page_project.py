"""The document of the page: what is kept in a project's folder, whatever happens."""

import numpy as np
import pytest
from PIL import Image

from stm_fast.frame_source import frame_source
from stm_fast.inference.sightings import Sighting
from stm_fast.page.project import Change, Project

WIDTH, HEIGHT, FRAMES = 32, 24, 6
NAMES = ["shot.1", "shot.2", "shot.3", "shot.9", "shot.10", "Größe 11"]


@pytest.fixture
def video(tmp_path):
    """A folder of images with names that are not numbers."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 40 * number, np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "project"


def started(folder, video, objects=2):
    project = Project.open(folder, frame_source(video))
    for _ in range(objects):
        project.add_object()
    return project


def box(left, top, right, bottom):
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def tracked(project, index, masks, state="found"):
    """Keeps these masks, by object, as if tracking had found them."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    prob = np.full((1 + len(masks), HEIGHT, WIDTH), 0.2, np.float32)
    for channel, (object_id, mask) in enumerate(masks.items(), 1):
        ids[mask] = object_id
        prob[channel][mask] = 0.8
    sightings = [Sighting(one, int((ids == one).sum()), 0.8, 0.75, state) for one in masks]
    return project.keep(index, ids, sightings, prob, list(masks))


def content(project):
    """Everything that a project shows."""
    frames = range(project.frame_count)
    given = [None if project.given(i) is None else project.given(i).tolist() for i in frames]
    shown = [project.shown(i).tolist() for i in frames]
    seen = [project.sightings(i) for i in frames]
    soft = [{one: plane.tolist() for one, plane in project.soft(i).items()} for i in frames]
    return project.objects, project.marks, project.states(), given, shown, seen, soft


def reopened(project):
    project.close()
    return Project.open(project.folder)


def test_a_new_project_is_empty(folder, video):
    with Project.open(folder, frame_source(video)) as project:
        assert project.states() == "......"
        assert project.objects == []
        assert project.marks == range(FRAMES)
        assert project.given_frames() == []
        assert not project.shown(3).any()
        assert (project.can_undo, project.can_redo) == (False, False)


def test_masks_are_given_and_found(folder, video):
    with started(folder, video) as project:
        assert project.give(1, 1, box(0, 0, 8, 8)) == Change((1,), False)
        assert tracked(project, 2, {1: box(2, 0, 10, 8), 2: box(20, 10, 30, 20)}) == Change((2,), False)
        tracked(project, 3, {1: box(3, 0, 11, 8)}, "doubtful")
        tracked(project, 4, {1: box(0, 0, 0, 0), 2: box(20, 10, 30, 20)}, "lost")
        assert project.states() == ".gfdl."
        assert project.given_frames() == [1]
        assert (project.shown(1) == np.where(box(0, 0, 8, 8), 1, 0)).all()
        assert project.sightings(1) == [Sighting(1, 64, 1.0, 1.0, "found")]
        assert project.sightings(3) == [Sighting(1, 64, 0.8, 0.75, "doubtful")]
        assert (project.soft(2)[2] == np.where(box(20, 10, 30, 20), 204, 51)).all()
        before = content(project)
        with reopened(project) as again:
            assert content(again) == before
