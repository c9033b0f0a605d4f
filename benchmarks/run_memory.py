"""The memory that `stm-fast segment` estimates for runs of several sizes, numbers of objects and lengths.

python benchmarks/make_tables.py writes the table into docs/service.md.
"""

from collections.abc import Iterator

import stm_fast
from stm_fast.benchmarking.report import Table
from stm_fast.inference.options import RunOptions
from stm_fast.memory import with_known_size
from stm_fast.runs.estimation import Workload, estimate

_CAP = 20  # frames in memory
_FRAMES_PER_SECOND = 25
# H, W, and the limit of the shorter side for the network
_SIZES = {
    "240p": (240, 432, None),
    "480p": (480, 854, None),
    "720p": (720, 1280, None),
    "1080p": (1080, 1920, None),
    "1080p with `max_size=480`": (1080, 1920, 480),
}
_OBJECTS = (1, 3, 10)
_SECONDS = {"10 s": 10, "1 min": 60, "1 h": 3600}


def table() -> Table:
    """The peak memory of a run, without the network's weights, on a CPU in float32 with the package's weights."""
    model = stm_fast.load(device="cpu", dtype="float32")
    head = ["size, objects", *_SECONDS, f"any length, `max_frames={_CAP}`"]
    return Table(head, list(_rows(model)))


def _rows(model: stm_fast.STM) -> Iterator[list[str]]:
    longest = max(_SECONDS.values())
    cases = [(seconds, stm_fast.MemoryConfig()) for seconds in _SECONDS.values()]
    cases.append((longest, stm_fast.MemoryConfig(max_frames=_CAP)))
    for name, (height, width, most) in _SIZES.items():
        for objects in _OBJECTS:
            runs = (_run(model, (height, width), most, objects, seconds, memory) for seconds, memory in cases)
            yield [f"{name}, {objects}", *(f"{estimate(run).memory_bytes / 1e9:,.2f} GB" for run in runs)]


def _run(
    model: stm_fast.STM,
    size: tuple[int, int],
    max_size: int | None,
    objects: int,
    seconds: int,
    memory: stm_fast.MemoryConfig,
) -> Workload:
    known = with_known_size(memory, seconds * _FRAMES_PER_SECOND, {0: range(objects)})
    options = RunOptions(known, max_size).for_weights(model.min_size)
    return Workload(model, options, size, objects, frames=known.frames)
