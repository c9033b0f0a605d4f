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
    process = subprocess.Popen([*TRAIN, *arguments], env=environment(), stdout=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if log.is_file() and len(read_log(log)) >= lines:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    return process.wait(PATIENCE) == -signal.SIGKILL


def test_a_run_that_is_killed_three_times_ends_with_the_same_weights(config, tmp_path):
    long = {"epochs": 8, "ema": 0.9, "log": {"every": 1, "pictures": 3, "checkpoint": 2}}  # 20 steps
    file, whole, killed = config(**long), tmp_path / "whole", tmp_path / "killed"
    run(file, "--output", str(whole))
    # far enough from the end that a busy machine cannot get there before the kill
    for lines in sorted(random.Random().sample(range(1, 13), 3)):
        assert kill_after(lines, file, "--output", str(killed), "--resume")
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


def test_the_tiny_configuration_learns_two_clips_by_heart(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    run(str(CONFIGS / "tiny.yaml"), "--output", str(tmp_path))
    # not by the clock: other work on the machine is not this run's
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 600
    scores = [line for line in read_log(tmp_path / "log.jsonl") if "J-Mean" in line]
    assert scores[-1]["J-Mean"] > 0.95
