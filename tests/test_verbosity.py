"""-q and -v: what a command prints beside its results."""

import logging
import re

import pytest
from typer.testing import CliRunner

from small_inputs import one_object, write_video, write_weights
from stm_fast.__main__ import app
from stm_fast.commands.verbosity import notes_printed
from stm_fast.runs import estimation
from stm_fast.video import write_mask

pytest.importorskip("av")

NOTE = "00002.png: named after frame 00002"
MEMORY = "stm-fast: memory: .* for the network, .* for a read, and .* of rows"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_video(folder / "clip.mp4", 4)
    write_mask(folder / "00002.png", one_object())
    write_weights(folder / "small.safetensors")
    return folder


@pytest.fixture
def lines(inputs, tmp_path):
    """Segments a clip, with options before and after the name of the command; returns what stderr received."""

    def run(before: str, after: str) -> list[str]:
        files = ("clip.mp4", "--masks", "00002.png", "--weights", "small.safetensors")
        named = [str(inputs / name) if "." in name else name for name in files]
        words = [*before.split(), "segment", *named, "--output", str(tmp_path / "out"), *after.split()]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        assert "4 frames, objects 3" in result.stdout
        return result.stderr.splitlines()

    return run


def test_by_default_notes_are_printed(lines):
    (note,) = lines("", "")
    assert NOTE in note


@pytest.mark.parametrize(("before", "after"), [("-q", ""), ("", "-q"), ("--quiet", ""), ("", "--quiet"), ("-v", "-q")])
def test_quiet_prints_nothing(lines, before, after):
    assert lines(before, after) == []


@pytest.mark.parametrize(("before", "after"), [("-v", ""), ("", "-v"), ("", "--verbose"), ("-q", "-v")])
def test_verbose_tells_the_network_and_the_memory(lines, before, after):
    network, note, memory = lines(before, after)
    assert re.fullmatch("stm-fast: network: STM with resnet18, .*, on cpu in float32", network)
    assert NOTE in note
    assert re.fullmatch(MEMORY, memory)


@pytest.mark.parametrize(("before", "after"), [("-vv", ""), ("", "-v -v"), ("", "-vvv")])
def test_very_verbose_tells_the_backend_of_reads(lines, before, after):
    assert [line for line in lines(before, after) if re.match("stm-fast: memory_read: .*(cpp|reference)", line)]


def test_errors_are_always_printed(tmp_path):
    result = CliRunner().invoke(app, ["-q", "convert", str(tmp_path / "absent.pth"), str(tmp_path / "x.safetensors")])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "absent.pth: no such file" in result.stderr


def test_the_memory_is_told_if_it_is_more_than_half_of_what_is_available(lines, monkeypatch):
    monkeypatch.setattr(estimation, "available_bytes", lambda _: 100_000_000)
    _, memory = lines("", "")
    assert re.fullmatch(f"{MEMORY}; the run needs .* of memory, and 100.0 MB is available", memory)


def test_the_levels_of_the_log_end_with_the_command(lines):
    logger = logging.getLogger("stm_fast")
    before = logger.level, list(logger.handlers)
    lines("-vv", "")
    assert (logger.level, logger.handlers) == before


def test_both_are_refused_before_and_after_a_command():
    for words in (["-q", "-v", "info"], ["info", "-qv"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert result.stderr == "stm-fast: --quiet: found with --verbose, expected one of them\n"


def test_a_bug_in_another_thread_is_printed_with_its_traceback(capsys):
    with notes_printed():
        logging.getLogger("stm_fast.page").error("a job failed", exc_info=ValueError("why"))
    printed = capsys.readouterr().err.splitlines()
    assert printed[-2:] == ["ValueError: why", "stm-fast: a job failed"]
