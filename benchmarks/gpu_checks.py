"""Every check that needs a GPU, in one call of a few minutes: make gpu, or make gpu ARGUMENTS="--only smoke,reads".

The stages, in this order, each with its share of the minutes and the time that earlier ones left over:

    smoke    does each kernel run at all, and is it right: one shape against float64, each in a process of its own
    tests    those marked gpu, and the cases of the kernels; red ones are listed and stop nothing
    reads    the memory read beside its peers, both layouts, all routes of a shape in the same rounds
    profile  one launch of each forward kernel under ncu
    frames   whole frames beside the published loop
    train    the training burst, only where --only asks for it

All results are in the folder that OUT names in the environment, by default benchmarks/results, written as they come:
gpu-checks.json (every stage, and what it did not reach), gpu-checks.log, memory-read-<gpu>.json, network-<gpu>.json,
network-compiled-<gpu>.json, gpu-train/ with checkpoint.pt and log.jsonl. DATA names the data of the stage train.
The end of the output is a table. Exits 3 where there is no GPU, 1 where a stage could not do its work or a test is red.

Needs PyTorch, Triton, pytest, and the package: python3 -m pip install --no-deps --no-build-isolation -e .
pytest-xdist lets the tests run side by side. The kernels of `make gpu-cache` need not be compiled again.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from gpu.session import Session

HERE = Path(__file__).resolve().parent
_MINUTES = 6.0
_LINES, _CHARACTERS = 100, 11_000  # of the table: a borrowed machine shows no more of the end of an output


class Share(NamedTuple):
    """The module whose run() is a stage, and the stage's share of the minutes."""

    module: str
    share: float


STAGES = {
    "smoke": Share("gpu.smoke", 1.0),
    "tests": Share("gpu.suite", 4.0),
    "reads": Share("gpu.reads", 5.0),
    "profile": Share("gpu.profiler", 1.0),
    "frames": Share("gpu.frames", 2.0),
    "train": Share("gpu_train", 8.0),
}
_USUAL = ("smoke", "tests", "reads", "profile", "frames")


def main(arguments: list[str] | None = None) -> int:
    chosen = _arguments(arguments)
    problem = missing()
    if problem:
        print(f"gpu checks: {problem}", file=sys.stderr)
        return 1
    if not torch.cuda.is_available():
        print("gpu checks: no CUDA device on this machine", file=sys.stderr)
        return 3
    from triton import knobs

    from gpu.session import Session
    from gpu_cache import ARCHIVE, kernels_in, unpack

    # a run that is terminated still reports what it has
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    options = [name for name, on in (("--tiny", chosen.tiny), ("--compile-only", chosen.compile_only)) if on]
    session = Session(chosen.out, chosen.only, vars(chosen) | {"out": str(chosen.out)}, options)
    kernels = Path(knobs.cache.dir)
    try:
        if not chosen.compile_only:  # what is compiled then goes into an archive of its own
            unpacked = unpack(ARCHIVE, kernels)
            session.say(f"{unpacked.kernels} kernels brought along, {unpacked.remark}")
        before = kernels_in(kernels)
        run_stages(session, chosen.minutes)
        session.say(f"{kernels_in(kernels) - before} kernels were compiled anew")
    finally:
        text = table(session)
        session.close(text)
        print(text, flush=True)
    return int(any(stage.state != "done" for stage in session.stages.values()))


def missing() -> str | None:
    """What keeps the checks from running, and how to get it."""
    try:
        import stm_fast.benchmarking  # noqa: F401
    except ImportError as error:
        return f"stm_fast cannot be imported ({error}): python3 -m pip install --no-deps --no-build-isolation -e ."
    for package in ("pytest", "hypothesis", "triton"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    return None


def run_stages(session: "Session", minutes: float) -> None:
    """One after the other; the time that one leaves over goes to those after it."""
    end = time.monotonic() + 60 * minutes
    shares = {name: STAGES[name].share for name in session.stages}
    for name, stage in session.stages.items():
        later = sum(share for other, share in shares.items() if list(shares).index(other) > list(shares).index(name))
        begin = time.monotonic()
        stage_end = end - 60 * minutes * later / sum(shares.values())
        session.say(f"{name}: {max(0.0, stage_end - begin):.0f} s")
        stage.state = "running"
        try:
            import_module(STAGES[name].module).run(session, stage, stage_end)
        except Exception as error:  # a stage that fails stops no other
            stage.state = f"failed: {type(error).__name__}: {error}"[:200]
            traceback.print_exc()
        stage.seconds = time.monotonic() - begin
        if stage.state == "running":
            stage.state = "done" if not stage.missed else "not all reached"
        session.say(f"{name}: {stage.state}, {stage.seconds:.0f} s")
        session.write()


def table(session: "Session") -> str:
    """What was found, in at most _LINES lines and _CHARACTERS characters."""
    lines = []
    for name, stage in session.stages.items():
        lines.append(f"{name}: {stage.state}, {stage.seconds:.0f} s")
        lines += stage.lines
        if stage.missed:
            lines.append(f"  not reached, {len(stage.missed)}: {', '.join(stage.missed)}"[:160])
    lines = [line[:150] for line in lines]
    while len(lines) > _LINES - 1 or sum(len(line) + 1 for line in lines) > _CHARACTERS:
        lines.pop()
    return "\n".join([*lines, f"all of it: {session.out}"])


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Every check that needs a GPU.")
    parser.add_argument("--only", type=_stages, default=_USUAL, help=f"some of {','.join(STAGES)}")
    parser.add_argument("--minutes", type=float, default=_MINUTES, help="for all stages together")
    parser.add_argument("--tiny", action="store_true", help="shapes that take no time, to try the stages themselves")
    parser.add_argument(
        "--compile-only", action="store_true", help="what launches kernels of the package alone, for make gpu-cache"
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or HERE / "results"))
    return parser.parse_args(arguments)


def _stages(text: str) -> tuple[str, ...]:
    """In the order in which they run."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        raise argparse.ArgumentTypeError(f"found {', '.join(unknown)}, expected some of {', '.join(STAGES)}")
    return tuple(name for name in STAGES if name in names)


if __name__ == "__main__":
    sys.exit(main())
