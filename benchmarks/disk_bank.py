"""A bank on disk that is larger than the memory it takes: reads it, and holds the read to the float64 criterion.

python benchmarks/disk_bank.py --rows 1000000 --folder /var/tmp
"""

import json
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from stm_fast.benchmarking.resident import CLEAR, give_back_free_memory, resident_bytes
from stm_fast.config import MemoryConfig
from stm_fast.memory import MemoryBank
from stm_fast.ops import memory_read, merge_reads
from stm_fast.testing.criterion import allowance, distance

CK, CV = 128, 512
SIDE = (15, 27)  # a frame of 240p at stride 16
FRAME_ROWS = SIDE[0] * SIDE[1]


def main(
    rows: Annotated[int, typer.Option(help="Memory rows, about; 2560 bytes each.")] = 20_000,
    folder: Annotated[Path, typer.Option(help="Where the bank lies; not a folder in memory.")] = Path("/var/tmp"),
    queries: Annotated[int, typer.Option(help="Pixels of the frame that reads.")] = 64,
    threads: int = 2,
) -> None:
    """Prints what the read took and how exact it is; ends with exit code 1 where either is too much."""
    torch.set_num_threads(threads)
    frames = -(-rows // FRAME_ROWS)
    bank = MemoryBank(MemoryConfig(place="disk", folder=folder))
    for index in range(frames):
        key, value = frame(index)
        bank.append(key.T.view(1, CK, *SIDE), value.T.view(1, CV, *SIDE))
    query_key = torch.randn(1, CK, 1, queries, generator=torch.Generator().manual_seed(-1))
    give_back_free_memory()
    CLEAR.write_text("5")  # the peak starts anew
    before, began = resident_bytes("VmRSS"), time.perf_counter()
    found = bank.read(query_key)[0].flatten(1).T  # [M, Cv]
    seconds, peak = time.perf_counter() - began, resident_bytes("VmHWM") - before
    error, allowed = errors(found, query_key[0].flatten(1).T, frames)
    buffers = bank._storage._stream.nbytes
    figures = {
        "rows": bank.rows[0],
        "bank_mb": bank.nbytes / 1e6,
        "buffers_mb": buffers / 1e6,
        "resident_beyond_buffers_mb": (peak - buffers) / 1e6,
        "seconds": seconds,
        "gb_per_second": bank.nbytes / seconds / 1e9,
        "error": error,
        "allowed": allowed,
    }
    print(json.dumps(figures))
    raise typer.Exit(int(error > allowed or figures["resident_beyond_buffers_mb"] > 300))


def frame(index: int) -> tuple[Tensor, Tensor]:
    """Key [R, Ck] and value [R, Cv] of one frame, the same whenever it is asked for."""
    generator = torch.Generator().manual_seed(index)
    return torch.randn(FRAME_ROWS, CK, generator=generator), torch.randn(FRAME_ROWS, CV, generator=generator)


def errors(found: Tensor, query: Tensor, frames: int) -> tuple[float, float]:
    """The error of the read, and what it may be: in memory, with eager PyTorch's affinity and in float64."""
    key, value = torch.empty(frames * FRAME_ROWS, CK), torch.empty(frames * FRAME_ROWS, CV)
    exact_out, exact_lse = torch.zeros(1, len(query), CV).double(), torch.full((1, len(query)), -torch.inf).double()
    for index in range(frames):
        place = slice(index * FRAME_ROWS, (index + 1) * FRAME_ROWS)
        key[place], value[place] = frame(index)
        part = memory_read(
            query.double()[None],
            key[place].double()[None],
            value[place].double()[None],
            return_lse=True,
            backend="reference",
        )
        exact_out, exact_lse = merge_reads([exact_out, part[0]], [exact_lse, part[1]])
    eager = (query @ key.T * CK**-0.5).softmax(-1) @ value  # [M, Cv]
    in_memory = memory_read(query[None], key[None], value[None])
    assert isinstance(in_memory, Tensor)
    exact = exact_out[0]
    return distance(found, exact), allowance(found.dtype, eager, in_memory[0], exact)


if __name__ == "__main__":
    typer.run(main)
