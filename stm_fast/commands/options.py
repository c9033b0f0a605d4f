"""Options that several commands have."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from stm_fast.choices import Arch, BackendName, CompileMode, Precision
from stm_fast.commands.numbers import whole
from stm_fast.config import MemoryConfig
from stm_fast.inference.options import RunOptions, check_sizes
from stm_fast.network.released import DEFAULT, MIN_SIZE
from stm_fast.tasks.choice import NetworkChoice

_LARGEST = 2**14  # pixels of a shorter side
_network_option = partial(typer.Option, rich_help_panel="Network")

MaxSize = Annotated[
    int | None,
    _network_option(
        **whole(16, _LARGEST),
        help="Downscale larger frames for the network: pixels of their shorter side, at most.",
    ),
]
MinSize = Annotated[
    int | None,
    _network_option(
        **whole(1, _LARGEST),
        help="Upscale smaller frames for the network: pixels of their shorter side, at least. The default is "
        f"{MIN_SIZE} with the package's own weights; with others no frame is upscaled.",
    ),
]
Backend = Annotated[
    BackendName, _network_option(help="What reads the memory; 'stm-fast info' tells which of them this machine has.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results that the output folder holds.")]


def network_choice(
    weights: Annotated[
        Path,
        _network_option(
            help="The checkpoint to take, in our .safetensors or the published .pth; the default is the package's own, "
            "open the one that it has from data without DAVIS."
        ),
    ] = Path(DEFAULT),
    arch: Annotated[
        Arch | None, _network_option(help="Take an untrained network of this kind instead of the default weights.")
    ] = None,
    device: Annotated[str, _network_option(help="Where the network runs: auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        Precision, _network_option(help="What the network computes in; auto takes 16 bits where they are fast.")
    ] = "float32",
    compile: Annotated[
        CompileMode | None, _network_option(help="Compile the network by torch.compile, in this mode.")
    ] = None,
) -> NetworkChoice:
    """The options as a choice. Raises InputError where they contradict each other, or the checkpoint is missing."""
    return NetworkChoice(weights, arch, device, dtype, compile)


Network = Annotated[NetworkChoice, network_choice]


def run_options(
    network: NetworkChoice,
    memory: MemoryConfig,
    max_size: int | None,
    min_size: int | None,
    backend: BackendName,
    scales: list[float] | None = None,
    flip: bool = False,
) -> RunOptions:
    """What masks depend on. Raises InputError where the sizes contradict each other."""
    smallest = network.smallest_side(min_size, max_size)
    check_sizes(max_size, smallest)
    return RunOptions(memory, max_size, smallest, backend, tuple(scales or (1.0,)), flip)
