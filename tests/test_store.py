"""Videos, masks, results and weights in object storage, through an S3 server on this machine and in memory."""

import itertools
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import video_files
from processes import CONTEXT
from s3_server import CUT, DENIED, FULL, KEY, SECRET, SLOW_DOWN, s3_server
from small_inputs import HEIGHT, WIDTH, contents, one_object, small_network, write_video, write_weights
from stm_fast import store
from stm_fast.__main__ import app
from stm_fast.choices import RESULTS
from stm_fast.errors import InputError
from stm_fast.frame_source import frame_source, frame_sources
from stm_fast.runs.lazy import segment
from stm_fast.runs.output_folder import check_output, plan
from stm_fast.runs.video import InterruptedRun, segment_video
from stm_fast.store import StoreUrl, place_of
from stm_fast.video import write_mask
from stm_fast.video.reader import open_frames

av = pytest.importorskip("av")

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/store.md"
# of docs/store.md
COMMANDS = """
stm-fast segment s3://data/clip.mp4 --masks s3://data/first.png --output s3://data/out/clip --min-size 240
stm-fast segment 's3://data/videos/*.mp4' --masks s3://data/masks --output s3://data/out --min-size 240
"""
FRAMES = 10
PLAIN = ("masks", "csv")


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        running.put("data")
        yield running


@pytest.fixture
def s3(server, monkeypatch):
    """The server, with an empty bucket "data" and no faults."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    forget_connections()
    for name in server.names("data"):
        server.delete(f"data/{name}")
    server.fault = lambda method, path: None
    server.requests.clear()
    yield server
    server.fault = lambda method, path: None
    forget_connections()


def forget_connections():
    """The next connection reads the environment again."""
    store._opened.cache_clear()
    store._reach_s3.cache_clear()


@pytest.fixture(scope="module")
def model():
    return small_network()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A clip, a mask for its first frame, the frames as images, and masks as a folder."""
    folder = tmp_path_factory.mktemp("local")
    write_video(folder / "clip.mp4", FRAMES)
    write_mask(folder / "first.png", one_object())
    write_images(folder / "frames")
    (folder / "masks").mkdir()
    write_mask(folder / "masks/00000.png", one_object())
    write_mask(folder / "masks/00004.png", one_object(5))
    return folder


def picture(number, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_images(folder):
    folder.mkdir()
    for number in range(FRAMES):
        Image.fromarray(picture(number)).save(folder / f"{number:05d}.png")


def put(s3, folder, name="data"):
    """Stores the files of a folder below "bucket/name"."""
    for path, data in contents(folder).items():
        s3.put(f"{name}/{path}", data)


def without_input(found):
    """Results without what identifies the input of their run."""
    record = json.loads(found["run.json"])
    del record["sha256"], record["run"]["video"]
    return {**found, "run.json": record}


def same_results(s3, folder, expected):
    found = s3.contents(folder)
    assert found.keys() == expected.keys()
    assert without_input(found) == without_input(expected)


def stop_after(count):
    frames = itertools.count(1)
    return lambda: next(frames) == count


# results


@pytest.mark.parametrize("source", ["clip.mp4", "frames", "frames/*.png"])
@pytest.mark.parametrize("masks", ["first.png", "masks"])
def test_results_in_a_store_equal_local_ones(s3, local, model, tmp_path, source, masks):
    put(s3, local)
    given = {"mask_frame": 0} if masks == "first.png" else {}
    segment_video(str(local / source), local / masks, tmp_path / "out", model=model, **given)
    summary = segment_video(f"s3://data/{source}", f"s3://data/{masks}", "s3://data/out/a", model=model, **given)
    assert str(summary.output) == "s3://data/out/a"
    assert summary.frames == FRAMES
    same_results(s3, "data/out/a", contents(tmp_path / "out"))


def test_the_marker_is_written_last_and_only_then_the_checkpoint_is_removed(s3, local, model):
    put(s3, local)
    s3.requests.clear()
    segment_video("s3://data/clip.mp4", "s3://data/masks", "s3://data/out", model=model, checkpoint_seconds=0)
    written = [(one.method, one.path.removeprefix("/data/out/")) for one in s3.requests if one.method != "GET"]
    written = [one for one in written if one[0] in ("PUT", "DELETE", "POST")]
    assert written[0] == ("PUT", ".resume.json")
    marker = written.index(("PUT", "run.json"))
    assert written[marker + 1] == ("DELETE", ".resume.json"), "until then the run can be resumed"
    assert all(method == "DELETE" and name.startswith(".resume") for method, name in written[marker + 1 :])
    assert [name for method, name in written if name == "run.json"] == ["run.json"]


@pytest.mark.slow
def test_every_kind_of_result_is_mirrored(s3, local, model, tmp_path):
    put(s3, local)
    options = {"model": model, "write": RESULTS, "leave_record": True}
    segment_video(local / "clip.mp4", local / "masks", tmp_path / "out", **options)
    segment_video("s3://data/clip.mp4", "s3://data/masks", "s3://data/out", checkpoint_seconds=0, **options)
    expected, found = contents(tmp_path / "out"), s3.contents("data/out")
    assert json.loads(found.pop(".resume.json"))["finished"]
    del expected[".resume.json"]
    assert found.keys() == expected.keys()
    assert without_input(found) == without_input(expected)


def test_a_run_with_few_results_leaves_no_working_files(s3, local, model):
    put(s3, local)
    options = {"model": model, "checkpoint_seconds": 0, "write": ("matte",)}
    segment_video("s3://data/clip.mp4", "s3://data/masks", "s3://data/out", **options)
    assert sorted(s3.contents("data/out")) == ["matte.mp4", "run.json"]


def test_masks_by_frame(s3, local, model, tmp_path):
    put(s3, local)
    names = {0: "first.png", 4: "masks/00004.png"}
    for place, folder in ((local, tmp_path / "out"), (StoreUrl("s3://data"), "s3://data/out")):
        masks = {frame: place / name for frame, name in names.items()}
        segment_video(local / "clip.mp4", masks, folder, model=model, write=PLAIN)
    same_results(s3, "data/out", contents(tmp_path / "out"))


def test_annotations_in_a_store(s3, local, model, tmp_path):
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    shape = {"label": "a", "points": [[4, 4], [20, 20]], "shape_type": "rectangle"}
    annotations = {**size, "shapes": [shape]}
    (tmp_path / "first.json").write_text(json.dumps(annotations))
    s3.put("data/notes/first.json", (tmp_path / "first.json").read_bytes())
    for masks, folder in ((tmp_path / "first.json", tmp_path / "out"), ("s3://data/notes/first.json", "s3://data/out")):
        segment_video(local / "clip.mp4", masks, folder, model=model, write=PLAIN, mask_frame=0)
    same_results(s3, "data/out", contents(tmp_path / "out"))


def test_masks_among_the_frames_are_not_frames(s3, local, model):
    put(s3, local / "frames", "data/mixed")
    s3.put("data/mixed/mask.png", (local / "first.png").read_bytes())
    options = {"model": model, "mask_frame": 0, "write": PLAIN}
    summary = segment_video("s3://data/mixed", "s3://data/mixed/mask.png", "s3://data/out", **options)
    assert summary.frames == FRAMES


def test_a_tiff_stack_in_a_store(s3, local, model, tmp_path):
    pages = [Image.fromarray(picture(number)) for number in range(4)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    s3.put("data/stack.tif", (tmp_path / "stack.tif").read_bytes())
    for source, folder in ((tmp_path / "stack.tif", tmp_path / "out"), ("s3://data/stack.tif", "s3://data/out")):
        segment_video(source, local / "first.png", folder, model=model, mask_frame=0, write=PLAIN)
    same_results(s3, "data/out", contents(tmp_path / "out"))


def test_frame_by_frame(s3, local, model):
    put(s3, local)
    folders = [*Path(store.tempfile.gettempdir()).glob("stm_fast-*")]
    results = segment("s3://data/frames", "s3://data/first.png", model=model, mask_frame=0)
    assert len([*results]) == FRAMES
    unused = segment("s3://data/frames", "s3://data/first.png", model=model, mask_frame=0)
    del results, unused
    assert [*Path(store.tempfile.gettempdir()).glob("stm_fast-*")] == folders


def test_in_memory(local, model, tmp_path):
    memory = fsspec.filesystem("memory")
    for path, data in contents(local).items():
        memory.pipe_file(f"/in/{path}", data)
    options = {"model": model, "write": PLAIN}
    segment_video(local / "clip.mp4", local / "masks", tmp_path / "out", **options)
    with pytest.raises(InterruptedRun):
        segment_video("memory://in/clip.mp4", "memory://in/masks", "memory://out", should_stop=stop_after(4), **options)
    assert not memory.exists("/out/run.json")
    segment_video("memory://in/clip.mp4", "memory://in/masks", "memory://out", resume=True, **options)
    found = {name.removeprefix("/out/"): memory.cat_file(name) for name in memory.find("/out")}
    assert without_input(found) == without_input(contents(tmp_path / "out"))
    memory.rm("/in", recursive=True)
    memory.rm("/out", recursive=True)


def test_a_file_url_is_a_local_path(local, model, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_opened", lambda *_: pytest.fail("used fsspec"))
    (tmp_path / "a b").mkdir()
    clip = write_video(tmp_path / "a b/clip.mp4", 3)
    options = {"model": model, "write": PLAIN, "mask_frame": 0}
    output = (tmp_path / "a b/out").as_uri()
    segment_video(clip.as_uri(), (local / "first.png").as_uri(), output, **options)
    assert "a%20b" in output
    assert len([*(tmp_path / "a b/out/masks").iterdir()]) == 3


# resuming


def test_an_interrupted_run_is_resumed(s3, local, model):
    put(s3, local)
    options = {"model": model, "write": (*PLAIN, "overlay", "matte"), "checkpoint_seconds": 0}
    places = ("s3://data/clip.mp4", "s3://data/masks")
    segment_video(*places, "s3://data/whole", **options)
    for stop in (4, 6):
        with pytest.raises(InterruptedRun):
            segment_video(*places, "s3://data/out", should_stop=stop_after(stop), resume=True, **options)
        assert "run.json" not in s3.contents("data/out")
        states = [name for name in s3.contents("data/out") if name.endswith(".safetensors")]
        assert len(states) == 1
    summary = segment_video(*places, "s3://data/out", resume=True, **options)
    assert summary.resumed_at == 6
    assert s3.contents("data/out") == s3.contents("data/whole")


def test_a_finished_run_is_not_repeated(s3, local, model):
    put(s3, local)
    places = ("s3://data/clip.mp4", "s3://data/masks", "s3://data/out")
    options = {"model": model, "leave_record": True, "resume": True}
    first = segment_video(*places, **options)
    before = s3.contents("data/out")
    s3.requests.clear()
    again = segment_video(*places, **options)
    assert (again.resumed_at, again.frames) == (FRAMES, FRAMES)
    assert again.sights == first.sights
    assert s3.contents("data/out") == before
    assert {one.method for one in s3.requests} == {"GET", "HEAD"}
    fetched = {one.path for one in s3.requests if one.sent and one.path.startswith("/data/out/")}
    assert fetched == {"/data/out/.resume.json", "/data/out/objects.csv"}


def test_another_video_does_not_continue_the_run(s3, local, model):
    put(s3, local)
    places = ("s3://data/clip.mp4", "s3://data/masks", "s3://data/out")
    with pytest.raises(InterruptedRun):
        segment_video(*places, model=model, should_stop=stop_after(4))
    before = s3.contents("data/out")
    s3.put("data/clip.mp4", s3.get("data/clip.mp4") + b"\0\0\0\x08free")
    with pytest.raises(InputError, match=r"^s3://data/out: holds results of another run; its video: found"):
        segment_video(*places, model=model, resume=True)
    with pytest.raises(InputError, match=r"^s3://data/out: holds a run; resume=True continues it, overwrite=True"):
        segment_video(*places, model=model)
    assert s3.contents("data/out") == before


def test_overwriting_replaces_results_and_nothing_else(s3, local, model):
    put(s3, local)
    s3.put("data/out/mine.txt", b"mine")
    s3.put("data/out/masks/mine.txt", b"mine")
    s3.put("data/out/masks/00099.png", b"of a longer video")
    s3.put("data/out/run.json", b"of an earlier run")
    places = ("s3://data/clip.mp4", "s3://data/masks", "s3://data/out")
    with pytest.raises(InputError, match=r"^s3://data/out: the output folder is not empty; give another one, or"):
        segment_video(*places, model=model)
    s3.requests.clear()
    segment_video(*places, model=model, overwrite=True)
    found = s3.contents("data/out")
    assert found["mine.txt"] == found["masks/mine.txt"] == b"mine"
    assert "masks/00099.png" not in found
    changes = [(one.method, one.path) for one in s3.requests if one.method in ("PUT", "DELETE")]
    # at any time there is a record of an unfinished run, or the marker of what is whole
    assert changes[:2] == [("PUT", "/data/out/.resume.json"), ("DELETE", "/data/out/run.json")]


def die_at(s3, process, name, times):
    """Kills a process when it has asked to write an object for the n-th time; that answer never comes."""
    seen = itertools.count(1)

    def fault(method, path):
        if method == "PUT" and path.endswith(name) and next(seen) == times:
            os.kill(process.pid, signal.SIGKILL)
            return DENIED
        return None

    s3.fault = fault


def segment_in_process(environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    places = ("s3://data/clip.mp4", "s3://data/masks", "s3://data/out")
    segment_video(*places, model=small_network(), write=(*PLAIN, "overlay"), resume=True, checkpoint_seconds=0)


@pytest.mark.slow
def test_kill_9_at_any_request_changes_nothing(s3, local, model):
    put(s3, local)
    whole = ("s3://data/clip.mp4", "s3://data/masks", "s3://data/whole")
    segment_video(*whole, model=model, write=(*PLAIN, "overlay"))
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for name in (".resume.json", "objects.csv", f"masks/0000{rng.randrange(2, 9)}.png", "overlay.mp4", "run.json"):
        process = CONTEXT.Process(target=segment_in_process, args=(s3.environment,))
        process.start()
        die_at(s3, process, name, 2 if name in (".resume.json", "objects.csv") else 1)
        process.join(240)
        assert process.exitcode == -signal.SIGKILL, name
        s3.fault = lambda method, path: None
        found = s3.contents("data/out")
        assert "run.json" not in found
        if ".resume.json" in found:
            record = json.loads(found[".resume.json"])
            assert {f"masks/{number:05d}.png" for number in range(record["frames"])} <= found.keys()
            assert record["frames"] == 0 or f".resume-{record['frames']}-0.safetensors" in found
    segment_in_process({})
    assert s3.contents("data/out") == s3.contents("data/whole")


def test_two_runs_at_the_same_time_end_with_the_same_results(s3, local, model):
    """One is thought lost when another resumes it, and then goes on."""
    put(s3, local)
    places = ("s3://data/clip.mp4", "s3://data/masks", "s3://data/out")
    options = {"model": model, "write": PLAIN, "checkpoint_seconds": 0, "resume": True}
    segment_video("s3://data/clip.mp4", "s3://data/masks", "s3://data/whole", model=model, write=PLAIN)
    expected = s3.contents("data/whole")
    reports = itertools.count(1)

    def meanwhile(done, total):
        if next(reports) == 5:
            segment_video(*places, **options)
            assert s3.contents("data/out") == expected
        if done > 5:
            assert s3.contents("data/out") == expected, "the results that are marked stay whole"

    segment_video(*places, progress=meanwhile, **options)
    assert s3.contents("data/out") == expected


# unfinished runs


@pytest.mark.parametrize("masks", ["s3://data/out/masks", "s3://data/out/masks/00000.png", "s3://data/out"])
def test_results_of_an_unfinished_run_are_refused(s3, local, model, masks):
    put(s3, local)
    with pytest.raises(InterruptedRun):
        segment_video("s3://data/clip.mp4", "s3://data/masks", "s3://data/out", model=model, should_stop=stop_after(4))
    refused = "^s3://data/out: holds an unfinished run"
    with pytest.raises(InputError, match=refused):
        segment_video(local / "clip.mp4", masks, "s3://data/other", model=model)
    with pytest.raises(InputError, match=refused):
        segment_video("s3://data/out/masks", local / "first.png", "s3://data/other", model=model)
    assert s3.contents("data/other") == {}
    segment_video("s3://data/clip.mp4", "s3://data/masks", "s3://data/out", model=model, resume=True, leave_record=True)
    masks = "s3://data/out/masks/00000.png"
    segment_video(local / "clip.mp4", masks, "s3://data/other", model=model, write=PLAIN)


# reading by ranges

MANY = 120
LARGE = (96, 144)
BLOCK = 2**16


@pytest.fixture
def small_blocks(monkeypatch):
    """So that a small video has many."""
    monkeypatch.setattr(store, "_BLOCK_BYTES", BLOCK)


@pytest.fixture(scope="module", params=["first", "last"])
def large(request, tmp_path_factory):
    """A video of many blocks, with its index first or last."""
    path = tmp_path_factory.mktemp("large") / f"index-{request.param}.mp4"
    options = {"container": {"movflags": "faststart"} if request.param == "first" else {}}
    encode(path, **options, encoder={"crf": "12", "bf": "2", "g": "12"})
    assert (b"moov" in path.read_bytes()[:1000]) == (request.param == "first")
    assert path.stat().st_size > 16 * BLOCK
    return path


@pytest.fixture(scope="module")
def large_mask(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "00000.png"
    write_mask(path, np.pad(one_object(), ((0, LARGE[0] - HEIGHT), (0, LARGE[1] - WIDTH))))
    return path


def encode(path, count=MANY, **options):
    video_files.write_video(path, [picture(number, *LARGE) for number in range(count)], **options)


def sent_of(s3, name):
    return [one.sent for one in s3.requests if one.path == f"/data/{name}" and one.method == "GET"]


def same_frames(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.index, one.time, one.name) == (other.index, other.time, other.name)
        assert np.array_equal(one.image, other.image)


@pytest.mark.usefixtures("small_blocks")
def test_a_video_is_read_once_and_by_ranges(s3, large):
    s3.put("data/v.mp4", large.read_bytes())
    reader = open_frames("s3://data/v.mp4")
    assert reader.frame_count == MANY
    assert sum(sent_of(s3, "v.mp4")) <= 6 * BLOCK, "the index and the first frame"
    same_frames(reader, open_frames(large))
    assert max(sent_of(s3, "v.mp4")) <= BLOCK
    assert sum(sent_of(s3, "v.mp4")) <= large.stat().st_size


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("first", [37, MANY - 2])
def test_the_end_of_a_video_is_read_without_the_rest(s3, large, first):
    s3.put("data/v.mp4", large.read_bytes())
    same_frames(open_frames("s3://data/v.mp4").forward(first), open_frames(large).forward(first))
    rest = large.stat().st_size * (MANY - first + 12) // MANY
    assert sum(sent_of(s3, "v.mp4")) <= rest + 6 * BLOCK


@pytest.mark.usefixtures("small_blocks")
def test_a_video_is_read_backward(s3, large):
    s3.put("data/v.mp4", large.read_bytes())
    last = [[*itertools.islice(open_frames(place).backward(), 20)] for place in ("s3://data/v.mp4", large)]
    same_frames(*last)
    assert last[0][-1].index == MANY - 20
    assert sum(sent_of(s3, "v.mp4")) <= large.stat().st_size


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_a_run_resumed_near_the_end_reads_a_part(s3, large, large_mask, model):
    s3.put("data/v.mp4", large.read_bytes())
    places = ("s3://data/v.mp4", large_mask)
    options = {"model": model, "write": PLAIN, "max_size": 32}
    segment_video(*places, "s3://data/whole", **options)
    with pytest.raises(InterruptedRun):
        segment_video(*places, "s3://data/out", should_stop=stop_after(MANY - 10), **options)
    s3.requests.clear()
    assert segment_video(*places, "s3://data/out", resume=True, **options).resumed_at == MANY - 10
    assert sum(sent_of(s3, "v.mp4")) < large.stat().st_size // 2
    assert s3.contents("data/out") == s3.contents("data/whole")


CODECS = {
    "webm": {"codec": "libvpx-vp9", "encoder": {"cpu-used": "8", "deadline": "realtime"}},
    "mkv": {"encoder": {"crf": "12"}},
    "avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "clock": Fraction(1, 25)},
}


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("suffix", CODECS)
def test_other_containers(s3, tmp_path, large_mask, model, suffix):
    name = f"v.{suffix}"
    encode(tmp_path / name, 60, **CODECS[suffix])
    s3.put(f"data/{name}", (tmp_path / name).read_bytes())
    reader = open_frames(f"s3://data/{name}")
    assert reader.frame_count is None
    assert sum(sent_of(s3, name)) <= (tmp_path / name).stat().st_size // 2
    same_frames(reader, open_frames(tmp_path / name))
    options = {"model": model, "write": PLAIN, "max_size": 32}
    for source, folder in ((tmp_path / name, tmp_path / "out"), (f"s3://data/{name}", "s3://data/out")):
        segment_video(source, large_mask, folder, **options)
    found, expected = without_input(s3.contents("data/out")), without_input(contents(tmp_path / "out"))
    # the number of frames is known at the end only
    assert found["run.json"]["run"].pop("memory") != expected["run.json"]["run"].pop("memory")
    assert found == expected


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_the_sound_is_read_next_to_the_frames(s3, tmp_path, large_mask, model):
    path = tmp_path / "v.mp4"
    encode_with_sound(path)
    s3.put("data/v.mp4", path.read_bytes())
    options = {"model": model, "write": ("overlay",), "max_size": 32}
    segment_video(path, large_mask, tmp_path / "out", **options)
    segment_video("s3://data/v.mp4", large_mask, "s3://data/out", **options)
    same_results(s3, "data/out", contents(tmp_path / "out"))
    with av.open(str(tmp_path / "out/overlay.mp4")) as container:
        assert container.streams.audio
    assert sum(sent_of(s3, "v.mp4")) <= path.stat().st_size


def encode_with_sound(path):
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=44100)
        video.height, video.width = LARGE
        video.options = {"crf": "12"}
        for number in range(MANY):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(number, *LARGE), format="rgb24")))
            samples = np.random.default_rng(number).integers(-9999, 9999, (1, 1764 * 2), dtype=np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
            frame.sample_rate = 44100
            container.mux(sound.encode(frame))
        container.mux(video.encode())
        container.mux(sound.encode())


# faults


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("fault", [DENIED, CUT])
def test_a_lost_connection_is_not_the_end_of_the_video(s3, large, fault):
    s3.put("data/v.mp4", large.read_bytes())
    reader = open_frames("s3://data/v.mp4")
    store._opened("s3", os.getpid()).retries = 1
    frames, seen = iter(reader), []
    seen += itertools.islice(frames, 10)
    s3.fault = lambda method, path: fault
    with pytest.raises(InputError, match=r"^s3://data/v\.mp4: ") as raised:
        seen.extend(frames)
    assert 10 <= len(seen) < MANY
    assert "\n" not in str(raised.value)


def test_a_video_that_is_replaced_while_it_is_read_is_refused(s3, large, small_blocks):
    s3.put("data/v.mp4", large.read_bytes())
    frames = iter(open_frames("s3://data/v.mp4"))
    next(frames)
    s3.put("data/v.mp4", bytes(large.stat().st_size))
    with pytest.raises(InputError, match=r"^s3://data/v\.mp4: "):
        list(frames)


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_faults_that_pass_change_nothing(s3, large, large_mask, model):
    s3.put("data/v.mp4", large.read_bytes())
    put(s3, large_mask.parent, "data/masks")
    places, options = ("s3://data/v.mp4", "s3://data/masks"), {"model": model, "write": PLAIN, "max_size": 32}
    segment_video(*places, "s3://data/whole", **options)
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng, counts = random.Random(seed), Counter()

    def fault(method, path):
        # a deletion that was done and whose answer is lost is done again
        kind = rng.choice([SLOW_DOWN, CUT]) if rng.random() < 0.1 else None
        counts[kind, method] += 1
        return kind

    s3.fault = fault
    with pytest.raises(InterruptedRun):
        segment_video(*places, "s3://data/out", should_stop=stop_after(MANY // 2), **options)
    segment_video(*places, "s3://data/out", resume=True, **options)
    s3.fault = lambda method, path: None
    print(counts)
    assert {(CUT, "GET"), (SLOW_DOWN, "GET"), (CUT, "PUT"), (SLOW_DOWN, "PUT")} <= counts.keys()
    assert s3.contents("data/out") == s3.contents("data/whole")


# the command line


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


def command(*arguments, weights, write="masks,csv"):
    return ["segment", *map(str, arguments), "--weights", str(weights), "--write", write]


def refused(*arguments, **options):
    """The one line on stderr of a command that ends with exit code 2."""
    result = CliRunner().invoke(app, command(*arguments, **options))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
    assert SECRET not in result.stderr
    return result.stderr


PLACES = ("s3://data/clip.mp4", "-m", "s3://data/masks", "-o", "s3://data/out")


def test_what_is_not_there(s3, local, weights):
    put(s3, local)
    missing = "not found: The specified bucket does not exist"
    clip, masks, output = ("s3://data/clip.mp4",), ("-m", "s3://data/masks"), ("-o", "s3://data/out")
    assert (
        refused("s3://none/clip.mp4", *masks, *output, weights=weights) == f"stm-fast: s3://none/clip.mp4: {missing}\n"
    )
    assert refused(*clip, "-m", "s3://none/m", *output, weights=weights) == f"stm-fast: s3://none/m: {missing}\n"
    assert refused(*clip, *masks, "-o", "s3://none/out", weights=weights) == f"stm-fast: s3://none/out: {missing}\n"
    assert refused(*PLACES, weights="s3://none/w.pth") == f"stm-fast: s3://none/w.pth: {missing}\n"
    expected = "no such object, and no images below it; expected a video or a folder of images"
    assert refused("s3://data/no.mp4", *masks, *output, weights=weights) == f"stm-fast: s3://data/no.mp4: {expected}\n"
    expected = "no such mask file or folder of masks"
    assert refused(*clip, "-m", "s3://data/no", *output, weights=weights) == f"stm-fast: s3://data/no: {expected}\n"
    assert "s3://data/*.avi: no object matches" in refused("s3://data/*.avi", *masks, *output, weights=weights)
    assert s3.contents("data/out") == {}


def test_what_is_wrong_with_a_video_names_its_url(s3, local, weights):
    put(s3, local)
    s3.put("data/text.mp4", b"no video")
    s3.put("data/cut.mp4", (local / "clip.mp4").read_bytes()[:-2000])
    places = PLACES[1:]
    assert "stm-fast: s3://data/text.mp4: not a video, or cut" in refused(
        "s3://data/text.mp4", *places, weights=weights
    )
    assert "stm-fast: s3://data/cut.mp4: " in refused("s3://data/cut.mp4", *places, weights=weights)
    s3.put("data/masks/00000.png", b"no image")
    message = refused(*PLACES, weights=weights)
    assert message.startswith("stm-fast: s3://data/masks/00000.png: ")
    assert "/tmp" not in message
    assert s3.contents("data/out") == {}


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_no_permission(s3, local, weights, method):
    put(s3, local)
    s3.fault = lambda asked, path: DENIED if asked == method else None
    message = refused(*PLACES, weights=weights)
    assert ": no permission: " in message
    assert message.startswith("stm-fast: s3://data/")
    s3.fault = lambda asked, path: None
    assert s3.contents("data/out") == {}


@pytest.mark.parametrize("full_at", [1, 5])
def test_a_store_that_is_full(s3, local, weights, full_at):
    put(s3, local)
    puts = itertools.count(1)
    s3.fault = lambda method, path: FULL if method == "PUT" and next(puts) >= full_at else None
    message = refused(*PLACES, weights=weights)
    assert "cannot be written: " in message
    assert "minimum free space" in message
    s3.fault = lambda method, path: None
    assert "run.json" not in s3.contents("data/out")
    assert (s3.contents("data/out") == {}) == (full_at == 1)
    assert CliRunner().invoke(app, command(*PLACES, "--resume", weights=weights)).exit_code == 0
    assert "run.json" in s3.contents("data/out")


def test_an_endpoint_that_refuses_connections(s3, weights, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget_connections()
    before = time.monotonic()
    message = refused(*PLACES, weights=weights)
    assert time.monotonic() - before < 60, "within half a minute, if the machine is not busy"
    assert message.startswith('stm-fast: s3://data/out: Could not connect to the endpoint URL: "http://127.0.0.1:9/')


@pytest.mark.slow
def test_an_endpoint_that_does_not_answer(s3, weights, monkeypatch):
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        forget_connections()
        before = time.monotonic()
        message = refused(*PLACES, weights=weights)
        assert time.monotonic() - before < 60, "within half a minute, if the machine is not busy"
    assert message.startswith("stm-fast: s3://data/out: Read timeout on endpoint URL")


def test_messages_have_no_secrets():
    text = "Cannot reach 'https://me:hidden@host/a?sig=hidden&b=1' or https://host/b?X-Signature=hidden, sorry"
    assert store._without_secrets(text) == "Cannot reach 'https://host/a' or https://host/b sorry"


def test_no_credentials(s3, weights, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    forget_connections()
    assert refused(*PLACES, weights=weights) == "stm-fast: s3://data/out: Unable to locate credentials\n"


def test_urls_that_are_refused(s3, local, weights, monkeypatch):
    def message(*places):
        return refused(*places, weights=weights)

    masks, output = ("-m", local / "masks"), ("-o", "s3://data/out")
    assert message("s3://me:hidden@data/clip.mp4", *masks, *output) == (
        "stm-fast: s3://...: found a user name in a URL, expected credentials in the environment\n"
    )
    assert "found no object, expected s3://bucket/name" in message("s3://data", *masks, *output)
    assert "expected file:///path" in message("file://host/clip.mp4", *masks, *output)
    assert "found a URL of kind ftp://, expected one of" in message("ftp://host/clip.mp4", *masks, *output)
    monkeypatch.setattr(store, "find_spec", lambda name: None)
    assert message("s3://data/clip.mp4", *masks, "-o", "out").startswith(
        "stm-fast: s3://data/clip.mp4: s3:// needs s3fs: pip install s3fs"
    )
    assert message("gs://data/clip.mp4", *masks, "-o", "out").endswith("needs gcsfs: pip install gcsfs\n")
    assert message("az://data/clip.mp4", *masks, "-o", "out").endswith("needs adlfs: pip install adlfs\n")


def test_inputs_in_the_output_are_refused(s3, local, weights):
    put(s3, local)
    message = refused("s3://data/clip.mp4", "-m", "s3://data/out/m", "-o", "s3://data/out", weights=weights)
    assert "s3://data/out: the output folder holds the input s3://data/out/m; give another one" in message
    message = refused("s3://data/clip.mp4", "-m", "s3://data/masks", "-o", "s3://data/first.png", weights=weights)
    assert "s3://data/first.png: found an object, expected an output folder" in message
    jobs = [frame_source(f"s3://data/{name}.mp4") for name in "ab"]
    with pytest.raises(InputError, match="s3://data/out/a: the output folder holds the input s3://data/out/a"):
        plan(jobs, StoreUrl("s3://data/out"), StoreUrl("s3://data/out"))
    check_output(StoreUrl("s3://data/outer"), False, [StoreUrl("s3://data/outer.mp4")])


def test_a_memory_that_is_shared_needs_a_local_output(s3, weights):
    message = refused(*PLACES, "--shard-memory", weights=weights)
    assert message == "stm-fast: --shard-memory: found with s3://data/out, expected a local output folder\n"


@pytest.mark.slow
def test_all_videos_that_match_a_pattern(s3, local, tmp_path, weights):
    for name in "abc":
        s3.put(f"data/videos/{name}.mp4", (local / "clip.mp4").read_bytes())
    s3.put("data/masks/a.png", (local / "first.png").read_bytes())
    put(s3, local / "masks", "data/masks/b")
    places = ("s3://data/videos/*.mp4", "-m", "s3://data/masks", "-o", "s3://data/out")
    result = CliRunner().invoke(app, command(*places, weights=weights))
    assert result.exit_code == 2
    assert "s3://data/masks: no masks for s3://data/videos/c.mp4, expected c.png or a folder c" in result.stderr
    assert result.stdout.count("results in s3://data/out/a\n") == 1
    s3.put("data/masks/c.png", (local / "first.png").read_bytes())
    result = CliRunner().invoke(app, command(*places, weights=weights))
    assert result.exit_code == 0, result.output
    assert result.stdout.count("finished earlier") == 2
    for name in "abc":
        found = s3.contents(f"data/out/{name}")
        assert len(found) == FRAMES + 3
    stops = command(*places, "--overwrite", weights=weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stm_fast.tasks.interruption.Stop.__call__", lambda stop: True)
        assert CliRunner().invoke(app, stops).exit_code == 130
    assert s3.contents("data/out/b") == {}
    assert CliRunner().invoke(app, command(*places, "--resume", weights=weights)).exit_code == 0
    assert len(s3.contents("data/out/b")) == FRAMES + 3


def test_patterns(s3, local):
    put(s3, local)
    for name in ("v/a.mp4", "v/b.mkv", "v/a[1].mp4", "v/a1.mp4"):
        s3.put(f"data/{name}", b"")
    found = frame_sources("s3://data/v/*.mp4")
    assert [source.text for source in found] == [f"s3://data/v/{name}.mp4" for name in ("a", "a1", "a[1]")]
    exact = frame_sources("s3://data/v/a[1].mp4")
    assert [source.text for source in exact] == ["s3://data/v/a[1].mp4"], "an object of exactly this name"
    assert [source.text for source in frame_sources("s3://data/frames/*.png")] == ["s3://data/frames/*.png"]
    assert frame_source("s3://data/frames/*.png").name == "frames"
    with pytest.raises(InputError, match="expected only videos or only images"):
        frame_sources("s3://data/**")


def test_credentials_are_nowhere(s3, local, weights, tmp_path):
    put(s3, local)
    s3.put("data/w.safetensors", weights.read_bytes())
    arguments = command(*PLACES, "-vv", "--resume", weights="s3://data/w.safetensors", write="masks,overlay")
    program = [sys.executable, "-W", "error", "-m", "stm_fast", *arguments]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(program, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "results in s3://data/out" in ended.stdout
    assert "warning" not in ended.stderr.lower()
    found = s3.contents("data/out")
    for text in (ended.stdout, ended.stderr, *(data.decode(errors="replace") for data in found.values())):
        assert SECRET not in text
        assert KEY not in text
        assert str(temporary) not in text
    assert not [path for path in temporary.rglob("*") if path.name.startswith("stm_fast-")]


def test_weights_that_are_none(s3, local):
    put(s3, local)
    message = refused(*PLACES, weights="s3://data/first.png")
    assert message.startswith("stm-fast: s3://data/first.png: ")
    assert "/tmp" not in message


def test_urls_and_paths():
    url = place_of("S3://bucket/a/b.MP4/")
    assert url == StoreUrl("s3://bucket/a/b.MP4")
    assert (url.scheme, url.name, url.suffix, url.parent) == ("s3", "b.MP4", ".mp4", StoreUrl("s3://bucket/a"))
    assert url.is_in(StoreUrl("s3://bucket/a"))
    assert not url.is_in(StoreUrl("s3://bucket/a/b"))
    assert place_of("file:///a%20b/c") == Path("/a b/c")
    assert place_of("a/s3:/b") == Path("a/s3:/b")
    assert frame_source(url.text).name == "b"


@pytest.mark.slow
def test_the_commands_of_the_document(s3, local):
    for name in ("clip.mp4", "videos/a.mp4", "videos/b.mp4"):
        s3.put(f"data/{name}", (local / "clip.mp4").read_bytes())
    for name in ("first.png", "masks/a.png", "masks/b.png"):
        s3.put(f"data/{name}", (local / "first.png").read_bytes())
    commands = COMMANDS.strip().split("\n")
    assert len(commands) == DOCUMENT.read_text().count("```sh")
    for line in commands:
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
    for name in ("clip", "a", "b"):
        assert {"run.json", "overlay.mp4", "objects.csv"} <= s3.contents(f"data/out/{name}").keys()


# hostile stores


def test_names_that_lead_elsewhere(local, model, tmp_path, monkeypatch):
    """A key of S3 may have any characters; this server gives "..", which others normalize."""
    monkeypatch.setattr(store.tempfile, "tempdir", str(tmp_path))
    memory = fsspec.filesystem("memory")
    data = (local / "first.png").read_bytes()
    for name in (
        "/m/.hidden.png",
        "/m/0.png",
        "/o/../../x.png",
        "/o/masks/../../x.png",
        "/o/a/masks/0.png",
        "/m/../0.png",
    ):
        memory.store[name] = fsspec.implementations.memory.MemoryFile(memory, name, data)
    try:
        segment_video(local / "clip.mp4", "memory://m", "memory://o", model=model, overwrite=True, write=PLAIN)
        assert {"/o/../../x.png", "/o/masks/../../x.png", "/o/a/masks/0.png"} <= memory.store.keys()
        assert [*tmp_path.iterdir()] == []
        with pytest.raises(InputError, match=r"found '\.\.', expected the name of a folder"):
            segment_video("memory://m/..", local / "first.png", tmp_path / "out", model=model)
    finally:
        for name in [name for name in memory.store if name[:2] in ("/m", "/o")]:
            del memory.store[name]
