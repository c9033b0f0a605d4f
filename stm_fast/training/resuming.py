"""Validates a checkpoint before a training run resumes from it."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stm_fast.errors import InputError, shown, shown_text
from stm_fast.training.checkpoint import WHAT_TO_DO, read_state
from stm_fast.training.compact import State
from stm_fast.training.config import TrainingConfig
from stm_fast.training.config_file import from_plain
from stm_fast.training.log import Window

# keys that may change when a run resumes, because they do not affect completed steps; so may paths. accumulate may,
# like the number of processes, because another machine may have less memory
_CHANGEABLE = ("epochs", "workers", "validation", "log", "weights", "backbone_weights", "optimizer.accumulate")
_PATH_KEYS = ("path", "pictures", "annotations")


def state_of(file: Path, config: TrainingConfig) -> State | None:
    """The state of an interrupted run; None if there is no checkpoint.

    The best score is reset if the validation set has changed.

    Raises:
        InputError: not a checkpoint, a damaged one, or a checkpoint of a run with another configuration.
    """
    if not file.exists():
        return None
    state = read_state(file)
    for name, (fits, expected) in _ENTRIES.items():
        if name not in state or not fits(state[name]):
            found = shown(state[name]) if name in state else "none"
            raise InputError(f"{file}: its {name}: found {found}, expected {expected}; {WHAT_TO_DO}")
    # keys that an earlier version did not write take their defaults
    began = from_plain(state["config"], str(file))
    before, now = (dict(_flattened(dataclasses.asdict(content))) for content in (began, config))
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        parts = key.split(".")
        if old == new or parts[-1] in _PATH_KEYS:
            continue
        if parts[0] == "validation":
            state["best"] = -math.inf  # scores of different sets are not comparable
        if parts[0] not in _CHANGEABLE and key not in _CHANGEABLE:
            raise InputError(
                f"{file}: the run began with {key} {shown(old)}, found {shown(new)} now, expected the same"
            )
    return state


@contextmanager
def restoring(file: Path) -> Iterator[None]:
    """Converts errors from mismatched entries in the block to an InputError that names the checkpoint."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    # the exceptions of the different loaders
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = shown_text(" ".join(str(error).split()))
        raise InputError(f"{file}: does not fit the network of its configuration ({why}); {WHAT_TO_DO}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_window(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {field.name for field in dataclasses.fields(Window)}:
        return False
    losses = value["losses"]
    whole = isinstance(losses, list) and all(_is_number(loss) for loss in losses)
    return whole and _is_number(value["seconds"]) and value["seconds"] >= 0 and _is_count(value["skipped"])


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _are_weights(value: Any) -> bool:
    return _is_state(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def _of_optimizer(value: Any) -> bool:
    return _is_state(value) and isinstance(value.get("state"), dict) and all(map(_is_state, value["state"].values()))


# for each entry of a checkpoint: whether a value is valid, and what is expected
_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "config": (_is_state, "a configuration"),
    "step": (_is_count, "a number of steps"),
    "best": (_is_number, "a score"),
    "window": (_is_window, "losses, seconds and what was skipped since the last line of the log"),
    "model": (_are_weights, "named tensors"),
    "average": (lambda value: value is None or _are_weights(value), "named tensors or None"),
    "optimizer": (_of_optimizer, "the state of an optimizer"),
    "scaler": (lambda value: value is None or _is_state(value), "the state of a scaler or None"),
}


def _flattened(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each leaf value with its dotted key."""
    if isinstance(content, dict | list | tuple):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for name, inner in pairs:
            yield from _flattened(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, content
