"""Options of the memory: what it keeps, and where."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from stm_fast.commands.numbers import nbytes, whole
from stm_fast.config import Evict, MemoryConfig, Place, StorageName
from stm_fast.errors import InputError, require_folder

_option = partial(typer.Option, rich_help_panel="Memory")


def memory_config(
    every: Annotated[int, _option(**whole(1, 10**9), help="Keep every N-th frame in the memory.")] = 5,
    first_and_previous: Annotated[
        bool, _option("--first-and-previous", help="Keep only frames with given masks, and the previous one.")
    ] = False,
    no_previous: Annotated[
        bool, _option("--no-previous", help="Do not read the previous frame, unless it is kept.")
    ] = False,
    no_redetect: Annotated[
        bool,
        _option("--no-redetect", help="Memorize lost objects as absent, and search for them only where they were."),
    ] = False,
    max_frames: Annotated[
        int | None,
        _option("--max-memory-frames", **whole(1, 10**9), help="Keep at most this many frames per object."),
    ] = None,
    max_bytes: Annotated[
        int | None,
        _option("--max-memory-bytes", **nbytes(), help="Keep at most this much memory, such as 2.5GB."),
    ] = None,
    evict: Annotated[Evict, _option(help="Which frame to evict when the memory is full.")] = "oldest",
    consolidate: Annotated[
        int | None,
        _option(**whole(1, 10**9), help="Of a full memory, this many frames hold the most used rows of evicted ones."),
    ] = None,
    memory_storage: Annotated[StorageName, _option(help="Format of the memory's rows.")] = "model",
    memory_place: Annotated[
        Place, _option(help="Where the rows are: with the network, in host memory, or on disk.")
    ] = "device",
    memory_folder: Annotated[
        Path | None, _option(help="The folder for --memory-place disk; nothing is left in it.")
    ] = None,
    memory_graph: Annotated[
        bool, _option("--memory-graph", help="On a GPU, replay the reads of a full memory from CUDA graphs.")
    ] = False,
) -> MemoryConfig:
    """The options as a configuration.

    Raises:
        InputError: options that contradict each other, or no such folder.
    """
    if first_and_previous and no_previous:
        raise InputError("--no-previous: found with --first-and-previous, expected one of them")
    if (memory_place == "disk") != (memory_folder is not None):
        found = f"{memory_folder} with --memory-place {memory_place}"
        raise InputError(f"--memory-folder: found {found}, expected a folder if and only if it is disk")
    if consolidate is not None and max_frames is None and max_bytes is None:
        raise InputError(
            f"--consolidate: found {consolidate}, expected --max-memory-frames or --max-memory-bytes with it"
        )
    if consolidate is not None and max_frames is not None and consolidate > max_frames - 2:
        raise InputError(
            f"--consolidate: found {consolidate} with --max-memory-frames {max_frames}, expected at least 2 fewer"
        )
    if memory_folder is not None:
        require_folder(memory_folder, "to keep the memory in")
    return MemoryConfig(
        every=None if first_and_previous else every,
        previous=not no_previous,
        redetect=not no_redetect,
        max_frames=max_frames,
        max_bytes=max_bytes,
        evict=evict,
        consolidate=consolidate,
        storage=memory_storage,
        place=memory_place,
        folder=memory_folder,
        graph=memory_graph,
    )


Memory = Annotated[MemoryConfig, memory_config]
