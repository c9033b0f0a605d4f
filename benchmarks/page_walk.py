"""Segments a video in the page at a person's pace; prints each step with its second, and takes pictures.

python benchmarks/page_walk.py clip.mp4 MASKS --pictures docs/page [--write webm] [--object 1]

MASKS, a mask of the first frame or a folder of masks named after their frames, are what the person wants to get. A mask
of another frame that is in the folder is compared too, and the worst frame is corrected. Needs a browser, as the tests
of the page do.
"""

import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from browser import browser_path
from page_driver import Bools, Person, Point, Server, outline, place_to_click
from stm_fast.evaluation import region_similarity
from stm_fast.printing import percent
from stm_fast.video import open_frames, read_mask

PAUSE = 1.5  # seconds before each step: looking at the page, moving the hand
DRAWING = 400  # pixels of the screen per second, of a pointer that draws


class Walk:
    """The steps of a person, with the time that they take.

    Attributes:
        own: seconds that the person was looking, drawing, or clicking.
    """

    def __init__(self, person: Person) -> None:
        self.person, self.own = person, 0.0
        self._began = time.perf_counter()

    def step(self, what: str, act: Callable[[], object], wait: Callable[[], object] = lambda: None) -> None:
        """Looks, acts, waits for the page, and prints the second at which the page was done."""
        began = time.perf_counter()
        time.sleep(PAUSE)
        act()
        self.own += time.perf_counter() - began
        wait()
        now = time.perf_counter() - self._began
        print(f"{now:6.1f} s  (own time {self.own:5.1f} s)  {what}: {self.person.status()}", flush=True)

    def draw(self, points: list[Point]) -> None:
        """Draws a line at the pace of a hand."""
        places = [self.person.place(point) for point in points]
        mouse = self.person.page.mouse
        mouse.move(*places[0])
        mouse.down()
        for before, place in pairwise(places):
            mouse.move(*place)
            time.sleep(float(np.hypot(place[0] - before[0], place[1] - before[1])) / DRAWING)
        mouse.up()

    def edit(self, what: str, act: Callable[[], object]) -> None:
        """A step that changes masks."""
        before = int(self.person.data()["version"])

        def changed(data: dict[str, str]) -> bool:
            return int(data["version"]) > before and data["busy"] != "prompt"

        self.step(what, act, lambda: self.person.until(changed, "a mask changes"))

    def job(self, what: str, act: Callable[[], object]) -> None:
        """A step that starts tracking or an export."""
        before = int(self.person.data()["done"])
        self.step(what, act, lambda: self.person.until(lambda data: int(data["done"]) > before, "it is done", 3600))


class Wanted:
    """The masks [H, W] that the person wants, by the index of their frame."""

    def __init__(self, video: Path, masks: Path, object_id: int) -> None:
        reader = open_frames(video)
        size = reader.width, reader.height
        files = sorted(masks.glob("*.png")) if masks.is_dir() else [masks]
        indices = [reader.index_of(file.stem) for file in files] if masks.is_dir() else [0]
        pairs = zip(indices, files, strict=True)
        self.masks = {i: read_mask(file, size).ids == object_id for i, file in pairs if i is not None}

    def worst(self, person: Person) -> int:
        """The frame whose mask in the page has the smallest J; prints it."""
        scores = {i: float(region_similarity(person.ids(i) == 1, mask)) for i, mask in self.masks.items()}
        worst = min(scores, key=lambda index: scores[index])
        mean, first = percent(sum(scores.values()) / len(scores)), percent(scores[min(scores)])
        print(f"J of {len(scores)} frames: mean {mean}, first {first}, worst {percent(scores[worst])} (frame {worst})")
        return worst


def correct(walk: Walk, truth: Bools, most: int) -> None:
    """Clicks in the middle of the largest wrong region of the frame on screen."""
    for _ in range(most):
        shown = walk.person.ids(walk.person.shown()) == 1
        point, add = place_to_click(shown, truth)
        place, button = walk.person.place(point), "left" if add else "right"
        walk.edit(
            f"{button} click", lambda place=place, button=button: walk.person.page.mouse.click(*place, button=button)
        )


def go(person: Person, index: int) -> None:
    """Types the number of a frame."""
    person.page.fill("#frame-number", str(index))
    person.page.press("#frame-number", "Enter")
    person.page.locator("#stage").focus()
    person.until(lambda data: data["shown"] == str(index), f"frame {index} is shown")


def walk_through(walk: Walk, wanted: Wanted, write: str, clicks: int) -> None:
    """From nothing to an exported video, with one correction if there are masks to compare with."""
    person, page = walk.person, walk.person.page
    walk.step("open the page", lambda: None, lambda: person.open())
    person.picture("open")
    walk.edit("lasso", lambda: walk.draw(outline(wanted.masks[0], 6)))
    correct(walk, wanted.masks[0], clicks)
    person.picture("mask")
    walk.job("Enter tracks forward", lambda: person.press("Enter"))
    person.picture("tracked")
    worst = wanted.worst(person)
    if worst > 0:
        walk.step(f"go to frame {worst}", lambda: go(person, worst))
        correct(walk, wanted.masks[worst], clicks)
        person.picture("corrected")
        walk.job("Shift+Enter tracks back from there", lambda: person.press("Shift+Enter"))
        walk.job("Enter tracks on from there", lambda: person.press("Enter"))
        wanted.worst(person)
    walk.step("open the export dialog", lambda: page.click("#export"))
    for kind in page.locator("#export-dialog input[type=checkbox]").all():
        if kind.is_checked() != (kind.get_attribute("value") == write):
            walk.step(f"choose {kind.get_attribute('value')}", lambda kind=kind: kind.click())
    walk.job(f"export {write}", lambda: page.click("#export-start"))
    person.picture("exported")


def main(
    video: Path,
    masks: Path,
    object_id: Annotated[int, typer.Option("--object")] = 1,
    write: str = "webm",
    clicks: int = 2,
    pictures: Annotated[Path, typer.Option(help="Folder for screenshots.")] = Path("pictures"),
) -> None:
    """Walks through the page."""
    from playwright.sync_api import sync_playwright

    wanted = Wanted(video, masks, object_id)
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(Path(folder), video.resolve(), "--min-size", "480")
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="dark")
        person = Person(page, server, pictures)
        walk_through(Walk(person), wanted, write, clicks)
        browser.close()
        server.close()
        assert not person.faults, person.faults


if __name__ == "__main__":
    typer.run(main)
