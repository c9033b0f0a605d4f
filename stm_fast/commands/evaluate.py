"""stm-fast evaluate: runs a benchmark set, or scores existing results."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from stm_fast.choices import SetName
from stm_fast.commands.memory import Memory
from stm_fast.commands.numbers import real, whole
from stm_fast.commands.options import Backend, MaxSize, MinSize, Network, run_options
from stm_fast.errors import InputError, check_name, shown
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
    benchmark: Annotated[SetName, typer.Argument(help="The set; it determines how annotations are interpreted.")],
    network: Network,
    memory: Memory,
    data: Annotated[
        Path | None, typer.Option(help="The root of the set, which contains JPEGImages or the splits.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="By default val for DAVIS, valid for YouTube-VOS, all for a folder; for synthetic, a seed."),
    ] = None,
    sequence: Annotated[
        list[str] | None, typer.Option(help="Run only this sequence of the split; may be repeated.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The folder for masks and tables.")] = None,
    only_score: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="PRED GT", help="Run nothing; score the masks in PRED against GT."),
    ] = None,
    max_size: MaxSize = None,
    min_size: MinSize = None,
    scale: Annotated[
        list[float] | None, typer.Option(**real(0.1, 8), help="Average over frame sizes; one --scale for each.")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Also average over mirrored frames.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write report.html, a self-contained page.")] = False,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Also score two baselines: the first mask copied, and an untrained network."),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(**whole(1, 1024), help="Number of scoring processes; by default one per core.")
    ] = None,
    backend: Backend = "auto",
) -> None:
    """Reproduce the scores of a benchmark set: DAVIS-2016, DAVIS-2017, YouTube-VOS or a folder of your own.

    The clips of the set "synthetic" are generated, in --data or else in the output folder. Under torchrun the sequences
    are split among the processes. Running the same command again resumes an interrupted run.
    """
    launched()  # refuses invalid environment variables before any work
    split = _checked_split(split or _DEFAULT_SPLITS[benchmark], benchmark)
    if report and output is None:
        raise InputError("--output: missing, needed for --report")
    if only_score is not None:
        if sequence:
            raise InputError(f"--sequence: found {sequence[0]!r} with --only-score, expected a set to run")
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
    )
