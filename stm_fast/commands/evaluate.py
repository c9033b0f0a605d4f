"""stm-fast evaluate: runs a benchmark set, or scores results that are there, as the official toolkit does."""

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from stm_fast.commands.common import (
    DEFAULT_WEIGHTS,
    Arch,
    Backend,
    Device,
    MaxSize,
    MinSize,
    Precision,
    Weights,
    is_untrained,
    load_model,
    prepare,
    progress_bar,
    smallest_side,
)
from stm_fast.config import MemoryConfig
from stm_fast.data.sequences import MEANINGS, SETS, Sequence, annotated_sequences
from stm_fast.errors import InputError, check_name
from stm_fast.evaluation.baselines import COPIED, UNTRAINED, copy_first_masks, untrained
from stm_fast.evaluation.benchmark_sets import (
    MASKS,
    Inference,
    check_folders,
    claim_output,
    describe_run,
    read_timings,
    run_sequences,
    write_zip,
)
from stm_fast.evaluation.record import Record, make_record, write_record
from stm_fast.evaluation.report import write_report
from stm_fast.evaluation.scoring import ObjectScore, check_length, score_sequences
from stm_fast.evaluation.tables import overall, print_comparison, print_tables, write_tables
from stm_fast.inference.shards import rank, shard, wait_for_all
from stm_fast.network import STM
from stm_fast.network.fingerprint import fingerprint
from stm_fast.whole_file import make_folder, same_file


class Benchmark(StrEnum):
    DAVIS16 = "davis16"
    DAVIS17 = "davis17"
    YOUTUBE_VOS = "youtube-vos"
    FOLDER = "folder"
    SYNTHETIC = "synthetic"


_DEFAULT_SPLITS = {"davis16": "val", "davis17": "val", "youtube-vos": "valid", "folder": "all", "synthetic": "0"}
_BASELINES = "baselines"


def evaluate(
    benchmark: Annotated[Benchmark, typer.Argument(help="The set, which says how its annotations count.")],
    data: Annotated[Path | None, typer.Option(help="Its root, which holds JPEGImages or the splits.")] = None,
    split: Annotated[
        str | None, typer.Option(help="val for DAVIS, valid for YouTube-VOS, all for a folder, a seed for synthetic.")
    ] = None,
    sequence: Annotated[
        list[str] | None, typer.Option(help="Only this sequence of the split; may be given again.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="For masks and tables.")] = None,
    only_score: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="PRED GT", help="Run nothing: score PRED against GT.")
    ] = None,
    weights: Weights = DEFAULT_WEIGHTS,
    arch: Arch = None,
    every: Annotated[int, typer.Option(min=1, help="Every N-th frame stays in the memory.")] = 5,
    previous: Annotated[bool, typer.Option(help="The previous frame is read too, for one step.")] = True,
    max_size: MaxSize = None,
    min_size: MinSize = None,
    scale: Annotated[list[float] | None, typer.Option(help="Average over sizes: one --scale for each.")] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Average with mirrored frames.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html, a page that needs nothing else.")
    ] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Score the first mask copied and an untrained network beside it.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that score; one for each core.")] = None,
    device: Device = "auto",
    dtype: Precision = "float32",
    backend: Backend = "auto",
) -> None:
    """Reproduce the scores of a benchmark set: DAVIS-2016, DAVIS-2017, YouTube-VOS or a folder of your own.

    The set "synthetic" are procedural clips, drawn into --data or else into the output folder. Under torchrun the
    sequences are shared out; a second run goes on where the first one ended.
    """
    # tables are named after it
    split = check_name(split or _DEFAULT_SPLITS[benchmark], "--split")
    if report and output is None:
        raise InputError("--output: missing, needed for --report")
    if only_score is not None and sequence:
        raise InputError(f"--sequence: found {sequence[0]!r} with --only-score, expected a set to run")
    if only_score is not None:
        pairs = _pairs(*only_score, benchmark, data, split)
        scores = score_sequences(pairs, workers)
        record = make_record({"set": benchmark.value, "split": split, "results": str(only_score[0])}, scores, [])
        _finish(record, scores, pairs, output, report)
        return
    if benchmark is Benchmark.SYNTHETIC and data is None and output is not None:
        data = output / "data"
    if data is None or output is None:
        raise InputError(f"{'--data' if data is None else '--output'}: missing, needed to run a set")
    check_folders(output)
    sequences = _chosen(_opened(benchmark, data, split), sequence, data)
    _check_output(output, sequences)
    to_score = _annotated(sequences)
    for each in to_score:
        check_length(each)
    model = load_model(weights, arch, device)
    prepared = prepare(model, dtype)
    scales = tuple(scale) if scale else (1.0,)
    inference = Inference(
        memory=MemoryConfig(every=every, previous=previous),
        max_size=max_size,
        min_size=smallest_side(weights, arch, min_size, max_size),
        backend=backend,
        scales=scales,
        flip=flip,
    )
    run = describe_run(model, benchmark, split, inference)
    run |= {"data": str(data.resolve()), "dtype": str(next(prepared.parameters()).dtype)}
    _run(sequences, output, prepared, inference, run)
    if baselines:
        _run_baselines(sequences, output / _BASELINES, model, dtype, inference, run)
    if rank() == 0:
        if is_untrained(weights, arch):
            print("stm-fast: the network is untrained, as --arch asks: the scores mean nothing", file=sys.stderr)
        pairs = [(sequence, output / MASKS / sequence.name) for sequence in to_score]
        scores = score_sequences(pairs, workers)
        record = make_record(run, scores, read_timings(sequences, output), next(model.parameters()).device)
        _hand_in(benchmark, sequences, scores, output)
        if baselines and scores:
            methods = {"this": scores} | _score_baselines(pairs, output / _BASELINES, workers)
            print_comparison(methods)
            record["baselines"] = {name: overall(found) for name, found in methods.items() if name != "this"}
        _finish(record, scores, pairs, output, report)


def _opened(benchmark: str, data: Path, split: str) -> list[Sequence]:
    if benchmark == Benchmark.SYNTHETIC and rank() > 0:
        wait_for_all()  # for the first process, which draws what is not there yet
    sequences = SETS[benchmark](data, split)
    if benchmark == Benchmark.SYNTHETIC and rank() == 0:
        wait_for_all()
    return sequences


def _check_output(output: Path, sequences: list[Sequence]) -> None:
    """Annotations of the set would be taken for results, and results that lie among them for sequences."""
    place = output.resolve()
    results = [(output / name).resolve() for name in (MASKS, _BASELINES)]
    for sequence in sequences:
        assert sequence.frames is not None
        for folder in (sequence.annotations, sequence.frames):
            if any(folder.resolve().is_relative_to(path) for path in results):
                what = "annotations" if folder == sequence.annotations else "frames"
                raise InputError(f"--output: found {output}, which holds the {what} of the set; give another folder")
            if any(place.is_relative_to(path.resolve()) for path in (folder, folder.parent)):
                raise InputError(f"--output: found {output}, among what {folder.parent} has of the set; give another")


def _chosen(sequences: list[Sequence], names: list[str] | None, data: Path) -> list[Sequence]:
    if not names:
        return sequences
    known = {sequence.name: sequence for sequence in sequences}
    for name in names:
        if name not in known:
            raise InputError(f"--sequence: found {name!r}, expected one of {data}: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _run(sequences: list[Sequence], output: Path, model: Any, inference: Inference, run: Record) -> None:
    claim_output(output, run)
    share = shard(sequences)
    done = 0
    with progress_bar(f"process {rank()}", "sequences") as advance:
        advance(0, len(share))

        def step(name: str) -> None:
            nonlocal done
            done += 1
            advance(done, len(share))

        run_sequences(share, output, model, inference, step)
    wait_for_all()


def _run_baselines(
    sequences: list[Sequence], folder: Path, model: STM, dtype: str, inference: Inference, run: Record
) -> None:
    network = untrained(model.architecture).to(next(model.parameters()).device)
    described = run | {"weights_sha256": fingerprint(network)}
    _run(sequences, folder / UNTRAINED, prepare(network, dtype), inference, described)
    copy_first_masks(shard(sequences), folder / COPIED)
    wait_for_all()


def _score_baselines(
    pairs: list[tuple[Sequence, Path]], folder: Path, workers: int | None
) -> dict[str, list[ObjectScore]]:
    return {
        name: score_sequences([(sequence, folder / name / MASKS / sequence.name) for sequence, _ in pairs], workers)
        for name in (COPIED, UNTRAINED)
    }


def _annotated(sequences: list[Sequence]) -> list[Sequence]:
    """The sequences that can be scored here."""
    annotated = [sequence for sequence in sequences if sequence.fully_annotated]
    if len(annotated) < len(sequences) and rank() == 0:
        missing = len(sequences) - len(annotated)
        print(f"stm-fast: {missing} of {len(sequences)} sequences are not scored: not annotated", file=sys.stderr)
    return annotated


def _pairs(results: Path, truth: Path, benchmark: str, data: Path | None, split: str) -> list[tuple[Sequence, Path]]:
    """What of a folder of results is scored: the split's sequences where --data says which, or all that are there."""
    if not results.is_dir():
        raise InputError(f"{results}: no such folder of results")
    if data is not None:
        named = [replace(sequence, annotations=truth / sequence.name) for sequence in SETS[benchmark](data, split)]
    else:
        named = annotated_sequences(truth, MEANINGS[benchmark])
    flat = len(named) == 1 and named[0].annotations == truth
    pairs = [(sequence, results if flat else results / sequence.name) for sequence in named]
    if data is None:
        pairs = [(sequence, folder) for sequence, folder in pairs if folder.is_dir()]
    if not pairs:
        raise InputError(f"{results}: found no results of the sequences of {truth}, expected a folder for each")
    same = [sequence.name for sequence, folder in pairs if same_file(folder, sequence.annotations)]
    if same:
        which = f"{', '.join(same)}: the results are the annotations themselves"
        print(f"stm-fast: {which}; their scores mean nothing", file=sys.stderr)
    if len(pairs) < len(named):
        print(f"stm-fast: {results} has {len(pairs)} of the {len(named)} sequences of {truth}", file=sys.stderr)
    return pairs


def _hand_in(benchmark: str, sequences: list[Sequence], scores: list[ObjectScore], output: Path) -> None:
    """The archive for the server, where the server alone has the annotations."""
    if benchmark == Benchmark.YOUTUBE_VOS:
        write_zip(sequences, output, output / "submission.zip", prefix=f"{MASKS}/")
    elif not scores:
        write_zip(sequences, output, output / "submission.zip", prefix="")


def _finish(
    record: Record, scores: list[ObjectScore], pairs: list[tuple[Sequence, Path]], output: Path | None, report: bool
) -> None:
    split = record["run"]["split"]
    if scores:
        print_tables(scores, split)
    if record["speed"] is not None:
        _print_speed(record["speed"])
    if output is None:
        return
    make_folder(output)
    if scores:
        write_tables(scores, split, output)
    write_record(record, output / "results.json")
    if report:
        write_report(record, scores, {pair[0].name: pair for pair in pairs}, output / "report.html")


def _print_speed(speed: Record) -> None:
    network, whole = speed["network_frames_per_second"], speed["frames_per_second"]
    print(f"\n{speed['frames']} frames, {network:.2f} frames/s without loading, {whole:.2f} frames/s end to end")
