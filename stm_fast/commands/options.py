"""Options shared by several commands."""

from functools import partial
from typing import Annotated

import typer

from stm_fast.choices import RESULTS, Arch, BackendName, CompileMode, Precision, Result
from stm_fast.commands.numbers import whole
from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError, shown
from stm_fast.inference.options import RunOptions, check_sizes
from stm_fast.network.architecture import MIN_SIZES
from stm_fast.network.released import DEFAULT, MIN_SIZE
from stm_fast.tasks.choice import NetworkChoice

# the panels of options in the help, in this order
PANELS = INPUT, OUTPUT, NETWORK, SPEED, MEMORY, PAGE, GENERAL = (
    *("Input", "Output", "Network", "Speed", "Memory", "Page", "General"),
)
input_option, output_option, network_option, speed_option, memory_option, page_option, general_option = (
    partial(typer.Option, rich_help_panel=panel) for panel in PANELS
)

MaxSize = Annotated[
    int | None,
    network_option(
        **whole(16, MIN_SIZES[1]),
        help="Frames whose shorter side has more pixels than this are downscaled for the network, which is faster. "
        "By default they are not; masks always have the size of the video.",
    ),
]
MinSize = Annotated[
    int | None,
    network_option(
        **whole(*MIN_SIZES),
        help="Frames whose shorter side has fewer pixels than this are upscaled for the network. By default this is "
        f"the size that is stored with the weights: {MIN_SIZE} for the package's own, none for a published checkpoint.",
    ),
]
Backend = Annotated[
    BackendName,
    speed_option(
        help="This implementation reads the memory; auto takes the fastest one, and 'stm-fast info' lists those that "
        "are available here."
    ),
]
Write = Annotated[
    str,
    output_option(
        metavar="RESULTS", help=f"These results are written, separated by commas: some of {', '.join(RESULTS)}."
    ),
]
Weights = Annotated[
    str,
    network_option(
        metavar="WEIGHTS",
        show_default=False,
        help="The network is loaded from this checkpoint: one of our .safetensors files, the published .pth, or a "
        "folder. Without this option the package's own weights are used; 'open' are those trained without DAVIS. A "
        "name like user/repo that is no path is downloaded from the Hugging Face hub.",
    ),
]
Overwrite = Annotated[bool, output_option("--overwrite", help="Existing results are replaced.")]


def network_choice(
    weights: Weights = DEFAULT,
    arch: Annotated[
        Arch | None, network_option(help="An untrained network of this kind is used, whose masks are meaningless.")
    ] = None,
    device: Annotated[
        str,
        speed_option(
            metavar="DEVICE",
            help="The network runs on this device: cpu, cuda, or cuda:N for one of several GPUs; auto takes a GPU if "
            "there is one. Apple's GPUs are not supported.",
        ),
    ] = "auto",
    dtype: Annotated[
        Precision,
        speed_option(help="The network computes in this precision; auto takes 16 bits where they are fast."),
    ] = "float32",
    compile: Annotated[
        CompileMode | None,
        speed_option(help="The network is compiled with torch.compile, in this mode, which takes a minute at first."),
    ] = None,
) -> NetworkChoice:
    """The options as a choice. Raises InputError if they contradict each other or the checkpoint is missing."""
    return NetworkChoice(weights, arch, device, dtype, compile)


Network = Annotated[NetworkChoice, network_choice]


def run_options(
    memory: MemoryConfig,
    max_size: int | None,
    min_size: int | None,
    backend: BackendName,
    scales: list[float] | None = None,
    flip: bool = False,
) -> RunOptions:
    """The options that masks depend on. Raises InputError if the sizes contradict each other."""
    check_sizes(max_size, min_size)
    return RunOptions(memory, max_size, min_size, backend, tuple(scales or (1.0,)), flip)


def results(write: str) -> tuple[Result, ...]:
    """The results that --write lists. Raises InputError for an unknown one."""
    names = [name.strip() for name in write.split(",")]
    unknown = [name for name in names if name not in RESULTS]
    if unknown:
        raise InputError(f"--write: found {shown(unknown[0])}, expected some of {', '.join(RESULTS)}")
    return tuple(result for result in RESULTS if result in names)
