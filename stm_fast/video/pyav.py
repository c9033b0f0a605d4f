"""PyAV is needed for videos only, so it is imported when the first one is opened."""

import importlib

from stm_fast.errors import InputError


def require_av(path: object) -> None:
    """Raises InputError if PyAV cannot be imported; `path` is the video it is needed for."""
    try:
        importlib.import_module("av")
    except ImportError as error:
        raise InputError(
            f"{path}: videos need PyAV, which cannot be imported ({error}); pip install av, or use a folder of images"
        ) from error
