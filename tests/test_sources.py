"""Frames from globs, URLs, pipes, sockets and cameras are those of the file, at the same times; their end is told."""

import functools
import http.server
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stm_fast.errors import InputError
from stm_fast.frame_source import FrameSource, frame_source
from stm_fast.video import open_frames
from stm_fast.video.frames import Frame, FrameReader
from video_files import needs_av, number_of, numbered_picture, write_video

pytestmark = needs_av
COUNT = 12
# a variable frame rate, in milliseconds, as exact in Matroska as in MPEG-TS
TIMES = [Fraction(k * k * 10 + 40 * k, 1000) for k in range(COUNT)]
VARYING: dict[str, Any] = {"times": TIMES, "encoder": {"bf": "2"}}
INDEX_FIRST = {"movflags": "+faststart"}
FILES: dict[str, dict[str, Any]] = {
    "a.mkv": VARYING,
    "a.ts": VARYING,
    "a.mp4": VARYING | {"container": INDEX_FIRST},
    "fragments.mp4": VARYING | {"container": {"movflags": "frag_keyframe+empty_moov"}},
}


def clip(folder: Path, name: str, **options: Any) -> Path:
    return write_video(folder / name, [numbered_picture(k) for k in range(COUNT)], **(options or FILES[name]))


def seen(frames: Iterator[Frame] | FrameReader) -> list[tuple[int, str, int, float]]:
    """What identifies each frame: index, name, the number that it shows, and its time."""
    return [(frame.index, frame.name, number_of(frame.image), round(frame.time, 6)) for frame in frames]


def is_live(reader: FrameReader) -> bool:
    return reader.live and reader.frame_count is None and reader.path is None


# what a source is


@pytest.mark.parametrize(
    ("text", "kind", "name", "live"),
    [
        ("clip.mp4", "path", "clip", False),
        ("-", "pipe", "stdin", True),
        ("pipe", "pipe", "pipe", True),
        ("camera:0", "camera", "camera-0", True),
        ("camera:FaceTime HD", "camera", "camera-FaceTime-HD", True),
        ("many/*.png", "glob", "many", False),
        ("many/[0-9].png", "path", "[0-9]", False),  # a file of that name exists
        ("http://x.org/a/my%20clip.mp4?token=secret", "url", "my clip", False),
        ("HTTPS://x.org", "url", "x.org", False),
        ("rtsp://me:secret@camera.local:554/stream1", "url", "stream1", True),
        ("udp://239.0.0.1:1234", "url", "239.0.0.1", True),
        ("C:\\clip.mp4", "path", "C:\\clip", False),
    ],
)
def test_the_text_says_what_a_source_is(tmp_path, monkeypatch, text, kind, name, live):
    monkeypatch.chdir(tmp_path)
    Path("many").mkdir()
    for image in ("1.png", "[0-9].png"):
        Image.new("RGB", (8, 8)).save(Path("many", image))
    os.mkfifo("pipe")
    source = frame_source(text, allow_network=True)
    assert (source.kind, source.name, source.live) == (kind, name, live)
    assert "secret" not in source.label


def test_a_path_is_never_anything_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("-", "camera:0", "*.png", "http://x.org/a.mp4"):
        assert frame_source(Path(text)).kind == "path"


def test_the_network_is_used_only_with_the_switch(tmp_path):
    with pytest.raises(InputError, match=r"^http://h/a.mp4: needs the network, which allow_network=True allows$"):
        open_frames("http://me:password@h/a.mp4?token=1")
    with pytest.raises(InputError, match=r"^gopher://h/a: found a URL of kind gopher://, expected one of http, "):
        open_frames("gopher://h/a", allow_network=True)


# globs


def pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(numbered_picture(number)).save(folder / name)


def test_a_glob_is_the_folder_of_its_images_in_natural_order(tmp_path):
    pictures(tmp_path / "frames", ["f1.png", "f2.png", "f10.png", "other.png"])
    (tmp_path / "frames/f3.txt").touch()
    reader = open_frames(f"{tmp_path}/frames/f*")
    assert [(name, number) for _, name, number, _ in seen(reader)] == [("f1", 0), ("f2", 1), ("f10", 2)]
    assert (reader.name, reader.frame_count, reader.live) == ("frames", 3, False)
    assert seen(reader.backward()) == seen(reader)[::-1]
    left = open_frames(f"{tmp_path}/frames/f*", [tmp_path / "frames/other.png"])
    assert left.frame_count == 3


def test_a_glob_needs_images(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(InputError, match=r"\*\.png: found no such file, expected jpg, png, webp or tif images"):
        open_frames(f"{tmp_path}/*.png")
    with pytest.raises(InputError, match=r"\*\.mp4: found only .*a\.mp4, expected jpg"):
        open_frames(f"{tmp_path}/*.mp4")


# pipes


@contextmanager
def fed(pipe: Path, command: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A named pipe into which a process writes."""
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", f"exec > '{pipe}'; {command}", "sh", *map(str, arguments)]) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("name", FILES)
def test_frames_through_a_pipe_are_those_of_the_file(tmp_path, name, caplog):
    file = clip(tmp_path, name)
    expected = seen(open_frames(file))
    assert [time for *_, time in expected] == pytest.approx([float(time) for time in TIMES], abs=1e-3)
    with fed(tmp_path / "pipe", 'cat "$1"', file):
        reader = open_frames(str(tmp_path / "pipe"))
        assert reader.live
        assert (reader.width, reader.height, reader.frame_count) == (64, 48, None)
        assert seen(reader) == expected
    assert f"pipe: ends after {COUNT} frames: the source has ended" in caplog.text


def test_standard_input(tmp_path):
    file = clip(tmp_path, "a.mkv")
    code = "from stm_fast.video import open_frames; print([(f.index, f.time) for f in open_frames('-')])"
    with file.open("rb") as data, subprocess.Popen(["cat"], stdin=data, stdout=subprocess.PIPE) as cat:
        ended = subprocess.run(
            [sys.executable, "-c", code], stdin=cat.stdout, capture_output=True, text=True, check=True
        )
    assert ended.stdout.strip() == str([(frame.index, frame.time) for frame in open_frames(file)])
    assert ended.stderr == f"standard input: ends after {COUNT} frames: the source has ended\n"


def test_a_live_source_is_read_once(tmp_path):
    with fed(tmp_path / "pipe", 'cat "$1"', clip(tmp_path, "a.mkv")):
        reader = open_frames(str(tmp_path / "pipe"))
        # a look at the first frame loses nothing
        assert number_of(next(iter(reader)).image) == 0
        assert [number for _, _, number, _ in seen(reader)] == list(range(COUNT))
        with pytest.raises(InputError, match=r"pipe: a live source cannot be read twice$"):
            iter(reader)
        with pytest.raises(InputError, match=r"pipe: a live source cannot be read backward$"):
            reader.backward()
        with pytest.raises(
            InputError, match=r"pipe: a live source can be read from its first frame only, found frame 3$"
        ):
            reader.forward(3)


@pytest.mark.parametrize("content", ["index last", "text", "nothing"])
def test_what_cannot_be_read_from_a_pipe_is_refused(tmp_path, content):
    file = tmp_path / "given"
    if content == "index last":
        # not so small that FFmpeg reads it at once
        noise = np.random.default_rng(0).integers(0, 256, (40, 240, 320, 3), dtype=np.uint8)
        file = write_video(tmp_path / "last.mp4", list(noise))
    else:
        file.write_text("no video\n" * 1000 * (content == "text"))
    expected = r"pipe: not a video that can be read from a pipe, where MP4 and MOV need their index first \(.*\)$"
    with fed(tmp_path / "pipe", 'cat "$1"', file), pytest.raises(InputError, match=expected):
        open_frames(str(tmp_path / "pipe"))


def test_a_cut_file_gives_its_whole_frames(tmp_path, caplog):
    file = clip(tmp_path, "a.ts", encoder={"bf": "0"})
    with fed(tmp_path / "pipe", 'head -c $(($(wc -c < "$1") * 2 / 3)) "$1"', file):
        numbers = [number for _, _, number, _ in seen(open_frames(str(tmp_path / "pipe")))]
    assert 3 < len(numbers) < COUNT
    assert numbers == list(range(len(numbers)))
    assert f"ends after {len(numbers)} frames" in caplog.text


# a source that stalls, and a user who stops it


def test_a_stall_is_told_and_ends_the_video(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("stm_fast.video.live.QUIET_SECONDS", 0.3)
    source = frame_source_of_pipe(tmp_path, stall_seconds=1.0)
    # a frame of MPEG-TS ends where the next one begins
    with fed(tmp_path / "pipe", 'cat "$1"; sleep 60', clip(tmp_path, "a.ts")):
        reader = open_frames(source())
        start = monotonic()
        found = seen(reader)
    assert 1 <= monotonic() - start < 10
    assert [number for _, _, number, _ in found] == list(range(len(found)))
    assert COUNT - 4 <= len(found) <= COUNT
    assert [record.getMessage().partition("pipe: ")[2] for record in caplog.records] == [
        "no frame for 0.3 s; ends after 1 s",
        f"ends after {len(found)} frames: none came for 1 s",
    ]


def frame_source_of_pipe(folder: Path, **options: Any) -> Callable[[], FrameSource]:
    return functools.partial(frame_source, str(folder / "pipe"), **options)


def test_a_source_without_any_frame(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"pipe: no frame, none came for 0\.2 s$"):
        open_frames(frame_source_of_pipe(tmp_path, stall_seconds=0.2)())


def test_a_live_source_ends_when_it_is_asked_to(tmp_path, caplog):
    asked: list[Frame] = []
    with fed(tmp_path / "pipe", 'cat "$1"; sleep 60', clip(tmp_path, "a.ts")):
        for frame in open_frames(str(tmp_path / "pipe"), should_stop=lambda: len(asked) == 5):
            asked.append(frame)
    assert len(asked) == 5
    assert "ends after 5 frames: stopped" in caplog.text


def test_dropping_frames_keeps_the_newest(tmp_path, caplog):
    source = frame_source_of_pipe(tmp_path, drop_frames=True)
    with fed(tmp_path / "pipe", 'cat "$1"', clip(tmp_path, "a.mkv")):
        frames = []
        for frame in open_frames(source()):
            frames.append(frame)
            sleep(0.4)
    found = seen(iter(frames))
    assert [index for index, *_ in found] == list(range(len(found)))
    assert [name for _, name, *_ in found] == [f"{k:05d}" for k in range(len(found))]
    numbers = [number for _, _, number, _ in found]
    assert numbers[0] == 0
    assert numbers[-1] == COUNT - 1
    assert len(numbers) < COUNT - 4
    assert [time for *_, time in found] == pytest.approx([float(TIMES[number]) for number in numbers], abs=1e-3)
    assert f"{COUNT - len(found)} dropped" in caplog.text


def test_frames_of_another_size_end_the_video(tmp_path, caplog):
    first = clip(tmp_path, "a.ts")
    second = write_video(tmp_path / "b.ts", [numbered_picture(k, 128, 96) for k in range(4)])
    with fed(tmp_path / "pipe", 'cat "$1" "$2"', first, second):
        found = seen(open_frames(str(tmp_path / "pipe")))
    assert [number for _, _, number, _ in found] == list(range(COUNT))
    assert "the next one is 128x96, expected 64x48 like frame 0" in caplog.text


# servers


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the files of a folder: with byte ranges as in "/ranges/NAME", with only their length, or as a stream."""

    folder: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        _, way, name = self.path.partition("?")[0].split("/")
        if way == "elsewhere":
            self.answer(302, {"Location": f"file://{self.folder}/{name}"}, b"")
            return
        data = (self.folder / name).read_bytes()
        wanted = self.headers.get("Range", "")
        if way == "ranges" and wanted:
            first = int(wanted.removeprefix("bytes=").split("-")[0])
            self.answer(206, {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}, data[first:])
        elif way == "stream":
            self.answer(200, {"Transfer-Encoding": "chunked"}, b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
        else:
            self.answer(200, {}, data)

    def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in {"Connection": "close", **headers}.items():
            self.send_header(name, value)
        if "Transfer-Encoding" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with suppress(OSError):  # the client has what it wants
            self.wfile.write(data)


@contextmanager
def server(folder: Path, certificate: Path | None = None) -> Iterator[str]:
    handler = type("Here", (Handler,), {"folder": folder})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        serving.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            serving.socket = context.wrap_socket(serving.socket, server_side=True)
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        try:
            yield f"{'http' if certificate is None else 'https'}://127.0.0.1:{serving.server_port}"
        finally:
            serving.shutdown()


@pytest.mark.parametrize("way", ["ranges", "plain", "stream"])
def test_a_video_on_a_server(tmp_path, way, caplog, monkeypatch):
    monkeypatch.setattr("stm_fast.video.video_file._MANY_DECODINGS", 0)
    # without ranges, the index must come first
    name = "last.mp4" if way == "ranges" else "a.mp4"
    file = clip(tmp_path, name, **VARYING, container={} if way == "ranges" else INDEX_FIRST)
    expected = seen(open_frames(file))
    with server(tmp_path) as address:
        reader = open_frames(f"{address}/{way}/{name}?token=secret", allow_network=True)
        assert (reader.name, reader.live, reader.path) == (name[:-4], way == "stream", None)
        assert seen(reader) == expected
        if way == "stream":
            assert f"ends after {COUNT} frames: the source has ended" in caplog.text
        else:
            assert seen(reader) == expected
        if way == "ranges":
            assert seen(reader.backward()) == expected[::-1]
            assert f"{way}/{name}: few key frames" in caplog.text
    assert "secret" not in caplog.text


def test_a_server_that_lacks_the_file_or_leads_elsewhere(tmp_path):
    clip(tmp_path, "a.mp4")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/a.mp4\n#EXT-X-ENDLIST\n")
    with server(tmp_path) as address:
        for way in ("elsewhere/a.mp4", "plain/list.m3u8"):
            with pytest.raises(InputError, match=f"^{address}/{way}: cannot be read as a video \\("):
                open_frames(f"{address}/{way}", allow_network=True)
    with pytest.raises(InputError, match=f"^{address}/a.mp4: cannot be read as a video .Connection refused.$"):
        open_frames(f"{address}/a.mp4", allow_network=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_certificates_of_servers_are_checked(tmp_path, monkeypatch):
    clip(tmp_path, "a.mp4")
    request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "certificate.pem"]
    subprocess.run(["openssl", *request.split(), *files], check=True, capture_output=True)
    both = tmp_path / "both.pem"
    both.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "certificate.pem").read_bytes())
    with server(tmp_path, both) as address:
        with pytest.raises(InputError, match=r"a\.mp4: cannot be read as a video"):
            open_frames(f"{address}/ranges/a.mp4", allow_network=True)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        assert len(seen(open_frames(f"{address}/ranges/a.mp4", allow_network=True))) == COUNT


# sends packets of a file with their times; argument 4 is how many, after which it waits
SENDER = """
import sys, time, av
path, url, format, most = *sys.argv[1:4], int(sys.argv[4])
for _ in range(100):
    try:
        # over TCP, which loses nothing
        target = av.open(url, "w", format=format, options={"rtsp_transport": "tcp"} if format == "rtsp" else {})
        break
    except OSError:
        time.sleep(0.1)
with av.open(path) as source:
    stream = source.streams.video[0]
    copy = target.add_stream_from_template(stream)
    for number, packet in enumerate(p for p in source.demux(stream) if p.size):
        if number == most:
            time.sleep(60)
        packet.stream = copy
        target.mux(packet)
        time.sleep(0.02)
target.close()
"""


@contextmanager
def sender(file: Path, url: str, format: str, most: int = -1) -> Iterator[None]:
    arguments = [sys.executable, "-c", SENDER, str(file), url, format, str(most)]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def free_port() -> int:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as probe:
        return probe.server_port


def test_mpeg_ts_over_tcp(tmp_path, caplog):
    file, address = clip(tmp_path, "a.mkv"), f"tcp://127.0.0.1:{free_port()}"
    expected = seen(open_frames(file))
    with sender(file, address, "mpegts"):
        reader = open_frames(f"{address}?listen=1", allow_network=True)
        assert reader.live
        assert seen(reader) == [(*facts, pytest.approx(time, abs=1e-4)) for *facts, time in expected]
    assert f"{address}: ends after {COUNT} frames: the source has ended" in caplog.text


def test_a_sender_that_stalls(tmp_path, caplog):
    file, address = clip(tmp_path, "a.mkv", encoder={"bf": "0"}), f"tcp://127.0.0.1:{free_port()}"
    with sender(file, address, "mpegts", 8):
        source = frame_source(f"{address}?listen=1", allow_network=True, stall_seconds=3)
        found = seen(open_frames(source))
    assert [number for _, _, number, _ in found] == list(range(len(found)))
    assert 6 <= len(found) <= 8
    assert f"ends after {len(found)} frames: none came for 3 s" in caplog.text


def test_rtsp(tmp_path, monkeypatch, caplog):
    """FFmpeg is the server here, to which the camera sends: the only one at hand."""
    from stm_fast.video import inputs

    listening = (("rtsp_flags", "listen"), ("listen_timeout", "20"))
    monkeypatch.setitem(inputs._OPTIONS, "rtsp", listening)
    file, address = clip(tmp_path, "a.mkv"), f"rtsp://127.0.0.1:{free_port()}/live"
    with sender(file, address, "rtsp"):
        reader = open_frames(frame_source(address, allow_network=True, stall_seconds=20))
        found = seen(reader)
    assert (reader.name, reader.live) == ("live", True)
    assert [number for _, _, number, _ in found] == list(range(COUNT))
    assert [time for *_, time in found] == sorted({time for *_, time in found})
    assert f"{address}: ends after {COUNT} frames: the source has ended" in caplog.text


def test_what_pyav_cannot_do_is_said(tmp_path):
    with pytest.raises(InputError, match=r"^rtsp://127.0.0.1:1/x: cannot be read as a video .Connection refused.$"):
        open_frames("rtsp://me:secret@127.0.0.1:1/x", allow_network=True)


# cameras


def test_an_absent_camera():
    if sys.platform != "linux" or Path("/dev/video99").exists():
        pytest.skip("not without cameras of that number")
    with pytest.raises(InputError, match=r"^/dev/video99: no such camera, for camera:99$"):
        open_frames("camera:99")
    with pytest.raises(InputError, match=r"^99: no such file or folder; a camera is camera:99$"):
        open_frames("99")


@pytest.mark.parametrize(
    ("platform", "text", "format", "url"),
    [
        ("linux", "camera:1", "v4l2", "/dev/video1"),
        ("linux", "/dev/video3", "v4l2", "/dev/video3"),
        ("darwin", "camera:0", "avfoundation", "0"),
        ("win32", "camera:USB Camera", "dshow", "video=USB Camera"),
    ],
)
def test_how_cameras_are_opened(monkeypatch, platform, text, format, url):
    from stm_fast.video import inputs

    monkeypatch.setattr(inputs, "_has_format", lambda name: True)
    found = inputs._camera(FrameSource(text, "camera"), platform)
    assert (found.format, found.url, found.protocols) == (format, url, ())


def test_cameras_that_cannot_be_opened():
    from stm_fast.video import inputs

    with pytest.raises(InputError, match=r"^camera:0: this PyAV cannot read cameras on plan9$"):
        inputs._camera(FrameSource("camera:0", "camera"), "plan9")


def test_frames_are_contiguous_pixels(tmp_path):
    with fed(tmp_path / "pipe", 'cat "$1"', clip(tmp_path, "a.mkv")):
        frame = next(iter(open_frames(str(tmp_path / "pipe"))))
    assert frame.image.dtype == np.uint8
    assert frame.image.flags.c_contiguous
