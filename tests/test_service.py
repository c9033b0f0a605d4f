"""examples/service.py, over HTTP: many clients, a full queue, kills, bad uploads; and what its documents say."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from PIL import Image

pytest.importorskip("av")
pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")
pytest.importorskip("uvicorn")

from page_client import SECONDS, Answer, Client
from processes import free_port, run
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.video import write_mask
from video_files import write_video

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs/service.md").read_text()
COMMANDS = """\
python examples/service.py --folder jobs --port 8000 > service.log 2>&1 &
curl --silent --retry 60 --retry-delay 1 --retry-connrefused http://127.0.0.1:8000/health
curl --silent --form video=@clip.mp4 --form mask=@first.png http://127.0.0.1:8000/jobs > job.json
id=$(python -c 'import json; print(json.load(open("job.json"))["id"])')
until curl --silent http://127.0.0.1:8000/jobs/$id | grep -e '"done"' -e '"failed"'; do sleep 1; done
curl --silent --fail --output results.zip http://127.0.0.1:8000/jobs/$id/results.zip
curl --silent --fail --output 00000.png http://127.0.0.1:8000/jobs/$id/masks/0
curl --silent --request DELETE http://127.0.0.1:8000/jobs/$id
kill $!
"""
FRAMES, LONG, HEIGHT, WIDTH = 6, 60, 96, 160
CLIENTS, ROUNDS = 8, 3
ONE = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


class Clip:
    """A video, its first mask, and the results of the command by their names in results.zip."""

    def __init__(self, video: Path, mask: Path, out: Path) -> None:
        self.video, self.mask = video.read_bytes(), mask.read_bytes()
        files = [out / "objects.csv", *sorted(out.glob("masks/*.png"))]
        self.frames = len(files) - 1
        self.expected = {file.relative_to(out).as_posix(): file.read_bytes() for file in files}


def draw_clip(folder: Path, seed: int, frames: int) -> tuple[Path, Path]:
    drawn = SyntheticClip(seed, frames=frames, height=HEIGHT, width=WIDTH, objects=1 + seed % 3)
    write_mask(folder / f"{seed}.png", drawn[0].ids)
    return write_video(folder / f"{seed}.mp4", [frame.image for frame in drawn]), folder / f"{seed}.png"


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Clip]:
    """Short ones, and at the end a long one, all segmented by one command."""
    folder = tmp_path_factory.mktemp("clips")
    drawn = [draw_clip(folder, seed, frames) for seed, frames in enumerate([FRAMES, FRAMES, FRAMES, LONG])]
    options = ["--min-size", "1", "--max-memory-frames", "20", "--write", "masks,csv"]
    videos = [str(video) for video, _ in drawn]
    run("segment", *videos, "--masks", str(folder), "--output", str(folder / "out"), *options, folder=folder, **ONE)
    return [Clip(video, mask, folder / "out" / video.stem) for video, mask in drawn]


def multipart(**parts: bytes) -> tuple[bytes, str]:
    """A form and its content type."""
    line = b"--a-line-that-no-part-contains\r\n"
    body = b""
    for name, content in parts.items():
        head = f'Content-Disposition: form-data; name="{name}"; filename="../../{name}"\r\n\r\n'
        body += line + head.encode() + content + b"\r\n"
    return body + line[:-2] + b"--\r\n", "multipart/form-data; boundary=a-line-that-no-part-contains"


class Service(Client):
    """The service, in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        port = free_port()
        super().__init__(f"http://127.0.0.1:{port}/")
        self.folder, self.address = folder, ("127.0.0.1", port)
        command = [sys.executable, ROOT / "examples/service.py", "--folder", folder, "--port", str(port)]
        self.log = folder.with_name("log").open("ab")
        environment = {**os.environ, **ONE}
        self.process = subprocess.Popen(
            [*command, "--min-size", "1", *options], stdout=self.log, stderr=self.log, env=environment
        )
        while not self.answers():
            assert self.process.poll() is None, self.printed()
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            return self.get("/health").data["status"] == "ok"
        except OSError:
            return False

    def upload(self, **parts: bytes) -> Answer:
        body, kind = multipart(**parts)
        return self.post("/jobs", body, Content_Type=kind)

    def submit(self, clip: Clip) -> str:
        """The id of a job; as long as the service has no place, it is asked again."""
        while (answer := self.upload(video=clip.video, mask=clip.mask)).status == 503:
            assert answer.headers["retry-after"].isdecimal()
            time.sleep(0.3)
        assert answer.status == 202, answer
        return answer.data["id"]

    def wait(self, job: str) -> dict[str, Any]:
        """How a job has ended."""
        deadline = time.monotonic() + SECONDS
        while (status := self.get(f"/jobs/{job}").data)["state"] in ("waiting", "running"):
            assert time.monotonic() < deadline, status
            time.sleep(0.3)
        return status

    def wait_for_frames(self, job: str, count: int) -> None:
        while (status := self.get(f"/jobs/{job}").data).get("frames_done", 0) < count:
            assert status["state"] in ("waiting", "running"), status
            time.sleep(0.05)

    def printed(self) -> str:
        return self.folder.with_name("log").read_text()

    def results(self, job: str) -> dict[str, bytes]:
        with zipfile.ZipFile(io.BytesIO(self.get(f"/jobs/{job}/results.zip").body)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Service]:
    service = Service(folder / "jobs", *options)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.wait()
        service.log.close()


@pytest.mark.slow
def test_clients_at_once_get_what_the_command_writes_and_memory_stays_flat(tmp_path, clips):
    with serving(tmp_path, "--threads", "2", "--waiting", "2") as service:
        resident = []

        def segment(number: int) -> None:
            clip = clips[number % 3]
            job = service.submit(clip)
            assert service.wait(job)["frames"] == FRAMES
            assert service.results(job) == clip.expected
            assert service.get(f"/jobs/{job}/masks/3").body == clip.expected["masks/00003.png"]
            assert service.send("DELETE", f"/jobs/{job}").status == 204

        began = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            for _ in range(ROUNDS):
                list(pool.map(segment, range(CLIENTS)))
                resident.append(psutil.Process(service.process.pid).memory_info().rss / 2**20)
        seconds = time.perf_counter() - began
        print(f"{ROUNDS * CLIENTS} clips of {FRAMES} frames of {HEIGHT}x{WIDTH} in {seconds:.1f} s")
        print(f"resident after each round: {[round(one) for one in resident]} MiB")
        assert " 503 " in service.printed()  # the queue was full
        assert not list(service.folder.iterdir())
        # jobs that kept only the frames and probabilities of their clips would take
        kept = (ROUNDS - 1) * CLIENTS * FRAMES * HEIGHT * WIDTH * (3 + 4 * 2) / 2**20
        assert resident[-1] - resident[0] < kept


@pytest.mark.slow
def test_jobs_go_on_after_a_kill_and_after_sigterm(tmp_path, clips):
    short, *_, long = clips
    with serving(tmp_path) as service:
        jobs = [service.submit(clip) for clip in (short, long, short)]
        service.wait(jobs[0])
        service.wait_for_frames(jobs[1], 2)
        assert service.end(signal.SIGKILL) == -signal.SIGKILL
    with serving(tmp_path) as service:
        service.wait_for_frames(jobs[1], 2)
        assert service.get(f"/jobs/{jobs[2]}").data == {"state": "waiting", "frames_done": 0}
        assert service.end() == -signal.SIGTERM
        assert "shutdown complete" in service.printed()
        assert not list(service.folder.rglob("*.partial"))
    with serving(tmp_path) as service:
        for job, clip in zip(jobs, (short, long, short), strict=True):
            found = service.wait(job)
            assert (found["state"], found["frames"]) == ("done", clip.frames)
            assert service.results(job) == clip.expected


@pytest.mark.slow
def test_what_cannot_be_segmented_is_refused_in_one_line(tmp_path, clips):
    clip, long = clips[0], clips[3]
    wrong_size = io.BytesIO()
    Image.new("L", (50, 50), 1).save(wrong_size, "PNG")
    with serving(tmp_path, "--waiting", "0") as service:
        for refused, status, words in (
            (service.upload(video=b"no video", mask=clip.mask), 422, "video: "),
            (service.upload(video=clip.video, mask=wrong_size.getvalue()), 422, "mask: "),
            (service.upload(video=clip.video, mask=clip.video), 422, "mask: "),
            (service.get(f"/jobs/{uuid4()}"), 404, "no such job"),
        ):
            assert refused.refusal[0] == status, refused
            assert refused.refusal[1].startswith(words)
            assert str(tmp_path) not in refused.refusal[1]
        for missing in ({"video": clip.video}, {"mask": clip.mask}):
            assert service.upload(**missing).status == 422
        assert service.get("/jobs/..%2f..%2fetc").status in (404, 422)
        body, kind = multipart(video=clip.video)
        with socket.create_connection(service.address) as broken_off:
            head = f"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
            broken_off.sendall(head.encode() + body[:-10])
        assert not list(service.folder.iterdir())

        job = service.submit(long)
        assert service.get(f"/jobs/{job}/masks/{long.frames}").refusal[0] == 404
        assert service.get(f"/jobs/{job}/results.zip").refusal[0] == 404
        full = service.upload(video=clip.video, mask=clip.mask)
        assert (full.status, full.headers["retry-after"]) == (503, "5")
        assert service.send("DELETE", f"/jobs/{job}").refusal[0] == 409
        assert service.wait(job)["state"] == "done"
        assert service.send("DELETE", f"/jobs/{job}").status == 204
        assert service.send("DELETE", f"/jobs/{job}").status == 404
        assert service.wait(service.submit(clip))["state"] == "done"
        assert "Traceback" not in service.printed()

        (tmp_path / "file").touch()
        command = [sys.executable, ROOT / "examples/service.py", "--folder", tmp_path / "file/jobs", "--port", "0"]
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (second.returncode, second.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_the_commands_of_the_document_run(tmp_path):
    assert COMMANDS in DOCUMENT
    draw_clip(tmp_path, 1, 3)
    for name, written in (("1.mp4", "clip.mp4"), ("1.png", "first.png")):
        (tmp_path / name).rename(tmp_path / written)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = f"set -e\n{COMMANDS}wait $!"
    environment = {**os.environ, **ONE, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    bash = ["bash", "-c", script.replace("8000", str(free_port()))]
    done = subprocess.run(bash, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=10 * SECONDS)
    assert done.returncode == 128 + signal.SIGTERM, done  # that of the service
    assert '"state":"done","frames":3' in done.stdout
    with zipfile.ZipFile(tmp_path / "results.zip") as archive:
        assert archive.namelist()[0] == "objects.csv"
        assert archive.read("masks/00000.png") == (tmp_path / "00000.png").read_bytes()
    assert not list((tmp_path / "jobs").iterdir())


def instructions(name: str) -> list[str]:
    """What follows a word of the Dockerfile, such as "COPY": one text for each instruction."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    return re.findall(rf"^{name} (.+)$", text, re.MULTILINE)


def test_the_image_is_built_from_what_is_there():
    copied = [words.split() for words in instructions("COPY")]
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    sources = [source for *names, _ in copied for source in names if names[0] != "--from=build"]
    assert sources == ["constraints.txt", "pyproject.toml", ".", "examples/service.py"]
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source not in ignored
        assert source.split("/")[0] not in ignored
    assert '"torch"' in (ROOT / "Dockerfile").read_text()  # which an isolated build would ask for
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (used,) = re.findall(r"\.whl\)\[(.+?)\]", (ROOT / "Dockerfile").read_text())
    assert set(used.split(",")) == {"service"} <= set(extras)


@pytest.mark.slow
def test_the_image_starts_the_service_as_documented():
    (entry,) = instructions("ENTRYPOINT")
    program, options = json.loads(entry)[:2], json.loads(entry)[2:]
    assert program == ["python", "/opt/service.py"]
    command = [sys.executable, ROOT / "examples/service.py", "--help"]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for option in {"--threads", "--waiting", "--memory-frames", *options[::2]}:
        assert option in known
        assert option in DOCUMENT
    table = DOCUMENT.split("Arguments of the build:")[1].split("For a GPU")[0]
    documented = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(documented) == sorted(argument.split("=")[0] for argument in instructions("ARG"))
