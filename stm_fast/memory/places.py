"""From a configuration to a storage: in which format, and where."""

from stm_fast.config import MemoryConfig
from stm_fast.memory.formats import Format, format_of
from stm_fast.memory.paged import PagedStorage, PageLayout
from stm_fast.memory.pages import DiskPages, HostPages, Pages
from stm_fast.memory.storage import DeviceStorage, FrameLayout, Storage


def row_format_of(config: MemoryConfig, frame: FrameLayout, backend: str = "auto") -> Format:
    """How rows are kept: bytes so that the read takes them as they are, unless a named backend wants floats.

    On a CPU that is the C++ engine's, of int8; it has no use for the layout of fp8 that a GPU multiplies.
    """
    on_gpu = frame.device.type == "cuda" and backend in ("auto", "triton")
    on_cpu = frame.device.type == "cpu" and backend in ("auto", "cpp") and config.storage == "int8"
    return format_of(config.storage, frame.dtype, decoded=not (on_gpu or on_cpu))


def storage_of(config: MemoryConfig, frame: FrameLayout, known_slots: int | None, backend: str = "auto") -> Storage:
    """The storage that a configuration asks for.

    Args:
        frame: what all frames have in common.
        known_slots: how many slots each object will have, where that is known.
        backend: what will read it.

    Raises:
        InputError: a folder that is missing or cannot be written.
    """
    row_format = row_format_of(config, frame, backend)
    if config.place == "device":
        return DeviceStorage(frame, row_format, known_slots)
    layout = PageLayout(frame, row_format, config.page_bytes)
    return PagedStorage(frame, row_format, layout, _pages(config, layout.nbytes, frame.device.type == "cuda"))


def _pages(config: MemoryConfig, page_bytes: int, pinned: bool) -> Pages:
    if config.folder is not None:
        return DiskPages(page_bytes, config.folder)
    return HostPages(page_bytes, pinned=pinned)
