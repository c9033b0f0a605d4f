"""An interrupted run resumes where it stopped: the same masks, however it ended, and no partial files."""

import gc
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import time
from contextlib import suppress
from fractions import Fraction
from threading import Timer

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from processes import CONTEXT
from small_inputs import contents
from stm_fast.choices import DEFAULT_RESULTS, RESULTS
from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.network import STM, stm_resnet18
from stm_fast.network.deploy import for_inference
from stm_fast.record_file import write_record_file
from stm_fast.runs.checkpoint import RECORD, Checkpoint, CheckpointTimer
from stm_fast.runs.output_folder import VIDEOS
from stm_fast.runs.ranks import Ranks
from stm_fast.runs.video import InterruptedRun, segment_video
from stm_fast.system import lock
from stm_fast.tensor_file import read_tensors, write_tensors
from stm_fast.video import OverlayVideoWriter, write_mask
from stm_fast.whole_file import partial_path

pytest.importorskip("av")

WIDTH, HEIGHT = 48, 32
# how often a run is killed: STM_FAST_KILLS=20 python -m pytest tests/test_resume.py -k kill
KILLS = int(os.environ.get("STM_FAST_KILLS", 3))
MEMORIES = {
    "published": {},
    "capped": {"every": 2, "max_frames": 3, "evict": "least_used"},
    "even": {"every": 1, "max_frames": 3, "evict": "even", "previous": False},
    "int8": {"every": 2, "storage": "int8"},
    "host": {"every": 2, "place": "host", "page_bytes": 2000},
    "disk": {"every": 2, "place": "disk", "page_bytes": 2000},
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> STM:
    torch.manual_seed(0)
    return stm_resnet18(key_dim=16, value_dim=32, decoder_dim=16).eval()


def memory(name, folder):
    options = MEMORIES[name]
    return MemoryConfig(**options, folder=folder if options.get("place") == "disk" else None)


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def video(path, count):
    with OverlayVideoWriter(path, WIDTH, HEIGHT, Fraction(25)) as writer:
        for number in range(count):
            writer.write(picture(number), number / 25)
    return path


def square(object_id, left):
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[4:20, left : left + 12] = object_id
    return ids


class Place:
    """A clip with masks for two of its frames, and a folder for the results."""

    def __init__(self, folder, model, count=14):
        self.folder, self.model, self.count = folder, model, count
        self.video, self.masks, self.out = video(folder / "in.mp4", count), folder / "given", folder / "out"
        self.masks.mkdir()
        write_mask(self.masks / "00000.png", square(3, 4) + square(7, 24))
        write_mask(self.masks / "00005.png", square(200, 30))

    def segment(self, out=None, stop_at=None, **options):
        frames = itertools.count(1)
        return segment_video(
            self.video,
            self.masks,
            out or self.out,
            model=self.model,
            should_stop=lambda: next(frames) == stop_at,
            **options,
        )


def masks_of(folder):
    return {name: data for name, data in contents(folder).items() if name.startswith("masks/")}


@pytest.fixture
def place(tmp_path, model):
    return Place(tmp_path, model)


# the engine


@pytest.mark.slow
@pytest.mark.parametrize(("name", "deployed"), [*((name, False) for name in MEMORIES), ("published", True)])
def test_a_restored_segmenter_continues_bit_for_bit(name, deployed, model, tmp_path):
    model = for_inference(model) if deployed else model
    frames = [torch.from_numpy(picture(number)).permute(2, 0, 1) for number in range(14)]
    masks = {0: torch.from_numpy(square(3, 4) + square(7, 24)), 5: torch.from_numpy(square(200, 30))}
    config = memory(name, tmp_path)
    whole = VideoSegmenter(model, memory=config, max_size=24)
    expected = [whole.step(frame, masks.get(number)) for number, frame in enumerate(frames)]
    for stop in (1, 6):
        one, other = (VideoSegmenter(model, memory=config, max_size=24) for _ in range(2))
        for number, frame in enumerate(frames[:stop]):
            one.step(frame, masks.get(number))
        safetensors.torch.save_file(one.state_dict(), tmp_path / "state.safetensors")
        other.load_state_dict(safetensors.torch.load_file(tmp_path / "state.safetensors"))
        for number in range(stop, len(frames)):
            found = other.step(frames[number], masks.get(number))
            assert torch.equal(found, expected[number]), f"frame {number} after {stop}"
        assert (other.object_ids, other.bank.frames) == (whole.object_ids, whole.bank.frames)


def test_a_segmenter_accepts_only_a_state_of_its_own_kind(model):
    one, other = VideoSegmenter(model), VideoSegmenter(model, memory=MemoryConfig(storage="int8"))
    with pytest.raises(ValueError, match="found a bank of model rows on the device"):
        other.load_state_dict(one.state_dict())


# a run


@pytest.mark.slow
@pytest.mark.parametrize("write", [RESULTS, ("pictures",), ("overlay",)])
def test_an_interrupted_run_resumes_to_the_same_results(place, write):
    options = {"write": write, "max_size": 24}
    place.segment(place.folder / "whole", **options)
    with pytest.raises(InterruptedRun, match="interrupted after 4 frames; all files") as caught:
        place.segment(stop_at=4, **options)
    assert caught.value.frames == 4
    found = contents(place.out)
    assert sorted(place.out.glob(".resume*")) == [place.out / ".resume-4-0.safetensors", place.out / RECORD]
    assert len(masks_of(place.out)) == 4
    assert "overlay.mp4" not in found
    with pytest.raises(InterruptedRun):
        place.segment(stop_at=9, resume=True, **options)
    summary = place.segment(resume=True, **options)
    assert (summary.frames, summary.resumed_at, summary.object_ids) == (14, 9, [3, 7, 200])
    assert contents(place.out) == contents(place.folder / "whole")


@pytest.mark.slow
def test_a_stop_while_a_run_is_being_restored_loses_nothing(place):
    with pytest.raises(InterruptedRun):
        place.segment(stop_at=6)
    before = contents(place.out)
    with pytest.raises(InterruptedRun, match="after 6 frames"):
        place.segment(stop_at=2, resume=True)
    assert contents(place.out) == before


def test_checkpoints_are_written_during_the_run(place, monkeypatch):
    monkeypatch.setattr(CheckpointTimer, "due", True)  # however long a busy machine takes to save one
    positions = []

    def look(done, _):
        record = json.loads((place.out / RECORD).read_text())
        positions.append(record["frames"])
        states = [path.name for path in place.out.glob(".resume-*")]
        assert states == ([f".resume-{record['frames']}-0.safetensors"] if record["frames"] else [])

    segment_video(
        place.video,
        place.masks,
        place.out,
        model=place.model,
        checkpoint_seconds=0,
        write=("masks", "csv"),
        progress=look,
    )
    assert positions == sorted(positions)
    assert len(set(positions)) > 2
    assert all(position <= index for index, position in enumerate(positions))
    assert sorted(os.listdir(place.out)) == ["masks", "objects.csv", "run.json"]


@pytest.mark.slow
def test_a_folder_without_an_interrupted_run_is_filled_or_refused(place):
    place.segment(resume=True, write=("masks", "csv"))
    with pytest.raises(InputError, match="not empty, and holds no interrupted run"):
        place.segment(resume=True, write=("masks", "csv"))
    with pytest.raises(InterruptedRun):
        place.segment(overwrite=True, stop_at=3, write=("masks", "csv"))
    with pytest.raises(InputError, match="holds a run; resume=True continues it"):
        place.segment(write=("masks", "csv"))
    (place.folder / "killed").mkdir()
    (place.folder / "killed/.resume.json.123.partial").write_text("{")
    place.segment(place.folder / "killed", resume=True, write=("masks", "csv"))
    assert sorted(os.listdir(place.folder / "killed")) == ["masks", "objects.csv", "run.json"]


@pytest.mark.slow
def test_one_process_at_a_time_writes_into_a_folder(place, monkeypatch):
    with pytest.raises(InterruptedRun):
        place.segment(stop_at=5)
    before = contents(place.out)
    other = os.open(place.out, os.O_RDONLY)
    lock(other)
    monkeypatch.setattr("stm_fast.runs.sole_writer._PATIENCE", 0.2)
    with pytest.raises(InputError, match=r"out: another process writes into this folder$"):
        place.segment(resume=True)
    assert contents(place.out) == before
    monkeypatch.undo()
    Timer(0.5, os.close, [other]).start()  # the other process ends
    place.segment(resume=True)
    place.segment(out=place.folder / "at once")
    assert contents(place.out) == contents(place.folder / "at once")


def test_a_run_claims_the_folder_that_it_makes(place):
    refused = []

    def is_claimed(done, total):
        if done == 3:
            file = os.open(place.out, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                lock(file)
            refused.append(os.close(file))

    place.segment(progress=is_claimed)
    assert len(refused) == 1


def test_a_record_says_that_a_run_is_done(place):
    place.segment(write=("masks", "csv"), leave_record=True)
    before = {path: path.stat().st_mtime_ns for path in place.out.rglob("*")}
    summary = place.segment(write=("masks", "csv"), leave_record=True, resume=True)
    assert (summary.frames, summary.resumed_at, summary.seconds) == (14, 14, 0.0)
    assert summary.object_ids == [3, 7, 200]
    assert {path: path.stat().st_mtime_ns for path in place.out.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_size": 16}, "its max_size: found None, expected 16"),
        ({"min_size": 96}, "its min_size: found 1, expected 96"),
        ({"memory": MemoryConfig(every=3)}, r"its memory: found every 5, .*expected every 3"),
        (
            {"write": ("masks", "pictures", "csv")},
            r"its write: found \['csv', 'masks'\], expected \['csv', 'masks', 'pictures'\]",
        ),
        ("video", "its video: found in.mp4"),
        ("mask", "its masks: found"),
        ("weights", "its weights_sha256: found"),
    ],
)
def test_another_run_is_not_resumed(place, change, words):
    with pytest.raises(InterruptedRun):
        place.segment(stop_at=3, write=("masks", "csv"))
    before = contents(place.out)
    options = {"write": ("masks", "csv")}
    if change == "video":
        video(place.video, 15)
    elif change == "mask":
        write_mask(place.masks / "00005.png", square(200, 29))
    elif change == "weights":
        torch.manual_seed(1)
        place.model = stm_resnet18(key_dim=16, value_dim=32, decoder_dim=16).eval()
    else:
        options |= change
    with pytest.raises(InputError, match=words) as caught:
        place.segment(resume=True, **options)
    assert "\n" not in str(caught.value)
    assert contents(place.out) == before


def test_the_record_names_a_folder_of_frames(place):
    frames = place.folder / "frames"
    frames.mkdir()
    for number in range(2):
        Image.fromarray(picture(number)).save(frames / f"{number}.png")
    place.video, mask = frames, place.masks / "00000.png"
    for name, source in (("folder", frames), ("glob", f"{frames}/*.png")):
        segment_video(source, mask, place.folder / name, model=place.model, mask_frame=0, write=("masks",))
        found = json.loads((place.folder / name / "run.json").read_text())["run"]["video"]
        assert re.fullmatch("frames, 2 files [0-9a-f]{64}", found)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, model):
    """A run that was interrupted after 3 frames, and the contents of its folder."""
    place = Place(tmp_path_factory.mktemp("interrupted"), model, count=5)
    (place.masks / "00005.png").unlink()
    with pytest.raises(InterruptedRun):
        place.segment(stop_at=3, write=("masks", "csv"))
    return place, contents(place.out)


@pytest.fixture
def folder_of(interrupted):
    """Restores the folder of the interrupted run, with the given files replaced."""
    place, files = interrupted

    def put(**changes):
        shutil.rmtree(place.out)
        for name, data in {**files, **changes}.items():
            (place.out / name).parent.mkdir(parents=True, exist_ok=True)
            (place.out / name).write_bytes(data)

    put()
    return put


STATE = ".resume-3-0.safetensors"


def assert_refused(place, words):
    before = contents(place.out)
    with pytest.raises(InputError, match=words) as caught:
        place.segment(resume=True, write=("masks", "csv"))
    assert "\n" not in str(caught.value)
    assert "overwrite=True" in str(caught.value)
    assert contents(place.out) == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 99}',
        '{"format": 1, "frames": 3, "finished": false, "object_ids": [], "run": {}}',
        "\0",
    ],
)
def test_a_damaged_record_is_refused(interrupted, folder_of, text):
    folder_of(**{RECORD: text.encode()})
    assert_refused(interrupted[0], r"\.resume\.json: not a checkpoint of this version")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"frames": -1},
        {"frames": 3.0},
        {"frames": True},
        {"finished": 0},
        {"finished": None},
        {"object_ids": [3, 3]},
        {"object_ids": [0]},
        {"object_ids": [256]},
        {"object_ids": [True]},
        {"object_ids": "3"},
        {"table": "0"},
        {"run": []},
        {"run": None},
        {"more": 1},
    ],
)
def test_a_record_with_impossible_values_is_refused(interrupted, folder_of, change):
    """Even with a correct checksum."""
    place, files = interrupted
    record = json.loads(files[RECORD]) | change
    del record["sha256"]
    write_record_file(place.out / RECORD, record)
    assert_refused(place, r"\.resume\.json: not a checkpoint of this version; start again")


def test_a_flipped_bit_of_a_record_is_refused_or_changes_nothing(interrupted, folder_of):
    place, files = interrupted
    run, whole = json.loads(files[RECORD])["run"], files[RECORD]
    checkpoint = Checkpoint(place.out, run, Ranks())
    expected = checkpoint.find()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        (place.out / RECORD).write_bytes(damaged)
        with suppress(InputError):
            assert checkpoint.find() == expected


def test_a_flipped_bit_of_a_state_is_refused(interrupted, folder_of):
    place, files = interrupted
    whole, rng = files[STATE], random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in [*range(8), 9, header - 1, header, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(15))]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        folder_of(**{STATE: bytes(damaged)})
        assert_refused(place, r"\.resume-3-0\.safetensors: the checkpoint is damaged")
    for length in (0, 7, 8, 100, header, len(whole) - 1):
        folder_of(**{STATE: whole[:length]})
        assert_refused(place, r"\.resume-3-0\.safetensors: the checkpoint is damaged")
    (place.out / STATE).unlink()
    assert_refused(place, r"\.resume-3-0\.safetensors: the checkpoint is damaged \(No such file")
    folder_of()
    place.segment(place.folder / "whole", write=("masks", "csv"), overwrite=True)
    place.segment(resume=True, write=("masks", "csv"))
    assert contents(place.out) == contents(place.folder / "whole")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": "1"}, "its rank: found 1, expected 0"),
        ({"frames": "4"}, "its frames: found 4, expected 3"),
        ({"run": "another"}, "its run: found another"),
        ({"format": "1"}, "its format: found 1, expected 4"),
        ({}, "its format: found None"),
    ],
)
def test_another_state_is_refused(interrupted, folder_of, change, words):
    place, _ = interrupted
    state, facts = read_tensors(place.out / STATE)
    state = {name: tensor.clone() for name, tensor in state.items()}
    write_tensors(place.out / STATE, state, facts | change if change else {}, checksum=True)
    assert_refused(place, rf"the checkpoint is damaged \(it is another state, {words}")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("object_ids", None),
        ("object_ids", lambda ids: ids[:1]),
        ("seen.objects", lambda planes: planes[:1]),
        ("bank.kind", lambda kind: kind + 200),
        ("bank.counts", lambda counts: counts + 1),
        ("bank.frame", lambda frames: frames[:0]),
        ("bank.storage.held", lambda held: held * 2**40),
        ("bank.storage.key.0", lambda rows: rows[:, :1]),
        ("bank.storage.value.1", lambda rows: rows.double()),
        ("seen.frame.strides", lambda strides: strides[:1]),
    ],
)
def test_a_state_that_does_not_fit_is_refused(interrupted, folder_of, name, change):
    """Even with a correct checksum."""
    place, _ = interrupted
    state, facts = read_tensors(place.out / STATE)
    state = {name: tensor.clone() for name, tensor in state.items()}
    assert name in state
    changed = state.pop(name)
    if change is not None:
        state[name] = change(changed).contiguous()
    write_tensors(place.out / STATE, state, facts, checksum=True)
    assert_refused(place, r"the checkpoint is damaged \(VideoSegmenter.load_state_dict: the state does not fit")


def test_a_damaged_table_of_finished_frames_are_refused(interrupted, folder_of):
    place, files = interrupted
    for damaged in (files["objects.csv"].replace(b"0", b"1", 1), files["objects.csv"][:60], b"", b"\xff\n"):
        folder_of(**{"objects.csv": damaged})
        assert_refused(place, r"objects\.csv: the lines of the first 3 frames")


def test_a_missing_mask_of_a_finished_frame_is_named(interrupted, folder_of):
    place, _ = interrupted
    (place.out / "masks/00001.png").unlink()
    with pytest.raises(InputError, match=r"masks/00001\.png: no such file, .* start again with overwrite=True"):
        place.segment(resume=True, write=("masks", "csv"))


def test_checkpoints_take_at_most_a_tenth_of_the_time(monkeypatch):
    timer, clock = CheckpointTimer(0), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with timer.saving():
        clock[0] += 100
    assert not timer.due
    clock[0] += 999
    assert not timer.due
    clock[0] += 1
    assert timer.due
    assert not CheckpointTimer(60).due


# killed runs


def resume_in_process(folder, write=DEFAULT_RESULTS):
    """Runs in a process that will be killed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = stm_resnet18(key_dim=16, value_dim=32, decoder_dim=16).eval()
    source, masks = folder / "in.mp4", folder / "given"
    segment_video(source, masks, folder / "out", model=model, write=write, resume=True, checkpoint_seconds=0)


def wait_for_masks(process, out, count, delay):
    deadline = time.monotonic() + 240
    while process.is_alive() and len(list(out.glob("masks/*.png"))) < count and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)


@pytest.mark.slow
def test_kill_9_at_any_frame_changes_nothing(tmp_path, model):
    """STM_FAST_KILLS says how often."""
    place = Place(tmp_path, model, count=30 + 10 * KILLS)
    place.segment(place.folder / "whole", write=RESULTS)
    expected = contents(place.folder / "whole")
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(KILLS):
        before = len(list(place.out.glob("masks/*.png")))
        process = CONTEXT.Process(target=resume_in_process, args=(place.folder, RESULTS))
        process.start()
        wait_for_masks(process, place.out, before + rng.randrange(1, 7), rng.random() * 0.02)
        process.kill()
        process.join()
        assert process.exitcode == -9, "the process was killed before it ended or failed"
        found = contents(place.out)
        assert not set(VIDEOS.values()) & found.keys()
        for path in place.out.glob("[a-z]*/*"):
            if not path.name.startswith("."):
                assert path.read_bytes() == expected[f"{path.parent.name}/{path.name}"]
        if RECORD in found:
            record = json.loads(found[RECORD])
            assert {f"masks/{number:05d}.png" for number in range(record["frames"])} <= found.keys()
    place.segment(resume=True, write=RESULTS)
    assert contents(place.out) == expected


def die_inside_a_write(folder, name):
    """Kills itself after the first mask, when the named file is written but not yet renamed."""
    replace = os.replace

    def replace_or_die(partial, path):
        if path.name == name and (folder / "out/masks/00000.png").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        replace(partial, path)

    os.replace = replace_or_die
    resume_in_process(folder)


def die_inside_safetensors(folder, _):
    """Is killed when safetensors writes the first byte of a state."""
    save = safetensors.torch.save_file

    def save_and_die(*arguments):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        save(*arguments)

    safetensors.torch.save_file = save_and_die
    resume_in_process(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("die", "name", "end"),
    [
        (die_inside_a_write, "00003.png", signal.SIGKILL),
        (die_inside_a_write, RECORD, signal.SIGKILL),
        (die_inside_safetensors, ".resume-*.safetensors", signal.SIGXFSZ),
    ],
)
def test_partial_files_of_a_killed_write_are_removed_later(tmp_path, model, die, name, end):
    place = Place(tmp_path, model)
    place.segment(place.folder / "whole")
    expected = contents(place.folder / "whole")
    process = CONTEXT.Process(target=die, args=(place.folder, name))
    process.start()
    process.join(240)
    assert process.exitcode == -end
    assert list(place.out.rglob(f".{name}.{process.pid}.partial")), "the process was killed in the middle of that write"
    masks = list(place.out.glob("masks/*.png"))
    assert masks
    for path in masks:
        assert path.read_bytes() == expected[f"masks/{path.name}"]
    place.segment(resume=True)
    assert contents(place.out) == expected
    assert sorted(os.listdir(place.out)) == ["masks", "objects.csv", "overlay.mp4", "run.json"]


# nothing piles up


@pytest.mark.slow
def test_a_long_video_takes_no_more_memory_than_a_short_one(tmp_path, model):
    place = Place(tmp_path, model, count=160)
    alive = {}

    def look(done, _):
        if done in (60, 150):
            gc.collect()
            alive[done] = (
                sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()),
                len(gc.get_objects()),
            )

    config = MemoryConfig(max_frames=4, evict="even")
    segment_video(place.video, place.masks, place.out, model=model, memory=config, checkpoint_seconds=0, progress=look)
    tensors, things = (after - before for before, after in zip(alive[60], alive[150], strict=True))
    # what earlier tests left behind may go in between
    assert tensors <= 4
    assert things < 75, "less than one for each frame in between"


@pytest.mark.slow
def test_an_object_is_recognized_after_hundreds_of_frames(model):
    """It is shown once, other objects are added and deleted, and its first frame still identifies it."""
    segmenter = VideoSegmenter(model, memory=MemoryConfig(every=5, max_frames=3))
    still = torch.rand(3, 16, 32)
    first, other = (torch.zeros(16, 32, dtype=torch.uint8) for _ in range(2))
    first[4:12, 2:12], other[2:10, 20:30] = 7, 200
    segmenter.step(still, first)
    sizes = set()
    for number in range(1, 501):
        frame = torch.rand(3, 16, 32)
        if number % 100 == 30:
            segmenter.step(frame, other)
        else:
            segmenter.step(frame)
        if number % 100 == 60:
            segmenter.delete_objects([200])
            assert segmenter.object_ids == [7]
        if number > 200 and number % 100 == 25:
            sizes.add((segmenter.bank.nbytes, *segmenter.bank.rows))
    assert len(sizes) == 1
    assert 0 in segmenter.bank.frames[0]
    prob = segmenter.step(still)
    assert prob.shape == (2, 16, 32)
    # the remembered frame that looks the same dominates the read
    fresh = VideoSegmenter(model, memory=MemoryConfig(every=None, previous=False))
    fresh.step(still, first)
    expected = fresh.step(still)
    assert (prob - expected).abs().mean() < 0.25
    again = segmenter.step(still, first)
    assert torch.equal(again[1] > 0.5, first == 7)


def test_a_checkpoint_is_on_the_disk_before_anything_names_it(tmp_path, monkeypatch):
    calls = []
    rename = os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append(os.readlink(f"/proc/self/fd/{file}")))
    monkeypatch.setattr(os, "replace", lambda old, new: calls.append(new.name) or rename(old, new))
    Checkpoint(tmp_path, {}, Ranks()).save(3, [1], {"rows": torch.zeros(2)})
    state, record = (tmp_path / name for name in (".resume-3-0.safetensors", ".resume.json"))
    written = str(partial_path(state) / state.name), str(partial_path(record))
    assert calls == [written[0], state.name, str(tmp_path), written[1], record.name, str(tmp_path)]
