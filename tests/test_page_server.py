"""The server of the page: who may ask, what it answers, and what happens to the project."""

import asyncio
import io
import json
import random
import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av")
pytest.importorskip("cv2")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from page_client import SECONDS, Client
from small_inputs import small_network
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.errors import InputError
from stm_fast.frame_source import frame_source
from stm_fast.inference.options import RunOptions
from stm_fast.page import events, upload
from stm_fast.page.events import Events
from stm_fast.page.frames import FrameCache
from stm_fast.page.jobs import Jobs
from stm_fast.page.listening import listen
from stm_fast.page.project import Project
from stm_fast.page.prompts import GrabCut
from stm_fast.page.routes import STATIC
from stm_fast.page.server import PageServer
from stm_fast.page.session import Session
from stm_fast.video import read_written_mask
from video_files import write_video

FRAMES, HEIGHT, WIDTH = 8, 48, 64
BOX = {"tool": "box", "box": [8, 8, 40, 30]}


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A video file."""
    drawn = SyntheticClip(0, frames=FRAMES, height=HEIGHT, width=WIDTH, objects=1)
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", [frame.image for frame in drawn])


class Served(NamedTuple):
    session: Session
    url: str

    def client(self) -> Client:
        return Client(self.url).enter()


@contextmanager
def served(folder, video=None, load=small_network, host="127.0.0.1", local=True):
    """A server in another thread."""
    session = Session(folder, load, RunOptions(min_size=1), GrabCut(), Events())
    if video is not None:
        session.open(frame_source(video), folder / "project")
    server = PageServer(session, listen("127.0.0.1", 0), host, local=local)
    thread = Thread(target=server.serve_until_stopped)
    thread.start()
    try:
        yield Served(session, server.url)
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        session.close()
        assert not thread.is_alive()


@pytest.fixture
def client(tmp_path, clip):
    """A browser in front of a project without objects."""
    with served(tmp_path, clip) as one:
        yield one.client()


@pytest.fixture
def drawn(client):
    """The same, after a first mask."""
    assert client.post("/api/objects").status == 200
    assert client.prompt(**BOX).status == 200
    return client


@pytest.fixture
def asker(tmp_path, clip):
    """A browser without the cookie."""
    with served(tmp_path, clip) as one:
        yield Client(one.url)


def project_files(tmp_path):
    return sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "project").rglob("*") if path.is_file())


# who may ask


@pytest.mark.parametrize(
    "path", ["/", "/static/page.css", "/api/project", "/api/frame/0", "/api/events", "/api/results", "/docs", "/x"]
)
def test_nothing_is_shown_without_the_token(asker, path):
    assert asker.get(path).refusal[0] == 403
    assert asker.get("/?token=abc").refusal[0] == 403
    name, _, token = asker.enter().cookie.partition("=")
    for wrong in ("", token[:-1], token + "a", token.swapcase(), "é"):
        asker.cookie = f"{name}={wrong}"
        assert asker.get(path).status == 403
        assert asker.get(f"{path}?token={token}").status == (303 if path == "/" else 403)


def test_the_token_becomes_a_cookie(asker):
    answer = asker.get(asker.entrance)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(answer.headers["set-cookie"].split("; "))
    page = asker.enter().get("/")
    assert page.status == 200
    assert page.body == (STATIC / "page.html").read_bytes()
    assert page.headers["content-security-policy"].startswith(
        "default-src 'self'; img-src 'self' blob: data:; style-src 'self'"
    )
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in page.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:80", 200),  # of a tunnel, which may have another port at its other end
        ("LOCALHOST:1234", 200),
        ("[::1]:8765", 200),
        ("evil.example", 403),
        ("evil.example:8765", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("localhost@evil.example", 403),
        ("192.168.0.7", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_other_names_of_the_server_are_refused(client, host, status):
    """A name that leads to this machine may belong to a site that wants to read the answer."""
    assert client.get("/api/project", Host=host).status == status


def test_a_public_server_has_its_addresses_and_its_name(tmp_path):
    with served(tmp_path, host="studio.example", local=False) as one:
        assert one.url.startswith("http://studio.example:")
        client = Client(one.url.replace("studio.example", "127.0.0.1")).enter()
        for host, status in {"studio.example": 200, "192.168.0.7:1": 200, "evil.example": 403}.items():
            assert client.get("/api/project", Host=host).status == status


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/objects"), ("DELETE", "/api/objects/1")])
def test_other_sites_cannot_change_anything(drawn, tmp_path, method, path):
    before = project_files(tmp_path), drawn.project()
    for origin in ("http://evil.example", "null", "", f"http://{drawn.place}.evil.example", "http://127.0.0.1:1"):
        assert drawn.send(method, path, Origin=origin).refusal == (403, "found a request from another site")
    assert (project_files(tmp_path), drawn.project()) == before
    assert drawn.send(method, path, Origin=f"http://{drawn.place}").status == 200


def test_a_body_that_would_fill_the_memory_is_refused(drawn):
    points = [[float(number), 1.0] for number in range(20_001)]
    status, line = drawn.prompt(tool="lasso", points=points).refusal
    assert (status, line.partition(":")[0]) == (422, "points")
    status, line = drawn.post("/api/prompt", Content_Length=str(2**22 + 1)).refusal
    assert status == 413
    assert "expected at most 4194304" in line
    # no body follows, because the server closes the connection
    assert drawn.post("/api/prompt", Transfer_Encoding="chunked").status == 411


# files and pictures


def test_every_file_of_the_page_is_served_as_what_it_is(client):
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    files = [path for path in STATIC.iterdir() if path.suffix in types]
    assert {".html", ".css", ".js"} <= {path.suffix for path in files}
    for path in files:
        answer = client.get(f"/static/{path.name}")
        assert (answer.status, answer.body) == (200, path.read_bytes())
        assert answer.headers["content-type"].partition(";")[0] == types[path.suffix]


@pytest.mark.parametrize("name", ["absent.js", "..%2Froutes.py", "%2e%2e/routes.py", "../routes.py", "%00", ".hidden"])
def test_no_other_file_is_served(client, name):
    assert client.get(f"/static/{name}").status in (404, 422)


def test_a_project_as_json(client, tmp_path):
    found = client.project()
    video = found["video"]
    assert video.pop("key")
    assert video == {
        "name": "clip",
        "frames": FRAMES,
        "width": WIDTH,
        "height": HEIGHT,
        "rate": 25.0,
        "folder": str(tmp_path / "project"),
    }
    assert (found["objects"], found["states"], found["marks"]) == ([], "." * FRAMES, [0, FRAMES - 1])
    assert (found["can_undo"], found["can_redo"], found["running"]) == (False, False, None)
    assert found["clicks_alone"] is False
    assert 0 < found["uploads"] <= upload.MOST_BYTES
    assert [one["name"] for one in found["results"] if one["default"]] == ["masks", "overlay", "csv"]
    assert all(set(one) == {"name", "title", "default", "unavailable"} for one in found["results"])


def test_without_a_video_the_page_asks_for_one(tmp_path):
    with served(tmp_path) as one:
        client = one.client()
        found = client.project()
        assert (found["video"], found["objects"], found["states"]) == (None, [], "")
        for path in ("/api/frame/0", "/api/mask/0", "/api/results"):
            assert client.get(path).refusal == (409, "no video is open")
        for path, body in {"/api/undo": None, "/api/track": {"frame": 0}, "/api/export": {"write": ["csv"]}}.items():
            assert client.post(path, body).refusal == (409, "no video is open")
        assert client.post("/api/stop").status == 200


def test_frames(client):
    key = client.project()["video"]["key"]
    answer = client.get(f"/api/frame/{FRAMES - 1}?width=32&key={key}")
    picture = Image.open(io.BytesIO(answer.body))
    assert (picture.format, picture.size) == ("JPEG", (32, 24))
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"] == "image/jpeg"
    whole = client.get("/api/frame/0")
    assert Image.open(io.BytesIO(whole.body)).size == (WIDTH, HEIGHT)
    assert whole.headers["cache-control"] == "no-store"
    assert client.get("/api/frame/0?key=other").refusal == (404, "found a frame of another video")
    assert client.get(f"/api/frame/{FRAMES}").refusal[0] == 404
    for wrong in ("-1", "1e1", "x", "9" * 30, "0?width=1", "0?width=99999"):
        assert client.get(f"/api/frame/{wrong}").refusal[0] == 422


def test_masks_are_colored_and_transparent(drawn, tmp_path):
    drawn.post("/api/objects", {"name": "second"})
    assert drawn.prompt(object=2, tool="brush", points=[[60, 4]], radius=3).status == 200
    answer = drawn.get("/api/mask/0")
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("image/png", "no-store")
    picture = Image.open(io.BytesIO(answer.body))
    ids = np.asarray(picture)
    assert picture.mode == "P"
    assert set(np.unique(ids)) == {0, 1, 2}
    assert np.array_equal(ids, read_written_mask(tmp_path / "project/given/00000.png").ids)
    rgba = np.asarray(picture.convert("RGBA"))
    for one in drawn.project()["objects"]:
        color = (*bytes.fromhex(one["color"][1:]), 255)
        assert (rgba[ids == one["id"]] == color).all()
    assert (rgba[ids == 0, 3] == 0).all()
    alone = np.asarray(Image.open(io.BytesIO(drawn.get("/api/mask/0?object=2").body)))
    assert np.array_equal(alone, ids * (ids == 2))
    assert drawn.get(f"/api/mask/{FRAMES}").refusal[0] == 404
    assert drawn.get("/api/mask/0?object=256").refusal[0] == 422


# edits


def test_gestures_change_the_mask(client):
    assert client.post("/api/objects").data["object"] == client.project()["objects"][0]

    def shown():
        return np.asarray(Image.open(io.BytesIO(client.get("/api/mask/0").body))) == 1

    def pixels(**gesture):
        answer = client.prompt(**gesture)
        assert answer.status == 200, answer
        data = answer.data
        assert data["seconds"] >= 0
        assert data["pixels"] == shown().sum()
        return data

    first = pixels(**BOX)
    assert first["pixels"] > 0
    assert isinstance(first["found"], bool)
    assert (first["frames"], first["states"], first["can_undo"]) == ([0], {"0": "g"}, True)
    box = shown()
    painted = pixels(tool="brush", points=[[0, 0], [63, 0]], radius=2)
    assert painted["pixels"] > first["pixels"]
    erased = pixels(tool="brush", points=[[0, 0], [63, 0]], radius=2, add=False)
    assert erased["pixels"] == (box & (np.arange(HEIGHT) > 2)[:, None]).sum()
    assert pixels(tool="click", point=[1, 46])["pixels"] >= erased["pixels"]
    assert pixels(tool="lasso", points=[[10, 10], [50, 10], [50, 40], [10, 40]])["pixels"] > 0
    cleared = pixels(tool="clear")
    assert (cleared["pixels"], cleared["states"]) == (0, {"0": "."})


@pytest.mark.parametrize(
    ("gesture", "status", "line"),
    [
        ({"tool": "box"}, 422, "box: missing"),
        ({"tool": "box", "box": [1, 2, 3]}, 422, "box"),
        ({"tool": "box", "box": [500, 500, 3, 3]}, 422, "found the box 500,500,3,3, expected one inside the frame"),
        ({"tool": "box", "box": [1, 2, 0, 0]}, 422, "found the box 1,2,0,0, expected finite numbers, and a width"),
        ({"tool": "lasso"}, 422, "points: missing"),
        ({"tool": "lasso", "points": [[1, 1], [2, 2]]}, 422, ""),
        ({"tool": "brush", "points": [[1, 1]]}, 422, "radius: missing"),
        ({"tool": "brush", "points": [[1, 1]], "radius": 0}, 422, "radius: "),
        ({"tool": "brush", "points": [[1, 1e300]], "radius": 1}, 422, "points.0.1: "),
        ({"tool": "click"}, 422, "point: missing"),
        ({"tool": "click", "point": [1, 1]}, 422, "found a click, but no mask that it corrects"),
        ({"tool": "wand"}, 422, "tool: "),
        ({**BOX, "color": "red"}, 422, "color: "),
        ({**BOX, "frame": FRAMES}, 404, f"frame {FRAMES}: not in the video, which has {FRAMES} frames"),
        ({**BOX, "frame": -1}, 422, "frame: "),
        ({**BOX, "frame": 0.5}, 422, "frame: "),
        ({**BOX, "object": 2}, 404, "object 2: no such object"),
        ({**BOX, "object": 0}, 422, "object: "),
        ({**BOX, "object": 256}, 422, "object: "),
    ],
    ids=str,
)
def test_a_gesture_of_which_nothing_can_be_made(client, gesture, status, line):
    client.post("/api/objects")
    refusal = client.prompt(**gesture).refusal
    assert refusal[0] == status
    assert refusal[1].startswith(line)
    assert client.project()["states"] == "." * FRAMES


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"frame": NaN}', b"\xff", b'{"frame": 1e999}', b"[" * 10**5])
def test_a_body_that_is_no_json(client, body):
    assert client.post("/api/prompt", body).refusal[0] in (400, 422)


def test_numbers_that_json_does_not_have_are_refused(client):
    client.post("/api/objects")
    for number in (float("nan"), float("inf")):
        assert client.prompt(tool="box", box=[number, 1, 9, 9]).refusal[0] == 422


def test_undo_and_redo(drawn):
    mask = drawn.get("/api/mask/0").body
    undone = drawn.post("/api/undo").data
    assert (undone["frames"], undone["states"], undone["can_redo"]) == ([0], {"0": "."}, True)
    assert drawn.get("/api/mask/0").body != mask
    redone = drawn.post("/api/redo").data
    assert (redone["states"], redone["can_redo"]) == ({"0": "g"}, False)
    assert drawn.get("/api/mask/0").body == mask
    assert drawn.post("/api/redo").refusal == (409, "nothing to redo")
    for _ in range(2):  # the mask, and the object
        assert drawn.post("/api/undo").status == 200
    assert drawn.post("/api/undo").refusal == (409, "nothing to undo")


def test_objects(drawn):
    added = drawn.post("/api/objects", {"name": "the dog"}).data
    assert added["object"]["name"] == "the dog"
    assert [one["id"] for one in added["objects"]] == [1, 2]
    changed = drawn.send("PATCH", "/api/objects/2", {"name": "cat", "color": "#0000ff"}).data["objects"]
    assert changed[1] == {"id": 2, "name": "cat", "color": "#0000ff"}
    for wrong in ({"color": "red"}, {"name": ""}, {"name": "x" * 101}, {"id": 3}):
        assert drawn.send("PATCH", "/api/objects/2", wrong).refusal[0] == 422
    assert drawn.send("PATCH", "/api/objects/3", {"name": "x"}).refusal == (404, "object 3: no such object")
    deleted = drawn.send("DELETE", "/api/objects/1").data
    assert ([one["id"] for one in deleted["objects"]], deleted["frames"], deleted["states"]) == ([2], [0], {"0": "."})
    assert drawn.send("DELETE", "/api/objects/1").refusal == (404, "object 1: no such object")
    assert drawn.post("/api/objects").data["object"]["id"] == 3


def test_marks(client):
    assert client.post("/api/marks", {"first": 2, "last": 5}).data["marks"] == [2, 5]
    assert client.project()["marks"] == [2, 5]
    for first, last in ((5, 2), (0, FRAMES), (-1, 3)):
        assert client.post("/api/marks", {"first": first, "last": last}).refusal[0] == 422
    assert client.project()["marks"] == [2, 5]


def test_two_pages_see_each_others_changes(drawn):
    with drawn.listening() as one, drawn.listening() as other:
        answer = drawn.prompt(2, **BOX).data
        for listener in (one, other):
            event = listener.next()
            assert event == {name: answer[name] for name in event}
            assert (event["kind"], event["frames"], event["states"]) == ("change", [2], {"2": "g"})
        drawn.post("/api/objects")
        assert [one["id"] for one in other.next()["objects"]] == [1, 2]


@pytest.mark.slow
def test_many_pages_at_once(drawn, tmp_path):
    """Whatever comes when, nothing is a bug, and the files tell what the pages saw last."""
    statuses = set()

    def use(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            frame = chance.randrange(FRAMES)
            stroke = {"tool": "brush", "points": [[chance.uniform(0, WIDTH), 20]], "radius": 4}
            method, path, body = chance.choice(
                [
                    ("POST", "/api/prompt", {"frame": frame, "object": 1, "add": chance.random() < 0.7} | stroke),
                    ("POST", "/api/prompt", {"frame": frame, "object": 1} | BOX),
                    ("POST", "/api/track", {"frame": frame, "back": chance.random() < 0.5}),
                    ("POST", "/api/export", {"write": ["masks"]}),
                    ("POST", "/api/marks", {"first": 0, "last": chance.randrange(FRAMES)}),
                    *(("POST", f"/api/{name}", None) for name in ("undo", "redo", "stop", "objects")),
                    *(("GET", f"/api/{name}/{frame}", None) for name in ("frame", "mask")),
                    ("GET", "/api/project", None),
                ]
            )
            statuses.add(drawn.send(method, path, body).status)

    with ThreadPoolExecutor(4) as people:
        list(people.map(use, range(4)))
    with drawn.listening() as listener:
        if drawn.project()["running"]:
            drawn.post("/api/stop")
            listener.until_done()
    assert statuses <= {200, 202, 404, 409, 422}
    shown = [drawn.get(f"/api/mask/{frame}").body for frame in range(FRAMES)]
    states = drawn.project()["states"]
    shutil.copytree(tmp_path / "project", tmp_path / "copy")
    with Project.open(tmp_path / "copy") as copy:
        assert copy.states() == states
        for frame, png in enumerate(shown):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), copy.shown(frame))


# what takes long


def test_tracking_tells_each_frame(drawn, tmp_path):
    with drawn.listening() as listener:
        assert drawn.post("/api/track", {"frame": 0}).status == 202
        *frames, done = listener.until_done()
    assert done == {"kind": "done", "what": "track", "stopped": False, "error": None}
    assert [(event["kind"], event["index"], event["done"]) for event in frames] == [
        ("frame", number, number) for number in range(1, FRAMES)
    ]
    states = "g" + "".join(event["state"] for event in frames)
    assert set(states[1:]) <= set("fdl")
    assert (drawn.project()["states"], drawn.project()["running"]) == (states, None)
    assert len(list((tmp_path / "project/masks").glob("*.png"))) == FRAMES


def test_tracking_back(drawn):
    drawn.prompt(3, **BOX)
    with drawn.listening() as listener:
        drawn.post("/api/track", {"frame": 3, "back": True})
        *frames, _ = listener.until_done()
    assert [event["index"] for event in frames] == [2, 1, 0]
    assert drawn.project()["states"][0] == "g"


def test_there_is_nothing_to_track_or_export(client):
    for path, body in {"/api/track": {"frame": 0}, "/api/export": {"write": ["masks"]}}.items():
        assert client.post(path, body).refusal == (409, "no masks yet: draw around an object first")
    assert client.post("/api/track", {"frame": FRAMES}).refusal[0] == 404
    assert client.post("/api/export", {"write": ["hologram"]}).refusal[0] == 422
    assert client.post("/api/export", {"write": []}).refusal[0] == 422


class Gate:
    """Holds a network in its third frame."""

    def __init__(self) -> None:
        self.reached, self.opened = Event(), Event()
        self._frames = 0

    def load(self) -> Any:
        model = small_network()
        model.decoder.register_forward_pre_hook(self._pass)
        return model

    def _pass(self, *_: Any) -> None:
        self._frames += 1
        if self._frames == 3:
            self.reached.set()
            assert self.opened.wait(SECONDS)


@pytest.fixture
def held(tmp_path, clip):
    """A browser, and the gate in which tracking is held; it is opened at the end."""
    gate = Gate()
    with served(tmp_path, clip, gate.load) as one:
        client = one.client()
        client.post("/api/objects")
        client.prompt(**BOX)
        with client.listening() as listener:
            client.post("/api/track", {"frame": 0})
            assert gate.reached.wait(SECONDS)
            yield client, listener, gate
            gate.opened.set()


def test_a_gesture_stops_tracking_first(held):
    client, listener, gate = held
    assert client.project()["running"] == "track"
    for path, body in {"/api/track": {"frame": 0}, "/api/export": {"write": ["masks"]}}.items():
        assert client.post(path, body).refusal == (409, "tracking is running: wait for it, or stop it")
    answers: list[Any] = []
    asking = Thread(target=lambda: answers.append(client.prompt(6, **BOX)))
    asking.start()
    assert client.get("/api/frame/1").status == 200  # others are answered meanwhile
    asking.join(0.2)
    assert not answers
    gate.opened.set()
    asking.join(SECONDS)
    assert answers[0].status == 200
    heard = listener.until(lambda event: event["kind"] == "change")
    assert heard[-2] == {"kind": "done", "what": "track", "stopped": True, "error": None}
    states = client.project()["states"]
    assert states[6] == "g"
    assert states[5] == "."  # not tracked any more
    assert client.project()["running"] is None


def test_stop(held):
    client, listener, gate = held
    assert client.post("/api/stop").status == 200
    gate.opened.set()
    assert listener.until_done()[-1]["stopped"] is True
    assert client.project()["states"][-1] == "."
    assert client.post("/api/stop").status == 200  # nothing runs


def test_the_page_can_be_used_while_the_network_is_loaded(tmp_path, clip):
    opened = Event()

    def load():
        assert opened.wait(SECONDS)
        return small_network()

    with served(tmp_path, clip, load) as one:
        one.session.load_network()
        client = one.client()
        assert client.project()["running"] == "network"
        client.post("/api/objects")
        assert client.prompt(**BOX).status == 200
        with client.listening() as listener:
            assert client.post("/api/track", {"frame": 0}).status == 202
            assert client.project()["running"] == "track"
            assert client.post("/api/track", {"frame": 0}).refusal[0] == 409
            client.prompt(1, **BOX)  # takes that back
            assert listener.until_done()[-1]["stopped"] is True
            assert client.post("/api/track", {"frame": 0}).status == 202
            opened.set()
            heard = listener.until_done()
        assert {"kind": "network", "ready": True, "error": None} in heard
        assert (heard[-1]["stopped"], client.project()["states"].count(".")) == (False, 0)


def test_a_network_that_cannot_be_loaded_is_reported(tmp_path, clip):
    def load():
        if not (tmp_path / "absent.pth").exists():
            raise InputError("absent.pth: no such file")
        return small_network()

    with served(tmp_path, clip, load) as one:
        client = one.client()
        client.post("/api/objects")
        client.prompt(**BOX)
        with client.listening() as listener:
            one.session.load_network()
            assert listener.next() == {"kind": "network", "ready": False, "error": "absent.pth: no such file"}
            assert client.project()["network_error"] == "absent.pth: no such file"  # for pages that come later
            client.post("/api/track", {"frame": 0})
            assert listener.until_done()[-1]["error"] == "absent.pth: no such file"
            (tmp_path / "absent.pth").touch()  # so it is tried again
            client.post("/api/track", {"frame": 0})
            assert listener.until_done()[-1]["error"] is None
        assert client.project()["network_error"] is None


def test_the_end_of_a_job_is_told_even_if_its_results_cannot_be_listed(monkeypatch):
    """Who waits for it would wait forever."""

    def fail():
        raise InputError("objects.csv: no such file")

    def job(should_stop):
        while not should_stop():
            time.sleep(0.001)

    told: list[Any] = []
    monkeypatch.setattr(Events, "publish", lambda _, event: told.append(event))
    jobs = Jobs(Events())
    jobs.start("track", job, fail)
    halting = Thread(target=jobs.halt, daemon=True)
    halting.start()
    halting.join(SECONDS)
    assert not halting.is_alive()
    jobs.close()
    assert told == [{"kind": "done", "what": "track", "stopped": True, "error": None}]


def test_an_export_can_be_downloaded(drawn, tmp_path):
    assert drawn.get("/api/results").data == {"folder": str(tmp_path / "project/results"), "files": []}
    with drawn.listening() as listener:
        drawn.post("/api/track", {"frame": 0})
        listener.until_done()
        assert drawn.post("/api/export", {"write": ["masks", "csv", "overlay", "coco"]}).status == 202
        *progress, done = listener.until_done()
    assert (progress[-1]["kind"], progress[-1]["done"], progress[-1]["total"]) == ("export", FRAMES, FRAMES)
    files = {one["name"]: one for one in drawn.get("/api/results").data["files"]}
    assert done["files"] == list(files.values())
    assert set(files) == {"masks", "objects.csv", "overlay.mp4", "coco.json", "run.json"}
    assert files["masks"]["files"] == FRAMES
    table = drawn.get("/api/results/objects.csv")
    assert table.body == (tmp_path / "project/results/objects.csv").read_bytes()
    assert files["objects.csv"]["bytes"] == len(table.body)
    assert table.headers["content-disposition"] == 'attachment; filename="objects.csv"'
    masks = drawn.get("/api/results/masks")
    assert masks.headers["content-disposition"] == 'attachment; filename="masks.zip"'
    with zipfile.ZipFile(io.BytesIO(masks.body)) as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            assert archive.read(name) == (tmp_path / "project/results" / name).read_bytes()
        assert len(archive.namelist()) == FRAMES


@pytest.mark.parametrize(
    ("name", "status"), [("absent", 404), ("..", 422), ("..%2Fproject.json", 404), (".hidden", 422), ("link", 404)]
)
def test_only_results_can_be_downloaded(drawn, tmp_path, name, status):
    results = tmp_path / "project/results"
    results.mkdir()
    (results / ".hidden").touch()
    (results / "link").symlink_to(tmp_path / "project/project.json")
    assert drawn.get("/api/results").data["files"] == []
    assert drawn.get(f"/api/results/{name}").status == status


# uploads


def send(client, name, body, **headers):
    return client.post(f"/api/video?name={name}", body, Content_Type="application/octet-stream", **headers)


@pytest.fixture
def empty(tmp_path):
    """A browser in front of a server without a video, whose folder is empty."""
    folder = tmp_path / "work"
    folder.mkdir()
    with served(folder) as one:
        yield one.client(), folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_video_is_sent_and_opened(empty, clip):
    client, folder = empty
    with client.listening() as listener:
        assert send(client, "my%20clip.mp4", clip.read_bytes()).status == 200
        assert listener.next() == {"kind": "project"}
    assert names(folder) == ["my clip-project", "my clip.mp4"]
    assert (folder / "my clip.mp4").read_bytes() == clip.read_bytes()
    video = client.project()["video"]
    assert (video["name"], video["folder"]) == ("my clip", str(folder / "my clip-project"))
    # again: the same file, and its project goes on
    client.post("/api/objects")
    assert send(client, "my%20clip.mp4", iter([clip.read_bytes()])).status == 200
    assert names(folder) == ["my clip-project", "my clip.mp4"]
    assert len(client.project()["objects"]) == 1


def test_another_video_of_the_same_name_gets_another_one(empty, clip):
    client, folder = empty
    (folder / "clip.mp4").write_bytes(b"a file of the user")
    assert send(client, "clip.mp4", clip.read_bytes()).status == 200
    assert names(folder) == ["clip-2-project", "clip-2.mp4", "clip.mp4"]
    assert (folder / "clip.mp4").read_bytes() == b"a file of the user"


@pytest.mark.parametrize(
    "name", ["..%2Fx.mp4", "%2Fetc%2Fx.mp4", "..", "", "a%00b.mp4", ".hidden.mp4", "x" * 300, "a/b"]
)
def test_a_name_that_leads_elsewhere_is_refused(empty, clip, name):
    client, folder = empty
    assert send(client, name, clip.read_bytes()).refusal[0] == 422
    assert names(folder) == []
    assert names(folder.parent) == ["work"]


def test_what_is_no_video_is_removed(empty):
    client, folder = empty
    status, line = send(client, "notes.mp4", b"not a video" * 1000).refusal
    assert status == 422
    assert "notes.mp4" in line
    assert send(client, "empty.mp4", b"").refusal == (422, "empty.mp4: found an empty file, expected a video")
    assert names(folder) == []
    assert client.project()["video"] is None
    # a file that was there already stays
    (folder / "notes.mp4").write_bytes(b"not a video" * 1000)
    assert send(client, "notes.mp4", b"not a video" * 1000).status == 422
    assert names(folder) == ["notes.mp4"]


def test_a_video_that_is_too_large(empty, monkeypatch):
    client, folder = empty
    monkeypatch.setattr(upload, "MOST_BYTES", 10_000)
    assert client.project()["uploads"] == 10_000
    # refused as soon as its length is known, or when it exceeds the limit
    assert send(client, "large.mp4", bytes(10_001)).refusal[0] == 413
    assert send(client, "large.mp4", iter([bytes(6000), bytes(6000)])).refusal[0] == 413
    assert names(folder) == []


def test_a_disk_that_is_nearly_full(empty, monkeypatch):
    client, _ = empty
    usage = shutil.disk_usage("/")._replace(free=10**9 + 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert client.project()["uploads"] == 5
    assert send(client, "clip.mp4", bytes(6)).refusal[0] == 413


def test_an_upload_during_an_export_is_refused_before_it_is_received(tmp_path, clip, monkeypatch):
    reached, opened = Event(), Event()

    def export(*_):
        reached.set()
        assert opened.wait(SECONDS)

    monkeypatch.setattr("stm_fast.page.session.export", export)
    with served(tmp_path, clip) as one:
        client = one.client()
        client.post("/api/objects")
        client.prompt(**BOX)
        assert client.post("/api/export", {"write": ["masks"]}).status == 202
        assert reached.wait(SECONDS)
        monkeypatch.setattr(upload, "receive", None)
        assert send(client, "next.mp4", clip.read_bytes()).refusal[0] == 409
        opened.set()


def test_an_interrupted_upload_leaves_nothing(empty, clip):
    client, folder = empty
    whole = clip.read_bytes()

    def cut():
        yield whole[:1000]
        deadline = time.monotonic() + SECONDS
        while not names(folder):  # until the server writes
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        send(client, "clip.mp4", cut(), Content_Length=str(len(whole)))
    deadline = time.monotonic() + SECONDS
    while names(folder):  # until the server notices
        assert time.monotonic() < deadline, names(folder)
        time.sleep(0.01)
    assert send(client, "clip.mp4", whole).status == 200


def test_a_video_takes_the_place_of_the_one_before(drawn, tmp_path, clip):
    key = drawn.project()["video"]["key"]
    assert send(drawn, "next.mp4", clip.read_bytes()).status == 200
    found = drawn.project()
    assert (found["video"]["name"], found["states"]) == ("next", "." * FRAMES)
    assert found["video"]["key"] != key
    assert drawn.get(f"/api/frame/0?key={key}").refusal[0] == 404


def test_a_frame_that_is_asked_for_while_another_video_is_opened(tmp_path, clip, monkeypatch):
    with served(tmp_path, clip) as one:
        client = one.client()
        key = client.project()["video"]["key"]

        def jpeg_too_late(frames, index, width=None):
            one.session.open(frame_source(clip), tmp_path / "another")
            return jpeg(frames, index, width)

        jpeg = FrameCache.jpeg
        monkeypatch.setattr(FrameCache, "jpeg", jpeg_too_late)
        assert client.get(f"/api/frame/0?key={key}").refusal == (404, "found a frame of another video")


def test_a_project_that_cannot_be_opened_again_is_no_longer_shown(tmp_path, clip):
    with served(tmp_path, clip) as one, one.client().listening() as listener:
        (tmp_path / "project/project.json").write_text("{")
        with pytest.raises(InputError, match=r"project\.json"):
            one.session.open(frame_source(clip), tmp_path / "project")
        assert listener.next() == {"kind": "project"}
        assert one.client().project()["video"] is None


# events


def test_a_page_that_does_not_read_is_told_to_load_everything(monkeypatch):
    monkeypatch.setattr(events, "_MOST_WAITING", 10)

    async def read() -> list[Any]:
        source = Events()
        stream = source.stream()
        await anext(stream)
        for number in range(25):
            source.publish({"kind": "frame", "index": number})
        await asyncio.sleep(0)
        source.close()
        return [json.loads(text.removeprefix("data: ")) async for text in stream]

    heard = asyncio.run(read())
    assert heard[0] == {"kind": "project"}
    assert heard[-1] == {"kind": "frame", "index": 24}
    assert len(heard) <= 10


def test_a_quiet_stream_says_that_it_is_there(monkeypatch):
    monkeypatch.setattr(events, "_SECONDS", 0.01)

    async def read() -> list[str]:
        stream = Events().stream()
        return [await anext(stream) for _ in range(3)]

    assert all(text.startswith(":") for text in asyncio.run(read()))


def test_many_threads_publish_in_order():
    async def read() -> list[Any]:
        source = Events()
        stream = source.stream()
        await anext(stream)

        def publish(thread: int) -> None:
            for number in range(50):
                source.publish({"thread": thread, "number": number})

        threads = [Thread(target=publish, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        await asyncio.to_thread(lambda: [thread.join() for thread in threads])
        source.close()
        return [json.loads(text.removeprefix("data: ")) async for text in stream]

    heard = asyncio.run(read())
    for thread in range(4):
        assert [event["number"] for event in heard if event["thread"] == thread] == list(range(50))
