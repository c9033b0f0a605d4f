"""Runs commands and other Python modules in processes forked from one that has already imported PyTorch.

Importing it takes seconds each time. At least one test of every command starts it as users do, with `stm-fast` or
torchrun.
"""

import multiprocessing
import os
import runpy
import socket
import sys
from pathlib import Path
from typing import NamedTuple

PATIENCE = 1200  # seconds, on a busy machine
CONTEXT = multiprocessing.get_context("forkserver")
# all tests share this one process, so its modules are listed here and not by each test
CONTEXT.set_forkserver_preload(
    [
        *("stm_fast.__main__", "stm_fast.tasks.segment", "stm_fast.tasks.evaluate", "stm_fast.training.trainer"),
        *("pytest", "stm_fast.testing", "torch.distributed.run"),
    ]
)


class Ended(NamedTuple):
    """The exit code of a process, negative for a signal, and its output."""

    returncode: int
    stdout: str
    stderr: str


class Running:
    """A process running `stm-fast ARGUMENTS`, in its own session as if from another terminal.

    Args:
        folder: where its output is kept until `wait`.
        module: runs `python -m MODULE ARGUMENTS` instead.
        at: the working directory; by default that of the tests.
    """

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        module: str | None = None,
        *,
        at: Path | None = None,
        **environment: str,
    ) -> None:
        self._printed = [folder / f".printed.{number}.{environment.get('RANK', 0)}" for number in (1, 2)]
        self._process = CONTEXT.Process(target=_main, args=(arguments, module, at, self._printed, environment))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def has_ended(self) -> bool:
        return self._process.exitcode is not None

    def printed(self) -> str:
        """What it has printed so far."""
        return self._printed[0].read_text() if self._printed[0].exists() else ""

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> Ended:
        self._process.join(PATIENCE)
        self._process.kill()  # if it has not ended by then
        self._process.join()
        texts = [path.read_text() if path.exists() else "" for path in self._printed]
        for path in self._printed:
            path.unlink(missing_ok=True)
        assert self._process.exitcode is not None
        return Ended(self._process.exitcode, *texts)


def run(*arguments: str, folder: Path, **environment: str) -> Ended:
    """Runs the command line, which must succeed."""
    ended = Running([*arguments], folder, **environment).wait()
    assert ended.returncode == 0, ended.stderr
    return ended


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_ranks(*arguments: str, folder: Path, world: int = 2) -> list[Ended]:
    """Runs a command in several processes, with torchrun's environment; "{rank}" in it becomes the rank."""
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    ranks = [
        Running([text.format(rank=rank) for text in arguments], folder, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        for rank in range(world)
    ]
    return [rank.wait() for rank in ranks]


def torchrun(*arguments: str, folder: Path, world: int = 2) -> Ended:
    """Runs torchrun itself, which starts `python -m stm_fast ARGUMENTS` in several processes."""
    command = ["--standalone", f"--nproc-per-node={world}", "-m", "stm_fast", *arguments]
    return Running(command, folder, "torch.distributed.run", OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore").wait()


def _main(
    arguments: list[str], module: str | None, at: Path | None, printed: list[Path], environment: dict[str, str]
) -> None:
    os.setsid()
    if at is not None:
        os.chdir(at)
    os.environ.update(environment)
    for number, path in zip((1, 2), printed, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [module or "stm-fast", *arguments]
    if module is not None:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    from stm_fast.__main__ import main

    main()
