"""Every option of every command, and every field of `MemoryConfig`, runs and has an effect.

The options are read from the commands; the tables give each one values and a check of its effect.
"""

import dataclasses
import functools
import inspect
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner, Result

import command_line
from page_client import Client
from processes import free_port
from small_inputs import SMALL, write_davis, write_weights, write_youtube
from stm_fast.__main__ import app
from stm_fast.benchmarking.records import FrameRow, ReadRow, read_record
from stm_fast.commands.verbosity import _NOTES
from stm_fast.config import MemoryConfig
from stm_fast.data.sequences import davis17
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.evaluation.benchmark_sets import run_sequences
from stm_fast.export.formats import FORMATS
from stm_fast.inference.engine import VideoSegmenter
from stm_fast.inference.options import RunOptions
from stm_fast.network import architecture_of, stm_lite2
from stm_fast.network.deploy import for_inference
from stm_fast.ops.backends import BACKENDS
from stm_fast.page.server import PageServer
from stm_fast.runs.checkpoint import Checkpoint
from stm_fast.runs.video import InterruptedRun, Summary, segment_job, segment_video
from stm_fast.tasks.network import load_for_inference, load_model, prepare
from stm_fast.tasks.open import open_page
from stm_fast.training.log import read_log
from stm_fast.video import open_frames, read_mask
from training_runs import SMALL as SMALL_TRAINING

pytest.importorskip("av")
pytest.importorskip("accelerate")
pytest.importorskip("cv2")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the tables are for a machine without a CUDA device")

FRAMES = 7
SHAPE = "2x3-T2-O1"  # of a memory read
CLIP, FIRST = Path("davis/JPEGImages/480p/blob"), Path("davis/Annotations/480p/blob/00000.png")
OUT = Path("out")
ABSENT = {backend.name: backend.absent_reasons()[0] for backend in BACKENDS if backend.absent_reasons()}
# the default arguments of a run
GIVEN: dict[str, dict[str, Any]] = {
    "": {},
    "demo": {"--output": "out", "--frames": 3},
    "convert": {"sources": "small.safetensors", "target": "out.safetensors"},
    "export": {"--weights": "small.safetensors", "--format": "pt2", "--output": "out"},
    "info": {},
    "open": {"source": CLIP, "--output": "out", "--port": 0},
    "segment": {"sources": CLIP, "--masks": FIRST, "--output": "out"},
    "train": {"config": "run.yaml", "--output": "out"},
    "evaluate": {"benchmark": "davis17", "--data": "davis", "--output": "out", "--sequence": "blob"},
    "benchmark read": {"--shapes": SHAPE, "--routes": "published", "--passes": "forward", "--output": "found.json"},
    "benchmark frames": {"--shapes": "64p-T1-O1", "--output": "found.json"},
    "benchmark tune": {"--shapes": SHAPE, "--output": "found.json"},
}


class Seen:
    """What a command did."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}  # of the function that runs the network
        self.summary: Summary | None = None
        self.segmenters: list[VideoSegmenter] = []
        self.checkpoints: list[int] = []  # the number of finished frames at each
        self.modes: set[str] = set()  # of torch.compile
        self.stdout = ""
        self.browsers: list[str] = []  # the addresses that were opened

    @property
    def dtype(self) -> torch.dtype:
        return next(self.options["model"].parameters()).dtype

    @property
    def device(self) -> str:
        return next(self.options["model"].parameters()).device.type

    @property
    def kept(self) -> list[int]:
        """The first object's frames that are in memory at the end."""
        return sorted(self.segmenters[-1].bank.frames[0])


Effect = Callable[[Seen], bool]


class Run(NamedTuple):
    """A command line.

    options: by name, the value (None for a flag, a list to repeat the option, a tuple for several arguments) and a
        check of its effect
    without: default arguments to leave out
    before:  called before the command
    refused: a part of the error line, if the command cannot do that here
    """

    options: dict[str, tuple[Any, Effect]]
    without: tuple[str, ...] = ()
    before: Callable[[], object] = lambda: None
    refused: str = ""


def refused(name: str, value: Any, words: str) -> Run:
    return Run({name: (value, lambda _: False)}, refused=words)


def packed(**values: list[tuple[Any, Effect]]) -> list[Run]:
    """Independent options share runs: run i has the i-th value of each."""
    names = [f"--{name}" for name in values]
    rows = zip_longest(*values.values())
    return [Run({name: pair for name, pair in zip(names, row, strict=True) if pair is not None}) for row in rows]


# effects


def given(**options: Any) -> Effect:
    return lambda seen: options.items() <= seen.options.items()


def remembers(**fields: Any) -> Effect:
    return lambda seen: fields.items() <= vars(seen.options["memory"]).items()


def keeps(*frames: int) -> Effect:
    return lambda seen: seen.kept == list(frames)


def is_network(backbone: str, key_dim: int) -> Effect:
    expected = {"backbone": backbone, "key_dim": key_dim}
    return lambda seen: expected.items() <= vars(seen.options["model"].architecture).items()


def writes(*names: str) -> Effect:
    return lambda _: all(Path(name).exists() for name in names)


def writes_only(*names: str) -> Effect:
    return lambda _: sorted(path.name for path in OUT.iterdir()) == sorted(names)


def says(words: str) -> Effect:
    return lambda seen: words in seen.stdout


def masks_in(folder: Path) -> list[np.ndarray]:
    found = [file for file in sorted(folder.rglob("000*.png")) if not file.parent.name.startswith(".")]
    return [read_mask(file).ids for file in found]


def same_masks(_: Seen) -> bool:
    found, expected = masks_in(OUT), masks_in(Path("plain"))
    return len(found) == len(expected) > 0 and all(map(np.array_equal, found, expected))


def other_masks(seen: Seen) -> bool:
    return not same_masks(seen)


def json_of(path: Path) -> Any:
    return json.loads(path.read_text())


def results() -> Any:
    return json_of(OUT / "results.json")


def timed() -> Any:
    return read_record(Path("found.json"), ReadRow)


def frames_timed() -> Any:
    return read_record(Path("found.json"), FrameRow).rows[0]


def log() -> list[dict[str, Any]]:
    return read_log(OUT / "log.jsonl")


# preparations


def earlier_results(folder: str) -> None:
    Path(folder).mkdir(parents=True)
    Path(folder, "00099.png").touch()


def interrupted() -> None:
    """A run that ends after its first frame."""
    with pytest.raises(InterruptedRun):
        segment_video(CLIP, FIRST, OUT, model=for_inference(stm_lite2()), min_size=1, should_stop=lambda: True)


def corrupted() -> None:
    source = Path("davis").resolve()
    Path("davis").unlink()
    shutil.copytree(source, "davis")
    for file in Path("davis/JPEGImages/480p/star").iterdir():
        file.write_bytes(b"\xff\xd8no")


# the tables

COMPILED = {"--weights": ("small.safetensors", is_network("resnet18", SMALL["key_dim"]))}
NETWORK = Run(
    {
        "--dtype": ("float32", lambda seen: seen.dtype == torch.float32),
        "--backend": ("reference", given(backend="reference")),
        "--compile": ("default", lambda seen: seen.modes == {"default"}),
        "--device": ("cpu", lambda seen: seen.device == "cpu"),
    }
    | COMPILED
)
IN_BFLOAT16 = ("bfloat16", lambda seen: seen.dtype == torch.bfloat16)  # faster to prepare than float32
UNTRAINED = [
    Run({"--arch": ("resnet18", is_network("resnet18", 128)), "--dtype": IN_BFLOAT16}),
    Run({"--arch": ("lite0", is_network("efficientnet_lite0", 96))}),
    Run({"--arch": ("lite2", is_network("efficientnet_lite2", 96))}),
]
EVERY_NETWORK = [
    *packed(
        dtype=[
            ("float16", lambda seen: seen.dtype == torch.float16),
            ("auto", lambda seen: seen.dtype in (torch.float32, torch.bfloat16, torch.float16)),
        ],
        backend=[(name, given(backend=name)) for name in ("auto", *(b.name for b in BACKENDS if b.name not in ABSENT))],
        device=[("auto", lambda seen: seen.device == "cpu")],
    ),
    Run({"--compile": ("reduce-overhead", lambda seen: seen.modes == {"reduce-overhead"})} | COMPILED),
    Run({"--compile": ("max-autotune", lambda seen: seen.modes == {"max-autotune"})} | COMPILED),
    *(refused("--backend", name, f"{name!r} cannot run this memory read: {why}") for name, why in ABSENT.items()),
    refused("--device", "cuda", "this machine has 0 CUDA devices"),
    refused("--device", "cuda:7", "this machine has 0 CUDA devices"),
]
SIZES = [
    Run({"--max-size": (16, given(max_size=16))}),
    Run({"--min-size": (64, given(min_size=64))}),
]
EVERY_FRAME = (1, remembers(every=1))
MEMORY = [
    Run({"--every": (1, keeps(*range(FRAMES - 1))), "--memory-storage": ("model", remembers(storage="model"))}),
    Run(
        {
            "--every": EVERY_FRAME,
            "--max-memory-frames": (3, remembers(max_frames=3)),
            "--evict": ("oldest", keeps(0, 4, 5)),
            "--memory-storage": ("float32", remembers(storage="float32")),
        }
    ),
    Run(
        {
            "--every": EVERY_FRAME,
            "--max-memory-frames": (4, remembers(max_frames=4)),
            "--evict": ("even", keeps(0, 2, 4, 5)),
            "--memory-storage": ("bfloat16", remembers(storage="bfloat16")),
        }
    ),
    Run(
        {
            "--every": EVERY_FRAME,
            "--max-memory-bytes": ("20kB", lambda seen: seen.segmenters[-1].bank.nbytes <= 20_000),
            "--evict": ("least_used", lambda seen: 1 <= len(seen.kept) < FRAMES - 1),
            "--memory-storage": ("float16", remembers(storage="float16")),
        }
    ),
    Run(
        {
            "--every": EVERY_FRAME,
            "--max-memory-frames": (4, remembers(max_frames=4)),
            "--consolidate": (1, keeps(0, 4, 5)),
        }
    ),
    refused("--consolidate", 1, "--consolidate: found 1, expected --max-memory-frames or --max-memory-bytes with it"),
    Run({"--first-and-previous": (None, keeps(0)), "--memory-storage": ("int8", remembers(storage="int8"))}),
    Run({"--no-previous": (None, other_masks), "--memory-storage": ("fp8", remembers(storage="fp8"))}),
    # these change no mask
    Run({"--memory-place": ("device", same_masks), "--memory-graph": (None, remembers(graph=True))}),
    Run({"--memory-place": ("host", same_masks), "--no-redetect": (None, remembers(redetect=False))}),
    Run({"--memory-place": ("disk", same_masks), "--memory-folder": ("davis", remembers(folder=Path("davis")))}),
]
QUIET = {"--quiet": (None, lambda _: _NOTES.level == logging.ERROR)}
VERBOSE = {"--verbose": (None, lambda _: _NOTES.level == logging.INFO)}


def with_verbosity(first: Run, second: Run, *others: Run) -> list[Run]:
    """The runs of a command, the first of them quiet and the second verbose."""
    pairs = ((first, QUIET), (second, VERBOSE))
    return [*(run._replace(options=run.options | more) for run, more in pairs), *others]


# test_cluster.py runs them on a cluster
CLUSTER = [
    refused("--ray", "127.0.0.1:1", "nothing answers at 127.0.0.1:1"),
    refused("--ray-workers", 2, "found 2 without --ray"),
    refused("--ray-cpus", 0.5, "found 0.5 without --ray"),
    refused("--ray-gpus", 0.5, "found 0.5 without --ray"),
]
DEMO = [
    Run(
        {
            "--output": ("out", writes("out/clip.mp4", "out/first_mask.png", "out/result/masks/00001.png")),
            "--frames": (2, says("2 frames, ")),
            "--objects": (1, says("objects 1, ")),
            "--overwrite": (None, lambda _: not Path("out/result/masks/00099.png").exists()),
        },
        before=lambda: earlier_results("out/result/masks"),
    ),
    Run({"--seed": (1, other_masks)}),
    Run(
        {
            "--arch": ("resnet50", is_network("resnet50", 128)),
            "--dtype": IN_BFLOAT16,
            "--frames": (2, says("2 frames, ")),
        }
    ),
]
CONVERT = [
    Run(
        {
            "sources": ("small.safetensors", says("STM with resnet18, key_dim=16")),
            "target": ("out.safetensors", lambda _: architecture_of("out.safetensors").key_dim == SMALL["key_dim"]),
            "--half": (
                None,
                lambda _: Path("out.safetensors").stat().st_size < 0.6 * Path("small.safetensors").stat().st_size,
            ),
            "--overwrite": (None, lambda _: Path("out.safetensors").stat().st_size > 0),
        },
        before=Path("out.safetensors").touch,
    )
]
RECORD = functools.partial(json_of, OUT / "export.json")
EXPORT = [
    Run(
        {
            "--weights": ("open", lambda _: RECORD()["weights"]["source"] == "open"),
            "--output": ("out", writes("out/export.json", "out/encode_query.pt2", "out/decode.pt2")),
            "--format": ("pt2", lambda _: RECORD()["format"] == "pt2"),
            "--dtype": ("float32", lambda _: RECORD()["dtype"] == "float32"),
            "--backend": ("reference", lambda _: RECORD()["backend"] == "reference"),
        }
    ),
    Run(
        {
            "--weights": ("small.safetensors", lambda _: RECORD()["architecture"]["backbone"] == "resnet18"),
            "--format": ("onnx", writes("out/memorize.onnx")),
        }
    ),
    Run(
        {
            "--format": ("aoti", lambda _: RECORD()["format"] == "aoti"),
            "--dtype": ("bfloat16", lambda _: RECORD()["parts"]["decode"]["inputs"]["read"]["dtype"] == "bfloat16"),
            "--backend": ("cpp", lambda _: RECORD()["backend"] == "cpp"),
        }
    ),
    Run({"--dtype": ("float16", lambda _: RECORD()["parts"]["decode"]["inputs"]["read"]["dtype"] == "float16")}),
]
PORT = free_port()
OPEN = [
    Run(
        {
            "source": (CLIP, lambda _: len(masks_in(OUT / "masks")) == FRAMES),
            "--output": ("out", writes("out/project.json", "out/given/00000.png", "out/masks/00001.png")),
            "--port": (PORT, says(f"http://127.0.0.1:{PORT}/?token=")),
            "--prompter": ("grabcut", lambda seen: given(prompter="grabcut")(seen) and remembers(max_frames=50)(seen)),
            "--no-browser": (None, lambda seen: seen.browsers == []),
        }
    ),
    Run(
        {
            "--host": ("localhost", lambda seen: "http://localhost:" in seen.stdout and seen.browsers != []),
            "--prompter": ("network", given(prompter="network")),
        }
    ),
    refused("--prompter", "sam2", "--prompter-weights: found none, expected a folder with weights of SAM 2"),
    refused("--prompter-weights", "davis", "--prompter-weights: davis: no such file, expected a checkpoint"),
    refused("--host", "256.0.0.1", "--host: found '256.0.0.1', expected an address of this machine"),
]
SEGMENT = [
    Run(
        {
            "sources": (CLIP, lambda _: len(masks_in(OUT)) == FRAMES),
            "--masks": (FIRST, lambda _: np.array_equal(masks_in(OUT)[0], read_mask(FIRST).ids)),
            "--output": ("out", same_masks),
            "--write": ("masks,overlay", writes_only("masks", "overlay.mp4", "run.json")),
            "--overwrite": (None, lambda _: not Path("out/masks/00099.png").exists()),
        },
        before=lambda: earlier_results("out/masks"),
    ),
    Run(
        {
            "--write": ("pictures,masks,csv", writes_only("masks", "overlay", "run.json", "objects.csv")),
            "--checkpoint-seconds": (0, lambda seen: len(seen.checkpoints) > 1),
        }
    ),
    Run({"--write": ("overlay", writes_only("overlay.mp4", "run.json"))}),
    Run(
        {
            "--overlay-stream": ("live.ts", lambda _: len(list(open_frames("live.ts"))) == FRAMES),
            "--stall-seconds": (5, lambda seen: seen.options["source"].stall_seconds == 5),
            "--drop-frames": (None, lambda seen: seen.options["source"].drop_frames),
        }
    ),
    refused("sources", "http://127.0.0.1:1/a.mp4", "needs the network, which --allow-network allows"),
    Run(
        {"sources": ("http://127.0.0.1:1/a.mp4", lambda _: False), "--allow-network": (None, lambda _: False)},
        refused="a.mp4: cannot be read as a video (Connection refused)",
    ),
    Run({"--write": ("matte,cutout,soft", writes_only("cutout", "matte.mp4", "run.json", "soft"))}),
    Run({"--write": ("alpha,webm", writes_only("alpha.mov", "alpha.webm", "run.json"))}),
    Run({"--mask-frame": (2, lambda _: masks_in(OUT)[2].any()), "--both": (None, lambda _: masks_in(OUT)[0].any())}),
    Run(
        {
            "--box": (
                ["4,4,20,16", "9:20,8,20,16@1"],
                lambda _: [ids.max() for ids in masks_in(OUT / "given")] == [1, 9],
            ),
            "--write": ("masks", writes("out/given/00001.png")),
        },
        without=("--masks",),
    ),
    Run(
        {"--boxes": ("boxes.csv", lambda _: [ids.max() for ids in masks_in(OUT / "given")] == [7])},
        without=("--masks",),
        before=lambda: Path("boxes.csv").write_text("frame,object,x,y,width,height\n2,7,4,4,20,16\n"),
    ),
    Run({"--mask-frame": (2, lambda _: [ids.any() for ids in masks_in(OUT)[:3]] == [False, False, True])}),
    Run({"--resume": (None, lambda seen: same_masks(seen) and seen.summary.resumed_at == 1)}, before=interrupted),
    # test_bulk.py runs it under torchrun
    refused("--shard-memory", None, "expected one video, and processes that torchrun starts"),
    *CLUSTER,
]
TRAIN = [
    Run(
        {
            "config": ("run.yaml", says("1 steps so far")),
            "--output": ("out", writes("out/checkpoint.pt", "out/model.safetensors")),
            "--set": (["epochs=1", "log.every=1"], lambda _: [line["step"] for line in log()] == [1]),
            "--stop-after-minutes": (0, says("1 steps so far")),
        }
    ),
    Run({"--resume": (None, says("5 steps done"))}, before=lambda: invoke("train", "--stop-after-minutes", 0)),
    Run({"--skip-corrupt": (None, lambda _: log()[-1]["skipped"] > 0)}, before=corrupted),
    Run({"--print-config": (None, says("\nbackbone_weights: null\n"))}, without=("--output",)),
    Run({"--fit-minutes": (0, lambda _: log()[-1]["step"] < 5)}),
]
EVALUATE = [
    Run(
        {
            "benchmark": ("davis17", lambda _: results()["run"]["set"] == "davis17"),
            "--data": ("davis", lambda _: results()["run"]["data"] == str(Path("davis").resolve())),
            "--split": ("val", writes("out/global_results-val.csv")),
            "--sequence": ("star", lambda _: [path.name for path in Path("out/Annotations").iterdir()] == ["star"]),
            "--output": ("out", writes("out/results.json")),
            "--report": (None, lambda _: "star" in Path("out/report.html").read_text()),
            "--baselines": (None, lambda _: set(results()["baselines"]) == {"first mask copied", "untrained network"}),
        }
    ),
    Run({"benchmark": ("davis16", lambda _: results()["run"]["set"] == "davis16")}),
    Run({"benchmark": ("folder", same_masks)}),
    Run(
        {
            "benchmark": ("youtube-vos", writes("out/submission.zip")),
            "--data": ("youtube", lambda _: results()["run"]["data"] == str(Path("youtube").resolve())),
        },
        without=("--sequence",),
    ),
    Run(
        {
            "benchmark": ("synthetic", writes("out/Annotations/seed000003")),
            "--split": (3, writes("out/data/JPEGImages/seed000003")),
        },
        without=("--data", "--sequence"),
    ),
    Run(
        {
            "--only-score": ((FIRST.parents[1],) * 2, lambda seen: "100.0" in seen.stdout and not seen.options),
            "--workers": (1, says("star_2")),
        },
        without=("--data", "--sequence"),
    ),
    Run({"--flip": (None, other_masks)}),
    Run({"--scale": ([0.75, 1], other_masks)}),
    *CLUSTER,
]
QUICKLY = {"--seconds": (0, lambda _: timed().settings["seconds"] == 0)}
BENCHMARK_READ = [
    Run(
        {
            "--shapes": (SHAPE, lambda _: timed().settings["shapes"] == [SHAPE]),
            "--routes": ("last-dim, chunks", lambda _: {"last-dim", "chunks"} < {row.route for row in timed().rows}),
            "--passes": ("top-k", lambda _: timed().settings["passes"] == ["top-k"]),
            "--dtypes": ("float16", lambda _: timed().settings["dtypes"] == ["float16"]),
            "--device": ("cpu", lambda _: timed().settings["device"] == "cpu"),
            "--output": ("found.json", writes("found.json")),
            "--no-plots": (None, lambda _: not list(Path().glob("*.svg"))),
            "--no-memory": (None, lambda _: all(row.extra_bytes is None for row in timed().rows)),
            "--rounds": (2, lambda _: {row.rounds for row in timed().rows} == {2}),
            "--minutes": (1, lambda _: timed().settings["deadline"] == 60),
            "--threads": (1, lambda _: timed().machine["threads"] == 1),
            "--json": (None, lambda seen: json.loads(seen.stdout.splitlines()[-1])["settings"]["rounds"] == 2),
        }
        | QUICKLY
    ),
    Run(
        {
            "--shapes": (f"{SHAPE},2x3-T3-O1", lambda _: len(timed().settings["shapes"]) == 2),
            "--device": ("auto", lambda _: timed().settings["device"] == "cpu"),
            "--memory": (None, lambda _: any(row.extra_bytes is not None for row in timed().rows)),
            "--plots": (None, lambda _: len(list(Path().glob("found.*.svg"))) > 0),
            "--quick": (None, lambda _: timed().settings["rounds"] == 3),
            "--overwrite": (None, lambda _: len(timed().rows) > 0),
        }
        | QUICKLY,
        before=Path("found.json").touch,
    ),
    refused("--device", "cuda", "--device: found cuda, but this machine has no CUDA device"),
]
FAST = {"--rounds": (1, lambda _: frames_timed().rounds == 1)}
FAST |= {"--weights": ("small.safetensors", lambda _: frames_timed().workload.weights == "small.safetensors")}
BENCHMARK_FRAMES = [
    Run(
        {
            "--shapes": ("64p-T1-O1", lambda seen: "64p-T1-O1, small.safetensors, 1 rounds" in seen.stdout),
            "--variants": ("prepared", lambda _: frames_timed().variant == "prepared"),
            "--device": ("cpu", lambda seen: "Beside the network, " in seen.stdout),
            "--threads": (1, lambda _: read_record(Path("found.json"), FrameRow).machine["threads"] == 1),
            "--no-memory": (None, lambda _: frames_timed().peak_bytes is None),
            "--output": ("other.json", lambda _: Path("found.json").samefile("other.json")),
        }
        | FAST,
        before=lambda: Path("found.json").symlink_to("other.json"),
    ),
    Run(
        {
            "--variants": ("prepared", lambda _: frames_timed().variant == "prepared"),
            "--device": ("auto", lambda _: Path("found.json").stat().st_size > 0),
            "--memory": (None, lambda _: frames_timed().peak_bytes > 0),
            "--overwrite": (None, lambda _: frames_timed().rounds == 1),
        }
        | FAST,
        before=Path("found.json").touch,
    ),
    refused("--device", "cuda", "--device: found cuda, but this machine has no CUDA device"),
]
NO_TILES = "--device: found cpu, expected a CUDA device"
BENCHMARK_TUNE = [
    *(refused(name, value, NO_TILES) for name, value in {"--device": "cpu", "--threads": 1, "--output": "x"}.items()),
    *(refused(name, value, NO_TILES) for name, value in {"--shapes": SHAPE, "--device": "auto"}.items()),
    *(refused(name, value, NO_TILES) for name, value in {"--passes": "forward", "--dtypes": "float16"}.items()),
    *(refused(name, None, NO_TILES) for name in ("--overwrite", "--quiet", "--verbose")),
    refused("--device", "cuda", "--device: found cuda, but this machine has no CUDA device"),
]
# test_verbosity.py runs them before a command
BEFORE_A_COMMAND = [refused(name, None, "Missing command") for name in ("--quiet", "--verbose")]
RUNS = {
    "": [Run({"--version": (None, says("stm_fast 0.1.0"))}), *BEFORE_A_COMMAND],
    "demo": with_verbosity(*DEMO, NETWORK, *UNTRAINED),
    "convert": with_verbosity(*CONVERT, Run({})),
    "export": with_verbosity(*EXPORT),
    "info": with_verbosity(Run({}), Run({})),
    "open": with_verbosity(*OPEN, NETWORK, *UNTRAINED, *SIZES, *MEMORY),
    "segment": with_verbosity(*SEGMENT, NETWORK, *UNTRAINED, *EVERY_NETWORK, *SIZES, *MEMORY),
    "train": with_verbosity(*TRAIN),
    "evaluate": with_verbosity(*EVALUATE, NETWORK, *UNTRAINED, *SIZES, *MEMORY),
    "benchmark read": with_verbosity(*BENCHMARK_READ),
    "benchmark frames": with_verbosity(*BENCHMARK_FRAMES),
    "benchmark tune": BENCHMARK_TUNE,
}
OF_TYPER = ("--install-completion", "--show-completion")
COMMANDS = {"": typer.main.get_command(app)} | command_line.COMMANDS


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """The names of a Literal anywhere in a type."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for inner in get_args(annotation) for choice in choices_of(inner))


def declared(command: str) -> dict[str, Any]:
    """The type of each option by its name, as the command declares it."""
    types = inspect.signature(command_line.CALLBACKS[command]).parameters if command else {}
    return {
        name: types[parameter.name].annotation if parameter.name in types else None
        for parameter in COMMANDS[command].params
        for name in (parameter.opts[0], *parameter.secondary_opts)
        if name not in OF_TYPER
    }


def values_of(command: str, name: str) -> list[Any]:
    return [run.options[name][0] for run in RUNS[command] if name in run.options]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_tables_cover_every_option_and_every_choice(command):
    options = declared(command)
    assert {name for run in RUNS[command] for name in run.options} == set(options)
    assert set(GIVEN[command]) <= set(options)
    for name, annotation in options.items():
        # commands that share a declaration share its choices
        sharing = [other for other in COMMANDS if declared(other).get(name) == annotation]
        values = [value for other in sharing for value in values_of(other, name)]
        assert not [choice for choice in choices_of(annotation) if choice not in values], name


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with the inputs of the runs."""
    root = tmp_path_factory.mktemp("inputs")
    write_weights(root / "small.safetensors")
    write_davis(root / "davis", frames=FRAMES)
    shutil.copytree(root / "davis/ImageSets/2017", root / "davis/ImageSets/2016")
    write_youtube(root / "youtube")
    source = {"kind": "folder", "path": "davis", "split": "all"}
    config = SMALL_TRAINING | {"data": [source], "log": {"every": 1, "pictures": None}}
    (root / "run.yaml").write_text(yaml.safe_dump(config))
    return root


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Caches results by the choice of a network, which many runs share; compiled networks are not cached.

    The networks do not upscale small frames, so that the runs are short.
    """

    def quick(*arguments: Any) -> Any:
        model = function(*arguments)
        model.min_size = 1
        return model

    cached = functools.cache(quick)
    return lambda *arguments: cached(*arguments) if arguments[-1].compile is None else quick(*arguments)


load_once, load_model_once, prepare_once = map(once, (load_for_inference, load_model, prepare))


def used_by_a_person(seen: Seen, serve: Callable[[PageServer], None]) -> Callable[[PageServer], None]:
    """Serves the page until someone has drawn two objects and tracked them."""

    def use(server: PageServer) -> None:
        try:
            client = Client(server.url).enter()
            for number, x in ((1, 12), (2, 36)):
                client.post("/api/objects")
                assert client.prompt(object=number, tool="brush", points=[[x, 12], [x, 18]], radius=6).status == 200
            with client.listening() as listener:
                client.post("/api/track", {"frame": 0})
                assert listener.until_done()[-1]["error"] is None
        finally:
            server.should_exit = True

    def serve_a_person(server: PageServer) -> None:
        with ThreadPoolExecutor(1) as person:
            done = person.submit(use, server)
            serve(server)
            done.result()
        seen.options["model"] = server.session.network

    return serve_a_person


@pytest.fixture
def seen(monkeypatch):
    """Makes commands use small clips, and records what they do."""
    seen, compile = Seen(), torch.compile

    def recording(function: Callable[..., Any], options_of: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            seen.options = seen.options or options_of(*arguments, **options)
            seen.summary = function(*arguments, **options)
            return seen.summary

        return call

    class RecordedSegmenter(VideoSegmenter):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            seen.segmenters.append(self)

    class RecordedCheckpoint(Checkpoint):
        def save(self, frames: int, *rest: Any) -> None:
            super().save(frames, *rest)
            seen.checkpoints.append(frames)

    def compile_quickly(method: Callable[..., Any], mode: str) -> Callable[..., Any]:
        seen.modes.add(mode)
        return compile(method, backend="eager")

    for name in ("demo", "open", "segment"):
        monkeypatch.setattr(f"stm_fast.tasks.{name}.load_for_inference", load_once)
    monkeypatch.setattr(PageServer, "serve_until_stopped", used_by_a_person(seen, PageServer.serve_until_stopped))
    monkeypatch.setattr("stm_fast.tasks.open.webbrowser.open", seen.browsers.append)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("stm_fast.tasks.evaluate.load_model", load_model_once)
    monkeypatch.setattr("stm_fast.tasks.evaluate.prepare", prepare_once)
    segment = recording(
        segment_job,
        lambda job, model, options, outputs, *_: {
            **job._asdict(),
            **vars(options),
            **vars(outputs),
            "model": model,
        },
    )
    opened = recording(open_page, lambda _, __, network, options, page: {**vars(options), **page._asdict()})
    monkeypatch.setattr("stm_fast.tasks.open.open_page", opened)
    evaluate = recording(run_sequences, lambda _, __, model, options, *___: {"model": model, **vars(options)})
    monkeypatch.setattr("stm_fast.runs.video.segment_job", segment)
    monkeypatch.setattr("stm_fast.tasks.segment.segment_job", segment)
    monkeypatch.setattr("stm_fast.tasks.evaluate.run_sequences", evaluate)
    monkeypatch.setattr("stm_fast.inference.augmentation.VideoSegmenter", RecordedSegmenter)
    monkeypatch.setattr("stm_fast.runs.video.Checkpoint", RecordedCheckpoint)
    monkeypatch.setattr(torch, "compile", compile_quickly)
    small_clip = functools.partial(SyntheticClip, height=32, width=48)
    monkeypatch.setattr("stm_fast.tasks.demo.SyntheticClip", small_clip)
    monkeypatch.setattr("stm_fast.data.synthetic_set.SyntheticClip", small_clip)
    monkeypatch.setattr("stm_fast.data.synthetic_set.SEQUENCES", 1)
    monkeypatch.setattr("stm_fast.data.synthetic_set._FRAMES", 4)
    # test_export.py has the writers
    formats = {name: (end, lambda _, path: path.touch()) for name, (end, _) in FORMATS.items()}
    monkeypatch.setattr("stm_fast.export.folder.FORMATS", formats)
    threads = torch.get_num_threads()
    yield seen
    torch.set_num_threads(threads)


def invoke(command: str, *more: Any) -> Result:
    """Runs a command with its default arguments and more."""
    words = (*command.split(), *words_of(GIVEN[command]), *more)
    return CliRunner().invoke(app, [str(word) for word in words])


def words_of(options: dict[str, Any]) -> Iterator[Any]:
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            if name.startswith("-"):
                yield name
            if each is not None:
                yield from each if isinstance(each, tuple) else (each,)


def enter(folder: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    for path in inputs.iterdir():
        (folder / path.name).symlink_to(path)
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def plain_folders(tmp_path_factory):
    """Holds a folder for each command's run without options, filled by the first run that is compared with it."""
    return tmp_path_factory.mktemp("plain")


ROWS = [(command, run) for command, runs in RUNS.items() for run in runs]


@pytest.mark.parametrize(("command", "run"), ROWS, ids=[" ".join((command, *run.options)) for command, run in ROWS])
def test_every_option_runs_and_has_an_effect(command, run, seen, inputs, plain_folders, tmp_path, monkeypatch):
    plain = plain_folders / command
    if command in ("demo", "open", "segment", "evaluate") and not plain.exists():
        enter(plain, inputs, monkeypatch)
        assert invoke(command).exit_code == 0
        seen.__init__()
    enter(tmp_path / "run", inputs, monkeypatch)
    Path("plain").symlink_to(plain / "out")
    run.before()
    options = GIVEN[command] | {name: value for name, (value, _) in run.options.items()}
    options = {name: value for name, value in options.items() if name not in run.without}
    words = [str(word) for word in (*command.split(), *words_of(options))]
    result = CliRunner().invoke(app, words)
    if run.refused:
        assert result.exit_code == 2, (words, result.output)
        assert run.refused in result.stderr
        assert result.stderr.count("\n") == 1
        assert not OUT.exists()
        return
    assert result.exit_code == 0, (words, result.output, result.exception)
    seen.stdout = result.stdout
    for name, (value, effect) in run.options.items():
        assert effect(seen), f"{command} {name} {value}: no effect"


# for each field, configurations and whether they give the default masks (None: they may or may not)
FIELDS: dict[str, list[tuple[dict[str, Any], bool | None]]] = {
    "every": [({"every": 1}, False), ({"every": None}, None)],
    "previous": [({"previous": False}, False)],
    "redetect": [({"redetect": False}, True)],
    "frames": [({"frames": 1}, True), ({"frames": 50}, True)],
    "max_frames": [({"max_frames": 1}, None), ({"max_frames": 50}, True)],
    "max_bytes": [({"max_bytes": 30_000}, None), ({"max_bytes": 10**9}, True)],
    "evict": [({"every": 1, "max_frames": 3, "evict": evict}, False) for evict in ("oldest", "least_used", "even")],
    "consolidate": [
        ({"every": 1, "max_frames": 4, "consolidate": 2}, False),
        ({"max_frames": 50, "consolidate": 8}, True),
    ],
    "storage": [
        *(({"storage": storage}, True) for storage in ("model", "float32")),
        *(({"storage": storage}, None) for storage in ("bfloat16", "float16", "int8")),
        ({"storage": "fp8"}, False),
    ],
    "place": [
        *(({"place": place}, True) for place in ("device", "host")),
        ({"place": "disk", "folder": Path()}, True),
    ],
    "folder": [({"place": "disk", "folder": Path("davis")}, True)],
    "page_bytes": [({"place": "host", "page_bytes": 64}, True)],
    "graph": [({"graph": True}, True)],
}
CONFIGURATIONS = [pair for pairs in FIELDS.values() for pair in pairs]


def test_the_table_covers_every_field_and_every_choice():
    types = {field.name: field.type for field in dataclasses.fields(MemoryConfig)}
    assert set(FIELDS) == set(types)
    for name, kind in types.items():
        given = {config.get(name, getattr(MemoryConfig(), name)) for config, _ in FIELDS[name]}
        assert set(choices_of(kind)) <= given
        assert given != {getattr(MemoryConfig(), name)}


@pytest.fixture(scope="module")
def model():
    model = for_inference(stm_lite2())
    model.min_size = 1
    return model


@pytest.fixture(scope="module")
def default_masks(model, inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("default") / "out"
    segment_video(inputs / CLIP, inputs / FIRST, output, model=model, write=("masks", "csv"))
    return masks_in(output)


@pytest.mark.parametrize(("fields", "same"), CONFIGURATIONS, ids=str)
def test_every_field_means_the_same_in_segment_and_in_evaluate(
    fields, same, model, inputs, default_masks, tmp_path, monkeypatch
):
    enter(tmp_path / "run", inputs, monkeypatch)
    memory = MemoryConfig(**fields)
    segment_video(CLIP, FIRST, OUT, model=model, memory=memory, write=("masks", "csv"))
    Path("sets/timings").mkdir(parents=True)
    run_sequences(davis17(Path("davis"), "val")[:1], Path("sets"), model, RunOptions(memory))
    found, evaluated = masks_in(OUT), masks_in(Path("sets"))
    assert len(found) == len(evaluated) == FRAMES
    assert all(map(np.array_equal, found, evaluated))
    if same is not None:
        assert all(map(np.array_equal, found, default_masks)) == same
