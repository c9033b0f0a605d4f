"""Segments a video in the page at a person's pace; prints each step with its second, and takes pictures.

python benchmarks/page_walk.py clip.mp4 MASKS --pictures docs/images [--write webm]

MASKS, a mask of the first frame or a folder of masks named after their frames, are what the person wants to get. The
person draws around the objects of the first frame and tracks them; if there are masks of other frames, the worst one is
corrected, and tracked from in both directions. Needs a browser, as the tests of the page do.
"""

import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from browser import browser_path
from page_driver import Person, Point, Server, outline
from stm_fast.clicks.user import next_click
from stm_fast.evaluation import region_similarity
from stm_fast.printing import percent
from stm_fast.video import object_ids, open_frames, read_mask

PAUSE = 1.5  # seconds before each step: looking at the page, moving the hand
DRAWING = 400  # pixels of the screen per second, of a pointer that draws
MARGIN = 6  # pixels between an object and the line around it

Ids = npt.NDArray[np.uint8]  # [H, W]


class Walk:
    """The steps of a person, with the time that they take.

    Attributes:
        own: seconds in which the person looked, drew, or clicked; the others are those of the machine.
    """

    def __init__(self, person: Person, pictures: Path) -> None:
        self.person, self.own = person, 0.0
        self._pictures, self._began = pictures, time.perf_counter()
        pictures.mkdir(parents=True, exist_ok=True)

    def step(self, what: str, act: Callable[[], object], wait: Callable[[], object] = lambda: None) -> None:
        """Looks, acts, waits for the page, and prints the second at which the page was done."""
        began = time.perf_counter()
        time.sleep(PAUSE)
        act()
        self.own += time.perf_counter() - began
        wait()
        now = time.perf_counter() - self._began
        print(f"{now:6.1f} s  (own time {self.own:5.1f} s)  {what}: {self.person.status()}", flush=True)

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

    def picture(self, name: str) -> None:
        """What the person sees."""
        self.person.page.mouse.move(640, 16)
        self.person.page.wait_for_timeout(300)
        self.person.page.screenshot(path=self._pictures / f"{name}.jpg", type="jpeg", quality=80)


class Wanted:
    """The masks that the person wants, by the index of their frame; its objects are 1, 2, ... as in the page."""

    def __init__(self, video: Path, masks: Path) -> None:
        reader = open_frames(video)
        files = sorted(masks.glob("*.png")) if masks.is_dir() else [masks]
        indices = [reader.index_of(file.stem) for file in files] if masks.is_dir() else [0]
        named = {index: file for index, file in zip(indices, files, strict=True) if index is not None}
        ids = {index: read_mask(file, (reader.width, reader.height)).ids for index, file in named.items()}
        self.objects = range(1, len(object_ids(ids[0])) + 1)
        table = np.zeros(256, np.uint8)
        table[object_ids(ids[0])] = self.objects
        self.masks: dict[int, Ids] = {index: table[mask] for index, mask in ids.items()}

    def worst(self, person: Person) -> int:
        """The frame whose masks in the page have the smallest J; prints it."""
        scores = {index: self._score(person.ids(index), mask) for index, mask in self.masks.items()}
        worst = min(scores, key=lambda index: scores[index])
        whole, first = percent(mean(scores.values())), percent(scores[0])
        print(f"J of {len(scores)} frames: mean {whole}, first {first}, worst {percent(scores[worst])} (frame {worst})")
        return worst

    def _score(self, found: Ids, mask: Ids) -> float:
        return mean(float(region_similarity(found == one, mask == one)) for one in self.objects)


def draw_objects(walk: Walk, truth: Ids, clicks: int) -> None:
    """Draws around each object of the frame on screen, and corrects its mask."""
    for number in object_ids(truth):
        if number > 1:
            walk.edit("N for another object", lambda: walk.person.press("n"))
        line = outline(truth == number, MARGIN)
        walk.edit("lasso", lambda line=line: walk.draw(line))
        correct(walk, truth == number, number, clicks)


def correct(walk: Walk, truth: npt.NDArray[np.bool_], number: int, clicks: int) -> None:
    """Clicks in the middle of the largest wrong region of an object [H, W]."""
    person = walk.person
    for _ in range(clicks):
        wrong = next_click(person.ids(person.shown()) == number, truth)
        if wrong is None:
            return
        place, button = person.place(wrong.point), "left" if wrong.add else "right"

        def click(place: Point = place, button: str = button) -> None:
            person.page.mouse.click(*place, button=button)

        walk.edit(f"{button} click", click)


def go(person: Person, index: int) -> None:
    """Types the number of a frame."""
    person.page.fill("#frame-number", str(index))
    person.page.press("#frame-number", "Enter")
    person.page.locator("#stage").focus()
    person.until(lambda data: data["shown"] == str(index), f"frame {index} is shown")


def correct_worst(walk: Walk, wanted: Wanted, clicks: int) -> None:
    """Corrects the worst frame, and tracks from there in both directions."""
    person, worst = walk.person, wanted.worst(walk.person)
    if worst == 0:
        return
    for back in (True, False):
        walk.step(f"go to frame {worst}", lambda: go(person, worst))
        if back:
            for number in wanted.objects:
                walk.step(f"{number} for object {number}", lambda number=number: person.press(str(number)))
                correct(walk, wanted.masks[worst] == number, number, clicks)
            walk.picture("corrected")
        keys = "Shift+Enter" if back else "Enter"
        walk.job(f"{keys} tracks {'back' if back else 'on'} from there", lambda keys=keys: person.press(keys))
    wanted.worst(person)


def export(walk: Walk, write: str) -> None:
    """Chooses one kind of result, and exports it."""
    page = walk.person.page
    walk.step("open the export dialog", lambda: page.click("#export"))
    for kind in page.locator("#export-dialog input[type=checkbox]").all():
        value = kind.get_attribute("value")
        if kind.is_checked() != (value == write):
            walk.step(f"click {value}", lambda kind=kind: kind.click())
    walk.job(f"export {write}", lambda: page.click("#export-start"))
    walk.picture("exported")


def walk_through(walk: Walk, wanted: Wanted, write: str, clicks: int) -> None:
    """From nothing to an exported video."""
    walk.step("open the page", lambda: None, walk.person.open)
    walk.picture("opened")
    draw_objects(walk, wanted.masks[0], clicks)
    walk.picture("drawn")
    walk.job("Enter tracks forward", lambda: walk.person.press("Enter"))
    walk.picture("tracked")
    correct_worst(walk, wanted, clicks)
    export(walk, write)


def main(
    video: Path,
    masks: Path,
    write: Annotated[str, typer.Option(help="The result that is exported.")] = "webm",
    clicks: Annotated[int, typer.Option(help="Clicks after each lasso, and in the corrected frame.")] = 2,
    pictures: Annotated[Path, typer.Option(help="The folder of the pictures.")] = Path("pictures"),
) -> None:
    """Walks through the page."""
    from playwright.sync_api import sync_playwright

    wanted = Wanted(video, masks)
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(Path(folder), video.resolve(), "--min-size", "480")
        browser: Any = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="dark")
        person = Person(page, server, pictures)
        walk_through(Walk(person, pictures), wanted, write, clicks)
        browser.close()
        server.close()
        assert not (faults := person.faults()), faults


if __name__ == "__main__":
    typer.run(main)
