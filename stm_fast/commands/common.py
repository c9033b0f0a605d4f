"""What the commands share: options, the network, a progress bar."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from stm_fast.errors import InputError
from stm_fast.inference import Summary
from stm_fast.network import STM, architecture_of, load_checkpoint, stm_resnet18, stm_resnet50
from stm_fast.network.compilation import COMPILE_MODES
from stm_fast.network.deployment import for_inference
from stm_fast.network.precision import PRECISIONS, choose_dtype
from stm_fast.network.released import DEFAULT, FILE, MIN_SIZE, weights_file
from stm_fast.ops.backends import BACKENDS


class Architecture(StrEnum):
    RESNET18 = "resnet18"
    RESNET50 = "resnet50"


Weights = Annotated[
    Path, typer.Option(help="Checkpoint: ours (.safetensors) or the published .pth; default is the package's own.")
]
Arch = Annotated[Architecture | None, typer.Option(help="Take an untrained network instead of the default weights.")]
MaxSize = Annotated[
    int | None, typer.Option(help="Frames whose shorter side has more pixels are made that small for the network.")
]
MinSize = Annotated[
    int | None,
    typer.Option(
        help="Frames whose shorter side has fewer pixels are made that large for the network; by default none are, and "
        f"with the package's own weights those of fewer than {MIN_SIZE}."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Backend = Annotated[str, typer.Option(help=f"Of the memory read: auto, {', '.join(b.name for b in BACKENDS)}.")]
Precision = Annotated[
    str, typer.Option("--dtype", help=f"Of the network: {', '.join(PRECISIONS)} (16 bits where they are fast).")
]
Compile = Annotated[
    str | None, typer.Option("--compile", help=f"torch.compile the network: {', '.join(COMPILE_MODES)}.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results that the output folder holds.")]


DEFAULT_WEIGHTS = Path(DEFAULT)


def is_untrained(weights: Path, arch: Architecture | None) -> bool:
    """Whether a network without trained weights was asked for."""
    return weights == DEFAULT_WEIGHTS and arch is not None


def smallest_side(weights: Path, arch: Architecture | None, min_size: int | None, max_size: int | None = None) -> int:
    """`min_size` of a `VideoSegmenter`: what --min-size asks for, or else what suits the weights."""
    if min_size is not None:
        return min_size
    if is_untrained(weights, arch) or weights_file(weights).resolve() != FILE:
        return 1
    return MIN_SIZE if max_size is None else min(MIN_SIZE, max_size)


def load_model(weights: Path, arch: Architecture | None, device: str) -> STM:
    """The network on its device."""
    place = _device(device)
    if is_untrained(weights, arch):
        torch.manual_seed(0)
        model = stm_resnet18() if arch is Architecture.RESNET18 else stm_resnet50()
    else:
        file = weights_file(weights)
        model = STM(**vars(architecture_of(file)))
        load_checkpoint(model, file)
    return model.to(place).eval()


def load_for_inference(
    weights: Path, arch: Architecture | None, device: str, precision: str = "float32", compile: str | None = None
) -> STM:
    """The same network made ready for inference, in a dtype by its name."""
    return prepare(load_model(weights, arch, device), precision, compile)


def prepare(model: STM, precision: str, compile: str | None = None) -> STM:
    """A network made ready for inference, in a dtype by its name."""
    return for_inference(model, dtype=choose_dtype(precision, next(model.parameters()).device), compile=compile)


def _device(name: str) -> torch.device:
    if name == "auto":
        # torchrun numbers the processes of a machine: a device for each
        index = int(os.environ.get("LOCAL_RANK", 0))
        count = torch.cuda.device_count()
        return torch.device("cuda", index % count) if count else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device: found {name!r}, expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device: found {name!r}, but this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device: found {name!r}, expected auto, cpu, cuda or cuda:N")
    return device


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} {self._unit}/s")


@contextmanager
def progress_bar(what: str, unit: str = "frames") -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr, where that is a terminal, that disappears at the end; yields the callback that moves it."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn())
    console = Console(stderr=True)
    # a bar that disappears still leaves an empty line in a log
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def task_name(untrained: bool) -> str:
    """What the progress bar of a segmentation says."""
    return "segmenting, untrained" if untrained else "segmenting"


def print_summary(summary: Summary, untrained: bool) -> None:
    """One line on stdout, and another one where the network is untrained."""
    print_result(summary)
    if untrained:
        print_untrained()


def print_result(summary: Summary) -> None:
    """One line on stdout."""
    objects = ", ".join(map(str, summary.object_ids))
    speed = "finished earlier"
    if summary.frames > summary.resumed_at:
        speed = f"{(summary.frames - summary.resumed_at) / summary.seconds:.2f} frames/s"
    print(f"{summary.frames} frames, objects {objects}, {speed}, results in {summary.output}")


def print_untrained() -> None:
    """A line on stdout."""
    print("The network is untrained, as --arch asks: its masks mean nothing.")
