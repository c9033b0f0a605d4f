"""The sequences that stm-fast evaluate runs or scores, found before the network is loaded."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from stm_fast.choices import SetName
from stm_fast.data.sequences import MEANINGS, SETS, Sequence, annotated_sequences
from stm_fast.errors import InputError, option, require_folder
from stm_fast.evaluation.output_folder import check_apart, check_folders
from stm_fast.evaluation.scoring import check_length
from stm_fast.printing import warn
from stm_fast.runs.ranks import launched
from stm_fast.whole_file import same_file


def open_set(set_name: SetName, data: Path, split: str, names: list[str], output: Path) -> list[Sequence]:
    """The sequences of a split, or those that are named.

    Raises:
        InputError: data that are not there, no sequence of a name, one that is too short to be scored, or an output
            folder that is not apart from the data.
    """
    check_folders(output)
    ranks = launched()
    if set_name == "synthetic" and not ranks.leads:
        ranks.wait()  # for the first process, which draws what is not there yet
    sequences = SETS[set_name](data, split)
    if set_name == "synthetic" and ranks.leads:
        ranks.wait()
    known = {sequence.name: sequence for sequence in sequences}
    for name in names:
        if name not in known:
            raise InputError(f"{option('sequence')}: found {name!r}, expected one of {data}: {', '.join(known)}")
    chosen = [known[name] for name in dict.fromkeys(names)] or sequences
    check_apart(output, chosen)
    for each in to_score(chosen):
        check_length(each)
    _tell(chosen)
    return chosen


def to_score(sequences: Iterable[Sequence]) -> list[Sequence]:
    """The sequences that can be scored here."""
    return [sequence for sequence in sequences if sequence.fully_annotated]


def open_results(
    results: Path, truth: Path, set_name: SetName, data: Path | None, split: str
) -> list[tuple[Sequence, Path]]:
    """What of a folder of results is scored: the split's sequences where `data` says which, or all that are there.

    Raises:
        InputError: a folder that is not there, or without results of any sequence.
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
        raise InputError(f"{results}: found no results of the sequences of {truth}, expected a folder for each")
    same = [sequence.name for sequence, folder in pairs if same_file(folder, sequence.annotations)]
    if same:
        warn(f"{', '.join(same)}: the results are the annotations themselves; their scores mean nothing")
    if len(pairs) < len(named):
        warn(f"{results} has {len(pairs)} of the {len(named)} sequences of {truth}")
    _tell([sequence for sequence, _ in pairs])
    return pairs


def _tell(sequences: Iterable[Sequence]) -> None:
    """A line for each way in which annotations were not taken as they are."""
    noted: dict[str, list[Sequence]] = {}
    for sequence in sequences if launched().leads else ():
        if sequence.note is not None:
            noted.setdefault(sequence.note, []).append(sequence)
    for note, those in noted.items():
        more = f" and {len(those) - 1} more sequences" if len(those) > 1 else ""
        warn(f"{those[0].annotation(those[0].annotated[0])}{more}: {note}")
