"""Every numeric option has a range and states it. The options are read from the commands."""

import inspect
import math
import re
from typing import Annotated, Any, get_args, get_origin

import pytest
import typer
from typer.testing import CliRunner

from command_line import CALLBACKS, COMMANDS
from stm_fast.__main__ import app
from stm_fast.commands.numbers import nbytes, real, whole

# arguments that each command refuses after checking its options, so that a number in its range is refused too
OTHERWISE_REFUSED = {
    "segment": ("absent.mp4", "--masks", "absent.png", "--output", "out"),
    "demo": ("--output", "full"),
    "open": ("absent.mp4",),
    "train": ("absent.yaml", "--output", "out"),
    "evaluate": ("davis17", "--data", "absent", "--output", "out"),
    "benchmark read": ("--output", "full/file"),
    "benchmark frames": ("--output", "full/file"),
    "benchmark tune": ("--output", "full/file"),
}
WRONG = ("-1", str(2**62), str(10**400), "9" * 5000, "1e400", "9e400", "nan", "inf", "-inf", "1_000", "٣", "", " ", "x")
IN_SOME_RANGES = ("0", "0.5", "1e1")


def is_number(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return is_number(get_args(annotation)[0])
    return annotation in (int, float) or any(map(is_number, get_args(annotation)))


OPTIONS = [
    (command, parameter.opts[0])
    for command, callback in CALLBACKS.items()
    for parameter in COMMANDS[command].params
    if not getattr(parameter, "count", False)  # -v takes no number
    and is_number(inspect.signature(callback).parameters[parameter.name].annotation)
]


def test_the_options_are_found():
    assert {command for command, _ in OPTIONS} == set(OTHERWISE_REFUSED)
    assert {("segment", "--max-memory-bytes"), ("evaluate", "--scale"), ("benchmark read", "--minutes")} <= set(OPTIONS)


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """Runs a command with a value of an option; returns the line that refuses it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()

    def line(command: str, option: str, value: str) -> str:
        words = [*command.split(), *OTHERWISE_REFUSED[command], f"{option}={value}"]
        result = CliRunner().invoke(app, words)
        assert (result.exit_code, result.stdout) == (2, ""), (words, result.output, result.exception)
        assert isinstance(result.exception, SystemExit)
        assert re.fullmatch("stm-fast: .*\n", result.stderr)
        return result.stderr

    return line


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=[" ".join(pair) for pair in OPTIONS])
def test_a_number_out_of_range_is_refused_by_its_option(refusal, command, option):
    for value in WRONG:
        line = refusal(command, option, value)
        assert option in line
        assert "expected" in line or "is not a number of bytes" in line
        assert len(line) < 250, "long values are shortened"
    for value in IN_SOME_RANGES:
        refusal(command, option, value)


# other numbers


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("evaluate", "synthetic", "--output", "out", "--split", "9" * 400), "--split: found"),
        (("evaluate", "synthetic", "--output", "out", "--split", "9" * 5000), "--split: found"),
        (("evaluate", "synthetic", "--output", "out", "--split", "-1"), "--split: found '-1'"),
        (("evaluate", "synthetic", "--output", "out", "--split", "٣"), "--split: found '٣'"),
        (("evaluate", "davis17", "--data", "full", "--output", "out", "--split", "a" * 250), "--split: found"),
        (("demo", "--output", "out", "--device", "cuda:99999999999999999999"), "--device: found"),
        (("demo", "--output", "out", "--device", f"cuda:{'9' * 5000}"), "--device: found"),
        (("demo", "--output", "out", "--device", "cuda:٣"), "--device: found"),
        (("demo", "--output", "out", "--device", "cuda:-1"), "--device: found"),
        (("benchmark", "read", "--shapes", f"480p-T{'9' * 400}-O1"), "shape: found"),
        (("benchmark", "read", "--shapes", f"M{'9' * 5000}-N1-O1"), "shape: found"),
        (("benchmark", "read", "--shapes", "480p-T٣-O1"), "shape: found"),
        (("benchmark", "frames", "--shapes", f"480p-T{'9' * 5000}-O1"), "shape: found"),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_a_number_inside_another_value_has_a_range_too(words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.stdout) == (2, ""), (result.output, result.exception)
    assert re.fullmatch("stm-fast: .*\n", result.stderr)
    assert expected in result.stderr
    assert len(result.stderr) < 400


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        (whole(1, 10), "10", 10),
        (whole(1, 10), "+1", 1),
        (whole(1, 10), "007", 7),
        (whole(-5, 10), "-5", -5),
        (real(0, 10), "1e1", 10.0),
        (real(0, 10), ".5", 0.5),
        (real(0, 10), "2.", 2.0),
        (real(0, 10), "1E-3", 0.001),
        (real(0.1, 8), "1e-400", None),
        (whole(1, 10), "1.0", None),
        (whole(1, 10), "11", None),
        (real(0, 10), "10.000001", None),
        (real(-math.inf, math.inf), "nan", None),
        (nbytes(), "800MB", 800_000_000),
        (nbytes(), "2.5 GB", None),
        (nbytes(), "2.5gb", 2_500_000_000),
        (nbytes(), "1", 1),
        (nbytes(), "0.4", None),
        (nbytes(), "1000000t", 10**18),
        (nbytes(), "1000001t", None),
        (nbytes(), "٣GB", None),
    ],
)
def test_spellings_of_a_number(option, text, value):
    if value is None:
        with pytest.raises(typer.BadParameter):
            option["parser"](text)
    else:
        assert option["parser"](text) == value
        assert type(option["parser"](text)) is type(value)
