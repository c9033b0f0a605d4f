"""Training as its users start it: killed and resumed, in several processes, to the end."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from stm_fast.training.checkpoint import read_state
from stm_fast.training.log import read_log
from training_runs import SMALL, assert_same_up_to_rounding, curve, tensors

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[1] / "configs"
TRAIN = [sys.executable, "-m", "stm_fast", "train"]
PATIENCE = 1200  # seconds, on a busy machine


@pytest.fixture
def config(tmp_path):
    """Writes `SMALL` with changes."""

    def written(**changes):
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(SMALL | changes))
        return str(file)

    return written


def environment():
    # one thread each: several would have the machine's cores many times over
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run(*arguments, launcher=TRAIN):
    done = subprocess.run([*launcher, *arguments], env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done


def kill_after(lines, *arguments):
    """Starts a run and kills it when its log has at least so many lines. Returns whether it had not ended by then."""
    log = Path(arguments[arguments.index("--output") + 1]) / "log.jsonl"
    before = log.stat().st_ino if log.is_file() else None  # a run begins by writing the log anew
    process = subprocess.Popen([*TRAIN, *arguments], env=environment(), stdout=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if log.is_file() and log.stat().st_ino != before and len(read_log(log)) >= lines:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    return process.wait(PATIENCE) == -signal.SIGKILL


def test_a_run_that_is_killed_three_times_ends_with_the_same_weights(config, tmp_path):
    long = {"epochs": 24, "ema": 0.9, "log": {"every": 1, "pictures": 3, "checkpoint": 2}}  # 60 steps
    file, whole, killed = config(**long), tmp_path / "whole", tmp_path / "killed"
    run(file, "--output", str(whole))
    # far enough from the end that a busy machine cannot get there before the kill
    draws = sorted(random.Random().sample(range(1, 13), 3))
    for lines in draws:
        assert kill_after(lines, file, "--output", str(killed), "--resume"), draws
    run(file, "--output", str(killed), "--resume")
    assert curve(killed) == curve(whole)
    ours, theirs = tensors(killed), tensors(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (killed / "pictures").is_dir()
    assert not list(killed.glob(".*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_ends_a_run_with_a_checkpoint(config, tmp_path, number, code):
    """As ctrl-C in a terminal: the process that loads the clips gets it too."""
    file = config(epochs=1000, workers=1, log={"every": 1, "pictures": None})
    command = [*TRAIN, file, "--output", str(tmp_path / "run")]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log = tmp_path / "run" / "log.jsonl"
    end = time.monotonic() + PATIENCE
    while not (log.is_file() and read_log(log)) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    steps = read_state(tmp_path / "run" / "checkpoint.pt")["step"]
    assert out.startswith(f"{steps} steps so far")
    assert "To go on:" in err


def test_two_processes_train_as_one(config, tmp_path):
    fixed = {"batch_norm": "fixed", "optimizer": {"lr": 1e-5, "batch": 4, "accumulate": 2}, "clips_per_epoch": 8}
    file = config(**fixed, log={"every": 1, "pictures": None})
    run(file, "--output", str(tmp_path / "one"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *TRAIN[2:]]
    done = run(file, "--output", str(tmp_path / "two"), launcher=torchrun)
    assert done.stdout.count("4 steps done") == 1
    assert_same_up_to_rounding(tmp_path / "two", tmp_path / "one")


def test_processes_that_do_not_see_one_folder_are_told(config, tmp_path):
    """As machines whose --output is on a disk of their own: only the first has the checkpoint."""
    fixed = {"batch_norm": "fixed", "optimizer": {"lr": 1e-5, "batch": 2}}
    file = config(**fixed)
    run(file, "--output", str(tmp_path / "0"), "--stop-after-minutes", "0")
    script = tmp_path / "each.py"
    script.write_text(
        "import os, sys\n"
        "from stm_fast.__main__ import main\n"
        "sys.argv += [os.path.join(sys.argv.pop(), os.environ['RANK'])]\n"
        "main()\n"
    )
    arguments = [str(script), "train", file, "--resume", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode != 0
    assert "checkpoint.pt: found at steps [0, 1] by different processes, expected the same by all" in done.stderr


def test_bfloat16_trains_nearly_as_float32(config, tmp_path):
    file = config(batch_norm="fixed", log={"every": 1, "pictures": None})
    for precision in ("fp32", "bf16"):
        run(file, "--output", str(tmp_path / precision), "-o", f"precision={precision}")
    exact, rounded = ([line["loss"] for line in curve(tmp_path / name)] for name in ("fp32", "bf16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


def test_the_tiny_configuration_learns_two_clips_by_heart(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    run(str(CONFIGS / "tiny.yaml"), "--output", str(tmp_path))
    # not by the clock: other work on the machine is not this run's
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 600
    scores = [line for line in read_log(tmp_path / "log.jsonl") if "J-Mean" in line]
    assert scores[-1]["J-Mean"] > 0.95
