"""The page for everyone: axe-core finds nothing serious, light and dark, and the keys do everything."""

import pytest

from browser import needs_browser
from page_driver import write_clip
from stm_fast.data.synthetic import SyntheticClip

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    synthetic = SyntheticClip(3, frames=6, height=96, width=160, objects=2, object_size=(0.22, 0.28))
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", synthetic)


def findings(person, state):
    """What axe-core calls serious or critical, one line each; takes a picture."""
    from axe_playwright_python.sync_playwright import Axe

    person.picture(state)
    found = Axe().run(person.page).response["violations"]
    return [
        f"{state}: {item['id']}, {item['help']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for item in found
        if item["impact"] in ("serious", "critical")
        for node in item["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, clip, tmp_path, scheme):
    empty = visit.person(visit.serve(), color_scheme=scheme).open("empty")
    found = findings(empty, f"empty {scheme}")
    person = visit.person(visit.serve(clip.path), color_scheme=scheme).open()
    found += findings(person, f"opened {scheme}")
    person.lasso(clip.own(0, 1))
    person.changed(lambda: person.press("n"))
    person.lasso(clip.own(0, 2))
    person.finished(lambda: person.press("Enter"))
    found += findings(person, f"masks {scheme}")
    person.page.click("#export")
    person.page.wait_for_selector("#export-dialog")
    found += findings(person, f"export {scheme}")
    person.press("Escape")
    person.page.click("#help")
    found += findings(person, f"help {scheme}")
    assert not found, "\n".join(found)


def test_the_theme_can_be_chosen(visit, clip):
    person = visit.person(visit.serve(clip.path), color_scheme="light").open()
    before = person.page.evaluate("getComputedStyle(document.body).backgroundColor")
    person.page.click("#theme")
    after = person.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert before != after
    assert not findings(person, "theme chosen")
