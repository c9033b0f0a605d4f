"""PyAV is needed for videos only, so it is imported when the first one is opened."""

import importlib

from stm_fast.errors import InputError


def require_av(path: object, instead: str = "use a folder of images") -> None:
    """Raises InputError if PyAV cannot be imported; `path` is the video it is needed for, `instead` a way without."""
    try:
        importlib.import_module("av")
    except ImportError as error:
        why = f"videos need PyAV, which cannot be imported ({error})"
        raise InputError(f"{path}: {why}; pip install av, or {instead}") from error
