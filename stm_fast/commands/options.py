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

_network_option = partial(typer.Option, rich_help_panel="Network")

MaxSize = Annotated[
    int | None,
    _network_option(
        **whole(16, MIN_SIZES[1]),
        help="Downscale larger frames for the network, to this many pixels on the shorter side.",
    ),
]
MinSize = Annotated[
    int | None,
    _network_option(
        **whole(*MIN_SIZES),
        help="Upscale smaller frames for the network, to this many pixels on the shorter side; by default the size "
        f"that is stored with the weights: {MIN_SIZE} for the package's own, none for a published checkpoint.",
    ),
]
Backend = Annotated[
    BackendName,
    _network_option(help="The implementation of the memory read; 'stm-fast info' lists those available here."),
]

Write = Annotated[
    str,
    typer.Option(metavar="RESULTS", help=f"The results to write, separated by commas: some of {', '.join(RESULTS)}."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")]


def network_choice(
    weights: Annotated[
        str,
        _network_option(
            help="A checkpoint: one of our .safetensors files, or the published .pth; 'default' is the package's own, "
            "'open' the one trained without DAVIS. A name like user/repo that is no path is downloaded from the "
            "Hugging Face hub.",
            metavar="<path>",
        ),
    ] = DEFAULT,
    arch: Annotated[
        Arch | None, _network_option(help="Use an untrained network of this kind instead of the default weights.")
    ] = None,
    device: Annotated[str, _network_option(help="Where the network runs: auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        Precision, _network_option(help="Precision of the network; auto uses 16 bits where they are fast.")
    ] = "float32",
    compile: Annotated[
        CompileMode | None, _network_option(help="Compile the network with torch.compile, in this mode.")
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
