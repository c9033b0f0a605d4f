"""What a call costs the host, and what it costs the GPU where a CUDA graph spares the host."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

_CALLS, _ROUNDS = 10, 200


class HostCost(NamedTuple):
    """Processor time of the calling thread, in microseconds a call."""

    median: float  # of the rounds
    least: float  # of any round: what it costs where nothing else disturbs the machine


def host_cost(call: Callable[[], object], rounds: int = _ROUNDS) -> HostCost:
    """Times a call as a user's loop makes it, after calls that compile and plan what it takes.

    A GPU is waited for between rounds, so that no call waits for room in its queue.
    """
    for _ in range(3):
        call()
    return cost_of([host_round(call) for _ in range(rounds)])


def host_round(call: Callable[[], object]) -> float:
    """Microseconds a call, of one round of a few."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.thread_time_ns()
    for _ in range(_CALLS):
        call()
    return (time.thread_time_ns() - start) / _CALLS / 1e3


def cost_of(rounds: list[float]) -> HostCost:
    return HostCost(median(rounds), min(rounds))


def graph_read(call: Callable[[], object]) -> Callable[[], None]:
    """Captures a call in a CUDA graph; what is returned replays it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()  # the graph writes to it

    def replay() -> None:
        graph.replay()
        assert kept is not None

    return replay


def gpu_microseconds(call: Callable[[], object], calls: int = 100, rounds: int = 20) -> float:
    """GPU time of a call, the median over rounds of calls queued one behind the other."""
    found: list[float] = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(True), torch.cuda.Event(True)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) * 1e3 / calls)
    return median(found)
