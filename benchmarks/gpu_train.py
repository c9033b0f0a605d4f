"""Some minutes of training on one GPU, from the package's weights on: make gpu-train MINUTES=4 DATA=folder.

`stm-fast train configs/burst.yaml --fit-minutes`, where the minutes include everything: start, decoding, scores before
the first step and after the last one. DATA has davis16-train/ and static/. The folder that OUT names in the
environment, by default benchmarks/results/gpu-train, gets two files of under 16 MB:

    checkpoint.pt      weights, their average and Adam's moments, compact: `stm-fast train --resume` continues from it
    log.jsonl          loss and clips a second; at step 0 and at the end J, F and J&F

--smoke takes a few steps of small clips instead, in a folder smoke/ there, to see that everything works: 20 s after the
start. Exits 3 where there is no GPU, unless --cpu asks for the CPU. It is also the stage "train" of gpu_checks.py.

Needs PyTorch, accelerate, pydantic, PyYAML and the package: python3 -m pip install --no-deps --no-build-isolation -e .
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu.session import Session, Stage

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CONFIG = ROOT / "configs" / "burst.yaml"
KEPT = ("checkpoint.pt", "log.jsonl")
# the checkpoint has the average of the weights; the best ones are the last ones or those of the start
DROPPED = ("model.safetensors", "best.safetensors", "tensorboard")
MOST_BYTES = 16_000_000
# until the command counts by itself, and after its last step
START_SECONDS = 15
TO_END_SECONDS = 20.0  # of a stage, to write what it has
STAGE_LINES = 12  # of the output, in the table of a stage
SMOKE_MINUTES = 20 / 60
SMOKE = (
    "optimizer.batch=4",
    "clips_per_epoch=4",
    "clips.size=[96, 128]",
    "data.2.length=1",
    "data.2.frames=8",
    "validation.min_size=1",
    "log.every=1",
)


def main() -> int:
    began = time.monotonic()
    arguments = parsed()
    problem = missing(arguments.data)
    if problem:
        print(f"gpu training: {problem}", file=sys.stderr)
        return 1
    if not arguments.cpu and not has_gpu():
        print("gpu training: no CUDA device on this machine", file=sys.stderr)
        return 3
    output = Path(os.environ.get("OUT", HERE / "results" / "gpu-train"))
    minutes = arguments.minutes
    if arguments.smoke:
        output, minutes = output / "smoke", SMOKE_MINUTES
        shutil.rmtree(output, ignore_errors=True)
    changes = [*places(arguments.data), *(SMOKE if arguments.smoke else ()), *arguments.option]
    options = [word for change in changes for word in ("-o", change)]
    command = [sys.executable, "-m", "stm_fast", "train", str(CONFIG), "--output", str(output), *options]
    left = 60 * minutes - (time.monotonic() - began) - START_SECONDS
    again = ["--resume"] if arguments.resume else []
    code = subprocess.run([*command, "--fit-minutes", str(max(0.0, left) / 60), *again], check=False).returncode
    if code == 0:
        tidy(output)
        report(output, time.monotonic() - began)
        print(f"to continue: {shlex.join([*command, '--resume'])}")
    return code


def run(session: "Session", stage: "Stage", end: float) -> None:
    """The stage: the command, until `end`, on the data that DATA names in the environment, into a folder of its own."""
    before = session.log.stat().st_size
    minutes = max(0.0, end - TO_END_SECONDS - time.monotonic()) / 60
    options = ["--smoke"] if "--tiny" in session.options else []
    options += ["--data", os.environ["DATA"]] if "DATA" in os.environ else []
    place = {"OUT": str(session.out / "gpu-train")}
    code = session.child("gpu_train", "--minutes", f"{minutes:.2f}", *options, environment=place).wait(end)
    with session.log.open("rb") as log:
        log.seek(before)
        output = log.read().decode(errors="replace").splitlines()
    stage.lines += [f"  {line}" for line in output[-STAGE_LINES:]]
    if code != 0:
        stage.state = "out of time" if code is None else f"ended with exit code {code}: see the log"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="has davis16-train/ and static/")
    parser.add_argument("--smoke", action="store_true", help="a few steps of small clips instead")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder")
    parser.add_argument("-o", "--option", action="append", default=[], metavar="KEY=VALUE", help="as of stm-fast train")
    return parser.parse_args()


def missing(data: Path) -> str | None:
    """What keeps the training from running, and how to get it."""
    for package in ("torch", "accelerate", "pydantic", "yaml"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    for name in ("davis16-train", "static"):
        if not (data / name).is_dir():
            return f"{data / name}: no such folder, expected the training data there"
    return None


def has_gpu() -> bool:
    """Checked in a process of its own: this one does not use the GPU."""
    asked = [sys.executable, "-c", "import torch; raise SystemExit(not torch.cuda.is_available())"]
    return subprocess.run(asked, check=False).returncode == 0


def places(data: Path) -> list[str]:
    """The paths of the configuration's data."""
    davis, static = (json.dumps(str((data / name).resolve())) for name in ("davis16-train", "static"))
    return [f"data.0.path={davis}", f"data.1.path={static}", f"validation.path={davis}"]


def tidy(output: Path) -> None:
    """Removes what need not travel."""
    for path in (output / name for name in DROPPED):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def report(output: Path, seconds: float) -> None:
    """Prints losses, scores and what was written."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    scores = [line for line in lines if "J&F-Mean" in line]
    print(f"| {'step':>6} | {'loss':>7} | {'clips/s':>8} | {'rate':>8} |")
    for line in steps[:: max(1, len(steps) // 20)]:
        speed = line["clips_per_second"]
        print(f"| {line['step']:6} | {line['loss']:7.4f} | {speed:8.1f} | {line['learning_rate']:8.1e} |")
    for line in scores:
        named = ", ".join(f"{name} {100 * line[f'{name}-Mean']:.1f}" for name in ("J&F", "J", "F"))
        print(f"minival after step {line['step']}: {named}")
    for path in (output / name for name in KEPT):
        size = path.stat().st_size
        print(f"{path}: {size / 1e6:.1f} MB{'' if size < MOST_BYTES else ', TOO LARGE'}")
    print(f"{seconds:.0f} s in all")


if __name__ == "__main__":
    sys.exit(main())
