"""The command line: stm-fast demo | segment | train | evaluate | benchmark | convert | info."""

import logging
import platform
import sys
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from typer.core import TyperGroup

from stm_fast.commands.benchmark import benchmark
from stm_fast.commands.common import (
    DEFAULT_WEIGHTS,
    Arch,
    Backend,
    Device,
    Overwrite,
    Weights,
    is_untrained,
    load_for_inference,
    load_model,
    print_summary,
    progress_bar,
    smallest_side,
    task_name,
)
from stm_fast.commands.evaluate import evaluate
from stm_fast.commands.segment import segment
from stm_fast.commands.train import train
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.errors import InputError
from stm_fast.evaluation import region_similarity
from stm_fast.inference import Summary, check_backend, check_output, segment_video
from stm_fast.network import released, save_checkpoint
from stm_fast.network.mean import into_mean
from stm_fast.ops.backends import BACKENDS
from stm_fast.video import OverlayVideoWriter, object_ids, read_mask, write_mask
from stm_fast.whole_file import refuse_input, refuse_links

_DEMO_FRAME_RATE = Fraction(24)
_WRONG_USE = 2
_INTERRUPTED = 130  # what a shell says of a program that ctrl-C ended


# click's, or the copy of it that newer typers carry
_UsageError: type[Any] = typer.BadParameter.__mro__[1]


class _OneLineErrors(TyperGroup):
    """Ends with exit code 2 and one line where the user is at fault; any other exception is a bug and shows."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:  # help, which is no error
            return super().parse_args(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            raise _wrong_use(error) from None

    def invoke(self, ctx: Any) -> Any:
        logging.getLogger("stm_fast").addHandler(_NOTES)
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise _ended(str(error), _WRONG_USE) from None
        except _UsageError as error:
            raise _wrong_use(error) from None
        except KeyboardInterrupt:
            raise _ended("interrupted; every file that was written is whole", _INTERRUPTED) from None


def _wrong_use(error: Any) -> typer.Exit:
    what = error.format_message().removesuffix(".")
    return _ended(f"{what}; see {error.ctx.command_path} --help", _WRONG_USE)


def _ended(why: str, code: int) -> typer.Exit:
    _say(why)
    return typer.Exit(code)


def _say(line: str) -> None:
    # a file's name may hold line breaks
    print("stm-fast:", " ".join(line.splitlines()), file=sys.stderr)


class _Notes(logging.Handler):
    """What was made of input that could mean more than one thing, as the package logs it: a line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(record.getMessage())


_NOTES = _Notes(logging.WARNING)


app = typer.Typer(
    cls=_OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Example: stm-fast demo",
    help="Segments the objects of a video from masks of some of its frames, with a Space-Time Memory network.",
)


@app.command(epilog="Example: stm-fast demo --output demo")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the clip and its segmentation go.")] = Path(
        "demo"
    ),
    frames: Annotated[int, typer.Option(min=2, help="Length of the clip.")] = 30,
    objects: Annotated[int, typer.Option(min=1, max=6, help="How many objects it has.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws another clip.")] = 0,
    weights: Weights = DEFAULT_WEIGHTS,
    arch: Arch = None,
    device: Device = "auto",
    backend: Backend = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Draw a clip of moving objects, segment it from its first mask and say how well that went."""
    check_output(output, overwrite)
    refuse_links(output / "result")
    model = load_for_inference(weights, arch, device)
    check_backend(model, backend)
    clip = SyntheticClip(seed, frames=frames, objects=objects)
    video, mask = output / "clip.mp4", output / "first_mask.png"
    with OverlayVideoWriter(video, clip.width, clip.height, _DEMO_FRAME_RATE) as writer:
        for index, frame in enumerate(clip):
            writer.write(frame.image, float(index / _DEMO_FRAME_RATE))
    write_mask(mask, clip[0].ids)
    untrained = is_untrained(weights, arch)
    with progress_bar(task_name(untrained)) as advance:
        summary = segment_video(
            video,
            mask,
            output / "result",
            model=model,
            min_size=smallest_side(weights, arch, None),
            backend=backend,
            overwrite=overwrite,
            progress=advance,
        )
    _print_similarity(clip, summary)
    print_summary(summary, untrained)


@app.command(epilog="Example: stm-fast convert STM_weights.pth stm.safetensors")
def convert(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="The published .pth, with or without 'module.' in its names, or ours; of several, which may be named "
            "twice, the mean is taken.",
        ),
    ],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    half: Annotated[bool, typer.Option("--half", help="Convolutions as float16: half the size.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn a checkpoint, or the mean of several, into a safetensors file; no code in them is ever run."""
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already; give another name, or --overwrite")
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: expected a name that ends in .safetensors")
    refuse_input(target, sources)
    model = into_mean([load_model(source, None, "cpu") for source in sources])
    save_checkpoint(model, target, half=half)
    print(f"{target}: {model.architecture}")


@app.command(epilog="Example: stm-fast info")
def info() -> None:
    """Print versions, devices and every backend of the memory read, with why it is absent where it is."""
    for package in ("stm_fast", "torch", "torchvision", "triton", "numpy", "av"):
        print(f"{package:12} {_version(package)}")
    print(f"{'python':12} {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"{'cpu':12} {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    if not torch.cuda.is_available():
        print(f"{'cuda':12} no device")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        print(f"{f'cuda:{index}':12} {properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB")
    print(f"{'weights':12} default: {released.ARCHITECTURE}")
    for backend in BACKENDS:
        print(f"{backend.name:12} {'; '.join(backend.absent_reasons()) or 'ready'}")


app.command(epilog="Example: stm-fast segment clip.mp4 --masks first.png --output out --max-size 480")(segment)
app.command(epilog="Example: stm-fast train configs/tiny.yaml --output runs/tiny")(train)
app.command(
    epilog="Example: stm-fast evaluate davis17 --data DAVIS --split val --output out --weights STM_weights.pth"
)(evaluate)
app.command(epilog="Example: stm-fast benchmark --shapes 480p-T5-O1,480p-T20-O1 --passes forward")(benchmark)


def _print_similarity(clip: SyntheticClip, summary: Summary) -> None:
    """J of each object in percent, the mean over all frames but the given one."""
    files = sorted((summary.output / "masks").glob("*.png"))
    pairs = [(read_mask(file).ids, clip[index].ids) for index, file in enumerate(files)][1:]
    for object_id in object_ids(clip[0].ids):
        scores = [region_similarity(found == object_id, truth == object_id) for found, truth in pairs]
        print(f"object {object_id}: J = {100 * sum(scores) / len(scores):.1f}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    """What the stm-fast command runs."""
    app()


if __name__ == "__main__":
    main()
