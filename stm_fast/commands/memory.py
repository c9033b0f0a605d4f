"""Options of the memory: what it keeps, and where."""

from pathlib import Path
from typing import Annotated

from stm_fast.commands.numbers import nbytes, whole
from stm_fast.commands.options import memory_option
from stm_fast.config import Evict, MemoryConfig, Place, StorageName
from stm_fast.errors import InputError, require_folder


def memory_config(
    every: Annotated[int, memory_option(**whole(1, 10**9), help="Every N-th frame is kept in the memory.")] = 5,
    first_and_previous: Annotated[
        bool,
        memory_option(
            "--first-and-previous", help="Only frames with given masks and the previous frame are kept in the memory."
        ),
    ] = False,
    no_previous: Annotated[
        bool, memory_option("--no-previous", help="The previous frame is not read, unless it is kept in the memory.")
    ] = False,
    no_redetect: Annotated[
        bool,
        memory_option(
            "--no-redetect", help="Lost objects are memorized as absent, and searched for only where they were."
        ),
    ] = False,
    max_frames: Annotated[
        int | None,
        memory_option(
            "--max-memory-frames", **whole(1, 10**9), help="The memory holds at most this many frames of an object."
        ),
    ] = None,
    max_bytes: Annotated[
        int | None,
        memory_option("--max-memory-bytes", **nbytes(), help="The memory takes at most this much space, as in 2.5GB."),
    ] = None,
    evict: Annotated[
        Evict,
        memory_option(
            help="A full memory evicts the oldest frames, the least used ones, or those that leave the rest even."
        ),
    ] = "oldest",
    consolidate: Annotated[
        int | None,
        memory_option(
            **whole(1, 10**9),
            help="This many frames of a full memory hold the most used rows of evicted frames.",
        ),
    ] = None,
    memory_storage: Annotated[
        StorageName,
        memory_option(help="The rows of the memory are stored in this format; model is the precision of the network."),
    ] = "model",
    memory_place: Annotated[
        Place,
        memory_option(help="The memory is kept with the network (device), in host memory, or on disk."),
    ] = "device",
    memory_folder: Annotated[
        Path | None,
        memory_option(help="The memory is kept in this folder if --memory-place is disk; nothing is left in it."),
    ] = None,
    memory_graph: Annotated[
        bool,
        memory_option("--memory-graph", help="On a GPU, reads of a full memory are replayed from CUDA graphs."),
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
