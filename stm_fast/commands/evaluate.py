"""stm-fast evaluate: runs a benchmark set, or scores existing results."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from stm_fast.choices import SetName
from stm_fast.commands.cluster import Cluster, refuse_torchrun
from stm_fast.commands.memory import Memory
from stm_fast.commands.numbers import real, whole
from stm_fast.commands.options import (
    Backend,
    MaxSize,
    MinSize,
    Network,
    input_option,
    network_option,
    output_option,
    run_options,
    speed_option,
)
from stm_fast.errors import InputError, check_name, shown
from stm_fast.progress import waiting
from stm_fast.runs.ranks import launched

_LONGEST_SPLIT = 99
_DEFAULT_SPLITS = {"davis16": "val", "davis17": "val", "youtube-vos": "valid", "folder": "all", "synthetic": "0"}


def _checked_split(split: str, set_name: SetName) -> str:
    # it becomes part of file names
    if len(os.fsencode(split)) > _LONGEST_SPLIT:
        raise InputError(f"--split: found {shown(split)}, expected at most {_LONGEST_SPLIT} bytes")
    if set_name == "synthetic" and re.fullmatch("[0-9]+", split) is None:
        raise InputError(f"--split: found {split!r}, expected the seed of the first synthetic clip")
    return check_name(split, "--split")


def evaluate(
    benchmark: Annotated[
        SetName,
        typer.Argument(metavar="SET", help="This set is run, and its annotations are interpreted as its authors do."),
    ],
    network: Network,
    memory: Memory,
    data: Annotated[
        Path | None, input_option(help="The set is in this folder, which contains JPEGImages or the splits.")
    ] = None,
    split: Annotated[
        str | None,
        input_option(
            metavar="NAME",
            help="This part of the set is run: by default val of DAVIS, valid of YouTube-VOS, or all of a folder; of "
            "synthetic clips, those from this seed on.",
        ),
    ] = None,
    sequence: Annotated[
        list[str] | None,
        input_option(metavar="NAME", help="Only this sequence of the split is run. The option may be repeated."),
    ] = None,
    output: Annotated[
        Path | None, output_option("--output", "-o", help="Masks and tables are written into this folder.")
    ] = None,
    only_score: Annotated[
        tuple[Path, Path] | None,
        input_option(
            metavar="PRED GT", help="Nothing is run: the masks in the folder PRED are scored against those in GT."
        ),
    ] = None,
    max_size: MaxSize = None,
    min_size: MinSize = None,
    scale: Annotated[
        list[float] | None,
        network_option(
            **real(0.1, 8), help="Frames are scaled by this factor. Over several --scale, predictions are averaged."
        ),
    ] = None,
    flip: Annotated[
        bool, network_option("--flip", help="Predictions are averaged over frames and their mirror images.")
    ] = False,
    report: Annotated[
        bool, output_option("--report", help="A page with scores, curves and the worst frames is written, report.html.")
    ] = False,
    baselines: Annotated[
        bool,
        output_option(
            "--baselines", help="Two baselines are scored too: the first mask copied, and an untrained network."
        ),
    ] = False,
    workers: Annotated[
        int | None,
        speed_option(**whole(1, 1024), help="This many processes compute the scores, by default one per core."),
    ] = None,
    backend: Backend = "auto",
    cluster: Cluster = None,
) -> None:
    """Reproduce the scores of a benchmark set: DAVIS-2016, DAVIS-2017, YouTube-VOS or a folder of your own.

    The clips of the set "synthetic" are generated, in --data or else in the output folder. Under torchrun the sequences
    are split among the processes, and with --ray they are given to the workers of a cluster. Running the same command
    again resumes an interrupted run.
    """
    world = launched().world  # refuses invalid environment variables before any work
    if cluster is not None:
        refuse_torchrun(world)
    split = _checked_split(split or _DEFAULT_SPLITS[benchmark], benchmark)
    if report and output is None:
        raise InputError("--output: missing, needed for --report")
    if only_score is not None:
        if sequence:
            raise InputError(f"--sequence: found {sequence[0]!r} with --only-score, expected a set to run")
        if cluster is not None:
            raise InputError("--ray: found with --only-score, expected a set to run")
        from stm_fast.tasks.sets import open_results

        results, truth = only_score
        pairs = open_results(results, truth, benchmark, data, split)
        from stm_fast.tasks.evaluate import score_results

        facts = {"set": benchmark, "split": split, "results": str(results)}
        score_results(pairs, facts, output, workers=workers, report=report)
        return
    if benchmark == "synthetic" and data is None and output is not None:
        data = output / "data"
    if data is None or output is None:
        raise InputError(f"{'--data' if data is None else '--output'}: missing, needed to run a set")
    options = run_options(memory, max_size, min_size, backend, scale, flip)
    from stm_fast.tasks.sets import open_set

    sequences = open_set(benchmark, data, split, sequence or [], output)
    with waiting("loading PyTorch"):
        from stm_fast.tasks.evaluate import evaluate_set

    evaluate_set(
        sequences,
        benchmark,
        split,
        data,
        output,
        network=network,
        options=options,
        workers=workers,
        report=report,
        baselines=baselines,
        cluster=cluster,
    )
