"""The page as a person uses it, on a clip with known masks: draw, track, correct, go back, undo, name, look, play."""

from itertools import pairwise
from statistics import mean

import numpy as np
import pytest

from browser import needs_browser
from page_driver import LONG_CLIP, write_clip, write_long_clip
from stm_fast.clicks.user import next_click
from stm_fast.data.synthetic import SyntheticClip

pytestmark = [needs_browser, pytest.mark.slow]

FRAMES = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    synthetic = SyntheticClip(3, frames=FRAMES, height=96, width=160, objects=2, object_size=(0.22, 0.28))
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", synthetic)


@pytest.fixture
def person(visit, clip, tmp_path):
    """Somebody who has just opened the clip."""
    return visit.open(clip.path, "--output", tmp_path / "project")


def drawn(person, clip, index=0, object_id=1):
    """Draws one object."""
    person.lasso(clip.own(index, object_id))
    person.correct(clip.own(index, object_id), object_id, clicks=3)
    return person


def test_the_way_from_nothing_to_two_tracked_objects(visit, clip):
    person = visit.open(clip.path, *LONG_CLIP)  # slow enough for the live preview
    person.picture("opened")
    person.lasso(clip.own(0, 1))
    person.picture("lasso")
    person.correct(clip.own(0, 1), clicks=3)
    assert person.score(clip, 0) > 0.85
    person.press("n")
    person.idle()
    person.box(clip.own(0, 2))
    person.correct(clip.own(0, 2), 2, clicks=3)
    assert person.score(clip, 0, 2) > 0.85
    assert person.score(clip, 0) > 0.8, "the first object is still there"
    person.picture("two objects")
    person.watch()
    person.finished(lambda: person.press("Enter"))
    shown = person.watched("track")
    assert shown == sorted(shown), "the live preview goes forward"
    assert len(shown) > FRAMES // 3, f"the live preview showed only {shown}"
    assert person.project()["states"][0] == "g"
    assert "." not in person.project()["states"]
    for object_id in (1, 2):
        scores = [person.score(clip, index, object_id) for index in range(1, FRAMES)]
        assert mean(scores) > 0.75, (object_id, scores)
    person.picture("tracked")


def test_a_click_alone_makes_a_mask(visit, clip):
    person = visit.open(clip.path)
    assert "or click it" in person.status()
    person.correct(clip.own(0, 1), clicks=3)
    assert person.score(clip, 0) > 0.7
    person.press("n")
    person.idle()
    person.correct(clip.own(0, 2), 2, clicks=3)
    assert person.score(clip, 0, 2) > 0.7
    assert person.score(clip, 0) > 0.7, "the first object is still there"


SLOW_ANSWERS = """
    const fetched = window.fetch;
    const delays = {"/api/prompt": 300, "/api/mask": 900}; // so that the event comes before the answer
    window.fetch = async (url, ...options) => {
        const answer = await fetched(url, ...options);
        const slow = Object.keys(delays).find((path) => String(url).includes(path));
        if (slow) await new Promise((resolve) => setTimeout(resolve, delays[slow]));
        return answer;
    };
"""


def test_an_edit_ends_when_its_mask_is_on_screen(visit, clip):
    person = visit.person(visit.serve(clip.path, "--prompter", "grabcut"))
    person.page.add_init_script(SLOW_ANSWERS)
    person.open().lasso(clip.own(0, 1))
    person.click(*next_click(person.ids(0) == 1, clip.own(0, 1)))  # GrabCut refuses it where no mask is shown


def test_a_correction_helps_forward_and_back(person, clip):
    upper = clip.own(6, 1)
    upper[int(np.argwhere(upper)[:, 0].mean()) :] = False
    person.go(6)
    person.lasso(upper, margin=1)  # half of the object
    person.finished(lambda: person.press("Enter"))
    given, before = person.ids(6), [person.score(clip, index) for index in range(FRAMES)]
    person.go(9)
    person.correct(clip.own(9, 1), clicks=5)
    assert person.score(clip, 9) > before[9] + 0.05
    person.picture("corrected")
    person.finished(lambda: person.press("Enter"))
    person.go(9)
    person.watch()
    person.finished(lambda: person.press("Shift+Enter"))
    shown = person.watched("track")
    assert shown == sorted(shown, reverse=True)
    assert [person.project()["states"][index] for index in (6, 9)] == ["g", "g"]
    assert "." not in person.project()["states"]
    assert np.array_equal(person.ids(6), given), "what was given stays"
    # between the two, the correction counts by its distance: by a third, and by two thirds
    for index, least in ((7, 0.02), (8, 0.05)):
        assert person.score(clip, index) > before[index] + least, f"frame {index}"


def test_brush_and_eraser_paint_and_the_keys_undo(person, clip):
    middle = np.argwhere(clip.own(0, 1)).mean(0)[::-1]
    line = [(middle[0] - 10, middle[1]), (middle[0] + 10, middle[1])]
    person.stroke(line)
    painted = person.ids(0)
    assert painted[int(middle[1]), int(middle[0])] == 1
    person.stroke([tuple(middle)], "eraser")
    erased = person.ids(0)
    assert erased[int(middle[1]), int(middle[0])] == 0
    assert 0 < np.count_nonzero(erased) < np.count_nonzero(painted)
    nothing = np.zeros_like(painted)
    for mask in (painted, nothing, nothing):
        person.changed(lambda: person.press("Control+z"))
        assert np.array_equal(person.ids(0), mask)
    project = person.project()
    assert (project["objects"], project["can_undo"]) == ([], False)
    for mask in (nothing, painted, erased):
        person.changed(lambda: person.press("Control+Shift+z"))
        assert np.array_equal(person.ids(0), mask)
    person.changed(lambda: person.page.click("#undo"))
    assert np.array_equal(person.ids(0), painted)
    person.changed(lambda: person.page.click("#redo"))
    assert np.array_equal(person.ids(0), erased)


def test_escape_stops_within_two_frames(visit, tmp_path):
    clip = write_long_clip(tmp_path / "long.mp4", objects=1)
    person = visit.open(clip.path, *LONG_CLIP)
    person.box(clip.own(0, 1))
    person.press_at(2, "Escape")
    person.finished(lambda: person.press("Enter"))
    found = len(person.project()["states"].rstrip("."))
    assert 0 < found - 1 - person.pressed_at() <= 2, found
    person.go(found - 1)
    person.finished(lambda: (person.press("Enter"), person.page.wait_for_timeout(0), person.page.click("#stop")))
    again = len(person.project()["states"].rstrip("."))
    assert found <= again < 40, "it has gone on from there"


def test_objects_are_named_colored_deleted_and_restored(person, clip):
    drawn(person, clip)
    person.changed(lambda: person.page.click("#add-object"))
    drawn(person, clip, object_id=2)
    person.rename(2, "the second")
    assert [item["name"] for item in person.project()["objects"]][1] == "the second"
    before = person.pixels()
    person.recolor(2, "#00ff00")
    assert person.project()["objects"][1]["color"] == "#00ff00"
    repainted = np.abs(person.pixels().astype(int) - before).max(-1) > 20
    assert np.count_nonzero(repainted) > 0.8 * np.count_nonzero(clip.own(0, 2)), "the stage shows the new color"
    masks = person.ids(0)
    assert set(np.unique(masks)) == {0, 1, 2}
    person.delete(2)
    assert set(np.unique(person.ids(0))) == {0, 1}
    assert len(person.project()["objects"]) == 1
    person.changed(lambda: person.press("Control+z"))
    assert np.array_equal(person.ids(0), masks)
    assert person.project()["objects"][1]["name"] == "the second"


def test_opacity_outline_and_solo_change_the_picture_only(person, clip):
    drawn(person, clip)
    person.changed(lambda: person.press("n"))
    drawn(person, clip, object_id=2)
    masks, version = person.ids(0), person.data()["version"]
    own, other = clip.own(0, 1), clip.own(0, 2)

    def color_at(mask):
        """The color of the stage in the middle of an object."""
        place, _ = next_click(np.zeros_like(mask), mask)
        stage = person.page.locator("#stage").bounding_box()
        x, y = person.place(place)
        return person.pixels()[int(y - stage["y"]), int(x - stage["x"])].astype(int)

    def moved(mask, act):
        before = color_at(mask)
        act()
        return np.abs(color_at(mask) - before).max()

    assert moved(own, lambda: person.page.fill("#opacity", "0")) > 15, "the mask is gone"
    assert moved(own, lambda: person.page.fill("#opacity", "100")) > 15, "the mask hides the picture"
    person.page.fill("#opacity", "50")
    before = person.pixels()
    person.page.click("#outline")
    assert np.abs(person.pixels().astype(int) - before).max() > 40
    person.page.click("#outline")
    assert moved(other if person.chosen() == 1 else own, lambda: person.page.click("#solo")) > 15
    person.picture("solo")
    person.page.click("#solo")
    assert np.array_equal(person.ids(0), masks)
    assert person.data()["version"] == version


def test_marks_limit_what_is_tracked(person, clip):
    person.go(2)
    person.changed(lambda: person.press("i"))
    person.go(7)
    person.changed(lambda: person.press("o"))
    assert person.project()["marks"] == [2, 7]
    person.go(4)
    person.lasso(clip.own(4, 1))
    person.finished(lambda: person.press("Enter"))
    person.go(4)
    person.finished(lambda: person.press("Shift+Enter"))
    states = person.project()["states"]
    assert [index for index, state in enumerate(states) if state != "."] == list(range(2, 8)), states
    person.picture("marks")


def test_playing_and_the_arrow_keys(person):
    person.press("ArrowRight")
    person.until(lambda data: data["shown"] == "1", "the next frame is shown")
    person.press("End")
    person.until(lambda data: data["shown"] == str(FRAMES - 1), "the last frame is shown")
    person.press("Home")
    person.until(lambda data: data["shown"] == "0", "the first frame is shown")
    person.watch()
    person.page.click("#play")
    person.until(lambda data: data["shown"] == str(FRAMES - 1), "it has played to the end")
    shown = person.watched("")
    assert shown == sorted(shown)
    person.page.click("#loop")
    person.watch()
    person.page.click("#play")
    person.until(lambda data: sum(a > b for a, b in pairwise(person.watched(""))) >= 2, "it has begun again twice")
    person.page.click("#play")
    stopped = person.shown()
    person.page.wait_for_timeout(300)
    assert person.shown() == stopped


def test_the_timeline_leads_to_a_frame(person):
    line = person.page.locator("#timeline").bounding_box()
    person.page.mouse.click(line["x"] + line["width"] * 8.5 / FRAMES, line["y"] + line["height"] / 2)
    person.until(lambda data: data["shown"] in ("8", "9"), "the clicked frame is shown")


def test_zooming_and_panning_keep_the_pointer_on_its_pixel(person, clip):
    stage = person.page.locator("#stage").bounding_box()
    x, y = stage["x"] + stage["width"] / 3, stage["y"] + stage["height"] / 3
    before = person.place_in_image(x, y)
    person.page.mouse.move(x, y)
    for _ in range(4):
        person.page.mouse.wheel(0, -240)
    person.page.wait_for_timeout(100)
    assert np.allclose(person.place_in_image(x, y), before, atol=0.5), "the point under the pointer stays"
    corner = person.place_in_image(stage["x"] + stage["width"], stage["y"])
    person.page.keyboard.down(" ")
    person.page.mouse.down()
    person.page.mouse.move(x + 60, y + 40, steps=4)
    person.page.mouse.up()
    person.page.keyboard.up(" ")
    assert np.allclose(person.place_in_image(x + 60, y + 40), before, atol=0.5), "the picture follows the pointer"
    assert person.place_in_image(stage["x"] + stage["width"], stage["y"])[0] < corner[0]
    assert not person.ids(0).any(), "panning draws nothing"
    person.stroke([before])
    assert person.ids(0)[int(before[1]), int(before[0])] == 1, "and strokes land where the pointer is"
