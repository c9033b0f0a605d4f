"""Rounds in which every route has one turn, a, b, c, a, b, c: whatever slows the machine slows them all."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from stm_fast.benchmarking.refusals import refusal
from stm_fast.benchmarking.timing import Reading

_ROUNDS_AT_MOST = 200


def take_turns(
    turns: Sequence[Callable[[int], Reading]], seconds: float, rounds: int, end: float | None = None
) -> list[list[Reading] | str]:
    """The readings of every turn, or why its part ended early; each turn is told the number of the round.

    Goes on for `seconds`, and for at least `rounds` rounds; not beyond `end` on the monotonic clock once every turn
    had one reading.
    """
    found: list[list[Reading] | str] = [[] for _ in turns]
    start = time.monotonic()
    for index in range(max(rounds, _ROUNDS_AT_MOST)):
        now = time.monotonic()
        if index and ((index >= rounds and now - start > seconds) or (end is not None and now > end)):
            break
        for place, turn in enumerate(turns):
            readings = found[place]
            if isinstance(readings, str):
                continue
            try:
                readings.append(turn(index))
            except Exception as error:  # out of memory once the others are there, say
                found[place] = refusal(error)
    return found


def quantiles(readings: Sequence[Reading]) -> dict[str, Any]:
    """The fields of a Row that say how long it took."""
    seconds = torch.tensor([reading.seconds for reading in readings], dtype=torch.float64)
    low, median, high = seconds.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    host = statistics.median(reading.host_seconds for reading in readings)
    return {"seconds": median, "seconds_20": low, "seconds_80": high, "host_seconds": host, "rounds": len(readings)}
