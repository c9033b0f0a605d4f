"""Progress: a bar on a terminal, otherwise a line now and then."""

import logging
from queue import Queue
from types import SimpleNamespace

import pytest

from stm_fast import progress
from stm_fast.progress import progress_bar, waiting


class Clock:
    """In place of time, and of the event that the thread waits for: seconds pass when the test says so."""

    def __init__(self):
        self.now = 0.0
        self._idle, self._ticks = Queue(), Queue()

    def wait(self, seconds):
        self._idle.put(seconds)
        return self._ticks.get(timeout=60)

    def set(self):
        self._ticks.put(True)

    def tick(self):
        """Ten seconds pass; returns when the line is printed."""
        self.now += self._idle.get(timeout=60)
        self._ticks.put(False)
        self._idle.put(self._idle.get(timeout=60))


@pytest.fixture(autouse=True)
def _no_progress_lines():
    """In place of that of all tests: these are about the lines."""


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(progress, "Event", lambda: clock)
    return clock


def lines_of(capfd):
    output, errors = capfd.readouterr()
    assert output == ""
    return errors.splitlines()


def test_a_line_is_printed_every_ten_seconds(capfd, clock):
    with progress_bar("segmenting") as advance:
        for done in (0, 5, 9):
            advance(done, 10)
            clock.tick()
    assert lines_of(capfd) == [
        "segmenting: 0/10 frames",
        "segmenting: 5/10 frames, 0.25 frames/s, 0:20 left",
        "segmenting: 9/10 frames, 0.3 frames/s, 0:03 left",
    ]


def test_short_work_prints_nothing(capfd):
    with progress_bar("segmenting") as advance:
        advance(1, 2)
    assert lines_of(capfd) == []


def test_lines_are_printed_during_a_long_step(capfd, clock):
    with progress_bar("scoring", "sequences") as advance:
        advance(0, 3)
        clock.tick()
        clock.tick()
    assert lines_of(capfd) == ["scoring: 0/3 sequences"] * 2


def test_the_rate_is_that_of_the_last_minute(capfd, clock):
    """A resumed run has not done its first frames, and early ones may have been slow."""
    with progress_bar("segmenting") as advance:
        advance(1000, None)
        clock.tick()
        for done in range(1100, 2001, 100):
            advance(done, None)
            clock.tick()
    first, second, *_, last = lines_of(capfd)
    assert first == "segmenting: 1000 frames"
    assert second == "segmenting: 1100 frames, 5 frames/s"
    assert last == "segmenting: 2000 frames, 10 frames/s"


def test_waiting_tells_for_how_long(capfd, clock):
    with waiting("loading the network"):
        clock.tick()
        clock.tick()
    assert lines_of(capfd) == ["loading the network: 0:10 so far", "loading the network: 0:20 so far"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")])
def test_a_time_is_readable(seconds, text):
    assert progress._clock(seconds) == text


def test_quiet_prints_no_lines(capfd, monkeypatch):
    logger = logging.getLogger("stm_fast")
    monkeypatch.setattr(logger, "level", logging.ERROR)
    logger.manager._clear_cache()
    monkeypatch.setattr(progress, "Thread", None)  # none is started
    with progress_bar("segmenting") as advance:
        advance(1, 2)
    monkeypatch.undo()
    logger.manager._clear_cache()
    assert lines_of(capfd) == []
