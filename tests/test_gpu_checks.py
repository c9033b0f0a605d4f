"""make gpu, without a GPU: its stages, how they end, and what they leave behind."""

import os
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
from gate.cases import COMBINE
from gate.compiling import launch_of, source
from gpu import frames, profiler, reads, smoke, suite
from gpu.reads import PARTS
from gpu.session import BENCHMARKS, ROOT, Child, Session, Stage
from stm_fast.benchmarking.records import FrameRow, ReadRow, Record, read_record
from stm_fast.benchmarking.shapes import FrameWorkload
from stm_fast.inference.stages import STAGES

PATHS = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", BENCHMARKS, ROOT)))}


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    return Session(tmp_path / "out", ("smoke", "tests"), {})


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_checks.main([]) == 3
    assert "no CUDA device" in capsys.readouterr().err


def test_what_is_missing_is_named(monkeypatch, capsys):
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


def test_a_stage_that_fails_stops_no_other_and_leaves_its_time(session, monkeypatch, capsys):
    ends = {}

    def failing(session, stage, end):
        ends[stage.name] = end - time.monotonic()
        raise RuntimeError("no kernel")

    def passing(session, stage, end):
        ends[stage.name] = end - time.monotonic()
        stage.lines.append("  all right")

    stages = {"gpu.smoke": SimpleNamespace(run=failing), "gpu.suite": SimpleNamespace(run=passing)}
    monkeypatch.setattr(gpu_checks, "import_module", stages.__getitem__)
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
    assert text.splitlines()[-1] == f"all of it: {session.out}"


def test_processes_that_time_out_are_killed_with_their_children(tmp_path):
    beat = tmp_path / "beat"
    grandchild = f"while true; do date +%N > {beat}; sleep 0.05; done"
    child = Child(["bash", "-c", f"({grandchild}) & wait"], tmp_path / "log", tmp_path, {"PATH": "/usr/bin:/bin"})
    while not beat.exists():
        time.sleep(0.01)
    assert child.wait(time.monotonic() + 0.1) is None
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
def test_that_hangs():
    time.sleep(60)

@pytest.mark.gpu
def test_behind_it():
    pass
"""


@pytest.mark.slow
def test_failed_tests_are_listed_and_a_hanging_one_is_killed(session, monkeypatch, tmp_path):
    made = tmp_path / "test_made.py"
    made.write_text(TESTS)
    monkeypatch.setattr(suite, "files_with_gpu_tests", lambda: [made])
    monkeypatch.setattr(suite, "TEST_SECONDS", 2)
    stage = session.stages["tests"]
    suite.run(session, stage, time.monotonic() + 60)
    assert stage.state == "red"
    red = {name.split("::")[1]: error for name, error in stage.found["red"].items()}
    assert "no such luck" in red["test_wrong"]
    assert any("no such luck" in line for line in stage.lines)
    if suite.find_spec("xdist"):
        assert "crashed" in red["test_that_hangs"]
        assert stage.found["outcomes"] == {"passed": 2, "failed": 2}
    else:
        assert [name.split("::")[1] for name in stage.missed] == ["test_that_hangs", "test_behind_it"]
        assert stage.found["outcomes"] == {"passed": 1, "failed": 1}


def test_wrappers_of_inner_pytest_runs_are_replaced_by_their_cases():
    path, name = suite.STARTER.split("::")
    assert f"def {name}(" in (ROOT / path).read_text()
    assert suite.STARTER in suite.command([])
    names = [path.name for path in suite.files_with_gpu_tests()]
    assert names[:2] == ["triton_engine_cases.py", "quantised_engine_cases.py"]
    assert "test_benchmarking_gpu.py" in names
    assert "test_cli.py" not in names


def test_later_stages_skip_a_kernel_that_hung():
    found = {
        "channels": {"ended": "hung for 20 s"},
        "rows": {"right": True},
        "fp8": {"right": False, "error": 1.0},
        "int8": {"not started": "out of time"},
    }
    assert smoke.dangerous(Stage("smoke", found=found)) == ["channels"]
    assert smoke.dangerous(None) == []


LAUNCHED = """
import torch
from gpu.routes import PACKAGE_ROUTES
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
def test_routes_launch_what_they_are_named_after(tmp_path):
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


def test_times_are_a_table_with_the_fastest_first():
    def row(route, shape="480p-T20-O3", seconds=None, **fields):
        return ReadRow(shape, "bfloat16", "forward", route, seconds=seconds, **fields)

    rows = [
        ReadRow("480p-T20-O3", "bfloat16", "matrix product", "torch.mm", seconds=1e-3, tflop_per_second=700.0),
        row("published", seconds=2e-3, tflop_per_second=60.0, error=2e-3),
        row("triton", seconds=3e-4, host_seconds=2e-5, tflop_per_second=400.0, error=1e-3),
        row("triton", shape="480p-T1-O1", seconds=4e-5, tflop_per_second=80.0, error=2e-3),
        row("portable", skipped="wrong result: relative error 1.2"),
        row("sdpa-flash", skipped="RuntimeError: No available kernel"),
        row("sdpa-cudnn", skipped="RuntimeError: No available kernel"),
    ]
    lines = list(reads.lines(rows))
    assert lines == [
        "  torch.mm: 700 to 700 TFLOP/s",
        "  forward bfloat16  error  host  480p-T20-O3  480p-T1-O1",
        "  triton            2e-03    20   300 us 400    40 us 80",
        "  published         2e-03   nan   2000 us 60",
        "  portable: wrong result: relative error 1.2",
        "  none of sdpa-flash, sdpa-cudnn (RuntimeError)",
    ]


def test_whole_frames_are_a_line_for_each_variant():
    workload, stages = FrameWorkload("480p", objects=1, memory_frames=20), dict.fromkeys(STAGES, 0.002)
    rows = [FrameRow(workload, name, 3, 0.0123, 0.012, 0.013, stages, 0.5) for name in ("published", "prepared")]
    head, *lines = frames.lines(rows)
    assert head.split()[:2] == ["480p-T20-O1,", "resnet50,"]
    assert [line.split() for line in lines] == [
        [name, *len(STAGES) * ["2.0"], "12.3", "12", "to", "13", "0.50000"] for name in ("published", "prepared")
    ]


class Ending:
    """Of a child that ends at once."""

    def __init__(self, code):
        self._code = code

    def wait(self, end):
        return self._code


def test_frames_that_a_run_did_not_reach_are_missed(session, monkeypatch):
    wanted = frames.Run(("480p-T1-O1", "480p-T1-O2"), ("published",))
    monkeypatch.setattr(frames, "RUNS", {"network": wanted, "network-compiled": frames.TINY})
    codes = {"network": 1, "network-compiled": None}

    def child(module, *arguments):
        path = Path(arguments[-1])
        name = path.name.removesuffix("-NVIDIA-Test.json")
        if name == "network":
            workload, stages = FrameWorkload("480p", memory_frames=1), dict.fromkeys(STAGES, 0.1)
            Record({}, {}, [FrameRow(workload, "published", 3, 1.0, 1.0, 1.0, stages)]).write(path)
        return Ending(codes[name])

    monkeypatch.setattr(session, "child", child)
    stage = Stage("frames")
    frames.run(session, stage, time.monotonic() + 60)
    assert stage.missed == ["480p-T1-O2 published", *(f"64p-T1-O1 {name}" for name in frames.TINY.variants)]
    assert stage.state == "out of time"
    assert stage.lines[-2:] == [
        "  network: ended with exit code 1: see the log",
        "  network-compiled: out of time",
    ]


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
    assert gpu_cache.unpack(tmp_path / "archive", tmp_path / "there") == (1, "of these sources")
    compile_into(tmp_path / "there")
    assert found_before == [False, True]


def test_kernels_of_another_triton_stay_packed(tmp_path, monkeypatch):
    assert gpu_cache.unpack(tmp_path / "archive", tmp_path).kernels == 0
    (tmp_path / "here" / "A").mkdir(parents=True)
    (tmp_path / "here" / "A" / "kernel.cubin").write_bytes(b"code")
    assert gpu_cache.pack(tmp_path / "here", tmp_path / "archive") == 1
    monkeypatch.setattr(gpu_cache, "version", lambda package: "3.5.0")
    found = gpu_cache.unpack(tmp_path / "archive", tmp_path / "there")
    assert found.kernels == 0
    assert found.remark.endswith("here it is 3.5.0: all are compiled now")
    assert not (tmp_path / "there").exists()


NCU = """==PROF== Connected to process 1
"ID","Kernel Name","gpu__time_duration.sum","lts__t_sector_hit_rate.pct","{stall}_wait{rest}","{stall}_barrier{rest}"
"","","us","%","inst","inst"
"0","_forward_kernel","1,301.50","61.25","0.25","2.5"
""".replace("{stall}", "smsp__average_warps_issue_stalled").replace("{rest}", "_per_issue_active.ratio")


def test_counters_of_ncu_become_a_line(tmp_path):
    path = tmp_path / "ncu.csv"
    path.write_text(NCU)
    assert list(profiler.shown(profiler.read_csv(path))) == [
        "duration 1,301.50 us",
        "L2 hits % 61.25",
        "stalls barrier 2.50, wait 0.25",
    ]
    path.write_text("==ERROR== no permission\n")
    assert profiler.read_csv(path) == {}
    assert profiler.read_csv(Path("/nowhere.csv")) == {}


@pytest.mark.slow
def test_every_stage_is_reached_on_the_device_that_launches_nothing(tmp_path):
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
    # nothing was computed, and that shows
    assert done.returncode == 1, done.stderr
    stages = {stage.name: stage for stage in read_record(out / "gpu-checks.json", Stage).rows}
    states = {name: stage.state for name, stage in stages.items()}
    assert states == {"smoke": "red", "tests": "red", "reads": "done", "profile": "done", "frames": "done"}
    assert {found["right"] for found in stages["smoke"].found.values()} == {False}
    assert list(stages["tests"].found["red"]) == [suite.TINY]
    assert stages["profile"].found["portable"]["gpu__time_duration.sum"] == "1,301.50 us"
    reads = read_record(out / "memory-read-launchless.json", ReadRow)
    assert list(reads.settings["parts"]) == list(PARTS)
    assert any(row.route == "published" and row.seconds for row in reads.rows)
    assert {row.skipped for row in reads.rows if row.route == "triton"} != {None}
    assert len(read_record(out / "network-launchless.json", FrameRow).rows) == 3
    assert len(list(out.iterdir())) == 4
    assert all(path.stat().st_size < 2**24 for path in out.iterdir())
    table = (out / "gpu-checks.log").read_text().splitlines()[-100:]
    assert done.stdout.splitlines()[-1] == table[-1] == f"all of it: {out}"
    assert any(line.startswith("reads: done") for line in table)
