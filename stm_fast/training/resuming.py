"""Whether a training run may go on from a checkpoint."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stm_fast.errors import InputError, shown
from stm_fast.training.checkpoint import read_state
from stm_fast.training.compact import State
from stm_fast.training.config import TrainingConfig
from stm_fast.training.config_file import from_plain

# what does not touch the numbers of the steps that are done may change while a run is interrupted; so may paths, and
# the parts of a batch, as the number of processes may: a machine with less memory takes more parts
_FREE = ("epochs", "workers", "validation", "log", "weights", "backbone_weights", "optimizer.accumulate")
_PLACES = ("path", "pictures", "annotations")


def state_of(file: Path, config: TrainingConfig) -> State | None:
    """Where the run of a checkpoint stopped; None where there is no checkpoint.

    Its best score counts as long as the validation is the same.

    Raises:
        InputError: not a checkpoint, or that of a run with other numbers.
    """
    if not file.exists():
        return None
    state = read_state(file)
    # read anew: an earlier version wrote fewer keys, which have their defaults
    began = from_plain(state["config"], str(file))
    before, now = (dict(_flat(dataclasses.asdict(content))) for content in (began, config))
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        parts = key.split(".")
        if old == new or parts[-1] in _PLACES:
            continue
        if parts[0] == "validation":
            state["best"] = -math.inf  # scores of one set say nothing of another's
        if parts[0] not in _FREE and key not in _FREE:
            raise InputError(f"{file}: the run began with {key} {shown(old)}, expected that, found {shown(new)}")
    return state


def _flat(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each value that holds no other ones, with the dotted key that leads to it."""
    if isinstance(content, dict | list | tuple):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for name, inner in pairs:
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, content
