"""Some minutes of training on one GPU, from the package's weights on: make gpu-train MINUTES=4 DATA=folder.

As `stm-fast train burst --fit-minutes`, where the minutes include everything: start, decoding, scores
before the first step and after the last one. DATA has davis16-train/ and static/. The folder that OUT names in the
environment, by default benchmarks/results/gpu-train, gets two files of under 16 MB:

    checkpoint.pt      weights, their average and Adam's moments, compact: `stm-fast train --resume` continues from it
    log.jsonl          loss and clips a second; at step 0 and at the end J, F and J&F

--smoke takes a few steps of small clips instead, in a folder smoke/ there, to see that everything works: 20 s after the
start. Exits 3 where there is no GPU, unless --cpu asks for the CPU. It is also the stage "train" of gpu_checks.py.

Needs PyTorch, accelerate, pydantic, rich, PyYAML and the package, which is installed by
python3 -m pip install --no-deps --no-build-isolation -e .
"""

import argparse
import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RECIPE = "burst"
KEPT = ("checkpoint.pt", "config.yaml", "log.jsonl")
# the checkpoint has the average of the weights; the best ones are the last ones or those of the start
DROPPED = ("model.safetensors", "best.safetensors", "tensorboard")
MOST_BYTES = 16_000_000
END_SECONDS = 15  # after the last step, and to end
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
    import torch

    if not arguments.cpu and not torch.cuda.is_available():
        print("gpu training: no CUDA device on this machine", file=sys.stderr)
        return 3
    output = Path(os.environ.get("OUT", HERE / "results" / "gpu-train"))
    minutes = arguments.minutes
    if arguments.smoke:
        output, minutes = output / "smoke", SMOKE_MINUTES
        shutil.rmtree(output, ignore_errors=True)
    changes = [*places(arguments.data), *(SMOKE if arguments.smoke else ()), *arguments.set]
    code = train(changes, output, began + max(0.0, 60 * minutes - END_SECONDS), resume=arguments.resume)
    if code == 0:
        tidy(output)
        report(output, time.monotonic() - began)
        options = [word for change in changes for word in ("--set", change)]
        command = [sys.executable, "-m", "stm_fast", "train", RECIPE, "--output", str(output), *options]
        print(f"to continue: {shlex.join([*command, '--resume'])}")
    return code


def train(changes: Sequence[str], output: Path, end: float, *, resume: bool) -> int:
    """As stm-fast train does, until `end` on the monotonic clock; not through it, since typer may be absent here."""
    from stm_fast.errors import InputError
    from stm_fast.tasks.train import train_network
    from stm_fast.training.config_file import read_config
    from stm_fast.training.recipes import RECIPES
    from stm_fast.training.run_folder import RunFolder

    try:
        RunFolder(output).check(resume)
        config = read_config(RECIPES[RECIPE], changes)
        return train_network(config, output, resume=resume, skip_corrupt=False, deadline=math.inf, end=end)
    except InputError as error:
        print(f"gpu training: {error}", file=sys.stderr)
        return 2


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="has davis16-train/ and static/")
    parser.add_argument("--smoke", action="store_true", help="a few steps of small clips instead")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE", help="as of stm-fast train")
    return parser.parse_args()


def missing(data: Path) -> str | None:
    """What keeps the training from running, and how to get it."""
    for package in ("torch", "accelerate", "pydantic", "rich", "yaml"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    for name in ("davis16-train", "static"):
        if not (data / name).is_dir():
            return f"{data / name}: no such folder, expected the training data there"
    return None


def places(data: Path) -> list[str]:
    """The paths of the configuration's data."""
    davis, static = (json.dumps(str((data / name).resolve())) for name in ("davis16-train", "static"))
    return [f"data.0.path={davis}", f"data.1.path={static}", f"validation.path={davis}"]


def tidy(output: Path) -> None:
    """Removes what is not needed to continue or to report."""
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
