"""Estimates the memory that a run needs. A run that cannot fit is refused, with options that would fit.

O objects, H x W the frame as the user gave it.
"""

import os
import shutil
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
import torch

from stm_fast.config import MemoryConfig, Place
from stm_fast.errors import InputError, Message, option, require_folder
from stm_fast.inference.options import RunOptions, network_size, smallest_side
from stm_fast.memory.estimate import BankEstimate, estimate_bank
from stm_fast.memory.storage import FrameLayout
from stm_fast.network import STM
from stm_fast.network.deploy.footprint import activation_bytes
from stm_fast.runs.given import GivenMasks
from stm_fast.runs.loop import FRAMES_WAITING

# overhead of libraries and the allocator
LIBRARY_BYTES = 2**26
_MOST_FRAMES = 10**6
_MUCH_LARGER = 1.5  # times the frame size that suits the weights
# limit and usage of a control group, versions 2 and 1
_GROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


class Workload(NamedTuple):
    """What the memory of a run depends on."""

    model: STM
    options: RunOptions
    full_size: tuple[int, int]  # H, W
    objects: int = 1
    later_objects: int = 0  # of these, not in the first mask
    frames: int | None = None  # that stay in memory without a cap; None if unknown
    given_frames: int = 1  # the largest number of given masks of any object
    world: int = 1  # processes among which the memory is split
    keep_prob: bool = False  # until the results are written

    @property
    def memory(self) -> MemoryConfig:
        """The options of the memory."""
        return self.options.memory

    @property
    def min_size(self) -> int:
        """That of the `VideoSegmenter`."""
        return smallest_side(self.options.min_size, self.options.max_size, self.model.min_size)

    def with_memory(self, **changes: Any) -> Self:
        """The same run with other options of the memory."""
        return self._replace(options=replace(self.options, memory=replace(self.memory, **changes)))


class Estimate(NamedTuple):
    """Peak memory of a run in bytes, beyond that of a process that has only loaded the libraries."""

    parameters: int
    activations: int
    bank: BankEstimate
    waiting: int  # frames and probabilities in the queues between decoding, network and writing, in host memory
    memory: MemoryConfig
    device: torch.device

    @property
    def memory_bytes(self) -> int:
        """On the model's device, without the parameters, which are already loaded."""
        on_cpu = self.device.type == "cpu"
        rows = self._rows_in("device", "host") if on_cpu else self._rows_in("device")
        waiting = self.waiting if on_cpu else 0
        return rows + waiting + max(self.activations, self.bank.workspace) + LIBRARY_BYTES

    @property
    def host_bytes(self) -> int:
        """In host memory, if the network is on a GPU."""
        return 0 if self.device.type == "cpu" else self.waiting + self._rows_in("host")

    @property
    def disk_bytes(self) -> int:
        """In the folder of the memory."""
        return self._rows_in("disk")

    def __str__(self) -> str:
        rows = f"{_text(self.bank.frame)} per stored frame, with no upper bound"
        if self.bank.bank is not None:
            rows = f"{_text(self.bank.bank)} of rows"
        place = {"device": "", "host": " in host memory", "disk": f" in {self.memory.folder}"}[self.memory.place]
        network, workspace = _text(self.parameters + self.activations), _text(self.bank.workspace)
        return f"{network} for the network, {workspace} for a read, and {rows}{place}"

    def _rows_in(self, *places: Place) -> int:
        return (self.bank.bank or 0) if self.memory.place in places else 0


def workload_of(
    model: STM,
    options: RunOptions,
    size: tuple[int, int],
    given: GivenMasks,
    world: int = 1,
    *,
    keep_prob: bool = False,
) -> Workload:
    """The workload of a video, before its first frame.

    Args:
        options: with the number of frames that stay in memory, if the length of the video is known.
        size: H, W of its frames.
        keep_prob: as in `run`.

    Raises:
        InputError: a cap below the number of an object's given masks, which are never evicted.
    """
    ids = {index: set(found) for index, found in given.ids.items()}
    every, first = set().union(*ids.values()), ids[min(ids)]
    counts = {object_id: sum(object_id in those for those in ids.values()) for object_id in sorted(every)}
    most = options.memory.max_frames
    for object_id, count in counts.items():
        if most is not None and count > most:
            raise InputError(
                f"{option('max_frames')}: found {most}, expected at least {count}: object {object_id} has that many "
                "given masks, which are never evicted"
            )
    later, given_frames = len(every - first), max(counts.values())
    return Workload(model, options, size, len(every), later, options.memory.frames, given_frames, world, keep_prob)


def estimate(run: Workload) -> Estimate:
    """The peak memory of a run."""
    parameter = next(run.model.parameters())
    height, width = network_size(run.full_size, run.options.max_size, run.min_size)
    activations = activation_bytes(run.model.architecture, (height, width), run.full_size, run.objects, parameter.dtype)
    parameters = sum(tensor.nbytes for tensor in (*run.model.parameters(), *run.model.buffers()))
    stride = run.model.stride
    rows = -(-height // stride) * -(-width // stride)
    layout = FrameLayout(rows, run.model.key_dim, run.model.value_dim, parameter.dtype, parameter.device)
    bank = estimate_bank(
        run.memory,
        layout,
        objects=run.objects,
        frames=run.frames,
        later_objects=run.later_objects,
        given_frames=run.given_frames,
        world=run.world,
    )
    # both queues, and the frames that their threads hold
    pixels = run.full_size[0] * run.full_size[1]
    waiting = (2 * FRAMES_WAITING + 3) * 3 * pixels
    if run.keep_prob:
        # those that wait to be written, that are being written, and that come next
        waiting += (FRAMES_WAITING + 2) * (1 + run.objects) * 4 * pixels
    return Estimate(parameters, activations, bank, waiting, run.memory, parameter.device)


def check_fits(run: Workload) -> Estimate:
    """The estimate of a run that fits into the memory available on this machine.

    Raises:
        InputError: no such folder for the memory, or the run does not fit: the message says what it needs, what is
            available, and which options would fit.
    """
    if run.memory.folder is not None:
        require_folder(run.memory.folder, "to keep the memory in")
    needed = estimate(run)
    lacking = _lacking(needed)
    if lacking is None:
        return needed
    size = option("min_size" if min(run.full_size) < run.min_size else "max_size")
    options = ", ".join(_options_that_fit(run)) or f"none; use a smaller {size}"
    raise InputError(f"memory: the run needs {lacking}; options that would fit: {options}")


def note_on_size(run: Workload) -> Message | None:
    """What to try if the network sees frames much larger than those that suit its weights, which takes more time."""
    suiting, (height, width) = run.model.min_size, run.full_size
    ratio = min(height, width) / suiting
    if suiting == 1 or run.options.max_size is not None or ratio < _MUCH_LARGER:
        return None
    advice = f"{option('max_size', suiting)}, the size of the weights, would process {ratio**2:.2g} times fewer pixels"
    return Message(f"the network sees frames of {width}x{height}; {advice}")


def near_limit(needed: Estimate) -> str | None:
    """An addition to the estimate if half of a resource would not suffice; None otherwise."""
    for what, nbytes, available in _resources(needed):
        if nbytes > available / 2:
            return f"; the run needs {_text(nbytes)} {what}, and {_text(available)} is available"
    return None


def _lacking(needed: Estimate) -> str | None:
    """The first resource that is insufficient, for a message; None if all suffice."""
    for what, nbytes, available in _resources(needed):
        if nbytes > available:
            return f"{_text(nbytes)} {what}, but only {_text(available)} is available"
    return None


def _resources(needed: Estimate) -> Iterator[tuple[str, int, int]]:
    """What is needed of each resource, and what is available, in bytes."""
    kind = "of memory" if needed.device.type == "cpu" else "of device memory"
    yield kind, needed.memory_bytes, available_bytes(needed.device)
    yield "of host memory", needed.host_bytes, available_bytes(torch.device("cpu"))
    if needed.memory.folder is not None:
        yield f"in {needed.memory.folder}", needed.disk_bytes, shutil.disk_usage(needed.memory.folder).free


def most_frames(run: Workload) -> int:
    """The largest `max_frames` with which the run fits; 0 if there is none."""
    return bisect_right(
        range(1, _MOST_FRAMES),
        False,
        key=lambda frames: _lacking(estimate(run.with_memory(max_frames=frames))) is not None,
    )


def _options_that_fit(run: Workload) -> Iterator[str]:
    """The options that would each make the run fit."""
    in_memory = run.with_memory(place="device", folder=None)
    on_disk = f"{option('place', 'disk')} {option('folder', Path('FOLDER'))}"
    candidates = {
        option("storage", "bfloat16"): in_memory.with_memory(storage="bfloat16"),
        option("storage", "int8"): in_memory.with_memory(storage="int8"),
        on_disk: run.with_memory(place="disk", folder=Path(os.curdir)),
        option("every", None): in_memory.with_memory(every=None, max_frames=run.given_frames),
    }
    if next(run.model.parameters()).device.type != "cpu":
        candidates[option("place", "host")] = in_memory.with_memory(place="host")
    for name, candidate in candidates.items():
        if _lacking(estimate(candidate)) is None:
            yield name
    most = most_frames(run)
    if most >= run.given_frames:
        yield option("max_frames", most)


def available_bytes(device: torch.device) -> int:
    """Memory that this process can still allocate on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(int(psutil.virtual_memory().available), _group_bytes())


def _group_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What is left in the control group of a container; 2**63 - 1 without a limit."""
    for limit, used in _GROUP_FILES:
        if (folder / limit).is_file() and (found := (folder / limit).read_text().strip()) != "max":
            return max(0, int(found) - int((folder / used).read_text()) + _cached_bytes((folder / limit).parent))
    return 2**63 - 1


def _cached_bytes(group: Path) -> int:
    """The page cache, which a group counts as used although it can be reclaimed."""
    table = group / "memory.stat"
    lines = (line.split() for line in (table.read_text().splitlines() if table.is_file() else ()))
    return sum(int(count) for name, count in lines if name in ("active_file", "inactive_file"))


def _text(nbytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes / 1e3:.0f} kB"
