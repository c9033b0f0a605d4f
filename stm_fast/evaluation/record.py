"""What an evaluation found, as one JSON file: scores, speed, configuration, versions."""

import platform
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from stm_fast.evaluation.benchmark_sets import Timing
from stm_fast.evaluation.scoring import ObjectScore
from stm_fast.evaluation.tables import overall
from stm_fast.record_file import write_record_file
from stm_fast.versions import version_of

Record = dict[str, Any]


def make_record(
    run: Record, scores: list[ObjectScore], timings: list[Timing], device: torch.device | None = None
) -> Record:
    """Everything that is worth keeping of an evaluation.

    Args:
        run: what was asked for.
        scores: of every object; none where annotations are not public.
        timings: of every sequence; none where results were only scored.
        device: where the network ran.
    """
    return {
        "run": run,
        "environment": environment(device),
        "global": overall(scores) if scores else None,
        "speed": speed(timings) if timings else None,
        "objects": [_object(score) for score in scores],
        "sequences": [asdict(timing) for timing in timings],
    }


def write_record(record: Record, file: Path) -> None:
    """The record as JSON with a checksum, whole or not at all."""
    write_record_file(file, record)


def speed(timings: list[Timing]) -> Record:
    """Frames a second over the sequences, as papers report them and end to end; seconds by stage."""
    frames = sum(timing.frames for timing in timings)
    network, whole = (sum(getattr(timing, name) for timing in timings) for name in ("network_seconds", "seconds"))
    stages = Counter[str]()
    for timing in timings:
        stages.update(timing.stage_seconds)
    return {
        "frames": frames,
        "network_seconds": network,
        "network_frames_per_second": frames / network,
        "seconds": whole,
        "frames_per_second": frames / whole,
        "stage_seconds": dict(stages),
    }


def environment(device: torch.device | None) -> dict[str, str]:
    """Versions, machine and device."""
    packages = ("stm_fast", "torch", "torchvision", "triton", "numpy", "pillow")
    found = {package: version_of(package) or "not installed" for package in packages}
    found["python"] = platform.python_version()
    found["machine"] = f"{platform.system()} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    if device is not None:
        cuda = device.type == "cuda"
        found["device"] = torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.get_num_threads()} threads"
    return found


def _object(score: ObjectScore) -> Record:
    return {
        "sequence": score.sequence,
        "object": score.object_id,
        "frames": list(score.frames),
        "J": score.J._asdict() | {"per_frame": score.region.tolist()},
        "F": score.F._asdict() | {"per_frame": score.contour.tolist()},
    }
