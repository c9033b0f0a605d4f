"""Training for a few minutes: clips from the device, as many steps as fit, a small checkpoint to resume from."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from processes import run
from stm_fast.errors import InputError
from stm_fast.network.checkpoint import read_state_dict
from stm_fast.training.checkpoint import read_state, write_state
from stm_fast.training.compact import pack, unpack
from stm_fast.training.recipes import RECIPES
from stm_fast.training.schedule import TimeBudget, rate_factor
from training_runs import SMALL, curve, make_trainer, painted, stop_after, tensors, write_pair

ROOT = Path(__file__).resolve().parents[1]
STEPS = 5
VALIDATION = {"kind": "synthetic", "clips": 1, "frames": 4, "height": 48, "width": 48, "every": 1000}


@pytest.fixture(scope="module")
def adam():
    """The state of a run after some steps of AdamW, with the average of the weights."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.Conv2d(32, 16, 3))
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for scale in (1.0, 1e-3, 1.0, 0.1):
        optimizer.zero_grad()
        (scale * model(torch.randn(2, 8, 8, 8))).square().mean().backward()
        model[2].weight.grad[0, 0] = 0  # a kernel without a gradient
        optimizer.step()
        average.update_parameters(model)
    return {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 4,
    }


def test_unpacked_values_are_close_to_the_packed_ones(adam):
    again = unpack(pack(adam))
    assert again.keys() == adam.keys()
    assert again["step"] == 4
    for name, weight in adam["model"].items():
        assert again["model"][name].dtype == weight.dtype
        average = again["average"][f"module.{name}"]
        wrong, moved = (again["model"][name] - weight).abs(), (weight - average).abs()
        assert (wrong <= 2**-11 * moved + 1e-7).all()
        # an average is stored as convert --half stores weights
        torch.testing.assert_close(
            again["average"][f"module.{name}"], adam["average"][f"module.{name}"], rtol=2**-11, atol=1e-7
        )
    for number, of_weight in adam["optimizer"]["state"].items():
        found = again["optimizer"]["state"][number]
        assert found.keys() == of_weight.keys()
        assert torch.equal(found["step"], of_weight["step"])
        root, found_root = of_weight["exp_avg_sq"].sqrt(), found["exp_avg_sq"].sqrt()
        assert torch.equal(found_root == 0, root == 0)
        torch.testing.assert_close(found_root, root, rtol=0.04, atol=0)
        moved, found_moved = ((s["exp_avg"] / s["exp_avg_sq"].sqrt()).nan_to_num(0) for s in (of_weight, found))
        assert (moved - found_moved).abs().max() <= (0.08 if root.ndim > 1 else 0) * moved.abs().max()


def test_vectors_and_counts_are_packed_exactly(adam):
    again = unpack(pack(adam))
    for name, weight in adam["model"].items():
        if weight.ndim < 2:
            assert torch.equal(again["model"][name], weight)
    assert again["optimizer"]["param_groups"] == adam["optimizer"]["param_groups"]


def test_without_an_average_the_weights_are_packed_exactly(adam):
    again = unpack(pack(adam | {"average": None}))
    assert all(torch.equal(again["model"][name], weight) for name, weight in adam["model"].items())


def test_second_moments_too_small_for_the_codes_make_steps_smaller():
    second = torch.logspace(-60, 0, 64, base=2).view(8, 8)
    state = {
        "model": {},
        "average": None,
        "optimizer": {"state": {0: {"exp_avg": second.sqrt(), "exp_avg_sq": second}}},
    }
    found = unpack(pack(state))["optimizer"]["state"][0]
    step = found["exp_avg"] / found["exp_avg_sq"].sqrt()
    assert step.max() < 1.05
    torch.testing.assert_close(found["exp_avg"], second.sqrt(), rtol=0.05, atol=1e-6)


def test_a_compact_checkpoint_is_much_smaller(adam, tmp_path):
    for compact in (False, True):
        write_state(tmp_path / str(compact), adam, compact=compact)
    kernels = sum(weight.numel() for weight in adam["model"].values() if weight.ndim > 1)
    saved = (tmp_path / "False").stat().st_size - (tmp_path / "True").stat().st_size
    assert saved > 9 * kernels  # 16 bytes become 6, and there are more small tensors
    assert read_state(tmp_path / "True").keys() == read_state(tmp_path / "False").keys()


def test_weights_from_a_compact_checkpoint_are_the_average(adam, tmp_path):
    write_state(tmp_path / "checkpoint.pt", adam, compact=True)
    weights = read_state_dict(tmp_path / "checkpoint.pt")
    assert weights.keys() == adam["model"].keys()
    for name, weight in weights.items():
        average = adam["average"][f"module.{name}"]
        torch.testing.assert_close(weight, average, rtol=2**-11, atol=1e-7, check_dtype=False)


@pytest.mark.slow
def test_resuming_from_a_compact_checkpoint_is_close_to_an_exact_one(tmp_path):
    ends = {}
    for compact in (False, True):
        changes = {"ema": 0.9, "batch_norm": "fixed", "log": {"every": 1, "pictures": None, "compact": compact}}
        folder = tmp_path / str(compact)
        assert not make_trainer(folder, **changes).run(stop_after(3))
        assert make_trainer(folder, True, **changes).run()
        ends[compact] = read_state(folder / "checkpoint.pt")["model"]
    finished = read_state(tmp_path / "False" / "checkpoint.pt")["step"]
    assert finished == STEPS
    for name, weight in ends[False].items():
        # the two steps since then, at rate 1e-3, differ by a fraction of their size
        assert (ends[True][name] - weight).float().abs().max() < 4e-4, name
    assert any(not torch.equal(ends[True][name], weight) for name, weight in ends[False].items())


@pytest.mark.slow
def test_a_resumed_run_with_clips_from_the_device_equals_an_uninterrupted_one(tmp_path):
    changes = {"loading": "device", "ema": 0.9, "data": [SMALL["data"][0] | {"frames": 8}]}
    assert make_trainer(tmp_path / "whole", **changes).run()
    assert not make_trainer(tmp_path / "pieces", **changes).run(stop_after(2))
    assert make_trainer(tmp_path / "pieces", True, **changes).run()
    assert curve(tmp_path / "pieces") == curve(tmp_path / "whole")
    ours, theirs = tensors(tmp_path / "pieces"), tensors(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(InputError, match=r"began with loading 'device', found 'workers' now, expected the same"):
        make_trainer(tmp_path / "whole", True, **(changes | {"loading": "workers"}))


def test_corrupt_pictures_cannot_be_skipped_on_the_device(tmp_path):
    with pytest.raises(InputError, match=r"loading: found device, .* expected skip_corrupt=False"):
        make_trainer(tmp_path, skip_corrupt=True, loading="device")


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test advances."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_the_estimated_pace_ignores_the_first_steps_and_improves(clock):
    budget, estimates = TimeBudget(7, 1100.0), {}
    for step in range(8, 200):
        # the first steps compile; later ones get slower
        clock[0] += 30 if step <= 12 else 1 if step <= 27 else 2
        steps = budget.steps(step)
        if steps is not None:
            estimates[step] = steps
    assert list(estimates) == [27, 42, 72, 132]
    assert estimates[27] == 27 + int(0.98 * (1000 - 5 * 30 - 15))
    assert estimates[42] == 42 + int(0.98 * (1000 - 5 * 30 - 45) / 1.5)
    assert not budget.over
    clock[0] = 1101
    assert budget.over


def test_without_time_left_the_first_estimate_adds_no_step(clock):
    budget = TimeBudget(0, 90.0)
    for step in range(1, 20):
        clock[0] += 1
        assert budget.steps(step) is None
    assert budget.steps(20) == 20


@pytest.mark.slow
def test_the_schedule_ends_with_the_minutes_and_both_ends_are_scored(tmp_path, monkeypatch):
    class Known(TimeBudget):
        def steps(self, step):
            return 8 if step == 3 else None

    monkeypatch.setattr("stm_fast.training.trainer.TimeBudget", Known)
    changes = {"validation": VALIDATION, "epochs": 1000, "clips_per_epoch": 2, "schedule": {"name": "cosine"}}
    log = {"every": 1, "pictures": None, "checkpoint": 1000}
    assert make_trainer(tmp_path, log=log, **changes).run(end=float("inf"))
    lines = curve(tmp_path)
    assert [line["step"] for line in lines if "J&F-Mean" in line] == [0, 8]
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    schedule = make_trainer(tmp_path / "other", **changes)._config.schedule
    assert rates == [pytest.approx(1e-3 * rate_factor(schedule, step, 8 if step >= 3 else 1000)) for step in range(8)]
    state = read_state(tmp_path / "checkpoint.pt")
    assert (state["step"], state["config"]["epochs"]) == (8, 8)
    # the configured end counts if it comes first, and a finished run may continue
    assert make_trainer(tmp_path, True, log=log, **(changes | {"epochs": 9})).run()
    assert read_state(tmp_path / "checkpoint.pt")["step"] == 9


@pytest.mark.slow
def test_a_run_without_time_makes_one_step_and_is_scored(tmp_path):
    changes = {"validation": VALIDATION, "epochs": 1000}
    assert not make_trainer(tmp_path, **changes).run(end=0.0)
    assert [line["step"] for line in curve(tmp_path) if "J&F-Mean" in line] == [0, 1]
    assert read_state(tmp_path / "checkpoint.pt")["best"] >= 0
    assert (tmp_path / "best.safetensors").is_file()


# --- make gpu-train


@pytest.fixture
def data(tmp_path):
    """A data folder: two videos of DAVIS, one of them for validation, and two stills."""
    root = tmp_path / "data"
    davis = root / "davis16-train"
    for name in ("train", "minival"):
        for time in range(6):
            ids = painted(48, 64, {1: (10, 4 + 4 * time, 34, 30 + 4 * time)})
            write_pair(davis, f"480p/{name}/{time:05}", ids, "jpg")
        (davis / "ImageSets" / "2016").mkdir(parents=True, exist_ok=True)
        (davis / "ImageSets" / "2016" / f"{name}.txt").write_text(f"{name}\n")
    write_pair(root / "static", "one", painted(40, 60, {1: (5, 5, 30, 30), 2: (10, 32, 38, 58)}))
    write_pair(root / "static", "two", painted(60, 40, {1: (5, 5, 50, 30)}))
    return root


SCRIPT = str(ROOT / "benchmarks" / "gpu_train.py")
TINY = ["optimizer.batch=2", "clips_per_epoch=2", "clips.size=[32, 48]", "validation.min_size=1"]
TINY += ["data.2.length=1", "data.2.frames=8", "data.2.height=48", "data.2.width=64", "data.2.objects=[1]"]


@pytest.fixture
def environment(tmp_path):
    paths = {"OUT": str(tmp_path / "out"), "PYTHONPATH": str(ROOT / "tests")}
    return os.environ | paths | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
def test_the_command_needs_a_gpu(data, environment):
    script = [sys.executable, SCRIPT, "--minutes", "0", "--data", str(data)]
    refused = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr) == (3, "gpu training: no CUDA device on this machine\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "start", [[SCRIPT, "--cpu"], ["-m", "launchless", "--zeros", SCRIPT]], ids=["cpu", "launchless"]
)
def test_the_command_writes_small_files_from_which_a_cpu_continues(start, data, environment, tmp_path):
    out = tmp_path / "out"
    options = [word for change in TINY for word in ("--set", change)]
    command = [sys.executable, *start, "--minutes", "0", "--data", str(data), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.pt", "config.yaml", "log.jsonl"]
    assert all(path.stat().st_size < 16_000_000 for path in out.iterdir())
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "J&F-Mean" in line] == [0, 1]
    assert "minival after step 1: J&F " in done.stdout
    assert "TOO LARGE" not in done.stdout

    program, module, package, *again = shlex.split(done.stdout.split("to continue: ")[1])
    assert (program, module, package, again[-1]) == (sys.executable, "-m", "stm_fast", "--resume")
    assert read_state(out / "checkpoint.pt")["step"] == 1
    before = read_state(out / "checkpoint.pt")["model"]
    run(*again, "--stop-after-minutes", "0", folder=tmp_path, CUDA_VISIBLE_DEVICES="")
    state = read_state(out / "checkpoint.pt")
    assert state["step"] == 2
    assert state["config"]["epochs"] == yaml.safe_load(RECIPES["burst"].read_text())["epochs"]
    assert np.isfinite([float(weight.float().sum()) for weight in state["model"].values()]).all()
    assert any(not torch.equal(before[name], weight) for name, weight in state["model"].items())
