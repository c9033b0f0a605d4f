"""What the masks of a run depend on, as plain JSON: two runs with the same description give the same masks."""

import hashlib
import json
from pathlib import Path
from typing import Any

from stm_fast.config import MemoryConfig
from stm_fast.inference.given import GivenMasks
from stm_fast.network import STM
from stm_fast.network.fingerprint import fingerprint
from stm_fast.versions import __version__

Run = dict[str, Any]


def describe_run(
    source: Path,
    given: GivenMasks,
    model: STM,
    memory: MemoryConfig,
    *,
    max_size: int | None,
    min_size: int,
    backend: str,
    overlay: str,
    processes: int,
) -> Run:
    """What a run is made of. The video counts by name, size and time of change, which is quick; the masks by content.

    The number of processes is part of it, because each of them keeps its own share of the memory; the folder of a bank
    on disk is not.
    """
    parameter = next(model.parameters())
    run = {
        "video": _identity(source),
        "masks": _digest(given),
        "network": str(model.architecture),
        "weights": fingerprint(model),
        "dtype": str(parameter.dtype),
        "compiled": model.compiled,
        "device": parameter.device.type,
        "memory": memory.described(),
        "max_size": max_size,
        "min_size": min_size,
        "backend": backend,
        "overlay": overlay,
        "processes": processes,
        "stm_fast": __version__,
    }
    # as it comes back from a file
    plain: Run = json.loads(json.dumps(run, default=str))
    return plain


def _identity(source: Path) -> str:
    """Name, size and time of change of a file, or a digest of those of every file in a folder."""
    if source.is_dir():
        lines = sorted(_identity(file) for file in source.iterdir() if file.is_file())
        return f"{len(lines)} files {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"
    facts = source.stat()
    return f"{source.name} {facts.st_size} bytes {facts.st_mtime_ns}"


def _digest(given: GivenMasks) -> str:
    digest = hashlib.sha256()
    for index, file in sorted(given.files.items()):
        digest.update(f"{index} ".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
