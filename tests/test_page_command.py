"""stm-fast open as a command: what it prints, how it ends, and that nothing is lost however it ends."""

import os
import shlex
import signal
import socket
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("av")
pytest.importorskip("cv2")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import video_files
from page_client import SECONDS, Client
from processes import Running
from small_inputs import write_video, write_weights
from stm_fast.__main__ import app
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.page import listening
from stm_fast.page.listening import is_local, listen
from stm_fast.video import read_written_mask

FRAMES = 40
BRUSH = {"tool": "brush", "points": [[16, 12], [20, 12]], "radius": 6}


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder with a video and weights."""
    folder = tmp_path_factory.mktemp("inputs")
    write_video(folder / "clip.mp4", FRAMES)
    write_weights(folder / "small.safetensors")
    return folder


@contextmanager
def opened(
    folder: Path,
    inputs: Path,
    *arguments: str,
    source: str | None = "clip.mp4",
    trained: bool = False,
    **environment: str,
):
    """The command in a folder, and the address that it prints."""
    given = [] if source is None else [str(inputs / source)]
    weights = [] if trained else ["--weights", str(inputs / "small.safetensors")]
    command = ["open", *given, *weights, "--device", "cpu", "--port", "0", *arguments]
    running = Running(command, folder, at=folder, OMP_NUM_THREADS="1", **environment)
    try:
        yield running, printed_url(running)
    finally:
        running.kill()


def printed_url(running: Running) -> str:
    deadline = time.monotonic() + SECONDS
    while "\n" not in running.printed():
        assert time.monotonic() < deadline
        assert not running.has_ended(), running.wait()
        time.sleep(0.02)
    return running.printed().splitlines()[0]


def draw(client: Client) -> None:
    client.post("/api/objects")
    assert client.prompt(**BRUSH).status == 200


@pytest.mark.slow
def test_a_killed_server_loses_nothing(tmp_path, inputs):
    with opened(tmp_path, inputs, "--no-browser") as (running, url):
        client = Client(url).enter()
        draw(client)
        mask = client.get("/api/mask/0").body
        with client.listening() as listener:
            client.post("/api/track", {"frame": 0})
            last = listener.until(lambda event: event["kind"] == "frame" and event["index"] >= 3)[-1]["index"]
            os.kill(running.pid, signal.SIGKILL)
            assert running.wait().returncode == -signal.SIGKILL
    with opened(tmp_path, inputs, "--no-browser") as (running, url):
        client = Client(url).enter()
        assert client.get("/api/mask/0").body == mask
        states = client.project()["states"]
        assert states[0] == "g"
        assert "." not in states[: last + 1]
        for file in (tmp_path / "clip-project/masks").iterdir():
            read_written_mask(file)
        with client.listening() as listener:
            client.post("/api/track", {"frame": 0})
            assert listener.until_done()[-1]["error"] is None
        assert "." not in client.project()["states"]
        os.kill(running.pid, signal.SIGINT)
        assert "clip-project: going on with this project" in running.wait().stderr
    # by its folder too, without the video
    with opened(tmp_path, inputs, "--no-browser", source=str(tmp_path / "clip-project")) as (_, url):
        assert Client(url).enter().get("/api/mask/0").body == mask


@pytest.mark.slow
def test_segment_gives_the_masks_of_the_page(tmp_path, inputs, monkeypatch):
    clip = SyntheticClip(3, frames=7, height=492, width=500, objects=1)  # more pixels than the network gets
    video_files.write_video(inputs / "large.mp4", [frame.image for frame in clip])
    rows, columns = np.nonzero(clip.ids(1))
    left, top = int(columns.min()), int(rows.min())
    around = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
    with opened(tmp_path, inputs, "--no-browser", source="large.mp4", trained=True) as (_, url):
        client = Client(url).enter()
        client.post("/api/objects")
        assert client.prompt(1, tool="box", box=around).status == 200
        for back in (False, True):
            with client.listening() as listener:
                client.post("/api/track", {"frame": 1, "back": back})
                assert listener.until_done()[-1]["error"] is None
    monkeypatch.chdir(tmp_path)
    masks = ["--masks", "large-project/given", "--both"]
    words = ["segment", str(inputs / "large.mp4"), *masks, "--max-size", "480", "--device", "cpu", "--output", "out"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = [read_written_mask(tmp_path / f"large-project/masks/{index:05d}.png").ids for index in range(7)]
    assert all(ids.any() for ids in found)
    for index, ids in enumerate(found):
        assert np.array_equal(ids, read_written_mask(tmp_path / f"out/masks/{index:05d}.png").ids), f"frame {index}"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_while_it_tracks_and_pages_listen(tmp_path, inputs, number):
    with opened(tmp_path, inputs, "--no-browser") as (running, url):
        client = Client(url).enter()
        draw(client)
        with client.listening() as listener:
            client.post("/api/track", {"frame": 0})
            listener.until(lambda event: event["kind"] == "frame")
            os.kill(running.pid, number)
            while listener.next() is not None:
                pass
        ended = running.wait()
    assert ended.returncode == 0
    assert ended.stderr == "stm-fast: ctrl-C ends the server; everything is saved as you work\n"


def test_a_signal_ends_the_server_while_a_video_is_sent(tmp_path, inputs):
    with opened(tmp_path, inputs, "--no-browser") as (running, url):
        client = Client(url).enter()
        host, _, port = client.place.partition(":")
        with socket.create_connection((host, int(port))) as sending:
            lines = ("POST /api/video?name=x.mp4 HTTP/1.1", f"Host: {client.place}", f"Cookie: {client.cookie}")
            sending.sendall("\r\n".join((*lines, "Content-Length: 1000000", "", "")).encode() + bytes(100))
            deadline = time.monotonic() + SECONDS
            while not list(tmp_path.glob(".x.mp4*")):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            os.kill(running.pid, signal.SIGINT)
            ended = running.wait()
    assert ended.returncode == 0
    assert ended.stderr == "stm-fast: ctrl-C ends the server; everything is saved as you work\n"
    assert not list(tmp_path.glob("*x.mp4*"))


def test_without_a_video_the_current_folder_is_used(tmp_path, inputs):
    with opened(tmp_path, inputs, "--no-browser", source=None) as (_, url):
        client = Client(url).enter()
        assert client.project()["video"] is None
        client.post("/api/video?name=sent.mp4", (inputs / "clip.mp4").read_bytes())
        assert client.project()["video"]["folder"] == str(tmp_path / "sent-project")
    assert {"sent.mp4", "sent-project"} <= {path.name for path in tmp_path.iterdir()}


def test_a_browser_is_opened(tmp_path, inputs):
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" > {shlex.quote(str(tmp_path))}/part && mv part opened\n')
    program.chmod(0o755)
    with opened(tmp_path, inputs, BROWSER=f"{program} %s") as (_, url):
        deadline = time.monotonic() + SECONDS
        while not (tmp_path / "opened").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert (tmp_path / "opened").read_text() == url + "\n"


def test_a_host_that_others_can_reach_is_warned_about(tmp_path, inputs):
    with opened(tmp_path, inputs, "--no-browser", "--host", "0.0.0.0") as (running, url):
        assert url.startswith(f"http://{socket.gethostname()}:")
        parts = urlsplit(url)
        Client(parts._replace(netloc=f"127.0.0.1:{parts.port}").geturl()).enter()
        os.kill(running.pid, signal.SIGINT)
        assert "--host: 0.0.0.0 can be reached from other machines" in running.wait().stderr


@pytest.mark.parametrize("host", ["", "256.0.0.1", "no host", "a" * 300, "192.0.2.1"])
def test_a_host_that_is_not_this_machine(inputs, tmp_path, monkeypatch, host):
    monkeypatch.chdir(tmp_path)
    assert "--host: found '" in refusal(inputs / "clip.mp4", "--host", host)
    assert list(tmp_path.iterdir()) == []


# what is refused


def refusal(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in ("open", *words)])
    assert (result.exit_code, result.stdout) == (2, ""), (result.output, result.exception)
    assert result.stderr.startswith("stm-fast: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_port_in_use(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with listen("127.0.0.1", 0) as busy:
        port = busy.getsockname()[1]
        line = refusal(inputs / "clip.mp4", "--port", port)
        assert f"--port: found {port}, which is in use, expected a free one, or 0 for any" in line
        # without the option, the next one that is free
        monkeypatch.setattr(listening, "FIRST_PORT", port)
        with listen("127.0.0.1", None) as other:
            assert other.getsockname()[1] != port
    assert list(tmp_path.iterdir()) == []


def test_a_project_of_another_video(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "other.mp4", 3)
    with opened(tmp_path, inputs, "--no-browser", "--output", "project"):
        pass
    assert "project" in refusal("other.mp4", "--output", "project")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert "full" in refusal("other.mp4", "--output", "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def test_a_device_that_is_not_there(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--device: found 'cuda:99'" in refusal(inputs / "clip.mp4", "--device", "cuda:99")
    assert list(tmp_path.iterdir()) == []


def test_the_terminal_says_that_the_network_cannot_be_loaded(tmp_path, inputs):
    """Perhaps no page is open yet."""
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with opened(tmp_path, inputs, "--no-browser", "--weights", str(tmp_path / "bad.safetensors")) as (running, url):
        client = Client(url).enter()
        draw(client)
        with client.listening() as listener:
            client.post("/api/track", {"frame": 0})
            assert "bad.safetensors" in listener.until_done()[-1]["error"]
        os.kill(running.pid, signal.SIGINT)
        assert "bad.safetensors" in running.wait().stderr


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "cv2"])
def test_a_package_that_is_missing(inputs, tmp_path, monkeypatch, package):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    line = refusal(inputs / "clip.mp4")
    assert f"the page needs {package}, which cannot be imported" in line
    assert "pip install fastapi opencv-python-headless uvicorn" in line


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("studio.example", False),
    ],
)
def test_hosts_that_only_this_machine_can_reach(host, local):
    assert is_local(host) is local
