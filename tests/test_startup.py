"""Import times: help and usage errors need no torch, inference no torchvision."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stm_fast
from command_line import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
# not pydantic, which typer imports if it is installed
HEAVY = ("torch", "torchvision", "triton", "numpy", "PIL", "av", "safetensors", "matplotlib", "accelerate")
HEAVY += ("jinja2", "psutil")
# listing the sequences of a set reads masks, which are arrays
ARRAYS = ("numpy", "PIL")

# runs command lines one after another; reports the output, exit code and newly imported modules of each
RUN = """
import contextlib, io, json, sys
from stm_fast.__main__ import main

known, reports = set(sys.argv[1].split(",")), []
for arguments in json.loads(sys.stdin.read()):
    sys.argv = ["stm-fast", *arguments]
    before, code = known & sys.modules.keys(), 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main()
        except SystemExit as end:
            code = end.code
    imported = sorted((known & sys.modules.keys()) - before)
    reports.append([arguments, code, out.getvalue(), errors.getvalue(), imported])
print(json.dumps(reports))
"""

SEGMENT = ("segment", "clip.mp4", "-m", "mask.png", "-o", "new")
EVALUATE = ("evaluate", "davis17")
EXPORT = ("export", "--format", "onnx")
FILES = (
    "clip.mp4",
    "other.mp4",
    "project/project.json",
    "many/clip/a.mp4",
    "mask.png",
    "full/file",
    "trained/checkpoint.pt",
)
WEIGHTS = ("a.safetensors", "a.json", "again/model.safetensors")
LINKS = ("linked/masks", "linked/Annotations", "drawn/result")
# the arguments, and a part of the error line
MISTAKES = (
    (("sgement",), "No such command 'sgement'"),
    (("--color",), "No such option: --color"),
    (("--color", "demo"), "No such option: --color"),
    *(((*command.split(), "--color"), "No such option: --color") for command in COMMANDS),
    (("segment",), "Missing argument"),
    (("segment", "absent.mp4", *SEGMENT[2:]), "absent.mp4: no such file or folder"),
    ((*SEGMENT, "-m", "absent"), "absent: no such mask file or folder of masks"),
    ((*SEGMENT, "-o", "full"), "full: the output folder is not empty"),
    ((*SEGMENT, "-o", "mask.png"), "mask.png: found a file, expected an output folder"),
    ((*SEGMENT, "clip.mp4"), "clip.mp4: same name"),
    ((*SEGMENT, "other.mp4"), "mask.png: no such folder of masks"),
    ((*SEGMENT, "-o", ".", "--overwrite"), ".: the output folder holds the input clip.mp4"),
    ((*SEGMENT, "-o", "linked", "--overwrite"), "linked/masks: found a symbolic link to ../full"),
    ((*SEGMENT, "other.mp4", "--mask-frame", "3"), "--mask-frame: found 3 with 2 videos"),
    ((*SEGMENT, "...mp4"), "...mp4: name of its results: found"),
    ((*SEGMENT, "many/clip/a.mp4", "-m", "full", "-o", "many"), "many/clip: the output folder holds the input many"),
    (("segment", "clip.mp4", "-o", "new"), "--masks: missing, expected masks, or --box or --boxes"),
    ((*SEGMENT, "--box", "1,2,3"), "--box: found '1,2,3', expected x,y,width,height in pixels"),
    ((*SEGMENT, "--box", "0:1,2,3,4"), "--box: found object '0', expected 1 to 255"),
    ((*SEGMENT, "--boxes", "absent"), "absent: no such file, expected boxes as CSV"),
    ((*SEGMENT, "--boxes", "clip.mp4"), "clip.mp4: line 1: found '', expected a header with frame"),
    ((*SEGMENT, "other.mp4", "--box", "1,2,3,4"), "--box: found with 2 videos, expected one"),
    ((*SEGMENT, "--resume", "--overwrite"), "--resume: found with --overwrite"),
    ((*SEGMENT, "--shard-memory"), "--shard-memory: found 1 videos and 1 processes"),
    ((*SEGMENT, "--first-and-previous", "--no-previous"), "--no-previous: found with --first-and-previous"),
    ((*SEGMENT, "--memory-place", "disk"), "--memory-folder: found None"),
    ((*SEGMENT, "--memory-folder", "."), "--memory-folder: found . with --memory-place device"),
    ((*SEGMENT, "--memory-place", "disk", "--memory-folder", "absent"), "absent: no such folder"),
    ((*SEGMENT, "--max-memory-bytes", "0"), "'--max-memory-bytes': found '0', expected 1 to 1000000TB"),
    ((*SEGMENT, "--max-memory-bytes", "lots"), "'lots' is not a number of bytes"),
    ((*SEGMENT, "--every", "0"), "'--every': found '0', expected a whole number from 1 to 1000000000"),
    ((*SEGMENT, "--every", "often"), "'--every': found 'often', expected a whole number from 1"),
    ((*SEGMENT, "--evict", "nobody"), "'nobody' is not one of 'oldest'"),
    ((*SEGMENT, "--max-size", "9"), "'--max-size': found '9', expected a whole number from 16 to 16384"),
    ((*SEGMENT, "--min-size", "0"), "'--min-size': found '0', expected a whole number from 1 to 16384"),
    ((*SEGMENT, "--max-size", "32", "--min-size", "64"), "--min-size: found 64, expected 1 to --max-size, 32"),
    ((*SEGMENT, "--device", "abacus"), "--device: found 'abacus'"),
    (
        (*SEGMENT, "--device", "mps"),
        "--device: found 'mps', which is not supported, expected --device cpu, which works",
    ),
    ((*SEGMENT, "-q", "-v"), "--quiet: found with --verbose, expected one of them"),
    (("-vq", *SEGMENT), "--quiet: found with --verbose, expected one of them"),
    ((*SEGMENT, "--backend", "abacus"), "'abacus' is not one of 'auto'"),
    ((*SEGMENT, "--dtype", "int8"), "'int8' is not one of 'float32'"),
    ((*SEGMENT, "--compile", "magic"), "'magic' is not one of 'default'"),
    ((*SEGMENT, "--write", "masks,hologram"), "found 'hologram', expected some of masks, overlay"),
    ((*SEGMENT, "--weights", "absent.pth"), "absent.pth: no such file, expected a checkpoint"),
    ((*SEGMENT, "--weights", "many/absent"), "many/absent: no such file, expected a checkpoint"),
    ((*SEGMENT, "--weights", "hf://absent"), "hf://absent: not a name on the hub, expected user/repo"),
    ((*SEGMENT, "--weights", "clip.mp4", "--arch", "resnet18"), "--arch: found resnet18 with --weights clip.mp4"),
    (("demo", "-o", "full"), "full: the output folder is not empty"),
    (("open", "absent.mp4"), "absent.mp4: no such file or folder"),
    (("open", "-o", "new"), "--output: found new without SOURCE, expected a video"),
    (("open", "project", "-o", "new"), "--output: found new with project, which is a project"),
    (("open", "-"), "standard input: found a live source, expected a video file"),
    (("open", "camera:0"), "camera:0: found a live source, expected a video file"),
    (("open", "http://example/a.mp4"), "http://example/a.mp4: found a URL, expected a video file"),
    (("open", "clip.mp4", "--port", "65536"), "'--port': found '65536', expected a whole number from 0 to 65535"),
    (("open", "clip.mp4", "--prompter", "sam3"), "'sam3' is not one of 'network'"),
    (("open", "clip.mp4", "clip.mp4"), "Got unexpected extra argument"),
    (("demo", "-o", "drawn", "--overwrite"), "drawn/result: found a symbolic link to ../full"),
    (("demo", "-o", "new", "--objects", "0"), "--objects"),
    (("convert", "clip.mp4", "x.bin"), "x.bin: expected a name that ends in .safetensors"),
    (("convert", "clip.mp4", "mask.png"), "mask.png: exists already"),
    (("convert", "absent.pth", "x.safetensors"), "absent.pth: no such file"),
    (("convert", "a.safetensors", "a.safetensors", "--overwrite"), "a.safetensors: found as both input and output"),
    (EXPORT[:3], "Missing option '--output'"),
    ((*EXPORT, "-o", "full"), "full: exists already, expected the name of a new folder"),
    ((*EXPORT, "-o", "new", "--format", "tflite"), "'tflite' is not one of 'pt2'"),
    ((*EXPORT, "-o", "new", "--dtype", "float16"), "--dtype: found float16 with --format onnx, expected float32"),
    ((*EXPORT, "-o", "new", "--backend", "cpp"), "--backend: found cpp with --format onnx, expected reference"),
    ((*EXPORT, "-o", "new", "--weights", "absent.pth"), "absent.pth: no such file"),
    (("train", "absent.yaml", "--output", "new"), "absent.yaml: no such file"),
    (("train", "absent", "--output", "new"), "absent: no such file, expected a training configuration"),
    (("train", "tiny"), "--output: missing, expected a folder for the run"),
    (("train", "run.yaml", "--print-config"), "run.yaml: epohcs: unknown key, did you mean epochs?"),
    (("train", "run.yaml", "--output", "new"), "run.yaml: epohcs: unknown key, did you mean epochs?"),
    (("train", "run.yaml", "--output", "trained"), "already holds a run; give another --output, or --resume"),
    (("train", "again.yaml", "--output", "again", "--resume"), "again/model.safetensors: found as both input and"),
    (EVALUATE, "--data: missing"),
    ((*EVALUATE, "--data", "full"), "--output: missing"),
    ((*EVALUATE, "--report"), "--output: missing, needed for --report"),
    ((*EVALUATE, "--only-score", "full", "full", "--sequence", "a"), "--sequence: found 'a' with --only-score"),
    ((*EVALUATE, "--only-score", "absent", "full"), "absent: no such folder of results"),
    ((*EVALUATE, "--data", "full", "-o", "new"), "no such list of sequences"),
    ((*EVALUATE, "--data", "full", "-o", "linked"), "linked/Annotations: found a symbolic link to ../full"),
    ((*EVALUATE, "--data", "full", "-o", "new", "--split", "../val"), "--split: found '../val'"),
    (
        (*EVALUATE, "--data", "full", "-o", "new", "--max-size", "9"),
        "'--max-size': found '9', expected a whole number from 16 to 16384",
    ),
    (("evaluate", "davis18"), "'davis18' is not one of 'davis16'"),
    (("benchmark", "raed"), "No such command 'raed'"),
    (("benchmark", "read", "--routes", "fast"), "--routes: found 'fast'"),
    (("benchmark", "read", "--shapes", "huge"), "shape: found 'huge'"),
    (("benchmark", "read", "--passes", "sideways"), "--passes: found 'sideways'"),
    (("benchmark", "read", "--dtypes", "int8"), "--dtypes: found 'int8'"),
    (("benchmark", "read", "-o", "mask.png"), "mask.png: exists already"),
    (("benchmark", "read", "--weights", "clip.mp4"), "No such option: --weights"),
    (("benchmark", "tune", "-o", "mask.png"), "mask.png: exists already"),
    (("benchmark", "tune", "--shapes", "huge"), "shape: found 'huge'"),
    (("benchmark", "frames", "--variants", "fast"), "--variants: found 'fast'"),
    (("benchmark", "frames", "--shapes", "8x14-T1-O1"), "shape: found '8x14-T1-O1'"),
    (("benchmark", "frames", "--weights", "absent.pth"), "absent.pth: no such file"),
    (("benchmark", "frames", "--weights", "a.json", "-o", "a.json", "--overwrite"), "a.json: found as both input"),
)


def run(folder, *command_lines):
    arguments = [sys.executable, "-c", RUN, ",".join(HEAVY)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    given = json.dumps(command_lines)
    done = subprocess.run(
        arguments, input=given, capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_is_shown_without_slow_imports(tmp_path):
    flags = ("-h", "--help")
    named = ((*command.split(), flag) for command in COMMANDS for flag in flags)
    asked = [*((flag,) for flag in flags), ("benchmark",), *named]
    *helped, version = run(tmp_path, *asked, ("--version",))
    for arguments, code, output, errors, imported in helped:
        assert (code, errors, imported) == (0, "", []), arguments
        assert "Usage: " in output, arguments
    assert version[1:] == [0, f"stm_fast {stm_fast.__version__}\n", "", []]


def test_mistakes_are_reported_without_slow_imports(tmp_path):
    for name in (*FILES, *WEIGHTS, *LINKS):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).symlink_to("../full") if name in LINKS else (tmp_path / name).touch()
    run_file = "{data: [{kind: synthetic}], clips_per_epoch: 4, "
    (tmp_path / "run.yaml").write_text(run_file + "epohcs: 1}")
    (tmp_path / "again.yaml").write_text(run_file + "epochs: 1, weights: again/model.safetensors}")
    before = sorted(tmp_path.rglob("*"))
    for (_, words), report in zip(MISTAKES, run(tmp_path, *(arguments for arguments, _ in MISTAKES)), strict=True):
        arguments, code, output, errors, imported = report
        assert (code, output) == (2, ""), (arguments, errors)
        assert errors.startswith("stm-fast: "), errors
        assert errors.count("\n") == 1, errors
        assert words in errors, arguments
        assert set(imported) <= (set(ARRAYS) if arguments[0] == "evaluate" else set()), arguments
    assert sorted(tmp_path.rglob("*")) == before


def test_inference_does_not_import_torchvision():
    program = "import stm_fast, sys; stm_fast.memory_read, stm_fast.STM, stm_fast.segment_video; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    modules = found.stdout.split()
    assert "torch" in modules
    assert not [name for name in modules if name.startswith("torchvision")]


LAZY = sorted(
    path for path in (ROOT / "stm_fast").rglob("__init__.py") if "from stm_fast.lazy import" in path.read_text()
)


@pytest.mark.parametrize("path", LAZY, ids=lambda path: path.parent.name)
def test_lazy_names_are_the_ones_type_checkers_see(path):
    (block,) = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If))
    modules = {alias.name: node.module for node in block.body for alias in node.names}
    package = importlib.import_module(".".join(path.parent.relative_to(ROOT).parts))
    assert sorted(modules) == sorted(package.__all__)
    for name, module in modules.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)
        assert name in dir(package)


def test_other_names_are_submodules_or_errors():
    assert stm_fast.network.stm.STM is stm_fast.STM
    assert not hasattr(stm_fast, "nothing")
    with pytest.raises(AttributeError, match="module 'stm_fast' has no attribute 'nothing'"):
        _ = stm_fast.nothing


def test_a_compiled_function_may_be_the_first_to_use_a_name(monkeypatch):
    monkeypatch.delitem(vars(stm_fast), "memory_read", raising=False)

    @torch.compile(backend="eager", fullgraph=True)
    def read(*tensors):
        return stm_fast.memory_read(*tensors)

    tensors = [torch.randn(1, 4, 8) for _ in range(3)]
    torch.testing.assert_close(read(*tensors), stm_fast.memory_read(*tensors))
