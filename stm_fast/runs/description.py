"""What a run is made of, as plain JSON: two runs with the same description give the same masks."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stm_fast.errors import InputError
from stm_fast.inference.options import RunOptions
from stm_fast.network import STM
from stm_fast.network.fingerprint import fingerprint
from stm_fast.record_file import as_json, difference
from stm_fast.runs.given import GivenMasks
from stm_fast.versions import __version__

Description = dict[str, Any]


def describe_network(model: STM) -> Description:
    """Architecture, weights and dtype."""
    return {
        "network": str(model.architecture),
        "weights_sha256": fingerprint(model),
        "dtype": str(next(model.parameters()).dtype),
    }


def describe_video_run(
    source: Path, given: GivenMasks, model: STM, options: RunOptions, overlay: str, ranks: int
) -> Description:
    """Of a run of one video, which counts by name, size and time of change, which is quick; the masks by content.

    The number of ranks is part of it, because each of them keeps its own share of the memory; the folder of a bank on
    disk is not.
    """
    return as_json(
        {
            "video": _identity(source),
            "masks": given.digest,
            **describe_network(model),
            "compiled": model.compiled,
            "device": next(model.parameters()).device.type,
            **options.described(),
            "overlay": overlay,
            "ranks": ranks,
            "stm_fast": __version__,
        }
    )


def check_same(folder: Path, found: Description, expected: Mapping[str, Any], advice: str) -> None:
    """Raises InputError where the run that a folder holds is not the expected one; `advice` says what to do then."""
    differs = difference(found, as_json(expected))
    if differs is not None:
        raise InputError(f"{folder}: holds results of another run; {differs}; {advice}")


def _identity(source: Path) -> str:
    """Name, size and time of change of a file, or a digest of those of every file in a folder."""
    if source.is_dir():
        lines = sorted(_identity(file) for file in source.iterdir() if file.is_file())
        return f"{len(lines)} files {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"
    facts = source.stat()
    return f"{source.name} {facts.st_size} bytes {facts.st_mtime_ns}"
