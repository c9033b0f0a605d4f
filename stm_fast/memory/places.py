"""From a configuration to a storage: in which format, and where."""

from stm_fast.config import MemoryConfig
from stm_fast.memory.formats import format_of
from stm_fast.memory.paged import PagedStorage, PageLayout
from stm_fast.memory.pages import DiskPages, HostPages, Pages
from stm_fast.memory.storage import DeviceStorage, FrameLayout, Storage


def storage_of(config: MemoryConfig, frame: FrameLayout, known_slots: int | None) -> Storage:
    """The storage that a configuration asks for.

    Args:
        frame: what all frames have in common.
        known_slots: how many slots each object will have, where that is known.

    Raises:
        InputError: a folder that is missing or cannot be written.
    """
    row_format = format_of(config.storage, frame.dtype)
    if config.place == "device":
        return DeviceStorage(frame, row_format, known_slots)
    layout = PageLayout(frame, row_format, config.page_bytes)
    return PagedStorage(frame, row_format, layout, _pages(config, layout.nbytes, frame.device.type == "cuda"))


def _pages(config: MemoryConfig, page_bytes: int, pinned: bool) -> Pages:
    if config.folder is not None:
        return DiskPages(page_bytes, config.folder)
    return HostPages(page_bytes, pinned=pinned)
