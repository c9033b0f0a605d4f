"""A few hundred fuzz cases for every reader, the same each time, and tests of the fuzzer itself.

`make fuzz` runs new cases for minutes.
"""

import os
import time
from pathlib import Path

import pytest

from fuzz import samples
from fuzz.targets import TARGETS, Target, case
from fuzz.worker import Finding, missing, run_cases
from stm_fast.errors import InputError

SEED = 20240601


def findings_of(target: Target, numbers, seconds=20.0) -> list[Finding]:
    findings: list[Finding] = []
    assert run_cases(target, SEED, numbers, findings.append, seconds) == len(numbers)
    return findings


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_returns_or_refuses_in_one_line(name):
    target = TARGETS[name]
    if missing(target):
        pytest.skip(f"{', '.join(missing(target))} not installed")
    findings = findings_of(target, range(target.cases))
    reports = (f"--only {name} --seed {SEED} --number {one.number}: {one.what}\n{one.details}" for one in findings[:3])
    assert not findings, f"{len(findings)} findings\n" + "\n".join(reports)


VALID = b"a,b\nc,d\n"


def valid() -> list[samples.Files]:
    return [{"a.csv": VALID}]


def changed(folder: Path) -> bool:
    return (folder / "a.csv").read_bytes() != VALID


def refuse(folder: Path) -> None:
    if changed(folder):
        raise InputError("one line")


def refuse_at_length(folder: Path) -> None:
    if changed(folder):
        raise InputError("a" * 3000)


def fail(folder: Path) -> None:
    if changed(folder):
        raise KeyError("x")


def crash(folder: Path) -> None:
    if changed(folder):
        os.abort()


def hang(folder: Path) -> None:
    while changed(folder):
        time.sleep(0.1)


def allocate(folder: Path) -> None:
    if changed(folder):
        bytearray(2**31)


def grow(folder: Path) -> None:
    if changed(folder):
        assert len(b"x" * (3 * 2**27)) == 3 * 2**27


def test_input_errors_are_not_findings():
    assert findings_of(Target("refuse", refuse, valid), range(20)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("read", "what", "details"),
    [
        (refuse_at_length, "a message of 3000 characters, 1 lines", "aaa"),
        (fail, "KeyError: 'x'", "in fail"),
        (crash, "the process ended with -6", "in crash"),
        (hang, "still running after 1 seconds", "in hang"),
        (allocate, "MemoryError: ", "in allocate"),
        (grow, "took 3", ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_of_a_reader_is_found_and_the_next_case_is_run(read, what, details):
    target = Target(read.__name__, read, valid)
    numbers = [number for number in range(20) if case(target, SEED, number) not in valid()][:2]
    findings = findings_of(target, numbers, seconds=1 if read is hang else 20)
    assert [one.number for one in findings] == numbers
    assert all(one.what.startswith(what) for one in findings), findings
    assert all(details in one.details for one in findings)
    assert len({one.kind for one in findings}) == 1


def test_an_unreadable_sample_is_reported_at_once():
    with pytest.raises(RuntimeError, match="wrong: a valid sample is not read"):
        run_cases(Target("wrong", fail, other_samples), SEED, [0], print)


def other_samples() -> list[samples.Files]:
    return [{"a.csv": b"other"}]


@pytest.mark.parametrize("name", TARGETS)
def test_a_case_is_the_same_each_time_and_cases_differ(name):
    target = TARGETS[name]
    if missing(target):
        pytest.skip(f"{', '.join(missing(target))} not installed")
    cases = [case(target, SEED, number) for number in range(20)]
    assert cases == [case(target, SEED, number) for number in range(20)]
    assert sum(files not in target.valid() for files in cases) > 10
    assert len({tuple(sorted(files.items())) for files in cases}) > 10
