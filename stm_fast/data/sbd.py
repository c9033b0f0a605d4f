"""Masks of the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011), which are MATLAB files."""

import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from stm_fast.data.raw import Bytes
from stm_fast.errors import InputError

HOW_TO_GET_SCIPY = "masks in .mat files need scipy: pip install 'stm_fast[sbd]'"
# instances of `inst/*.mat`, classes of `cls/*.mat`
_NAMES = ("GTinst", "GTcls")


def read_mat(file: Path) -> Bytes:
    """Object ids uint8 [H, W] of a file of `inst`, or class ids of one of `cls`.

    Raises InputError: scipy is not installed, no such file, no MATLAB file, none with a segmentation.
    """
    if find_spec("scipy") is None:
        raise InputError(f"{file}: {HOW_TO_GET_SCIPY}")
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found = loadmat(file, variable_names=_NAMES)
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such mask") from error
    except (OSError, ValueError, TypeError, NotImplementedError, MatReadError, zlib.error) as error:
        raise InputError(f"{file}: not a readable MATLAB file ({error})") from error
    for name in _NAMES:
        fields = getattr(found.get(name), "dtype", np.dtype(float)).names or ()
        if "Segmentation" in fields and found[name].size == 1:
            ids = found[name]["Segmentation"].item()
            if ids.ndim == 2 and ids.dtype == np.uint8:
                return np.ascontiguousarray(ids)
    raise InputError(f"{file}: found no Segmentation of GTinst or GTcls, expected a mask of SBD")
