"""Only repeated reads of a bank are replayed from a CUDA graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stm_fast.config import MemoryConfig
from stm_fast.memory import MemoryBank, repeated
from stm_fast.memory.read_parts import ReadResult
from stm_fast.memory.repeated import CAPTURED_AFTER, RepeatedReads
from stm_fast.memory.storage import Part

ROWS = 6


class Graph:
    """Replaces a CUDA graph: a replay repeats the captured work."""

    captures = 0

    def __init__(self) -> None:
        self.read: Any = None

    def replay(self) -> None:
        reading, arguments = self.read
        for kept, new in zip(reading, repeated_read_rows(*arguments), strict=True):
            kept.copy_(new)


repeated_read_rows = repeated.read_rows


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Captured graphs, on the CPU."""
    found: list[Graph] = []

    @contextmanager
    def capture(graph: Graph, capture_error_mode: str) -> Iterator[None]:
        found.append(graph)
        yield

    def read_rows(*arguments: Any) -> ReadResult:
        reading = repeated_read_rows(*arguments)
        found[-1].read = reading, arguments
        return reading

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(repeated, "read_rows", read_rows)
    return found


def part(counts: list[int], slots: int = 2) -> Part:
    return Part(torch.randn(2, slots * ROWS, 4), torch.randn(2, slots * ROWS, 5), counts)


def test_a_repeated_read_is_captured_and_gives_the_same_as_an_ordinary_one(graphs: list[Graph]) -> None:
    reads, memory = RepeatedReads(), part([2, 1])
    given = []
    for turn in range(CAPTURED_AFTER + 4):
        query = torch.randn(1, 3, 4)
        memory.key[:, ROWS:] = torch.randn(2, ROWS, 4)  # a temporary frame replaces the previous one
        expected = repeated.read_part(query, memory, ROWS, "auto")
        given.append((reads.read(query, memory, ROWS, "auto"), expected))
        assert len(graphs) == (turn >= CAPTURED_AFTER)
    for found, expected in given:  # no replay overwrote an earlier result
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("change", ["counts", "slots", "place", "query", "backend"])
def test_a_changed_read_is_counted_from_the_start(change: str, graphs: list[Graph]) -> None:
    reads, memory, query = RepeatedReads(), part([2, 1]), torch.randn(1, 3, 4)
    for _ in range(CAPTURED_AFTER + 1):
        reads.read(query, memory, ROWS, "auto")
    assert len(graphs) == 1
    other = {"counts": memory._replace(counts=[1, 2]), "slots": part([3, 3], 3), "place": part([2, 1])}
    changed = other.get(change, memory)
    changed_query = torch.randn(1, 2, 4) if change == "query" else query
    backend = "reference" if change == "backend" else "auto"
    for _ in range(CAPTURED_AFTER):
        found = reads.read(changed_query, changed, ROWS, backend)
        expected = repeated.read_part(changed_query, changed, ROWS, backend)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert len(graphs) == 1


def test_two_reads_that_take_turns_are_both_captured(graphs: list[Graph]) -> None:
    reads, memory, query = RepeatedReads(), part([2, 1]), torch.randn(1, 3, 4)
    shorter = memory._replace(key=memory.key[:, :ROWS], value=memory.value[:, :ROWS], counts=[1, 1])
    for _ in range(CAPTURED_AFTER + 1):
        reads.read(query, memory, ROWS, "auto")
        reads.read(query, shorter, ROWS, "auto")
    assert len(graphs) == 2


def test_a_run_may_be_resumed_with_or_without_cuda_graphs(tmp_path: Path) -> None:
    """A run's record does not mention graphs, so it may even come from a version without them."""
    plain = MemoryConfig(max_frames=2)
    assert replace(plain, graph=True).described() == plain.described()
    disks = [MemoryConfig(place="disk", folder=folder) for folder in (tmp_path, tmp_path / "other")]
    assert disks[0].described() == disks[1].described() != plain.described()
    assert set(plain.described()) == {field.name for field in fields(MemoryConfig)} - {"graph"}
    assert replace(plain, previous=False).described() != plain.described()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_full_bank_reads_the_same_with_a_graph() -> None:
    config = MemoryConfig(max_frames=2, graph=True)
    banks = MemoryBank(config), MemoryBank(MemoryConfig(max_frames=2))
    with torch.inference_mode():
        for number in range(3 * CAPTURED_AFTER):
            key, value, query = (torch.randn(2, width, 6, 9, device="cuda").half() for width in (128, 512, 128))
            for bank in banks:
                bank.append(key, value, temporary=number % 5 != 0)
            graphed, plain = (bank.read(query[:1]) for bank in banks)
            torch.testing.assert_close(graphed, plain, rtol=0, atol=0)
    assert [read.captured is not None for read in banks[0]._repeated._reads.values()].count(True) == 1
