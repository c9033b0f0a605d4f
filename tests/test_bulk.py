"""Many videos and many processes: videos divided among processes, or one memory sharded over them."""

import os
import re
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from processes import CONTEXT, run_ranks, torchrun
from small_inputs import one_object, small_network, write_video, write_weights
from stm_fast.__main__ import app
from stm_fast.errors import InputError
from stm_fast.memory import RankLostError
from stm_fast.runs.output_folder import plan
from stm_fast.runs.video import InterruptedRun, segment_job, segment_video
from stm_fast.tasks.interruption import how_to_resume
from stm_fast.video import read_mask, write_mask

pytest.importorskip("av")

WORLD = 2


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


def mask(path, object_id):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(path, one_object(object_id))


@pytest.fixture
def many(tmp_path):
    """Three videos: a with one mask, b with a folder of masks, c without."""
    sources = [write_video(tmp_path / f"many/{name}.mp4", 4) for name in "abc"]
    mask(tmp_path / "masks/a.png", 3)
    mask(tmp_path / "masks/b/00000.png", 4)
    mask(tmp_path / "masks/b/00002.png", 5)
    return sources


def arguments(folder, weights, sources, *more):
    places = ("--masks", folder / "masks", "--output", folder / "out", "--weights", weights)
    return [str(argument) for argument in ("segment", *sources, *places, "--write", "masks,csv", *more)]


def changed(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_every_video_gets_its_masks_and_its_folder(tmp_path):
    folder = tmp_path / "frames.of.b"
    folder.mkdir()
    jobs = plan([Path("x/a.mp4"), folder], tmp_path, tmp_path / "out")
    assert [job.name for job in jobs] == ["a", "frames.of.b"]
    assert [job.output for job in jobs] == [tmp_path / "out/a", tmp_path / "out/frames.of.b"]
    with pytest.raises(InputError, match=r"y/a\.mkv: same name as x/a\.mp4"):
        plan([Path("x/a.mp4"), Path("y/a.mkv")], tmp_path, tmp_path)
    with pytest.raises(InputError, match=r"no masks for x/a\.mp4, expected a\.png or a folder a"):
        jobs[0].with_own_masks()
    for name in ("b.png", "frames.of.b.jpg", "a.PNG"):
        (tmp_path / name).touch()
    assert [job.with_own_masks().masks.name for job in jobs] == ["a.PNG", "frames.of.b.jpg"]
    (tmp_path / "a.Png").touch()
    with pytest.raises(InputError, match=r"a\.\w+: same name as .*a\.\w+, but for the suffix"):
        jobs[0].with_own_masks()


@pytest.mark.parametrize("name", ["...mp4", "..mp4", ".hidden.mp4", ".a.7.partial.mp4", "/"])
def test_a_video_name_that_cannot_name_a_folder_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=rf"{re.escape(name)}: name of its results: found .*, expected the name"):
        plan([Path("a.mp4"), Path(name)], tmp_path, tmp_path / "out")


def test_a_video_named_with_dots_is_refused_unless_it_is_the_only_one(tmp_path, many, weights):
    dots = many[0].rename(tmp_path / "many/...mp4")
    mask(tmp_path / "masks/...png", 3)
    before = changed(tmp_path)
    result = CliRunner().invoke(app, arguments(tmp_path, weights, [dots, many[1]]))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "...mp4: name of its results: found '..', expected the name of a folder" in result.stderr
    assert changed(tmp_path) == before
    alone = [*arguments(tmp_path, weights, [dots]), "--masks", str(tmp_path / "masks/...png")]
    assert CliRunner().invoke(app, alone).exit_code == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["masks", "objects.csv", "run.json"]


def test_two_names_for_one_folder_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    with pytest.raises(InputError, match=r"b\.mp4: same folder as a\.mp4, so the results of both would be in .*/a$"):
        plan([Path("a.mp4"), Path("b.mp4")], tmp_path, tmp_path)


def test_results_of_another_video_given_as_masks_are_not_overwritten(tmp_path, many, weights):
    mask(tmp_path / "out/a/masks/00000.png", 3)
    (tmp_path / "masks/c").symlink_to("../out/a/masks")
    before = changed(tmp_path)
    result = CliRunner().invoke(app, arguments(tmp_path, weights, many, "--overwrite"))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f"{tmp_path / 'out/a'}: the output folder holds the input {tmp_path / 'masks/c'}" in result.stderr
    assert changed(tmp_path) == before


def test_an_output_folder_that_contains_a_link_is_refused(tmp_path, many, weights):
    (tmp_path / "out/a").mkdir(parents=True)
    (tmp_path / "out/a/masks").symlink_to("../../masks")
    result = CliRunner().invoke(app, arguments(tmp_path, weights, many[:2], "--overwrite"))
    assert result.exit_code == 2
    assert "out/a/masks: found a symbolic link to ../../masks" in result.stderr
    assert sorted(os.listdir(tmp_path / "masks")) == ["a.png", "b"]
    assert len(os.listdir(tmp_path / "out/b/masks")) == 4, "the other video is done"


def test_a_mask_named_after_its_video_is_for_the_first_frame(tmp_path, many, weights):
    sources = [many[0].rename(tmp_path / "many/00002.mp4"), many[2]]
    (tmp_path / "masks/a.png").rename(tmp_path / "masks/00002.png")
    result = CliRunner().invoke(app, arguments(tmp_path, weights, sources))
    assert result.stderr.count("no masks for") == 1, "for the other video"
    assert 3 in read_mask(tmp_path / "out/00002/masks/00000.png").ids
    assert "00002.png: named after the video, so used for the first frame" in result.stderr
    refused = CliRunner().invoke(app, arguments(tmp_path, weights, sources, "--mask-frame", "2"))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == "stm-fast: --mask-frame: found 2 with 2 videos, expected one\n"


@pytest.mark.slow
def test_a_video_that_fails_does_not_stop_the_others(tmp_path, many, weights):
    (tmp_path / "many/a2.mp4").write_text("not a video")
    mask(tmp_path / "masks/a2.png", 1)
    result = CliRunner().invoke(app, arguments(tmp_path, weights, [many[0], tmp_path / "many/a2.mp4", *many[1:]]))
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stdout.splitlines() if "results in" in line]
    assert [line.split("frames/s")[1] for line in lines] == [f", results in {tmp_path / 'out' / name}" for name in "ab"]
    failed = [line for line in result.stderr.splitlines() if line.startswith("stm-fast: ")]
    assert failed[0] == "stm-fast: 2 of 4 videos failed:"
    assert "a2.mp4: not a video" in failed[1]
    assert "no masks for" in failed[2]
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b"]
    assert np.unique(read_mask(tmp_path / "out/a/masks/00000.png").ids).tolist() == [0, 3]
    assert 5 in read_mask(tmp_path / "out/b/masks/00002.png").ids


@pytest.mark.slow
def test_repeating_a_command_does_the_remaining_videos(tmp_path, many, weights, monkeypatch):
    assert CliRunner().invoke(app, arguments(tmp_path, weights, many)).exit_code == 2
    before = changed(tmp_path / "out")
    mask(tmp_path / "masks/c.png", 6)
    result = CliRunner().invoke(app, arguments(tmp_path, weights, many))
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if "results in" in line]
    assert [("finished earlier" in line) for line in lines] == [True, True, False]
    after = changed(tmp_path / "out")
    assert before.items() <= after.items()
    assert {path.parent.parent.name for path in after.keys() - before.keys() if path.suffix == ".png"} == {"c"}
    other = CliRunner().invoke(app, arguments(tmp_path, weights, many, "--every", "2"))
    assert other.exit_code == 2
    assert other.stderr.count("holds results of another run; its memory: found every 5") == 3
    assert changed(tmp_path / "out") == after
    assert CliRunner().invoke(app, arguments(tmp_path, weights, many, "--every", "2", "--overwrite")).exit_code == 0


@pytest.mark.slow
def test_an_interrupted_overwriting_run_is_resumed(tmp_path, many, weights, monkeypatch):
    """By the printed command, without --overwrite, although records of the previous options remain."""
    assert CliRunner().invoke(app, arguments(tmp_path, weights, many[:2])).exit_code == 0
    (tmp_path / "out/b/mine.txt").touch()
    monkeypatch.setattr("stm_fast.tasks.interruption.Stop.__call__", lambda stop: True)
    assert (
        CliRunner().invoke(app, arguments(tmp_path, weights, many[:2], "--every", "2", "--overwrite")).exit_code == 130
    )
    monkeypatch.undo()
    assert os.listdir(tmp_path / "out/b") == ["mine.txt"]
    (tmp_path / "out/b/mine.txt").unlink()
    result = CliRunner().invoke(app, arguments(tmp_path, weights, many[:2], "--every", "2", "--resume"))
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out/b/masks").iterdir())) == 4


@pytest.mark.slow
def test_an_input_in_the_output_folder_is_not_overwritten(tmp_path, many, weights):
    (tmp_path / "out").mkdir()
    (tmp_path / "masks").rename(tmp_path / "out/a")
    result = CliRunner().invoke(
        app, [*arguments(tmp_path, weights, many[:2], "--overwrite"), "--masks", str(tmp_path / "out/a")]
    )
    assert "the output folder holds the input" in result.stderr
    assert (tmp_path / "out/a/a.png").is_file()


@pytest.mark.slow
def test_a_bug_in_one_video_is_not_reported_as_bad_input(tmp_path, many, weights, monkeypatch):
    def broken(job, *options):
        if job.name == "a":
            raise RuntimeError("a bug")
        return segment_job(job, *options)

    monkeypatch.setattr("stm_fast.tasks.segment.segment_job", broken)
    result = CliRunner().invoke(app, arguments(tmp_path, weights, many[:2]))
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert f"stm-fast: {many[0]}: RuntimeError: a bug" in result.stderr
    assert len(list((tmp_path / "out/b/masks").iterdir())) == 4


@pytest.mark.parametrize(
    ("program", "world", "line", "command"),
    [
        ("/bin/stm-fast", "1", "To resume:", "/bin/stm-fast segment --resume 'my clip.mp4' -- -v.mp4"),
        (
            "stm_fast/__main__.py",
            "1",
            "To resume:",
            f"{sys.executable} -m stm_fast segment --resume 'my clip.mp4' -- -v.mp4",
        ),
        (
            "stm_fast/__main__.py",
            "4",
            "To resume, with torchrun's options as before:",
            "torchrun ... -m stm_fast segment --resume 'my clip.mp4' -- -v.mp4",
        ),
    ],
)
def test_the_resume_command_can_be_copied(monkeypatch, program, world, line, command):
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": world, **shared}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [program, "segment", "my clip.mp4", "--overwrite", "--", "-v.mp4"])
    assert how_to_resume() == (line, command)


# a memory sharded over processes


def segment_together(rank, folder, store, kill_at, stop_at):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD, timeout=timedelta(seconds=20)
    )
    done = []

    def progress(frames, _):
        done.append(frames)
        if (rank, frames) == (1, kill_at):
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        segment_video(
            folder / "in.mp4",
            folder / "masks/in.png",
            folder / "out",
            model=small_network(),
            write=("masks", "csv"),
            resume=True,
            checkpoint_seconds=0,
            group=dist.group.WORLD,
            # only one of them is asked to stop
            should_stop=lambda: rank == 1 and done[-1] == stop_at,
            progress=progress,
        )
    except InterruptedRun as error:
        os._exit(error.frames)
    except RankLostError as error:
        (folder / "lost.txt").write_text(str(error))
        os._exit(99)
    except InputError as error:
        (folder / f"error{rank}.txt").write_text(str(error))
        os._exit(2)
    dist.destroy_process_group()


def together(folder, kill_at=None, stop_at=None):
    """The exit codes of processes that resume a run."""
    options = (folder, folder / f"store{time.monotonic_ns()}", kill_at, stop_at)
    ranks = [CONTEXT.Process(target=segment_together, args=(rank, *options)) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
        process.kill()
    return [process.exitcode for process in ranks]


@pytest.mark.slow
def test_processes_that_share_a_memory_stop_fail_and_resume_together(tmp_path):
    folder = tmp_path / "shared"
    write_video(folder / "in.mp4", 16)
    mask(folder / "masks/in.png", 3)
    torch.manual_seed(0)
    segment_video(
        folder / "in.mp4", folder / "masks/in.png", tmp_path / "one", model=small_network(), write=("masks", "csv")
    )
    assert together(folder, stop_at=4) == [4, 4], "both stop at the frame where one is asked to"
    assert together(folder, kill_at=6) == [99, -signal.SIGKILL]
    message = (folder / "lost.txt").read_text()
    assert message.startswith("rank 0 of 2: another rank is gone: ")
    assert "\n" not in message
    left = sorted(path.name for path in (folder / "out").iterdir() if path.name.startswith("."))
    assert {".resume.json"} < set(left)
    (state,) = (folder / "out").glob(".resume-*-1.safetensors")
    whole = state.read_bytes()
    state.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert together(folder) == [2, 2], "both end if the state of one is damaged"
    assert (folder / "error0.txt").read_text() == "rank 0 of 2: stopped; rank 1 reports the reason"
    assert "-1.safetensors: the checkpoint is damaged" in (folder / "error1.txt").read_text()
    state.write_bytes(whole)
    assert together(folder) == [0, 0]
    assert sorted(os.listdir(folder / "out")) == ["masks", "objects.csv", "run.json"]
    resumed = {path.name: path.read_bytes() for path in (folder / "out/masks").iterdir()}
    (folder / "out").rename(folder / "first")
    assert together(folder) == [0, 0]
    assert {path.name: path.read_bytes() for path in (folder / "out/masks").iterdir()} == resumed
    for path in (tmp_path / "one/masks").iterdir():
        assert (read_mask(path).ids == read_mask(folder / "out/masks" / path.name).ids).mean() > 0.999


# the real program


@pytest.mark.slow
def test_processes_divide_the_videos(tmp_path, many, weights):
    mask(tmp_path / "masks/c.png", 6)
    ranks = run_ranks(*arguments(tmp_path, weights, many), folder=tmp_path)
    assert all(ended.returncode == 0 for ended in ranks), ranks
    output = "".join(ended.stdout for ended in ranks)
    assert sorted(line.rsplit("/", 1)[1] for line in output.splitlines() if "results in" in line) == list("abc")
    assert sorted(os.listdir(tmp_path / "out")) == list("abc")


@pytest.mark.slow
def test_torchrun_shares_a_memory(tmp_path, many, weights):
    source, given = many[0], tmp_path / "masks/a.png"
    common = ["--output", str(tmp_path / "out"), "--weights", str(weights), "--write", "masks,csv", "--shard-memory"]
    found = torchrun("segment", str(source), "--masks", str(given), *common, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("4 frames, objects 3") == 1
    assert sorted(os.listdir(tmp_path / "out")) == ["masks", "objects.csv", "run.json"]
    again = run_ranks("segment", str(source), "--masks", str(given), *common, folder=tmp_path)
    assert all(ended.returncode == 2 for ended in again), again
    assert any("the output folder is not empty" in ended.stderr for ended in again), again
