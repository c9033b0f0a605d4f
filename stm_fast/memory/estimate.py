"""Estimates the memory of a bank and its reads before the first frame."""

from typing import NamedTuple

import torch

from stm_fast.config import MemoryConfig
from stm_fast.errors import InputError, option
from stm_fast.memory.paged import PageLayout
from stm_fast.memory.places import row_format_of
from stm_fast.memory.storage import SCRATCH_BYTES, FrameLayout
from stm_fast.memory.usage import USAGE_BYTES
from stm_fast.ops.inputs import accumulation_dtype


class BankEstimate(NamedTuple):
    """Peak size of a bank in bytes, or of one process's shard."""

    bank: int | None  # of all rows, in any place; None if the number of frames is unbounded
    frame: int  # of one frame of all objects
    workspace: int  # of a read, on the device


def estimate_bank(
    config: MemoryConfig,
    layout: FrameLayout,
    *,
    objects: int,
    frames: int | None,
    later_objects: int = 0,
    given_frames: int = 1,
    world: int = 1,
) -> BankEstimate:
    """The peak size of a bank with this configuration.

    Args:
        layout: of a frame; a read has as many queries as a frame has rows.
        objects: the final number of objects.
        frames: how many frames are kept if no cap is reached; None if unknown.
        later_objects: how many of the objects appear later; rows on the device are copied when they do.
        given_frames: frames of one object with given masks, which are never evicted.
        world: how many processes share the bank.

    Raises:
        InputError: a cap in bytes that does not hold the given frames.
    """
    row_format = row_format_of(config, layout)
    fields = row_format.fields(layout.rows, layout.key_dim, layout.value_dim)
    page = PageLayout(layout, row_format, config.page_bytes)
    slot_bytes = sum(field.nbytes for field in fields.values())
    on_device = config.place == "device"

    def taken(slots: int) -> int:
        here = -(-slots // world)
        return objects * (here * slot_bytes if on_device else -(-here // page.slots) * page.nbytes)

    _check_max_bytes(config, taken(given_frames + config.previous), objects, given_frames)
    staying = [number for number in (frames, config.max_frames) if number is not None]
    sizes = [taken(min(staying) + config.previous)] if staying else []
    sizes += [] if config.max_bytes is None else [config.max_bytes]
    bank = min(sizes, default=None)
    if bank is not None and on_device and 0 < later_objects < objects:
        # fields are copied one at a time; the value is the largest
        bank += bank * fields["value"].nbytes // slot_bytes * (objects - later_objects) // objects
    workspace = _workspace(config, layout, page, objects, bank)
    slots = 0 if bank is None else -(-bank * world // (objects * slot_bytes))
    return BankEstimate(bank, objects * slot_bytes, workspace + _consolidation(config, layout, objects, slots))


def _check_max_bytes(config: MemoryConfig, least: int, objects: int, given_frames: int) -> None:
    if config.max_bytes is None or config.max_bytes >= least:
        return
    what = "a frame" if given_frames == 1 else f"{given_frames} frames with given masks, which are never evicted,"
    raise InputError(
        f"{option('max_bytes')}: found {config.max_bytes}, expected at least {least} for {what} of {objects} objects"
        + (" and the previous one" if config.previous else "")
    )


def _consolidation(config: MemoryConfig, layout: FrameLayout, objects: int, slots: int) -> int:
    """The usage of rows, keys copied to measure it, and an object's prototypes and two frames, decoded twice."""
    if config.consolidate is None:
        return 0
    usage = objects * slots * layout.rows * USAGE_BYTES
    # four copies: decoded in float32, in the model's dtype, and with further channels
    keys = 4 * max(SCRATCH_BYTES, objects * layout.rows * layout.key_dim * layout.dtype.itemsize)
    decoded = layout._replace(dtype=accumulation_dtype(layout.dtype)).slot_bytes
    return usage + keys + 2 * (config.consolidate + 2) * decoded


def _workspace(config: MemoryConfig, layout: FrameLayout, page: PageLayout, objects: int, bank: int | None) -> int:
    """The result, partial results being merged, two pages, and decoded rows."""
    out = objects * layout.rows * layout.value_dim * max(layout.dtype.itemsize, torch.float32.itemsize)
    keeps = row_format_of(config, layout).keeps(layout.dtype)
    if config.place == "device":
        slots = max(1, SCRATCH_BYTES // (objects * layout.slot_bytes))
        decoded = 0 if keeps else objects * slots * layout.slot_bytes
        if bank is not None:
            decoded = min(decoded, 4 * bank)
        pages = 0
    else:
        pages = 2 * objects * page.nbytes
        decoded = 0 if keeps else objects * page.slots * layout.slot_bytes
    # two partial results, both stacked, and both weighted
    joined = 1 if config.place == "device" and keeps else 6
    # decoding goes through float32
    return out * joined + pages + decoded * (1 if layout.dtype == torch.float32 else 3)
