"""The row format and the storage that a configuration selects."""

from stm_fast.config import MemoryConfig
from stm_fast.memory.formats import Format, format_of
from stm_fast.memory.paged import PagedStorage, PageLayout
from stm_fast.memory.pages import DiskPages, HostPages
from stm_fast.memory.storage import DeviceStorage, FrameLayout, Storage


def row_format_of(config: MemoryConfig, frame: FrameLayout, backend: str = "auto") -> Format:
    """The format of rows. Bytes are stored in the layout that a read uses, unless the named backend needs floats."""
    on_gpu = frame.device.type == "cuda" and backend in ("auto", "triton")
    on_cpu = frame.device.type == "cpu" and backend in ("auto", "cpp")
    return format_of(config.storage, frame.dtype, decoded=not (on_gpu or on_cpu))


def storage_of(config: MemoryConfig, frame: FrameLayout, known_slots: int | None, backend: str = "auto") -> Storage:
    """The storage that a configuration selects.

    Args:
        frame: the layout common to all frames.
        known_slots: how many slots each object will have, if known.
        backend: the backend that will read it.

    Raises:
        InputError: the folder is missing or cannot be written.
    """
    row_format = row_format_of(config, frame, backend)
    if config.place == "device":
        return DeviceStorage(frame, row_format, known_slots)
    layout = PageLayout(frame, row_format, config.page_bytes)
    if config.folder is not None:
        return PagedStorage(frame, row_format, layout, DiskPages(layout.nbytes, config.folder))
    return PagedStorage(frame, row_format, layout, HostPages(layout.nbytes, pinned=frame.device.type == "cuda"))
