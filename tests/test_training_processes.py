"""Training as users start it: killed and resumed, in several processes, to the end."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml

from processes import PATIENCE, Running, run, run_ranks, torchrun
from stm_fast.training.checkpoint import read_state
from stm_fast.training.log import read_log
from training_runs import SMALL, assert_same_up_to_rounding, curve, tensors

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path):
    """Writes `SMALL` with changes."""

    def written(**changes):
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(SMALL | changes))
        return str(file)

    return written


def kill_after(lines, *arguments):
    """Starts a run and kills it when its log has at least `lines` lines. Returns whether it was still running."""
    output = Path(arguments[arguments.index("--output") + 1])
    log = output / "log.jsonl"
    before = log.stat().st_ino if log.is_file() else None  # a run begins by writing the log anew
    process = Running(["train", *arguments], output.parent)
    end = time.monotonic() + PATIENCE
    while not process.has_ended() and time.monotonic() < end:
        if log.is_file() and log.stat().st_ino != before and len(read_log(log)) >= lines:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    return process.wait().returncode == -signal.SIGKILL


def test_a_run_that_is_killed_three_times_ends_with_the_same_weights(config, tmp_path):
    long = {"epochs": 8, "ema": 0.9, "log": {"every": 1, "pictures": 3, "checkpoint": 2}}  # 20 steps
    file, whole, killed = config(**long), tmp_path / "whole", tmp_path / "killed"
    run("train", file, "--output", str(whole), folder=tmp_path)
    # far enough from the end that a busy machine cannot get there before the kill
    draws = sorted(random.Random().sample(range(1, 9), 3))
    for lines in draws:
        assert kill_after(lines, file, "--output", str(killed), "--resume"), draws
    run("train", file, "--output", str(killed), "--resume", folder=tmp_path)
    assert curve(killed) == curve(whole)
    ours, theirs = tensors(killed), tensors(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (killed / "pictures").is_dir()
    assert not list(killed.glob(".*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_ends_a_run_with_a_checkpoint(config, tmp_path, number, code):
    """Like Ctrl-C in a terminal: the process that loads the clips gets the signal too."""
    file = config(epochs=1000, workers=1, log={"every": 1, "pictures": None})
    process = Running(["train", file, "--output", str(tmp_path / "run")], tmp_path)
    log = tmp_path / "run" / "log.jsonl"
    end = time.monotonic() + PATIENCE
    while not (log.is_file() and read_log(log)) and not process.has_ended() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, number)
    ended = process.wait()
    assert ended.returncode == code, ended.stderr
    steps = read_state(tmp_path / "run" / "checkpoint.pt")["step"]
    assert ended.stdout.startswith(f"{steps} steps so far")
    assert "To resume:" in ended.stderr


def test_two_processes_train_like_one(config, tmp_path):
    fixed = {"batch_norm": "fixed", "optimizer": {"lr": 1e-5, "batch": 4, "accumulate": 2}, "clips_per_epoch": 8}
    file = config(**fixed, log={"every": 1, "pictures": None})
    run("train", file, "--output", str(tmp_path / "one"), folder=tmp_path)
    done = torchrun("train", file, "--output", str(tmp_path / "two"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps done") == 1
    assert_same_up_to_rounding(tmp_path / "two", tmp_path / "one")


def test_processes_without_a_shared_folder_get_a_message(config, tmp_path):
    """Like machines with --output on local disks: only the first has the checkpoint."""
    fixed = {"batch_norm": "fixed", "optimizer": {"lr": 1e-5, "batch": 2}}
    file = config(**fixed)
    run("train", file, "--output", str(tmp_path / "0"), "--stop-after-minutes", "0", folder=tmp_path)
    ranks = run_ranks("train", file, "--resume", "--output", str(tmp_path / "{rank}"), folder=tmp_path)
    message = "checkpoint.pt: found at steps [0, 1] by different processes, expected the same step by all"
    assert all(ended.returncode == 2 and message in ended.stderr for ended in ranks), ranks


def test_bfloat16_trains_nearly_like_float32(config, tmp_path):
    file = config(batch_norm="fixed", log={"every": 1, "pictures": None})
    for precision in ("fp32", "bf16"):
        run("train", file, "--output", str(tmp_path / precision), "--set", f"precision={precision}", folder=tmp_path)
    exact, rounded = ([line["loss"] for line in curve(tmp_path / name)] for name in ("fp32", "bf16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


def test_the_tiny_configuration_learns_two_clips_by_heart(tmp_path):
    run("train", "tiny", "--output", str(tmp_path), folder=tmp_path)
    scores = [line for line in read_log(tmp_path / "log.jsonl") if "J-Mean" in line]
    assert scores[-1]["J-Mean"] > 0.95
