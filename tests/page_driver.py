"""Drives `stm-fast open` as a person does: a server in a process of its own, and a browser with pointer and keys."""

import io
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image

from processes import PATIENCE, Running
from stm_fast.clicks.user import line_around, next_click
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.evaluation import region_similarity
from video_files import write_video

Bools = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.uint8]
Point = tuple[float, float]  # x, y in pixels of the image

TRACKED_SIZE = "96"  # short side at which the network sees the frames, for speed
LONG_CLIP = ("--min-size", "480")  # tracking `write_long_clip` then takes seconds
LOOSE = 3  # pixels between an object and the lasso or the box around it
SECONDS = 60  # a busy machine
_BROKEN = "error in the page: "


class Clip(NamedTuple):
    """A video and its masks, ids [H, W] of each frame."""

    path: Path
    truth: list[Ids]

    def own(self, index: int, object_id: int) -> Bools:
        return self.truth[index] == object_id


def write_clip(path: Path, clip: SyntheticClip, enlarged: int = 1) -> Clip:
    """Encodes a synthetic clip, each pixel as a square of this side, with little loss and some key frames."""
    frames, square = list(clip), np.ones((enlarged, enlarged), np.uint8)
    images = [np.kron(frame.image, square[..., None]) for frame in frames]
    write_video(path, images, encoder={"crf": "12", "g": "8"})
    return Clip(path, [np.kron(frame.ids, square) for frame in frames])


def write_long_clip(path: Path, objects: int) -> Clip:
    """A clip whose tracking lasts for seconds with LONG_CLIP, for what is done meanwhile.

    On a busy machine a second may pass before a page answers.
    """
    return write_clip(path, SyntheticClip(3, frames=40, height=240, width=400, objects=objects))


class Server:
    """`stm-fast open ARGUMENTS` on a free port, run in a folder, where its projects are kept.

    Attributes:
        url: as printed, with the token.
    """

    def __init__(self, folder: Path, *arguments: str | Path) -> None:
        command = ["open", "--no-browser", "--port", "0", "--min-size", TRACKED_SIZE, *map(str, arguments)]
        printed = Path(mkdtemp(dir=folder))  # several servers may run
        self._running = Running(command, printed, at=folder, OMP_NUM_THREADS="1")
        self.url = self._printed_url()

    def _printed_url(self) -> str:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and not self._running.has_ended():
            lines = self._running.printed().splitlines()
            if urls := [word for line in lines for word in line.split() if word.startswith("http://")]:
                return urls[0]
            time.sleep(0.02)
        self._running.kill()
        raise AssertionError(f"no address: {self._running.wait()}")

    @property
    def origin(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    def kill(self) -> None:
        """As the system does when memory runs out: nothing can be saved."""
        self._running.kill()
        self._running.wait()

    def close(self) -> None:
        """As Ctrl+C does; the server must end without an error."""
        if not self._running.has_ended():
            os.kill(self._running.pid, signal.SIGINT)
        ended = self._running.wait()
        assert "Traceback" not in ended.stderr, ended.stderr
        assert ended.returncode in (0, 130, -signal.SIGKILL), ended


def outline(mask: Bools, margin: int = LOOSE) -> list[Point]:
    """A loose line around a mask, in the frame."""
    height, width = mask.shape
    line = np.clip(line_around(mask, margin), 0.5, (width - 0.5, height - 0.5))
    return [(float(x), float(y)) for x, y in line]


class Person:
    """A person with one tab.

    Args:
        page: Playwright's.
        server: whose address is opened.
        pictures: folder for screenshots.

    Messages are of errors in the console and in the page, violations of the CSP among them, and of requests to other
    servers. They may come after the page has shown what they are about.
    """

    def __init__(self, page: Any, server: Server, pictures: Path) -> None:
        self.page, self.server = page, server
        self._messages, self._allowed = list[str](), list[str]()
        self._pictures = Path(os.environ.get("STM_FAST_SCREENSHOTS") or pictures)
        page.set_default_timeout(1000 * SECONDS)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self._messages.append(f"{_BROKEN}{error}"))
        page.on("request", self._requested)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self._messages.append(f"console: {message.text} {message.location.get('url', '')}")

    def _requested(self, request: Any) -> None:
        if not request.url.startswith((f"{self.server.origin}/", "data:", f"blob:{self.server.origin}/")):
            self._messages.append(f"request to {request.url}")

    def faults(self) -> list[str]:
        """The messages that the test does not allow."""
        return [message for message in self._messages if not any(part in message for part in self._allowed)]

    # what the page says

    def open(self, ready: str = "1") -> "Person":
        self.page.goto(self.server.url)
        self.until(lambda data: data["ready"] == ready, f"data-ready is {ready}")
        self.idle()  # the network is loaded
        return self

    def data(self) -> dict[str, str]:
        """The data attributes of the body."""
        found: dict[str, str] = self.page.evaluate("({...document.body.dataset})")
        return found

    def until(self, holds: Callable[[dict[str, str]], bool], what: str, seconds: float = SECONDS) -> dict[str, str]:
        """Waits until something holds of the data attributes."""
        deadline = time.monotonic() + seconds
        while not holds(data := self.data()):
            assert not [fault for fault in self.faults() if fault.startswith(_BROKEN)], self.faults()
            assert time.monotonic() < deadline, f"waited {seconds:g} s until {what}: {data}, {self.status()!r}"
            self.page.wait_for_timeout(15)
        return data

    def status(self) -> str:
        text: str = self.page.inner_text("#status")
        return text

    def shown(self) -> int:
        return int(self.data()["shown"])

    def idle(self) -> None:
        self.until(lambda data: not data["busy"], "nothing runs")

    def changed(self, act: Callable[[], object], by: int = 1) -> None:
        """Does something that changes the project, and waits until the page has applied it."""
        before = int(self.data()["version"])
        act()
        self.until(lambda data: int(data["version"]) >= before + by and data["busy"] != "prompt", "a change is applied")

    def finished(self, act: Callable[[], object]) -> None:
        """Does something that starts tracking or an export, and waits until it has finished."""
        before = int(self.data()["done"])
        act()
        self.until(lambda data: int(data["done"]) > before and not data["busy"], "a job has finished", PATIENCE)

    def press_at(self, frame: int, key: str) -> None:
        """Has the page press a key as soon as tracking shows that frame or a later one."""
        self.page.evaluate(
            """([frame, key]) => {
                const data = document.body.dataset;
                const note = () => {
                    if (data.busy !== "track" || Number(data.shown) < frame) return;
                    observer.disconnect();
                    window.pressedAt = Number(data.shown);
                    document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
                };
                const observer = new MutationObserver(note);
                observer.observe(document.body, {attributeFilter: ["data-shown"]});
            }""",
            [frame, key],
        )

    def pressed_at(self) -> int:
        """The frame that was shown when `press_at` pressed its key."""
        frame: int = self.page.evaluate("window.pressedAt")
        return frame

    def watch(self) -> None:
        """From now on the page notes what it does and shows, for `watched`."""
        self.page.evaluate(
            """() => {
                window.watched = [];
                const data = document.body.dataset;
                const note = () => window.watched.push([data.busy, Number(data.shown)]);
                new MutationObserver(note).observe(document.body, {attributeFilter: ["data-busy", "data-shown"]});
            }"""
        )

    def watched(self, busy: str) -> list[int]:
        """The frames shown since, in order, while that was done."""
        shown = [frame for doing, frame in self.page.evaluate("window.watched") if doing == busy]
        return [frame for frame, before in zip(shown, [None, *shown], strict=False) if frame != before]

    def project(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.get("/api/project").json()
        return answer

    def get(self, path: str) -> Any:
        answer = self.page.request.get(self.server.origin + path)
        assert answer.ok, f"{path}: {answer.status} {answer.text()}"
        return answer

    def ids(self, index: int) -> Ids:
        """The mask of a frame, as the page gets it."""
        return np.array(Image.open(io.BytesIO(self.get(f"/api/mask/{index}").body())))

    def score(self, clip: Clip, index: int, object_id: int = 1) -> float:
        return float(region_similarity(self.ids(index) == object_id, clip.own(index, object_id)))

    def pixels(self) -> npt.NDArray[np.uint8]:
        """What the stage shows, RGB."""
        self.page.bring_to_front()
        self.page.mouse.move(2, 2)  # a pointer over the stage is drawn there
        picture = self.page.locator("#stage").screenshot()
        return np.array(Image.open(io.BytesIO(picture)).convert("RGB"))

    def chosen(self) -> int:
        """The id of the object that is drawn."""
        return int(self.page.get_attribute("#objects .chosen", "data-id"))

    def object_names(self) -> list[str]:
        names: list[str] = self.page.locator("#objects .name").all_inner_texts()
        return names

    def picture(self, name: str) -> None:
        self._pictures.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=self._pictures / f"{name}.png")

    # what the person does

    def place(self, point: Point) -> Point:
        """Where a point of the image is on the screen."""
        x, y = self.page.evaluate("([x, y]) => window.stm.toScreen(x, y)", [float(value) for value in point])
        return x, y

    def place_in_image(self, x: float, y: float) -> Point:
        """What is at a place of the screen."""
        x, y = self.page.evaluate("([x, y]) => window.stm.toImage(x, y)", [x, y])
        return x, y

    def drag(self, points: Iterable[Point]) -> None:
        self.page.bring_to_front()  # a tab behind another one takes a second for each movement
        places = [self.place(point) for point in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place)
        self.page.mouse.up()

    def lasso(self, mask: Bools, margin: int = LOOSE) -> None:
        self.page.click("#tool-lasso")
        self.changed(lambda: self.drag(outline(mask, margin)))

    def box(self, mask: Bools) -> None:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        height, width = mask.shape
        first = max(columns[0] - LOOSE, 0) + 0.5, max(rows[0] - LOOSE, 0) + 0.5
        last = min(columns[-1] + LOOSE, width - 1) + 0.5, min(rows[-1] + LOOSE, height - 1) + 0.5
        middle = (first[0] + last[0]) / 2, (first[1] + last[1]) / 2
        self.page.click("#tool-box")
        self.changed(lambda: self.drag([first, middle, last]))

    def click(self, point: Point, add: bool) -> None:
        place = self.place(point)
        self.changed(lambda: self.page.mouse.click(*place, button="left" if add else "right"))

    def stroke(self, points: Iterable[Point], tool: str = "brush") -> None:
        self.page.click(f"#tool-{tool}")
        self.changed(lambda: self.drag(points))

    def correct(self, truth: Bools, object_id: int = 1, clicks: int = 1) -> None:
        """Clicks in the middle of the largest wrong region of the frame on screen, over and over."""
        self.page.click("#tool-click")
        for _ in range(clicks):
            click = next_click(self.ids(self.shown()) == object_id, truth)
            if click is None:
                return
            self.click(*click)

    def rename(self, object_id: int, name: str) -> None:
        self.page.dblclick(f'#objects [data-id="{object_id}"] .name')
        self.page.keyboard.type(name)
        self.changed(lambda: self.press("Enter"))

    def recolor(self, object_id: int, color: str) -> None:
        self.changed(lambda: self.page.fill(f'#objects [data-id="{object_id}"] [data-part="color"]', color))

    def delete(self, object_id: int) -> None:
        self.changed(lambda: self.page.click(f'#objects [data-id="{object_id}"] [data-part="remove"]'))

    def downloaded(self, link: Any) -> tuple[str, bytes]:
        """Clicks a link to a file: the file's name and bytes."""
        with self.page.expect_download() as download:
            link.click()
        return download.value.suggested_filename, Path(download.value.path()).read_bytes()

    def allow(self, part: str) -> None:
        """Messages that contain this are no faults, whenever they come."""
        self._allowed.append(part)

    def expect(self, part: str) -> None:
        """Allows such messages, and waits for one."""
        self.allow(part)
        self.until(lambda _: any(part in message for message in self._messages), f"the console says {part!r}")

    def press(self, keys: str) -> None:
        self.page.keyboard.press(keys)

    def go(self, index: int) -> None:
        """To a frame, by the arrow keys."""
        while (at := int(self.page.input_value("#frame-number"))) != index:
            self.press("ArrowRight" if at < index else "ArrowLeft")
        self.until(lambda data: data["shown"] == str(index), f"frame {index} is shown")


class Visit:
    """Servers and tabs of a test; `end` closes them, and fails if a page has had a fault."""

    def __init__(self, chromium: Any, folder: Path) -> None:
        self._chromium, self._folder = chromium, folder
        self._people, self._opened = list[Person](), ExitStack()

    def serve(self, *arguments: str | Path) -> Server:
        server = Server(self._folder, *arguments)
        self._opened.callback(server.close)
        return server

    def person(self, server: Server, **options: Any) -> Person:
        """Somebody with a browser of their own, which has not seen this page yet."""
        context = self._chromium.new_context(viewport={"width": 1280, "height": 800}, **options)
        self._opened.callback(context.close)
        return self._watched(context.new_page(), server)

    def another_tab(self, person: Person) -> Person:
        return self._watched(person.page.context.new_page(), person.server)

    def open(self, *arguments: str | Path) -> Person:
        return self.person(self.serve(*arguments)).open()

    def _watched(self, page: Any, server: Server) -> Person:
        self._people.append(Person(page, server, self._folder / "pictures"))
        return self._people[-1]

    def end(self) -> None:
        self._opened.close()
        assert not (faults := [fault for person in self._people for fault in person.faults()]), faults
