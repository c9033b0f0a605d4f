"""stm-fast evaluate: runs a benchmark set, or scores existing results, as the official toolkit does."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from stm_fast.choices import SetName
from stm_fast.cluster.choice import ClusterChoice
from stm_fast.cluster.connection import connected
from stm_fast.cluster.order import longest_first
from stm_fast.cluster.pool import Done, counted, run_tasks
from stm_fast.data.sequences import Sequence
from stm_fast.evaluation.baselines import COPIED, UNTRAINED, copy_first_masks, untrained
from stm_fast.evaluation.benchmark_sets import (
    claim_output,
    describe_run,
    read_timings,
    run_sequences,
    write_zip,
)
from stm_fast.evaluation.output_folder import BASELINES, MASKS
from stm_fast.evaluation.record import (
    Record,
    make_record,
    overall,
    print_comparison,
    print_tables,
    write_tables,
)
from stm_fast.evaluation.report import write_report
from stm_fast.evaluation.scoring import ObjectScore, score_sequences
from stm_fast.inference.augmentation import AugmentedSegmenter
from stm_fast.inference.options import RunOptions
from stm_fast.listing import list_images
from stm_fast.network import STM
from stm_fast.network.fingerprint import fingerprint
from stm_fast.printing import say, warn
from stm_fast.progress import progress_bar
from stm_fast.record_file import write_record_file
from stm_fast.runs.ranks import launched
from stm_fast.tasks.choice import NetworkChoice
from stm_fast.tasks.network import load_for_inference, load_model, prepare
from stm_fast.tasks.sets import to_score
from stm_fast.whole_file import make_folder


def score_results(
    pairs: list[tuple[Sequence, Path]], facts: Record, output: Path | None, *, workers: int | None, report: bool
) -> None:
    """Scores existing folders of masks; prints tables, and writes them into an output folder if one is given.

    Args:
        facts: the description of the results for the record.
        workers: number of processes; by default one per core.

    Raises:
        InputError: as :func:`stm_fast.evaluation.scoring.score_sequence`.
    """
    scores = _scored(pairs, workers)
    _finish(make_record(facts, scores, []), scores, pairs, output, report)


def evaluate_set(
    sequences: list[Sequence],
    set_name: SetName,
    split: str,
    data: Path,
    output: Path,
    *,
    network: NetworkChoice,
    options: RunOptions,
    workers: int | None,
    report: bool,
    baselines: bool,
    cluster: ClusterChoice | None = None,
) -> None:
    """Runs the sequences that are not finished yet, scores those with annotations, and packs masks for a server.

    Args:
        data: the root of the set.
        workers: number of scoring processes; by default one per core.
        baselines: also score the first mask copied and an untrained network.
        cluster: runs the sequences; its machines must see the data and the output under the same paths.

    Raises:
        InputError: an output folder of another run, or data, weights or options that do not fit.
    """
    model = load_model(network)
    options = options.for_weights(model.min_size)
    prepared = prepare(model, network)
    AugmentedSegmenter(prepared, options)  # refuses invalid options before any work
    run = describe_run(model, set_name, split, options)
    run |= {
        "data": os.path.realpath(data),
        "dtype": str(next(prepared.parameters()).dtype),
        "compiled": network.compile,
    }
    if cluster is None:
        _run_here(sequences, output, prepared, options, run)
    else:
        _run_on_cluster(sequences, output, network, options, run, cluster)
    if baselines:
        _run_baselines(sequences, output / BASELINES, model, network, options, run)
    if not launched().leads:
        return
    if network.untrained:
        warn("the network is untrained, as requested by --arch: its scores are meaningless")
    pairs = [(sequence, output / MASKS / sequence.name) for sequence in to_score(sequences)]
    scores = _scored(pairs, workers)
    record = make_record(run, scores, read_timings(sequences, output), next(model.parameters()).device)
    _pack(set_name, sequences, scores, output)
    if baselines and scores:
        others = _score_baselines(pairs, output / BASELINES, workers)
        print_comparison({"this": scores} | others)
        record["baselines"] = {name: overall(found) for name, found in others.items()}
    _finish(record, scores, pairs, output, report)


def _run_here(sequences: list[Sequence], output: Path, model: STM, options: RunOptions, run: Record) -> None:
    claim_output(output, run, sequences)
    ranks = launched()
    with progress_bar(f"process {ranks.rank}", "sequences") as advance:
        run_sequences(ranks.share(sequences), output, model, options, advance)
    ranks.wait()


def _run_on_cluster(
    sequences: list[Sequence],
    output: Path,
    network: NetworkChoice,
    options: RunOptions,
    run: Record,
    cluster: ClusterChoice,
) -> None:
    """Runs each sequence on the next free worker, the longest first. Raises the first error once all have ended."""
    setup = partial(_sequence_runner, network.absolute(), Path(os.path.abspath(output)), options)
    placed = longest_first((sequence.absolute() for sequence in sequences), _length)
    place = connected(cluster.for_device(network.device))
    with place as room, progress_bar("running", "sequences") as advance:
        claim_output(output, run, sequences)
        ended: list[Done[Sequence, None]] = list(counted(run_tasks(room, placed, setup), len(sequences), advance))
    for done in ended:
        if done.error is not None:
            raise done.error


def _length(sequence: Sequence) -> int:
    assert sequence.frames is not None
    return len(list_images(sequence.frames))


def _sequence_runner(
    network: NetworkChoice, output: Path, options: RunOptions, _: Callable[[], bool]
) -> Callable[[Sequence], None]:
    """What a worker does with each sequence."""
    model = load_for_inference(network)
    return lambda sequence: run_sequences([sequence], output, model, options)


def _run_baselines(
    sequences: list[Sequence], folder: Path, model: STM, choice: NetworkChoice, options: RunOptions, run: Record
) -> None:
    network = untrained(model.architecture).to(next(model.parameters()).device)
    described = run | {"weights_sha256": fingerprint(network)}
    _run_here(sequences, folder / UNTRAINED, prepare(network, choice), options, described)
    claim_output(folder / COPIED, {name: run[name] for name in ("set", "split", "data")})
    copy_first_masks(launched().share(sequences), folder / COPIED)
    launched().wait()


def _score_baselines(
    pairs: list[tuple[Sequence, Path]], folder: Path, workers: int | None
) -> dict[str, list[ObjectScore]]:
    return {
        name: _scored([(sequence, folder / name / MASKS / sequence.name) for sequence, _ in pairs], workers)
        for name in (COPIED, UNTRAINED)
    }


def _scored(pairs: list[tuple[Sequence, Path]], workers: int | None) -> list[ObjectScore]:
    with progress_bar("scoring", "sequences") as advance:
        return score_sequences(pairs, workers, advance)


def _pack(set_name: SetName, sequences: list[Sequence], scores: list[ObjectScore], output: Path) -> None:
    """Writes the archive for the server of a set whose annotations are not public."""
    if set_name == "youtube-vos":
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
    write_record_file(output / "results.json", record)
    if report:
        write_report(record, scores, {pair[0].name: pair for pair in pairs}, output / "report.html")


def _print_speed(speed: Record) -> None:
    network, whole = speed["network_frames_per_second"], speed["frames_per_second"]
    say("", f"{speed['frames']} frames, {network:.2f} frames/s without loading, {whole:.2f} frames/s end to end")
