"""Progress: a bar on a terminal, otherwise a line now and then."""

import logging
import re
import time

import pytest

from stm_fast import progress
from stm_fast.progress import progress_bar, waiting


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", 0.05)


def lines_of(capfd):
    output, errors = capfd.readouterr()
    assert output == ""
    return errors.splitlines()


def test_a_line_is_printed_now_and_then(capfd):
    with progress_bar("segmenting") as advance:
        for done in range(11):
            advance(done, 10)
            time.sleep(0.02)
    lines = lines_of(capfd)
    assert 2 <= len(lines) <= 4
    for line in lines:
        assert re.fullmatch(r"segmenting: \d+/10 frames, [\d.]+ frames/s, 0:0\d left", line)
    counts = [int(line.split()[1].split("/")[0]) for line in lines]
    assert counts == sorted(counts)


def test_short_work_prints_nothing(capfd):
    with progress_bar("segmenting") as advance:
        advance(1, 2)
    assert lines_of(capfd) == []


def test_lines_are_printed_during_a_long_step(capfd):
    with progress_bar("scoring", "sequences") as advance:
        advance(0, 3)
        time.sleep(0.18)
    assert set(lines_of(capfd)) == {"scoring: 0/3 sequences"}


def test_the_rate_is_that_of_the_last_minute(capfd):
    """A resumed run has not done its first frames, and early ones may have been slow."""
    with progress_bar("segmenting") as advance:
        advance(1000, None)
        time.sleep(0.5)
        for done in range(1001, 1031):
            advance(done, None)
            time.sleep(0.01)
    first, *_, last = lines_of(capfd)
    assert first == "segmenting: 1000 frames"
    found = re.fullmatch(r"segmenting: 10\d\d frames, ([\d.]+) frames/s", last)
    assert 60 < float(found[1]) < 110


def test_waiting_tells_for_how_long(capfd):
    with waiting("loading the network"):
        time.sleep(0.12)
    assert set(lines_of(capfd)) == {"loading the network: 0:00 so far"}


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")])
def test_a_time_is_readable(seconds, text):
    assert progress._clock(seconds) == text


def test_quiet_prints_no_lines(capfd, monkeypatch):
    logger = logging.getLogger("stm_fast")
    monkeypatch.setattr(logger, "level", logging.ERROR)
    logger.manager._clear_cache()
    with progress_bar("segmenting") as advance:
        advance(1, 2)
        time.sleep(0.12)
    monkeypatch.undo()
    logger.manager._clear_cache()
    assert lines_of(capfd) == []
