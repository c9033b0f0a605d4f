"""Options that say what the memory keeps, and where."""

import re
from pathlib import Path
from typing import Annotated

import typer

from stm_fast.config import Evict, MemoryConfig, Place, StorageName
from stm_fast.errors import InputError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def _nbytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)b?", text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a number of bytes such as 800MB or 2.5GB")
    return int(float(match[1]) * _UNITS[match[2]])


Every = Annotated[int, typer.Option(min=1, help="Every N-th frame stays in the memory.")]
FirstAndPrevious = Annotated[
    bool, typer.Option("--first-and-previous", help="Only frames with given masks stay, and the previous one.")
]
MaxFrames = Annotated[
    int | None, typer.Option("--max-memory-frames", min=1, help="At most so many frames stay, of each object.")
]
MaxBytes = Annotated[
    int | None,
    typer.Option("--max-memory-bytes", parser=_nbytes, metavar="BYTES", help="At most so many, such as 2.5GB."),
]
Eviction = Annotated[Evict, typer.Option("--evict", help="Which frame makes room where the memory is full.")]
Storage = Annotated[StorageName, typer.Option("--memory-storage", help="What the memory's rows are kept as.")]
MemoryPlace = Annotated[
    Place, typer.Option("--memory-place", help="Where rows lie: with the network, in host memory, or on disk.")
]
Folder = Annotated[Path | None, typer.Option("--memory-folder", help="For --memory-place disk; nothing stays in it.")]

Graph = Annotated[
    bool, typer.Option("--memory-graph", help="On a GPU, the reads of a full memory are replayed from CUDA graphs.")
]


def memory_config(
    every: int,
    first_and_previous: bool,
    max_frames: int | None,
    max_bytes: int | None,
    evict: Evict,
    storage: StorageName,
    place: Place,
    folder: Path | None,
    graph: bool,
) -> MemoryConfig:
    """The options as a configuration. Raises InputError where they contradict each other."""
    if (place == "disk") != (folder is not None):
        raise InputError(f"--memory-folder: found {folder} with --memory-place {place}, expected one with disk only")
    if max_bytes == 0:
        raise InputError("--max-memory-bytes: found 0, expected at least 1")
    return MemoryConfig(
        every=None if first_and_previous else every,
        max_frames=max_frames,
        max_bytes=max_bytes,
        evict=evict,
        storage=storage,
        place=place,
        folder=folder,
        graph=graph,
    )
