"""Keys and pointers in the page, also as they are used by mistake."""

import numpy as np
import pytest

from browser import needs_browser
from page_driver import LONG_CLIP, outline, write_clip, write_long_clip
from stm_fast.data.synthetic import SyntheticClip

pytestmark = [needs_browser, pytest.mark.slow]

FRAMES = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    synthetic = SyntheticClip(3, frames=FRAMES, height=96, width=160, objects=1, object_size=(0.22, 0.28))
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", synthetic)


@pytest.fixture
def person(visit, clip, tmp_path):
    """Somebody who has just opened the clip."""
    return visit.open(clip.path, "--output", tmp_path / "project")


def dialogs(person):
    return person.page.locator("dialog[open]").count()


def test_keys_without_anything_to_act_on_do_no_harm(person):
    for keys in ("Control+z", "Control+y", "Shift+Delete", "Delete", "F2", "1", "g", "d", "Escape"):
        person.press(keys)
    person.idle()
    person.press("Enter")
    person.until(lambda _: "Draw around the object first" in person.status(), "it says what to do first")
    assert not person.page.is_visible("#problems-button")
    project = person.project()
    assert (project["objects"], project["can_undo"], project["running"]) == ([], False, None)


def test_new_objects_do_not_pile_up(person, clip):
    person.page.keyboard.down("n")
    for _ in range(3):
        person.page.keyboard.down("n")  # held
    person.page.keyboard.up("n")
    person.press("n")
    person.idle()
    assert person.object_names() == ["object 1"]
    person.lasso(clip.own(0, 1))
    person.changed(lambda: person.press("n"))
    assert person.object_names() == ["object 1", "object 2"]
    person.changed(lambda: person.press("Shift+Delete"))
    person.changed(lambda: person.press("Shift+Delete"))
    assert person.object_names() == []
    person.changed(lambda: person.press("Control+z"))
    assert person.ids(0).any()
    person.changed(lambda: person.press("Control+y"))
    assert not person.ids(0).any()


def test_a_name_is_typed_undisturbed(visit, person):
    person.changed(lambda: person.press("n"))
    person.press("F2")
    person.page.keyboard.type("long name n ")
    other = visit.another_tab(person).open()
    before = int(person.data()["version"])
    other.changed(lambda: other.press("n"))
    other.page.close()
    person.page.bring_to_front()
    person.until(lambda data: int(data["version"]) > before, "this tab has the other object")
    person.page.keyboard.type("w" * 40)
    person.picture("renaming")
    person.changed(lambda: person.press("Enter"))
    assert person.object_names() == ["long name n " + "w" * 40, "object 2"]
    panel, row = (person.page.locator(part).first.bounding_box() for part in ("aside", ".object"))
    assert row["x"] + row["width"] <= panel["x"] + panel["width"], "a long name is cut"


def test_after_the_mouse_keys_are_for_the_video(person, clip):
    person.page.click("#help")
    assert dialogs(person) == 1
    person.press("Escape")
    person.press("ArrowRight")
    person.until(lambda data: data["shown"] == "1", "the dialog is closed")
    person.press("Enter")
    person.until(lambda _: "Draw around the object first" in person.status(), "the key is not for the button")
    assert dialogs(person) == 0
    with person.page.expect_file_chooser() as chooser:
        person.page.click("header .button:has(#file)")
    chooser.value.set_files(clip.path)
    person.until(lambda _: "Copying" not in person.status() and "Opening" not in person.status(), "it is open again")
    person.press(" ")
    person.until(lambda data: int(data["shown"]) > 1, "the space bar plays")


def test_escape_drops_a_line_and_a_pointer_may_leave_the_stage(person, clip):
    line = [person.place(point) for point in outline(clip.own(0, 1))]
    mouse = person.page.mouse
    mouse.move(*line[0])
    mouse.down()
    for place in line[1:]:
        mouse.move(*place)
    person.press("Escape")
    mouse.up()
    person.page.wait_for_timeout(100)
    assert person.project()["objects"] == []
    person.page.click("#tool-brush")
    mouse.move(*person.place((20, 20)))
    mouse.down()
    mouse.move(2, 2)
    mouse.move(*person.place((140, 80)))
    person.changed(mouse.up)
    assert person.ids(0)[80, 140] == 1


def test_the_wheel_sizes_the_brush_and_the_middle_button_pans(person):
    person.page.click("#tool-brush")
    before = int(person.page.input_value("#brush-size"))
    stage = person.page.locator("#stage").bounding_box()
    x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
    person.page.mouse.move(x, y)
    person.page.keyboard.down("Shift")
    person.page.mouse.wheel(0, -100)
    person.page.keyboard.up("Shift")
    person.until(lambda _: int(person.page.input_value("#brush-size")) > before, "the brush is larger")
    under = person.place_in_image(x, y)
    person.page.mouse.down(button="middle")
    person.page.mouse.move(x + 50, y + 30)
    person.page.mouse.up(button="middle")
    assert np.allclose(person.place_in_image(x + 50, y + 30), under, atol=0.1)
    assert person.project()["objects"] == []


def test_marks_are_dragged_and_reset_by_a_double_click(person):
    line = person.page.locator("#timeline").bounding_box()
    mouse, top, margin = person.page.mouse, line["y"] + 6, 10

    def border(index):
        return line["x"] + margin + index * (line["width"] - 2 * margin) / FRAMES

    for start, end in ((0, 3.5), (FRAMES, 8.5)):
        mouse.move(border(start), top)
        mouse.down()
        mouse.move(border(end), top, steps=3)
        person.changed(mouse.up)
    assert person.project()["marks"] == [3, 8]
    mouse.move(border(5.5), line["y"] + line["height"] / 2)
    assert person.page.inner_text("#timeline-tip").startswith("5 ")
    person.changed(lambda: mouse.dblclick(border(3) - 4, top), by=3)
    assert person.project()["marks"] == [0, FRAMES - 1]


def test_strokes_and_masks_are_exact_when_zoomed_in_on_a_dense_screen(visit, clip):
    person = visit.person(visit.serve(clip.path), device_scale_factor=1.5).open()
    person.page.fill("#opacity", "100")
    person.page.click("#outline")
    person.page.click("#tool-brush")
    person.page.fill("#brush-size", "1")
    for _ in range(8):
        person.press("+")
    person.changed(lambda: person.drag([(80.5, 48.5), (84.5, 48.5)]))
    painted = np.argwhere(person.ids(0))
    assert painted.tolist() == [[48, x] for x in range(80, 85)]
    stage = person.page.locator("#stage").bounding_box()
    color = tuple(int(person.project()["objects"][0]["color"][at : at + 2], 16) for at in (1, 3, 5))
    solid = (np.abs(person.pixels().astype(int) - color).max(-1) < 16).nonzero()
    (left, top), (right, bottom) = person.place((80, 48)), person.place((85, 49))
    seen = [solid[1].min() / 1.5 + stage["x"], solid[0].min() / 1.5 + stage["y"]]
    seen += [(solid[1].max() + 1) / 1.5 + stage["x"], (solid[0].max() + 1) / 1.5 + stage["y"]]
    assert np.allclose(seen, [left, top, right, bottom], atol=1.5), "the mask is where its pixels are"


def test_another_video_is_opened_while_tracking(visit, tmp_path):
    clip = write_long_clip(tmp_path / "long.mp4", objects=1)
    person = visit.open(clip.path, *LONG_CLIP)
    other = write_clip(tmp_path / "other.mp4", SyntheticClip(4, frames=2, height=64, width=64, objects=1))
    person.lasso(clip.own(0, 1))
    person.press("Enter")
    person.until(lambda data: data["busy"] == "track" and int(data["shown"]) > 2, "frames are tracked")
    person.page.set_input_files("#file", other.path)
    person.until(
        lambda data: not data["busy"] and person.page.input_value("#frame-number") == "0" and data["shown"] == "0",
        "the other is shown",
    )
    assert person.project()["video"]["frames"] == 2
    assert not person.page.is_visible("#problems-button"), person.status()
    # the browser itself reports requests for frames that the other video does not have
    person.allow("status of 404")
