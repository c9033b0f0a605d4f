"""A pool of workers on a Ray cluster, which places them where there is room, and tells when one is lost.

A lost worker is replaced, and its task is given to the next free one. Ray could repeat the task by itself, but only on
the replacement, which may find no room until others end, and it counts each attempt to reach a lost machine.
"""

import logging
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, Generic, NamedTuple, TypeVar

from stm_fast.cluster.connection import Room
from stm_fast.errors import InputError, as_input_error, option

Task = TypeVar("Task")
Result = TypeVar("Result")
# does a task
Run = Callable[[Task], Result | None]
# makes that function once in each worker, given whether a task should end early
Setup = Callable[[Callable[[], bool]], Run[Task, Result]]

# a task whose worker is lost more often has failed; so has a pool whose workers, one after the other, do not start
MOST_LOSSES = 3
# between two looks at whether to stop
_POLL_SECONDS = 1.0
# of a task, so that the answer of a worker stays small
_MOST_NOTES = 20


class Done(NamedTuple, Generic[Task, Result]):
    """How a task ended.

    Attributes:
        result: None if it failed, or was told to stop.
        problem: bad input.
        crash: any other error, with its traceback.
        notes: the warnings that were logged.
    """

    task: Task
    result: Result | None = None
    problem: InputError | None = None
    crash: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> Exception | None:
        """An InputError for bad input, and a RuntimeError with the traceback for a crash."""
        return self.problem if self.crash is None else RuntimeError(self.crash)


def failed(task: Task, error: Exception) -> "Done[Task, Any]":
    """How a task ended that raised this error, which is being handled."""
    problem = as_input_error(error)
    return Done(task, problem=problem, crash=traceback.format_exc() if problem is None else None)


class _Worker(Generic[Task, Result]):
    """Runs in a process of its own, on any machine of the cluster."""

    def __init__(self, setup: Setup[Task, Result]) -> None:
        self._setup, self._stopping = setup, False
        self._run: Run[Task, Result] | None = None

    def start(self) -> None:
        """Returns once the worker has started."""

    def run(self, task: Task) -> Done[Task, Result]:
        with _noted() as notes:
            try:
                if self._run is None:
                    self._run = self._setup(lambda: self._stopping)
                done: Done[Task, Result] = Done(task, self._run(task))
            except Exception as error:
                done = failed(task, error)
        return done._replace(notes=tuple(notes))

    def stop(self) -> None:
        """Called by another thread while a task runs."""
        self._stopping = True


@contextmanager
def _noted() -> Iterator[list[str]]:
    """The warnings that the package logs inside the block."""
    notes: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(notes) < _MOST_NOTES:
                notes.append(record.getMessage())

    logger, handler = logging.getLogger("stm_fast"), Notes(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)


def counted(
    dones: Iterable[Done[Task, Result]], total: int, progress: Callable[[int, int], None]
) -> Iterator[Done[Task, Result]]:
    """The same; `progress` is called at the start and after each, with their number so far and that of all."""
    progress(0, total)
    for count, done in enumerate(dones, 1):
        yield done
        progress(count, total)


def run_tasks(
    room: Room,
    tasks: Iterable[Task],
    setup: Setup[Task, Result],
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Done[Task, Result]]:
    """Runs tasks in their order, each on the next worker that is free; yields them in the order in which they end.

    What is held here does not grow with their number: one task for each worker, and the next one. A worker is released
    once there is no task left, so that one whose machine was lost finds room. Tasks, results and `setup` go through
    pickle to the workers and back.

    Args:
        room: see `connected`.
        should_stop: asked every second; when it returns True, no further task starts, and those that run are told.

    Raises:
        InputError: its workers cannot start.
    """
    pool = _Pool(room, tasks, setup)
    told = False
    while pool.busy:
        yield from pool.wait()
        if should_stop() and not told:
            told = True
            pool.stop()


class _Given(NamedTuple, Generic[Task]):
    """A task, and how many workers were lost with it."""

    task: Task
    losses: int = 0


class _Pool(Generic[Task, Result]):
    """The workers, and what they are at: a task, or None while they start."""

    def __init__(self, room: Room, tasks: Iterable[Task], setup: Setup[Task, Result]) -> None:
        self._ray, self._setup = room.ray, setup
        self._actor = room.ray.remote(_Worker).options(num_cpus=room.cpus, num_gpus=room.gpus, max_concurrency=2)
        coming = iter(tasks)
        first = list(islice(coming, room.workers))  # not more workers than tasks
        self._coming: Iterator[_Given[Task]] = map(_Given[Task], chain(first, coming))
        self._returned: deque[_Given[Task]] = deque()  # their workers were lost
        self._next = next(self._coming, None)
        self._failed_starts, self._stopping = 0, False
        self._at: dict[Any, tuple[Any, _Given[Task] | None]] = {}
        for _ in first:
            self._start()

    @property
    def busy(self) -> bool:
        """Whether there are tasks that have not ended."""
        return self._next is not None or any(given is not None for _, given in self._at.values())

    def wait(self) -> Iterator[Done[Task, Result]]:
        """The tasks that end now; none after a second."""
        ended, _ = self._ray.wait(list(self._at), num_returns=1, timeout=_POLL_SECONDS)
        for ref in ended:
            worker, given = self._at.pop(ref)
            try:
                done: Done[Task, Result] | None = self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                done = self._lost(worker, given, error)
            else:
                self._failed_starts = 0
                self._give_next(worker)
            if done is not None:
                yield done

    def stop(self) -> None:
        """Starts no further task, and tells those that run."""
        self._stopping, self._coming, self._next = True, iter(()), None
        self._returned.clear()
        for worker, _ in self._at.values():
            worker.stop.remote()

    def _start(self) -> None:
        worker = self._actor.remote(self._setup)
        self._at[worker.start.remote()] = worker, None

    def _give_next(self, worker: Any) -> None:
        """The next task; without one, the worker ends with the last reference to it."""
        if self._next is not None:
            self._at[worker.run.remote(self._next.task)] = worker, self._next
            self._next = self._returned.popleft() if self._returned else next(self._coming, None)

    def _lost(self, worker: Any, given: _Given[Task] | None, error: Exception) -> Done[Task, Result] | None:
        """Replaces a worker; its task is the next one, or has failed."""
        self._ray.kill(worker)  # it may only be out of reach
        if given is None:
            self._failed_starts += 1
            if getattr(error, "actor_init_failed", False) or self._failed_starts > MOST_LOSSES:
                raise InputError(f"{option('ray')}: a worker cannot start ({_reason(error)})") from error
        if self._stopping:
            return None if given is None else Done(given.task)
        self._start()
        if given is None:
            return None
        if given.losses == MOST_LOSSES:
            return Done(given.task, crash=f"its worker was lost {MOST_LOSSES + 1} times ({_reason(error)})")
        if self._next is not None:
            self._returned.appendleft(self._next)
        self._next = _Given(given.task, given.losses + 1)
        return None


def _reason(error: Exception) -> str:
    """An error of Ray in one line: what follows the traceback of a worker, or else what precedes its details."""
    lines = str(error).strip().splitlines()
    return lines[-1 if any(line.startswith("Traceback") or "ray::" in line for line in lines) else 0]
