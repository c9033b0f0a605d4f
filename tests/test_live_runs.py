"""Runs over live sources: the same results as from a file, whole when they end; and the overlay as a live stream."""

import os
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep

import pytest

from small_inputs import HEIGHT, WIDTH, contents, one_object, small_network, write_video, write_weights
from stm_fast.errors import InputError
from stm_fast.runs.video import InterruptedRun, segment_video
from stm_fast.video import open_frames, write_mask
from video_files import needs_av, remux

pytestmark = needs_av
COUNT = 9


@pytest.fixture(scope="module")
def model():
    return small_network()


@pytest.fixture
def clip(tmp_path):
    """A clip that can be read from a pipe, and a mask of its first frame."""
    write_video(tmp_path / "clip.mp4", COUNT)
    write_mask(tmp_path / "first.png", one_object())
    return remux(tmp_path / "clip.mp4", tmp_path / "clip.mkv", lambda packets: packets)


def feed(pipe: Path, file: Path, then: str = "") -> subprocess.Popen[bytes]:
    if not pipe.exists():
        os.mkfifo(pipe)
    return subprocess.Popen(["sh", "-c", f"exec > '{pipe}'; cat '{file}'; {then}"])


def times(video: Path) -> list[float]:
    return [round(frame.time, 3) for frame in open_frames(video)]


def test_a_pipe_gives_the_results_of_the_file(tmp_path, clip, model):
    whole = segment_video(clip, tmp_path / "first.png", tmp_path / "file", model=model)
    with feed(tmp_path / "pipe", clip):
        found = segment_video(str(tmp_path / "pipe"), tmp_path / "first.png", tmp_path / "live", model=model)
    assert (found.frames, found.object_ids) == (whole.frames, whole.object_ids) == (COUNT, [3])
    expected, live = contents(tmp_path / "file"), contents(tmp_path / "live")
    for differing in (expected, live):
        del differing["run.json"]
    assert expected == live


def test_a_live_run_that_is_stopped_is_whole(tmp_path, clip, model, caplog):
    done: list[int] = []
    with feed(tmp_path / "pipe", clip, "sleep 60") as process:
        found = segment_video(
            str(tmp_path / "pipe"),
            tmp_path / "first.png",
            tmp_path / "out",
            model=model,
            checkpoint_seconds=0,
            should_stop=lambda: len(done) >= 4,
            progress=lambda frames, total: done.append(frames),
        )
        process.kill()
    assert 3 <= found.frames < COUNT
    assert len(times(tmp_path / "out/overlay.mp4")) == found.frames == len(list(tmp_path.glob("out/masks/*.png")))
    assert not list(tmp_path.glob("out/.*"))
    assert f"ends after {found.frames} frames: stopped" in caplog.text


def test_a_live_run_leaves_no_checkpoint_of_the_run_that_it_replaces(tmp_path, clip, model):
    out, mask = tmp_path / "out", tmp_path / "first.png"
    done: list[int] = []
    with pytest.raises(InterruptedRun):
        segment_video(clip, mask, out, model=model, should_stop=lambda: True)
    assert list(out.glob(".resume*"))
    with feed(tmp_path / "pipe", clip):
        segment_video(
            str(tmp_path / "pipe"),
            mask,
            out,
            model=model,
            overwrite=True,
            progress=lambda *_: done.append(len(list(out.glob(".resume*")))),
        )
    assert done == [0] * (COUNT + 1)


def test_a_box_in_the_first_frame_of_a_live_source(tmp_path, clip, model):
    pytest.importorskip("cv2")
    with feed(tmp_path / "pipe", clip):
        found = segment_video(str(tmp_path / "pipe"), None, tmp_path / "out", model=model, boxes=[(8, 4, 16, 16)])
    assert (found.frames, found.object_ids) == (COUNT, [1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"boxes": {2: (8, 4, 16, 16)}}, "boxes: found one in frame 2, expected frame 0 of a live source"),
        ({"mask_frame": 2, "both": True}, "both=True: found with .*pipe, which can be read only once"),
    ],
)
def test_what_needs_a_second_reading_is_refused(tmp_path, clip, model, options, words):
    pytest.importorskip("cv2")
    masks = None if "boxes" in options else tmp_path / "first.png"
    with feed(tmp_path / "pipe", clip) as process:
        with pytest.raises(InputError, match=words):
            segment_video(str(tmp_path / "pipe"), masks, tmp_path / "out", model=model, **options)
        process.kill()
    assert not (tmp_path / "out").exists()


def test_a_live_run_cannot_be_resumed(tmp_path, clip, model):
    with feed(tmp_path / "pipe", clip), pytest.raises(InputError, match=r"pipe: a live source can be read only once"):
        segment_video(str(tmp_path / "pipe"), tmp_path / "first.png", tmp_path / "out", model=model, resume=True)


@pytest.mark.parametrize("name", ["live.ts", "live.mkv"])
def test_the_overlay_is_streamed_into_a_file(tmp_path, clip, model, name):
    stream = tmp_path / name
    segment_video(clip, tmp_path / "first.png", tmp_path / "out", model=model, overlay_stream=stream)
    reader = open_frames(stream)
    assert (reader.width, reader.height) == (WIDTH, HEIGHT)
    assert times(stream) == times(tmp_path / "out/overlay.mp4") == [round(k / 25, 3) for k in range(COUNT)]
    with pytest.raises(InputError, match=f"{name}: exists already, expected a named pipe"):
        segment_video(clip, tmp_path / "first.png", tmp_path / "again", model=model, overlay_stream=stream)
    with pytest.raises(InputError, match=r"live\.mp4: found an overlay stream of this name, expected a \.ts or"):
        segment_video(
            clip, tmp_path / "first.png", tmp_path / "again", model=model, overlay_stream=tmp_path / "live.mp4"
        )


def test_each_frame_of_the_stream_comes_at_once(tmp_path, clip, model):
    """The reader has seen a frame before the next but one is segmented."""
    os.mkfifo(tmp_path / "view")
    sizes: list[int] = []
    seen = threading.Event()
    received = bytearray()

    def read() -> None:
        with (tmp_path / "view").open("rb", buffering=0) as view:
            while data := view.read(1 << 16):
                received.extend(data)
        seen.set()

    def progress(frames: int, total: int | None) -> None:
        limit = monotonic() + 30
        # called once before the first frame, and with a frame that may still be written
        while frames >= 3 and len(received) <= sizes[-1] and monotonic() < limit:
            sleep(0.01)
        sizes.append(len(received))

    threading.Thread(target=read, daemon=True).start()
    segment_video(
        clip, tmp_path / "first.png", tmp_path / "out", model=model, overlay_stream=tmp_path / "view", progress=progress
    )
    assert seen.wait(10)
    assert all(before < after for before, after in pairwise(sizes[2:]))
    (tmp_path / "view.ts").write_bytes(received)
    assert len(times(tmp_path / "view.ts")) == COUNT


def test_a_reader_that_leaves_ends_the_stream_and_not_the_run(tmp_path, clip, model, caplog):
    os.mkfifo(tmp_path / "view")
    with subprocess.Popen(["head", "-c", "300", str(tmp_path / "view")], stdout=subprocess.DEVNULL):
        found = segment_video(
            clip, tmp_path / "first.png", tmp_path / "out", model=model, overlay_stream=tmp_path / "view"
        )
    assert found.frames == COUNT == len(times(tmp_path / "out/overlay.mp4"))
    assert caplog.text.count("the reader of the overlay stream has closed it; the run continues") == 1


# the command


def words(tmp_path: Path, source: str, *more: str) -> list[str]:
    weights = write_weights(tmp_path / "small.safetensors")
    given = ["--masks", str(tmp_path / "first.png"), "--output", str(tmp_path / "out"), "--weights", str(weights)]
    return [sys.executable, "-m", "stm_fast", "segment", source, *given, *more]


def test_from_standard_input_to_standard_output(tmp_path, clip):
    command = words(tmp_path, "-", "--overlay-stream", "-")
    with clip.open("rb") as data, subprocess.Popen(["cat"], stdin=data, stdout=subprocess.PIPE) as cat:
        ended = subprocess.run(command, stdin=cat.stdout, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    (tmp_path / "streamed.ts").write_bytes(ended.stdout)
    assert times(tmp_path / "streamed.ts") == times(tmp_path / "out/overlay.mp4")
    printed = ended.stderr.decode()
    assert f"standard input: ends after {COUNT} frames: the source has ended" in printed
    assert f"{COUNT} frames, objects 3, " in printed


def test_ctrl_c_ends_a_live_run_whole(tmp_path, clip):
    with feed(tmp_path / "pipe", clip, "sleep 60") as feeding:
        with subprocess.Popen(words(tmp_path, str(tmp_path / "pipe")), stderr=subprocess.PIPE, text=True) as process:
            limit = monotonic() + 120
            while not list(tmp_path.glob("out/masks/*.png")) and monotonic() < limit:
                sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, printed = process.communicate()
        feeding.kill()
    assert process.returncode == 0, printed
    found = len(list(tmp_path.glob("out/masks/*.png")))
    assert 1 <= found <= COUNT
    assert len(times(tmp_path / "out/overlay.mp4")) == found
    assert f"ends after {found} frames: stopped" in printed
    assert not list(tmp_path.glob("out/.*"))
