"""Finds the sequences that stm-fast evaluate runs or scores, before the network is loaded."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from stm_fast.choices import SetName
from stm_fast.data.sequences import MEANINGS, SETS, Sequence, annotated_sequences
from stm_fast.errors import InputError, option, require_folder
from stm_fast.evaluation.output_folder import MASKS, TIMINGS, check_apart
from stm_fast.evaluation.scoring import check_length
from stm_fast.printing import warn
from stm_fast.runs.ranks import launched
from stm_fast.whole_file import refuse_links, same_file


def open_set(set_name: SetName, data: Path, split: str, names: list[str], output: Path) -> list[Sequence]:
    """The sequences of a split, or those with the given names.

    Raises:
        InputError: missing data, an unknown name, a sequence that is too short to be scored, or an output folder that
            overlaps with the data.
    """
    refuse_links(output / MASKS, output / TIMINGS)
    ranks = launched()
    if set_name == "synthetic" and not ranks.leads:
        ranks.wait()  # for the first process, which draws missing clips
    sequences = SETS[set_name](data, split)
    if set_name == "synthetic" and ranks.leads:
        ranks.wait()
    known = {sequence.name: sequence for sequence in sequences}
    for name in names:
        if name not in known:
            raise InputError(f"{option('sequence')}: found {name!r}, expected one of {data}: {', '.join(known)}")
    chosen = [known[name] for name in dict.fromkeys(names)] or sequences
    check_apart(output, chosen)
    scored = to_score(chosen)
    for sequence in scored:
        check_length(sequence)
    if len(scored) < len(chosen) and ranks.leads:
        warn(f"{len(chosen) - len(scored)} of {len(chosen)} sequences are not annotated, and not scored")
    _tell(chosen)
    return chosen


def to_score(sequences: Iterable[Sequence]) -> list[Sequence]:
    """The sequences that can be scored."""
    return [sequence for sequence in sequences if sequence.fully_annotated]


def open_results(
    results: Path, truth: Path, set_name: SetName, data: Path | None, split: str
) -> list[tuple[Sequence, Path]]:
    """The sequences to score in a folder of results: those of the split in `data`, or all without `data`.

    Raises:
        InputError: a missing folder, or one without results.
    """
    require_folder(results, "of results")
    if data is not None:
        named = [replace(sequence, annotations=truth / sequence.name) for sequence in SETS[set_name](data, split)]
    else:
        named = annotated_sequences(truth, MEANINGS[set_name])
    flat = len(named) == 1 and named[0].annotations == truth
    pairs = [(sequence, results if flat else results / sequence.name) for sequence in named]
    if data is None:
        pairs = [(sequence, folder) for sequence, folder in pairs if os.path.lexists(folder)]
    if not pairs:
        raise InputError(f"{results}: found no results for the sequences of {truth}, expected a folder for each")
    same = [sequence.name for sequence, folder in pairs if same_file(folder, sequence.annotations)]
    if same:
        warn(f"{', '.join(same)}: the results are the annotations themselves; their scores are meaningless")
    if len(pairs) < len(named):
        warn(f"{results} has {len(pairs)} of the {len(named)} sequences of {truth}")
    _tell([sequence for sequence, _ in pairs])
    return pairs


def _tell(sequences: Iterable[Sequence]) -> None:
    """Warns about annotations that had to be interpreted, with one line for each kind."""
    noted: dict[str, list[Sequence]] = {}
    for sequence in sequences if launched().leads else ():
        if sequence.note is not None:
            noted.setdefault(sequence.note, []).append(sequence)
    for note, those in noted.items():
        more = f" and {len(those) - 1} more sequences" if len(those) > 1 else ""
        warn(f"{those[0].annotation(those[0].annotated[0])}{more}: {note}")
