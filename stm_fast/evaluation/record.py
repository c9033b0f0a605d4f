"""The results of an evaluation: a JSON record, and the tables of the DAVIS toolkit."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stm_fast.csv_file import csv_lines, open_csv
from stm_fast.evaluation.benchmark_sets import Timing
from stm_fast.evaluation.scoring import ObjectScore
from stm_fast.printing import percent, printable, say
from stm_fast.runs.environment import environment
from stm_fast.whole_file import whole_file

Record = dict[str, Any]

GLOBAL_MEASURES = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
SEQUENCE_MEASURES = ("Sequence", "J-Mean", "F-Mean")


def make_record(
    run: Record, scores: list[ObjectScore], timings: list[Timing], device: torch.device | None = None
) -> Record:
    """The record of an evaluation.

    Args:
        run: the description of the run.
        scores: of every object; empty if annotations are not public.
        timings: of every sequence; empty if existing results were scored.
        device: of the network.
    """
    return {
        "run": run,
        "environment": environment(device),
        "global": overall(scores) if scores else None,
        "speed": speed(timings) if timings else None,
        "objects": [_object(score) for score in scores],
        "sequences": [asdict(timing) for timing in timings],
    }


def speed(timings: list[Timing]) -> Record:
    """Frames per second over all sequences, as papers report them and end to end; seconds by stage."""
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


def _object(score: ObjectScore) -> Record:
    return {
        "sequence": score.sequence,
        "object": score.object_id,
        "frames": list(score.frames),
        "J": score.J._asdict() | {"per_frame": score.region.tolist()},
        "F": score.F._asdict() | {"per_frame": score.contour.tolist()},
    }


def overall(scores: list[ObjectScore]) -> dict[str, float]:
    """The toolkit's global measures: means over all objects of all sequences, in [0, 1]."""
    region, contour = (np.mean([getattr(score, measure) for score in scores], axis=0) for measure in "JF")  # [3]
    values = [(region[0] + contour[0]) / 2, *region, *contour]
    return {name: float(value) for name, value in zip(GLOBAL_MEASURES, values, strict=True)}


def print_tables(scores: list[ObjectScore], split: str) -> None:
    """Prints both tables in the layout of the toolkit, in percent as in papers."""
    say(f"--------------------- Global results for {split}, in percent ---------------------")
    say(*_aligned(GLOBAL_MEASURES, [[percent(value) for value in overall(scores).values()]]))
    say("", f"---------- Per sequence results for {split}, in percent ----------")
    rows = [[printable(score.name), percent(score.J.mean), percent(score.F.mean)] for score in scores]
    say(*_aligned(SEQUENCE_MEASURES, rows))


def print_comparison(methods: Mapping[str, list[ObjectScore]]) -> None:
    """Prints the scores of several methods on the same set in percent, one line each."""
    say("", "---------- Baselines, in percent ----------")
    measures = ("J&F-Mean", "J-Mean", "F-Mean")
    rows = []
    for name, scores in methods.items():
        measured = overall(scores)
        rows.append([name, *(percent(measured[measure]) for measure in measures)])
    say(*_aligned(("Method", *measures), rows))


def write_tables(scores: list[ObjectScore], split: str, folder: Path) -> None:
    """Writes the two CSV files of the toolkit, with its numbers from 0 to 1."""
    values = [f"{value:.3f}" for value in overall(scores).values()]
    rows = [[score.name, f"{score.J.mean:.3f}", f"{score.F.mean:.3f}"] for score in scores]
    _write_csv(folder / f"global_results-{split}.csv", GLOBAL_MEASURES, [values])
    _write_csv(folder / f"per-sequence_results-{split}.csv", SEQUENCE_MEASURES, rows)


def _aligned(header: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [" ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]


def _write_csv(path: Path, header: tuple[str, ...], rows: list[list[str]]) -> None:
    with whole_file(path) as partial, open_csv(partial, "w") as file:
        file.write(csv_lines([header, *rows]))
