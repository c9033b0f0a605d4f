"""One thread for what takes long. One job at a time, which ends soon after it is asked to."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock

from stm_fast.errors import InputError, as_input_error, reason_of

logger = logging.getLogger(__name__)

# is given a function that says whether it should stop
Job = Callable[[Callable[[], bool]], None]
# is given the error that ended the job, if any, and whether it was asked to stop
Done = Callable[[InputError | None, bool], None]


class Busy(Exception):
    """Another job is running, or the worker is closed."""


class Worker:
    """Runs jobs in one thread, the same for all of them. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "stm_fast-page")
        self._lock = Lock()
        self._busy = self._closed = False
        self._stop = Event()

    def start(self, job: Job, done: Done) -> None:
        """Starts a job.

        Args:
            job: should return, or raise anything, soon after the function it is given returns True.
            done: called in the worker's thread, once, when the job is over and the next one may be started. An error
                that the user cannot have caused is logged with its traceback.

        Raises:
            Busy: another job is running, or the worker is closed.
        """
        with self._lock:
            if self._busy or self._closed:
                raise Busy("found a closed worker" if self._closed else "found a running job, expected none")
            self._busy = True
            stop = self._stop = Event()
            self._thread.submit(self._run, job, done, stop)

    def stop(self) -> None:
        """Asks the running job to stop, if there is one; does not wait for it."""
        self._stop.set()

    def close(self) -> None:
        """Stops the running job and waits for it and its `done`. No job can be started any more."""
        with self._lock:
            self._closed = True
        self.stop()
        self._thread.shutdown()

    def _run(self, job: Job, done: Done, stop: Event) -> None:
        error = None
        try:
            job(stop.is_set)
        except BaseException as raised:  # an exception in a thread would be lost
            error = _reported(raised)
        with self._lock:
            self._busy = False
        try:
            done(error, stop.is_set())
        except Exception:
            logger.exception("the end of a job could not be reported")


def _reported(error: BaseException) -> InputError:
    """One line for the user."""
    known = as_input_error(error) if isinstance(error, Exception) else None
    if known is None:
        logger.error("a job failed", exc_info=error)
        known = InputError(f"an error of the program, see its log: {type(error).__name__}: {reason_of(error)}")
    return known
