"""Runs cases in a process that is watched: a crash, a hang or excessive memory is a finding."""

import faulthandler
import gc
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from fuzz.targets import Target, case
from stm_fast.errors import InputError

SECONDS = 20.0  # the time limit of a case
MOST_BYTES = 2**30  # that a case may allocate on top of the process; more is a MemoryError
PLAUSIBLE_BYTES = 2**28  # that the process may grow by: no sample needs as much, however it is validly enlarged
MOST_WORDS = 2000  # characters of a message, including its folder
_STARTING_SECONDS = 120.0  # for imports


class Finding(NamedTuple):
    """A fault that a case found."""

    target: str
    seed: int
    number: int
    what: str  # in one line
    details: str  # the traceback

    @property
    def kind(self) -> str:
        """Equal for findings that are most likely one fault: the error and the line that raised it."""
        places = [line.strip() for line in self.details.splitlines() if line.strip().startswith("File ")]
        return f"{self.target} {self.what.split(':')[0]} {' '.join(places[-2:])}"


def missing(target: Target) -> list[str]:
    """The modules that a target needs and this machine lacks."""
    return [module for module in target.needs if find_spec(module) is None]


def run_cases(
    target: Target, seed: int, numbers: Iterable[int], found: Callable[[Finding], None], seconds: float = SECONDS
) -> int:
    """Runs cases one after the other, in a fresh process after each finding of a new kind; returns how many.

    Args:
        numbers: of the cases; the first is drawn once the process is ready.
        found: is called with each finding.
        seconds: the time limit of a case.
    """
    kinds: set[str] = set()
    done = 0
    worker: _Worker | None = _Worker(target, seed, seconds)
    try:
        for number in numbers:
            worker = worker or _Worker(target, seed, seconds)
            finding = worker.run(number)
            done += 1
            if finding is not None:
                found(finding)
                if finding.kind not in kinds or not worker.alive:
                    worker.stop()
                    worker = None
                kinds.add(finding.kind)
    finally:
        if worker is not None:
            worker.stop()
    return done


class _Worker:
    """One process. `run` gives it a case and waits for the outcome."""

    def __init__(self, target: Target, seed: int, seconds: float) -> None:
        self._name, self._seed, self._seconds = target.name, seed, seconds
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._folder = Path(tempfile.mkdtemp())  # made and removed here, because the process may be killed
        self._errors = self._folder / "stderr"
        arguments = target, seed, there, self._folder / "case", self._errors
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        there.close()
        wrong = self._wait(_STARTING_SECONDS)
        if wrong is not None:
            self.stop()
            raise RuntimeError(f"{self._name}: a valid sample is not read: {wrong[0]}\n{wrong[1]}")

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def run(self, number: int) -> Finding | None:
        with suppress(OSError):  # the process is gone, which _wait reports
            self._here.send(number)
        wrong = self._wait(self._seconds)
        return None if wrong is None else Finding(self._name, self._seed, number, *wrong)

    def _wait(self, seconds: float) -> tuple[str, str] | None:
        if not self._here.poll(seconds):
            # the traceback of every thread
            os.kill(self._process.pid or 0, signal.SIGUSR1)
            time.sleep(0.2)
            self._process.kill()
            self._process.join()
            return f"still running after {seconds:.0f} seconds", self._written()
        try:
            return self._here.recv()
        except EOFError:
            self._process.join()
            return f"the process ended with {self._process.exitcode}", self._written()

    def _written(self) -> str:
        return self._errors.read_text(errors="replace")[-20000:]

    def stop(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._here.close()
        shutil.rmtree(self._folder)


def _work(target: Target, seed: int, pipe: Connection, folder: Path, errors: Path) -> None:
    """Runs in the process: reports that it is ready, then the outcome of each number that it receives."""
    os.environ["OMP_NUM_THREADS"] = "1"  # there is one process per core
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):  # including what C libraries print
        os.dup2(descriptor, stream)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    warnings.simplefilter("ignore")
    folder.mkdir()
    _read_valid(target, folder)  # so that the imports of the reader are done
    gc.collect()
    gc.freeze()
    _limit_memory()
    pipe.send(None)
    with suppress(EOFError):  # the parent has closed its end
        while True:
            number = pipe.recv()
            shutil.rmtree(folder)
            _write(case(target, seed, number), folder)
            pipe.send(outcome(target.read, folder))
            gc.collect()  # PyAV's objects, with their threads, are in reference cycles


def _read_valid(target: Target, folder: Path) -> None:
    """Reads every sample; raises the reader's error if all are refused."""
    refusals = []
    for files in target.valid():
        shutil.rmtree(folder)
        _write(files, folder)
        try:
            target.read(folder)
        except InputError as error:
            refusals.append(error)
    if len(refusals) == len(target.valid()):
        raise refusals[0]


def _write(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _limit_memory() -> None:
    most = _bytes("VmData") + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def outcome(read: Callable[[Path], None], folder: Path) -> tuple[str, str] | None:
    """The bug found by reading a folder, in one line and in full; None if there is none."""
    _forget_peak()
    before = _bytes("VmHWM")
    try:
        read(folder)
    except InputError as error:
        message = str(error)
        if "\n" in message or len(message) > MOST_WORDS:
            return f"a message of {len(message)} characters, {message.count(chr(10)) + 1} lines", message[:20000]
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", traceback.format_exc()[-20000:]
    grown = _bytes("VmHWM") - before
    return (f"took {grown >> 20} MiB", "") if grown > PLAUSIBLE_BYTES else None


def _bytes(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def _forget_peak() -> None:
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
