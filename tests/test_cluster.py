"""Many videos on a Ray cluster: equal bytes, lost nodes, lost drivers, and what cannot be done."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from typer.testing import CliRunner

import stm_fast
from processes import free_port
from ray_cluster import frames_saved, lose, node_at, nodes
from s3_server import CUT, DENIED, FULL, SECRET, SLOW_DOWN, s3_server
from small_inputs import contents, one_object, write_davis, write_video, write_weights
from stm_fast.__main__ import app
from stm_fast.cluster.choice import ClusterChoice
from stm_fast.cluster.connection import connected
from stm_fast.cluster.order import longest_first
from stm_fast.cluster.pool import MOST_LOSSES, run_tasks
from stm_fast.commands.cluster import with_address
from stm_fast.video import write_mask

pytest.importorskip("av")
pytest.importorskip("ray")

PATIENCE = 600  # seconds
# of 16 videos, in frames: very different lengths
LENGTHS = (2, 90, 3, 5, 2, 40, 4, 2, 3, 60, 2, 8, 5, 2, 20, 3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder with 16 videos, and their masks in the folder masks."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "masks").mkdir()
    for number, length in enumerate(LENGTHS):
        write_video(folder / f"v{number:02}.mp4", length)
        write_mask(folder / f"masks/v{number:02}.png", one_object(1 + number))
    return folder


def command(videos, weights, output, *more, only="v*.mp4"):
    sources = sorted(map(str, videos.glob(only)))
    return ["segment", *sources, "-m", str(videos / "masks"), "-o", str(output), "--weights", str(weights), *more]


def started(arguments, **environment):
    """stm-fast in a process of its own, as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "stm_fast", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def ended(process):
    """Its exit code, what it printed, and its errors without the lines of progress that a slow machine adds."""
    out, err = process.communicate(timeout=PATIENCE)
    progress = re.compile(r"^[\w ]+: .*(videos|frames|sequences|so far).*\n", re.MULTILINE)
    return process.returncode, out, progress.sub("", err)


@pytest.fixture(scope="module")
def expected(videos, weights, tmp_path_factory):
    """The results of a single process."""
    output = tmp_path_factory.mktemp("single") / "out"
    code, _, err = ended(started(command(videos, weights, output)))
    assert code == 0, err
    return contents(output)


@pytest.fixture(scope="module")
def cluster():
    with nodes(3) as cluster:
        yield cluster


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.02)
    return found


@pytest.mark.slow
def test_a_cluster_gives_the_bytes_of_a_single_process(cluster, videos, weights, expected, tmp_path):
    again = command(videos, weights, tmp_path / "out", "--ray", cluster.address)
    code, out, err = ended(started(again))
    assert (code, err) == (0, ""), err
    assert contents(tmp_path / "out") == expected
    assert sorted(reported(out)) == sorted(f"v{number:02}" for number in range(len(LENGTHS)))
    code, out, err = ended(started(again))
    assert (code, err, out.count("finished earlier")) == (0, "", len(LENGTHS))
    assert contents(tmp_path / "out") == expected


def reported(out):
    """The videos whose results were printed, in the order in which they ended."""
    return [line.rpartition("/")[2] for line in out.splitlines() if "results in" in line]


@pytest.mark.slow
def test_a_video_of_a_lost_node_goes_on_elsewhere(videos, weights, expected, tmp_path):
    output = tmp_path / "out"
    longest = f"v{LENGTHS.index(max(LENGTHS)):02}"
    with nodes(4, head_cores=0) as cluster:
        process = started(command(videos, weights, output, "--ray", cluster.address, "--checkpoint-seconds", "0"))
        wait_for(lambda: frames_saved(output / longest) >= 10)
        lost = time.time()
        lose(cluster, node_at(cluster, output / longest))
        code, out, err = ended(process)
    assert (code, err) == (0, ""), err
    assert contents(output) == expected
    written = [path.stat().st_mtime for path in sorted((output / longest / "masks").iterdir())]
    assert max(written[:10]) < lost < written[-1], "from the checkpoint on, not from the start"
    assert sorted(reported(out)) == sorted(f"v{number:02}" for number in range(len(LENGTHS))), "nothing twice"


@pytest.mark.slow
def test_the_same_with_videos_and_results_in_a_store(videos, weights, tmp_path):
    """A node is lost, answers are refused and connections are cut."""
    draw = random.Random(0)
    with s3_server() as s3:
        s3.put("data")
        for path in (*videos.glob("*.mp4"), *videos.glob("masks/*")):
            s3.put(f"data/{path.relative_to(videos)}", path.read_bytes())
        s3.put("data/weights/small.safetensors", weights.read_bytes())

        def command(output, *more):
            places = ["-m", "s3://data/masks", "-o", f"s3://data/{output}"]
            given = ["segment", "s3://data/*.mp4", *places, "--weights", "s3://data/weights/small.safetensors"]
            return started([*given, *more, "--write", "masks,csv", "-v"], **s3.environment)

        code, out, err = ended(command("single"))
        assert code == 0, err
        with pytest.MonkeyPatch.context() as patch:
            for name, value in s3.environment.items():
                patch.setenv(name, value)
            with nodes(4, head_cores=0) as cluster:
                s3.fault = lambda method, path: draw.choices((None, SLOW_DOWN, CUT), (80, 1, 1))[0]
                process = command("cluster", "--ray", cluster.address, "--checkpoint-seconds", "0.5")
                longest = f"cluster/v{LENGTHS.index(max(LENGTHS)):02}/.resume-"
                wait_for(lambda: any(name.startswith(longest) for name in s3.names("data")))
                lose(cluster, next(iter(cluster.worker_nodes)))
                code, printed, err = ended(process)
                logs = [path.read_bytes() for path in Path(cluster.head_node.get_logs_dir_path()).rglob("*.*")]
        s3.fault = lambda method, path: None
        assert code == 0, err
        found = s3.contents("data/cluster")
        assert found == s3.contents("data/single")
    assert {name.partition("/")[0] for name in found if name.endswith("/run.json")} == {
        f"v{number:02}" for number in range(len(LENGTHS))
    }
    assert sorted(reported(printed)) == sorted(reported(out)), "nothing twice"
    assert len(logs) > 10
    for text in (*logs, *found.values(), (out + printed + err).encode()):
        assert SECRET.encode() not in text


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_ends_and_starts_again_goes_on(cluster, videos, weights, expected, tmp_path, how):
    output = tmp_path / "out"
    again = command(videos, weights, output, "--ray", cluster.address, "--checkpoint-seconds", "0")
    process = started(again)
    wait_for(lambda: any(output.glob("*/run.json")) and any(output.glob("*/.resume-*")))
    process.send_signal(how)
    code, out, err = ended(process)
    if how != signal.SIGKILL:
        assert code == 128 + how, err
        assert err.startswith("stm-fast: interrupted; all files written so far are complete\nTo resume:\n")
    earlier = {path.parent.name for path in output.glob("*/run.json")}
    code, out, err = ended(started(again))
    assert (code, err) == (0, ""), err
    assert contents(output) == expected
    assert out.count("finished earlier") >= len(earlier) > 0


@pytest.mark.slow
def test_a_video_that_fails_is_listed_and_the_others_finish(cluster, videos, weights, expected, tmp_path):
    (tmp_path / "broken.mp4").write_text("not a video")
    sources = [str(tmp_path / "broken.mp4"), str(tmp_path / "absent.mp4")]
    given = command(videos, weights, tmp_path / "out", "--ray", cluster.address, only="v0[2-4].mp4")
    code, out, err = ended(started([given[0], *sources, *given[1:]]))
    assert (code, sorted(reported(out))) == (2, ["v02", "v03", "v04"])
    lines = err.splitlines()
    assert lines[0] == "stm-fast: 2 of 5 videos failed:"
    assert len(lines) == 3
    assert "no masks for" in err
    found = contents(tmp_path / "out")
    assert found == {name: data for name, data in expected.items() if name[:3] in ("v02", "v03", "v04")}


@pytest.mark.slow
def test_bulk_yields_each_video_once(cluster, videos, weights, expected, tmp_path):
    load = partial(stm_fast.load, weights, dtype="float32")
    sources = (str(videos / f"v{number:02}.mp4") for number in (0, 2, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        results = list(stm_fast.bulk(sources, videos / "masks", tmp_path / "out", load=load, workers=2))
    assert sorted(result.source for result in results) == [str(videos / f"v{number:02}.mp4") for number in (0, 2, 4)]
    assert [result.error for result in results] == [None] * 3
    assert {result.summary.frames for result in results} == {LENGTHS[0], LENGTHS[2], LENGTHS[4]}
    # the record that marks a finished video stays, as with several videos of a command
    assert contents(tmp_path / "out") == {
        name: data for name, data in expected.items() if name[:3] in ("v00", "v02", "v04")
    }


@pytest.mark.slow
def test_a_task_that_kills_its_worker_fails_and_the_others_finish(cluster, tmp_path):
    def setup(should_stop):
        def run(task):
            with (tmp_path / str(task)).open("a") as file:
                file.write("x")
            if task == 1:
                os._exit(1)
            return task

        return run

    with connected(ClusterChoice(cluster.address, workers=2)) as room:
        done = list(run_tasks(room, range(4), setup))
    assert sorted(one.task for one in done) == [0, 1, 2, 3]
    assert {one.task: one.result for one in done} == {0: 0, 1: None, 2: 2, 3: 3}
    (crash,) = [one.crash for one in done if one.crash]
    assert f"its worker was lost {MOST_LOSSES + 1} times" in crash
    assert (tmp_path / "1").read_text() == "x" * (MOST_LOSSES + 1)


@pytest.mark.slow
def test_tasks_are_taken_when_workers_are_free(cluster):
    taken = []

    def tasks():
        for number in count():
            taken.append(number)
            yield number

    with connected(ClusterChoice(cluster.address, workers=2)) as room:
        done = run_tasks(room, tasks(), lambda _: lambda task: task)
        for ended_so_far in range(1, 50):
            next(done)
            assert len(taken) <= ended_so_far + 4, "two that run, one that waits, one that has just ended"
        done.close()


@pytest.mark.slow
def test_evaluate_gives_the_same_scores(cluster, weights, tmp_path):
    write_davis(tmp_path / "davis")
    tables = []
    for name, more in (("here", ()), ("there", ("--ray", cluster.address))):
        given = ["evaluate", "davis17", "--data", str(tmp_path / "davis"), "-o", str(tmp_path / name)]
        code, out, err = ended(started([*given, "--weights", str(weights), *more]))
        assert (code, err) == (0, ""), err
        tables.append(out.partition("frames/s")[0].rpartition("\n")[0])
        masks = contents(tmp_path / name / "Annotations")
        assert len(masks) == 10
    assert tables[0] == tables[1] != ""
    assert masks == contents(tmp_path / "here/Annotations")
    csv = [contents(tmp_path / name) for name in ("here", "there")]
    assert {name for name in csv[0] if name.endswith(".csv")} == {name for name in csv[1] if name.endswith(".csv")}
    assert all(csv[0][name] == csv[1][name] for name in csv[0] if name.endswith(".csv"))


@pytest.mark.slow
def test_ray_job_submit(videos, weights, expected, tmp_path):
    given = command(videos, weights, tmp_path / "out", "--ray", only="v0[2-4].mp4")
    with nodes(1, dashboard=True) as cluster:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
        submit = [*ray, "--address", f"http://{cluster.head_node.webui_url}", "--", sys.executable, "-m", "stm_fast"]

        def submitted():
            done = subprocess.run([*submit, *given], capture_output=True, text=True, timeout=PATIENCE, check=False)
            return None if "No available agent" in done.stderr else done  # the cluster is still starting

        done = wait_for(submitted)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(tmp_path / "out") == {
        name: data for name, data in expected.items() if name[:3] in ("v02", "v03", "v04")
    }


@pytest.mark.slow
# Ray's own cluster for tests leaves its log files open
@pytest.mark.filterwarnings("ignore:.*ray_client_server:pytest.PytestUnraisableExceptionWarning")
def test_a_ray_client_server(videos, weights, expected, tmp_path):
    port = free_port()
    given = command(videos, weights, tmp_path / "out", "--ray", f"ray://127.0.0.1:{port}", only="v0[2-4].mp4")
    with nodes(1, client_port=port):

        def run():
            code, _, err = ended(started(given))
            return None if "--ray: no" in err else (code, err)  # the server is still starting

        assert wait_for(run) == (0, "")
    assert contents(tmp_path / "out") == {
        name: data for name, data in expected.items() if name[:3] in ("v02", "v03", "v04")
    }


def test_networks_on_a_cpu_need_no_gpu():
    assert ClusterChoice().for_device("cpu").gpus == 0
    assert ClusterChoice(gpus=0.5).for_device("cpu").gpus == 0.5
    assert ClusterChoice().for_device("auto").gpus is None


def refused(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
    return result.stderr


def test_what_a_cluster_cannot_do_is_refused(videos, weights, tmp_path, monkeypatch):
    def segment(*more):
        return refused(*command(videos, weights, tmp_path / "out", *more, only="v00.mp4"))

    assert "--ray: found with --shard-memory, expected one of them" in segment("--ray", "--shard-memory")
    assert "--ray: found with --overlay-stream" in segment("--ray", "--overlay-stream", str(tmp_path / "o.ts"))
    assert "--ray-workers: found 2 without --ray" in segment("--ray-workers", "2")
    assert "--ray-gpus: found 0.5 without --ray" in segment("--ray-gpus", "0.5")
    assert "--ray: found 'somewhere', expected auto, local, host:port or ray://host:port" in segment("--ray=somewhere")
    assert "nothing answers at 127.0.0.1:1 (Connection refused)" in segment("--ray", "127.0.0.1:1")
    assert "nothing answers at ray://127.0.0.1:1 (" in segment("--ray", "ray://127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    assert "nothing answers at 127.0.0.1:2 (Connection refused)" in segment("--ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert segment("--ray", "local").endswith("; pip install ray\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_one_video_that_fails_is_one_line(cluster, videos, weights, tmp_path):
    (tmp_path / "broken.mp4").write_text("not a video")
    given = ["segment", str(tmp_path / "broken.mp4"), "-m", str(videos / "masks/v00.png"), "-o", str(tmp_path / "out")]
    code, out, err = ended(started([*given, "--weights", str(weights), "--ray", cluster.address]))
    assert (code, out) == (2, "")
    assert err.startswith(f"stm-fast: {tmp_path / 'broken.mp4'}: not a video")
    assert err.count("\n") == 1
    given[1] = "memory://broken.mp4"
    code, out, err = ended(started([*given, "--weights", str(weights), "--ray", cluster.address]))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "memory://broken.mp4: found memory of this process, which a cluster cannot see" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "output", "fault", "words"),
    [
        ("v00.mp4", "absent/out", None, "s3://absent/out: not found"),
        ("absent.mp4", "data/out", None, "s3://data/absent.mp4: no such object"),
        ("v00.mp4", "data/out", FULL, "s3://data/out/.resume.json: cannot be written: "),
        ("v00.mp4", "data/out", DENIED, "s3://data/out/.resume.json: cannot be written: no permission"),
    ],
)
def test_what_is_wrong_with_a_store_is_one_line(videos, weights, source, output, fault, words):
    with s3_server() as s3:
        s3.put("data")
        for name in ("v00.mp4", "masks/v00.png"):
            s3.put(f"data/{name}", (videos / name).read_bytes())
        before = s3.names("data")
        s3.fault = lambda method, path: fault if method == "PUT" else None
        given = ["segment", f"s3://data/{source}", "-m", "s3://data/masks/v00.png", "-o", f"s3://{output}"]
        code, out, err = ended(started([*given, "--weights", str(weights), "--ray", "local"], **s3.environment))
        s3.fault = lambda method, path: None
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith(f"stm-fast: {words}")
        assert s3.names("data") == before


@pytest.mark.slow
def test_a_cluster_that_is_too_small_is_refused(cluster, videos, weights, tmp_path):
    for option, amount, found in (("--ray-cpus", "5", 3), ("--ray-gpus", "1", 0)):
        given = command(videos, weights, tmp_path / "out", "--ray", cluster.address, option, amount, only="v00.mp4")
        code, out, err = ended(started(given))
        assert (code, out) == (2, "")
        assert err == f"stm-fast: {option}: found {amount}, expected at most {found}, what the cluster has\n"
    assert not (tmp_path / "out").exists()


def test_longest_first():
    assert list(longest_first([2, 5, 1, 4], float)) == [5, 4, 2, 1]
    assert list(longest_first([2, 5, 1, 4, 9], float, window=2)) == [5, 2, 4, 9, 1]
    assert list(longest_first("abc", lambda _: 1)) == list("abc"), "equally long ones in their order"
    taken = longest_first(count(), float, window=3)
    assert [next(taken) for _ in range(3)] == [2, 3, 4], "of an endless number, few are held"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a.mp4", "--ray"], ["a.mp4", "--ray", "auto"]),
        (["--ray", "a.mp4"], ["--ray", "auto", "a.mp4"]),
        (["--ray", "--quiet"], ["--ray", "auto", "--quiet"]),
        (["--ray", "head:6379", "a.mp4"], ["--ray", "head:6379", "a.mp4"]),
        (["--ray", "ray://[::1]:10001"], ["--ray", "ray://[::1]:10001"]),
        (["--ray=local", "a.mp4"], ["--ray=local", "a.mp4"]),
        (["--ray", "--", "--ray"], ["--ray", "auto", "--", "--ray"]),
        (["a.mp4", "--", "--ray"], ["a.mp4", "--", "--ray"]),
    ],
)
def test_the_address_after_ray_may_be_missing(given, expected):
    assert with_address(given) == expected
