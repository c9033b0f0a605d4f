"""Nothing is lost: tabs that close, servers that are killed, and two tabs at once."""

import numpy as np
import pytest

from browser import needs_browser
from page_driver import LONG_CLIP, write_long_clip

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_long_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", objects=2)


def start_tracking(person, clip):
    person.lasso(clip.own(0, 1))
    person.press("Enter")
    person.until(lambda data: data["busy"] == "track" and int(data["shown"]) > 1, "frames are tracked")


def test_tracking_goes_on_without_the_tab(visit, clip, tmp_path):
    server = visit.serve(clip.path, *LONG_CLIP, "--output", tmp_path / "project")
    first = visit.person(server).open()
    start_tracking(first, clip)
    first.page.close()
    again = visit.person(server).open()
    again.until(lambda data: not data["busy"], "tracking has ended")
    assert again.project()["states"][0] == "g"
    assert "." not in again.project()["states"]
    again.go(1)
    again.picture("reopened")
    assert again.ids(len(clip.truth) - 1).any()


def test_a_killed_server_loses_nothing(visit, clip, tmp_path):
    folder = tmp_path / "project"
    server = visit.serve(clip.path, *LONG_CLIP, "--output", folder)
    person = visit.person(server).open()
    person.changed(lambda: person.press("n"))
    person.lasso(clip.own(0, 1))
    person.rename(person.chosen(), "mine")
    start_tracking(person, clip)
    before = person.project()
    masks = {index: person.ids(index) for index, state in enumerate(before["states"]) if state != "."}
    server.kill()
    person.expect("net::ERR_")  # the browser reports that it cannot connect
    person.picture("server killed")
    person.page.close()
    again = visit.person(visit.serve(clip.path, *LONG_CLIP, "--output", folder)).open()
    after = again.project()
    assert after["objects"] == before["objects"]
    for index, mask in masks.items():
        assert after["states"][index] == before["states"][index]
        assert np.array_equal(again.ids(index), mask), index
    again.go(len(masks) - 1)
    again.finished(lambda: again.press("Enter"))
    assert "." not in again.project()["states"]


def test_two_tabs_show_the_same(visit, clip):
    one = visit.open(clip.path, *LONG_CLIP)
    two = visit.another_tab(one).open()
    before = int(two.data()["version"])
    empty = two.pixels()
    one.lasso(clip.own(0, 1))
    two.until(lambda data: int(data["version"]) > before, "the other tab has the change")
    two.page.wait_for_timeout(200)
    assert np.abs(two.pixels().astype(int) - empty).max() > 15
    one.changed(lambda: one.press("Control+z"))
    two.until(lambda data: int(data["version"]) > before + 1, "the other tab has undone it")
    one.changed(lambda: one.press("Control+Shift+z"))
    one.page.bring_to_front()
    one.changed(lambda: one.page.click("#add-object"))
    one.rename(one.chosen(), "from one")
    two.until(lambda data: "from one" in two.object_names(), "the other tab has the name")
    two.press("Enter")
    one.until(lambda data: data["busy"] == "track", "the other tab tracks")
    one.until(lambda data: not data["busy"], "tracking has ended")
    two.idle()
    assert "." not in two.project()["states"]
    two.picture("second tab")


def look(person, away=False):
    """Turns to a tab, or away from it; tabs that Playwright opens are all in sight otherwise."""
    person.page.evaluate(
        """(hidden) => {
            Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        away,
    )


def test_more_tabs_than_a_browser_opens_connections(visit, clip):
    first = visit.open(clip.path)
    last = first
    for _ in range(7):
        look(last, away=True)
        last = visit.another_tab(first).open()
    last.lasso(clip.own(0, 1))
    look(last, away=True)
    look(first)
    first.until(lambda _: first.object_names(), "a tab that is looked at again has the change")
    first.press("Enter")
    look(first, away=True)
    first.until(lambda data: not data["busy"], "a tab that nobody looks at hears the end of tracking")
    assert "Tracked" in first.status()
    assert "." not in first.project()["states"]
