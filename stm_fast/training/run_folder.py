"""What a run leaves behind, and whether it may go on from there."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stm_fast.errors import InputError
from stm_fast.training.checkpoint import read_state
from stm_fast.training.compact import State
from stm_fast.training.config import TrainingConfig
from stm_fast.training.config_file import from_plain
from stm_fast.whole_file import make_folder, refuse_input, refuse_links, remove_left_over

# what does not touch the numbers of the steps that are done may change while a run is interrupted; so may paths, and
# the parts of a batch, as the number of processes may: a machine with less memory takes more parts
_FREE = ("epochs", "workers", "validation", "log", "weights", "backbone_weights", "optimizer.accumulate")
_PLACES = ("path", "pictures", "annotations")


class RunFolder:
    """Names of a run's files.

    ``checkpoint.pt`` all that a run needs to go on, ``model.safetensors`` the weights as of then (their average where
    the run has one), ``best.safetensors`` those with the highest J&F, ``log.jsonl``, ``tensorboard/``, ``pictures/``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.model = path / "model.safetensors"
        self.best = path / "best.safetensors"
        self.pictures = path / "pictures"

    def picture(self, step: int) -> Path:
        return self.pictures / f"step-{step:07}.png"

    def claim(self, resume: bool, inputs: Iterable[Path] = ()) -> None:
        """Makes the folder.

        Raises InputError where another run lies there, pictures would go elsewhere by a link, or weights of this run
        would take the place of those that it starts from, `inputs`.
        """
        for file in (self.checkpoint, self.model, self.best):
            if file.exists() and not resume:
                raise InputError(f"{file}: a run lies there already; give another --output, or --resume")
        refuse_links(self.pictures)
        for file in (self.model, self.best):
            refuse_input(file, inputs)
        make_folder(self.path)
        remove_left_over(self.path)

    def state(self, config: TrainingConfig) -> State | None:
        """Where the run stopped; None where it has not got that far.

        Its best score counts as long as the validation is the same.

        Raises:
            InputError: not a checkpoint, or that of a run with other numbers.
        """
        if not self.checkpoint.exists():
            return None
        state = read_state(self.checkpoint)
        # read anew: an earlier version wrote fewer keys, which have their defaults
        began = from_plain(state["config"], str(self.checkpoint))
        before, now = (dict(_flat(dataclasses.asdict(content))) for content in (began, config))
        for key in {**before, **now}:
            old, new = before.get(key), now.get(key)
            parts = key.split(".")
            if old == new or parts[-1] in _PLACES:
                continue
            if parts[0] == "validation":
                state["best"] = -math.inf  # scores of one set say nothing of another's
            if parts[0] not in _FREE and key not in _FREE:
                raise InputError(f"{self.checkpoint}: the run began with {key} {old!r}, expected that, found {new!r}")
        return state


def _flat(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each value that holds no other ones, with the dotted key that leads to it."""
    if isinstance(content, dict | list | tuple):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for name, inner in pairs:
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, content
