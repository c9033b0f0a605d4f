"""make gpu, without a GPU: its stages, how they end, and what they leave behind."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget

import gpu_cache
import gpu_checks
import gpu_suite
import gpu_times
from gate.cases import COMBINE
from gate.compiling import launch_of, source
from gpu_checks import Session, Stage
from gpu_times import LAUNCHING, PARTS, Frames
from stm_fast.benchmarking.records import FrameRow, ReadRow, Record, read_record
from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.shapes import FrameWorkload
from stm_fast.inference.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
PATHS = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", BENCHMARKS, ROOT)))}


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    return Session(tmp_path / "out", ("smoke", "tests"), {})


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_checks.main([]) == 3
    assert "no CUDA device" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setattr(gpu_checks, "find_spec", lambda name: None)
    assert gpu_checks.main([]) == 1
    assert capsys.readouterr().err == "gpu checks: pytest is not installed\n"
    monkeypatch.setitem(sys.modules, "stm_fast.benchmarking", None)
    assert gpu_checks.main([]) == 1
    assert "pip install --no-deps --no-build-isolation -e ." in capsys.readouterr().err


def test_unknown_stages_are_refused(capsys):
    with pytest.raises(SystemExit):
        gpu_checks.main(["--only", "smoke,lunch"])
    assert "found lunch, expected some of smoke, tests" in capsys.readouterr().err


def test_a_stage_that_fails_leaves_its_time_to_the_others(session, monkeypatch, capsys):
    ends = {}

    def failing(session, stage, end):
        ends[stage.name] = end - time.monotonic()
        raise RuntimeError("no kernel")

    def passing(session, stage, end):
        ends[stage.name] = end - time.monotonic()
        stage.lines.append("  all right")

    stages = {"smoke": ("made:failing", 1.0), "tests": ("made:passing", 4.0)}
    monkeypatch.setattr(gpu_checks, "STAGES", stages)
    monkeypatch.setitem(sys.modules, "made", SimpleNamespace(failing=failing, passing=passing))
    gpu_checks.run_stages(session, minutes=1)
    capsys.readouterr()
    assert session.stages["smoke"].state == "failed: RuntimeError: no kernel"
    assert session.stages["tests"].state == "done"
    assert ends["smoke"] == pytest.approx(60 / 5, abs=1)
    assert ends["tests"] == pytest.approx(60, abs=1)
    table = gpu_checks.table(session).splitlines()
    assert table[0].startswith("smoke: failed: RuntimeError: no kernel")
    assert table[2] == "  all right"
    rows = read_record(session.out / "gpu-checks.json", Stage).rows
    assert [row.state for row in rows] == ["failed: RuntimeError: no kernel", "done"]


def test_the_table_is_short_however_much_was_found(session):
    session.stages["smoke"].lines = ["x" * 200] * 300
    text = gpu_checks.table(session)
    assert len(text.splitlines()) <= 100
    assert len(text) < 12_000
    assert text.splitlines()[-1] == f"all results: {session.out}"


def test_a_process_out_of_time_is_killed_with_its_children(session, tmp_path):
    beat = tmp_path / "beat"
    grandchild = f"while true; do date +%N > {beat}; sleep 0.05; done"
    assert session.run(["bash", "-c", f"({grandchild}) & wait"], time.monotonic() + 0.5) is None
    last = beat.read_text()
    time.sleep(0.3)
    assert beat.read_text() == last


TESTS = """
import os, time
import pytest

@pytest.mark.gpu
def test_right():
    pass

@pytest.mark.gpu
def test_wrong():
    assert 1 == 2, "no such luck"

def test_of_the_cpu():
    raise AssertionError("it is not marked")

@pytest.mark.gpu
@pytest.mark.parametrize("place", ["here"])
def test_that_hangs(place):
    time.sleep(60)

@pytest.mark.gpu
def test_after_it():
    pass
"""


@pytest.mark.slow
def test_failed_tests_are_listed_and_a_hung_one_is_ended(session, tmp_path):
    made = tmp_path / "test_made.py"
    made.write_text(TESTS)
    stage = session.stages["tests"]
    gpu_suite.run_files([str(made)], 2, session, stage, time.monotonic() + 60)
    assert stage.state == "red"
    failed = {name.split("::")[1]: error for name, error in stage.found["failed"].items()}
    assert "no such luck" in failed["test_wrong"]
    assert any("no such luck" in line for line in stage.lines)
    assert [name.split("::")[1] for name in stage.found["hung"]] == ["test_that_hangs[here]"]
    if gpu_suite.find_spec("xdist"):
        assert "crashed" in failed["test_that_hangs[here]"]
        assert stage.found["outcomes"] == {"passed": 2, "failed": 2}
    else:
        assert [name.split("::")[1] for name in stage.missed] == ["test_that_hangs[here]", "test_after_it"]
        assert stage.found["outcomes"] == {"passed": 1, "failed": 1}


def test_the_test_that_starts_pytest_is_replaced_by_its_cases():
    path, name = gpu_suite.STARTER.split("::")
    assert f"def {name}(" in (ROOT / path).read_text()
    assert gpu_suite.STARTER in gpu_suite.command([])
    names = gpu_suite.files_with_gpu_tests()
    assert names[:2] == ["tests/triton_engine_cases.py", "tests/quantized_engine_cases.py"]
    assert "tests/test_benchmarking_gpu.py" in names
    assert "tests/test_cli.py" not in names
    assert gpu_suite.SMOKE not in names


def test_a_kernel_that_hung_is_launched_by_no_later_stage(session, tmp_path):
    assert session.hung_kernels() == []
    results = tmp_path / "results"
    lines = [
        ("read[rows]", "started", ""),
        ("read[rows]", "passed", ""),
        ("read[channels]", "started", ""),
        ("read[channels]", "failed", "worker 'gw0' crashed while running 'read[channels]'"),
        ("read[fp8]", "started", ""),
        ("read[fp8]", "failed", "assert 1.0 <= 0.064"),
        ("read[int8]", "started", ""),
        ("read[portable]", "collected", ""),
    ]
    events = [{"test": test, "outcome": outcome, "error": error, "seconds": 0.0} for test, outcome, error in lines]
    results.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"test": "half a')
    session.stages["smoke"].found = gpu_suite.read_results(results)
    assert session.hung_kernels() == ["channels", "int8"]
    assert session.stages["smoke"].found["not reached"] == ["read[portable]"]


def test_later_stages_know_the_cases_of_the_smoke_stage():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", gpu_suite.SMOKE]
    done = subprocess.run(command, env=os.environ | PATHS, cwd=ROOT, capture_output=True, text=True, check=True)
    cases = re.findall(r"\[(\w+)-(\w+)\]$", done.stdout, re.MULTILINE)
    assert sorted(cases) == sorted(itertools.product(("published", "tiny"), LAUNCHING))
    assert set(gpu_checks.KERNELS.values()) <= set(LAUNCHING)
    assert set(gpu_checks.KERNELS) == set(gpu_times.PROFILED)


LAUNCHED = """
import torch
from gpu_times import PACKAGE_ROUTES
from launchless import LAUNCHES
from stm_fast.benchmarking.shapes import parse_shape
from stm_fast.benchmarking.workload import Workload
from stm_fast.benchmarking.workload import in_layout, make_inputs

shape = parse_shape("30x54-T1-O2")
for name, route in PACKAGE_ROUTES.items():
    inputs = in_layout(make_inputs(shape, torch.bfloat16, "cuda", seed=0), route.layout)
    LAUNCHES.clear()
    route.build(Workload(shape, torch.bfloat16, "forward", "cuda"))(inputs.query, *inputs.memory)
    read = next(launched for launched in LAUNCHES if launched.kernel.startswith("_forward"))
    print(name, read.kernel, read.options.get("num_stages"))
"""


@pytest.mark.slow
def test_routes_launch_the_kernels_they_are_named_after(tmp_path):
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    command = [sys.executable, "-m", "launchless", str(script)]
    done = subprocess.run(command, env=os.environ | PATHS, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = {name: (kernel, stages) for name, kernel, stages in map(str.split, done.stdout.splitlines())}
    hopper = {name for name, (kernel, _stages) in found.items() if kernel == "_forward_hopper_kernel"}
    assert hopper == {"triton-channels", "triton-bank", "triton-graph"}
    assert {found[name] for name in ("portable", "portable-graph")} == {("_forward_kernel", "3")}
    assert found["portable-2-stages"] == ("_forward_kernel", "2")
    assert found["portable-4-stages"] == ("_forward_kernel", "4")


def test_times_are_tables_of_routes_by_shapes(monkeypatch):
    def row(route, shape="480p-T20-O3", seconds=None, **fields):
        share = None if seconds is None else 0.5
        return ReadRow(shape, "bfloat16", "forward", route, seconds=seconds, fraction_of_mm=share, **fields)

    monkeypatch.setitem(ROUTES, "portable", gpu_times.PACKAGE_ROUTES["portable"])
    rows = [
        ReadRow("480p-T20-O3", "bfloat16", "matrix product", "torch.mm", seconds=1e-3, tflop_per_second=700.0),
        row("published", seconds=2e-3, error=2e-3),
        row("triton", seconds=3e-4, host_seconds=2e-5, extra_bytes=1_000_000),
        row("triton", shape="480p-T1-O1", seconds=4e-5),
        row("portable", skipped="wrong result: relative error 1.2"),
        row("sdpa-flash", skipped="RuntimeError: No available kernel"),
    ]
    assert [re.split("  +", line.strip()) for line in gpu_times.read_lines(rows)] == [
        ["forward, bfloat16", "480p-T20-O3", "480p-T1-O1"],
        ["published: bmm, softmax, bmm", "2 ms, 50 %"],
        ["**triton**", "300 us, 50 %, 1.0 MB", "40 us, 50 %"],
        ["forward bfloat16 480p-T20-O3: no portable: wrong result: relative error 1.2"],
    ]


def test_frames_that_a_run_did_not_reach_are_listed_as_missed(session, monkeypatch):
    wanted = Frames(("480p-T1-O1", "480p-T1-O2"), ("published", "prepared"))
    compiled = Frames(("64p-T1-O1",), ("published", "bfloat16"))
    monkeypatch.setattr(gpu_times, "FRAMES", {"network": wanted, "network-compiled": compiled})
    workload, stages = FrameWorkload("480p", memory_frames=1), dict.fromkeys(STAGES, 0.002)

    def run(command, end):
        path = Path(command[command.index("frames") + 1])
        if path.name != "network-NVIDIA-Test.json":
            return None
        rows = [FrameRow(workload, name, 3, 0.0123, 0.012, 0.013, stages, 0.5) for name in wanted.variants]
        Record({}, {}, rows).write(path)
        return 1

    monkeypatch.setattr(session, "run", run)
    stage = Stage("frames")
    gpu_times.run_frames(session, stage, time.monotonic() + 60)
    assert stage.missed == [
        *(f"480p-T1-O2 {name}" for name in wanted.variants),
        *(f"64p-T1-O1 {name}" for name in compiled.variants),
    ]
    assert stage.state == "out of time"
    head, *lines = stage.lines
    assert head.split()[:2] == ["480p-T1-O1,", "resnet50,"]
    assert [line.split() for line in lines[:2]] == [
        [name, *len(STAGES) * ["2.0"], "12.3", "50.000"] for name in wanted.variants
    ]
    assert lines[2:] == ["  network: ended with exit code 1: see the log", "  network-compiled: out of time"]


def test_a_part_that_crashes_does_not_stop_the_others(session, monkeypatch):
    """The second process crashes in its first part; the third runs the rest."""
    asked = []

    def run(command, end):
        path, parts = Path(command[4]), command[6:]
        asked.append(parts)
        started = {"forward": {}, "backward": {}} if len(asked) == 1 else {"top-k": {}}
        Record({}, {"parts": started}, []).write(path)
        return {1: 1, 2: gpu_times.LOST}.get(len(asked), 0)

    monkeypatch.setattr(session, "run", run)
    monkeypatch.setattr(gpu_times, "ROUTES", {})
    stage = Stage("reads")
    gpu_times.run_reads(session, stage, time.monotonic() + 60)
    names = list(PARTS)
    assert asked == [names, names[2:], names[3:]]
    assert stage.missed == ["backward", "top-k"]
    assert stage.lines == ["  backward: ended with exit code 1: see the log", "  top-k: the GPU was lost"]


@pytest.mark.slow
def test_a_packed_kernel_is_not_compiled_again(tmp_path, monkeypatch):
    found_before = []
    monkeypatch.setattr(knobs.compilation, "listener", lambda cache_hit, **_rest: found_before.append(cache_hit))
    launch = launch_of(COMBINE)

    def compile_into(cache):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
        triton.compile(source(launch), target=GPUTarget("cuda", 90, 32), options=launch.options)

    compile_into(tmp_path / "here")
    assert gpu_cache.pack(tmp_path / "here", tmp_path / "archive") == 1
    shutil.rmtree(tmp_path / "here")
    assert gpu_cache.unpack(tmp_path / "archive", tmp_path / "there") == "1 kernels unpacked, of these sources"
    compile_into(tmp_path / "there")
    assert found_before == [False, True]


def test_kernels_of_another_version_of_triton_stay_packed(tmp_path, monkeypatch):
    assert gpu_cache.unpack(tmp_path / "archive", tmp_path).startswith("there is no archive of kernels")
    (tmp_path / "here" / "A").mkdir(parents=True)
    (tmp_path / "here" / "A" / "kernel.cubin").write_bytes(b"code")
    assert gpu_cache.pack(tmp_path / "here", tmp_path / "archive") == 1
    monkeypatch.setattr(gpu_cache, "version", lambda package: "3.5.0")
    found = gpu_cache.unpack(tmp_path / "archive", tmp_path / "there")
    assert found.endswith("here it is 3.5.0: all are compiled now")
    assert not (tmp_path / "there").exists()


NCU = """==PROF== Connected to process 1
"ID","Kernel Name","gpu__time_duration.sum","lts__t_sector_hit_rate.pct","{stall}_wait{rest}","{stall}_barrier{rest}"
"","","us","%","inst","inst"
"0","_forward_kernel","1,301.50","61.25","0.25","2.5"
""".replace("{stall}", "smsp__average_warps_issue_stalled").replace("{rest}", "_per_issue_active.ratio")


def test_counters_of_ncu_are_summarized(tmp_path):
    path = tmp_path / "ncu.csv"
    path.write_text(NCU)
    assert list(gpu_checks.metrics_shown(gpu_checks.read_metrics(path))) == [
        "duration 1,301.50 us",
        "L2 hits % 61.25",
        "stalls barrier 2.50, wait 0.25",
    ]
    path.write_text("==ERROR== no permission\n")
    assert gpu_checks.read_metrics(path) == {}
    assert gpu_checks.read_metrics(Path("/nowhere.csv")) == {}


@pytest.mark.slow
def test_every_stage_is_reached_on_the_launchless_device(tmp_path):
    out, ncu, counted = tmp_path / "out", tmp_path / "ncu", tmp_path / "counted"
    counted.write_text(NCU)
    # the argument after --log-file is where it writes
    ncu.write_text(f'#!/bin/sh\nwhile [ "$1" != --log-file ]; do shift; done\ncp {counted} "$2"\n')
    ncu.chmod(0o755)
    environment = {
        **os.environ,
        **PATHS,
        "OUT": str(out),
        "PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]]),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "launchless", str(BENCHMARKS / "gpu_checks.py"), "--tiny", "--minutes", "30"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    # nothing was computed, so the tests fail
    assert done.returncode == 1, done.stderr
    stages = {stage.name: stage for stage in read_record(out / "gpu-checks.json", Stage).rows}
    states = {name: stage.state for name, stage in stages.items()}
    assert states == {"smoke": "red", "tests": "red", "reads": "done", "profile": "done", "frames": "done"}
    assert stages["smoke"].found["outcomes"] == {"failed": len(LAUNCHING)}
    assert list(stages["tests"].found["failed"]) == [gpu_suite.TINY]
    assert stages["profile"].found["portable"]["gpu__time_duration.sum"] == "1,301.50 us"
    reads = read_record(out / "memory-read-launchless.json", ReadRow)
    assert list(reads.settings["parts"]) == list(PARTS)
    assert any(row.route == "published" and row.seconds for row in reads.rows)
    assert {row.skipped for row in reads.rows if row.route == "triton"} != {None}
    assert len(read_record(out / "network-launchless.json", FrameRow).rows) == 3
    assert len(list(out.iterdir())) == 4
    assert all(path.stat().st_size < 2**24 for path in out.iterdir())
    table = (out / "gpu-checks.log").read_text().splitlines()[-100:]
    assert done.stdout.splitlines()[-1] == table[-1] == f"all results: {out}"
    assert any(line.startswith("reads: done") for line in table)
