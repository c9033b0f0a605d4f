"""What takes long, one thing at a time, while the page stays responsive: loading, tracking, exporting."""

import logging
from collections.abc import Callable
from contextlib import suppress
from threading import Condition
from typing import Any, Literal, NamedTuple

from stm_fast.errors import InputError
from stm_fast.page.events import Events
from stm_fast.page.worker import Job, Worker

_log = logging.getLogger(__name__)

What = Literal["network", "track", "export"]
# adds to the event that tells that a job is over; takes whether it was stopped
Extras = Callable[[], dict[str, Any]]

_NAMES = {"network": "the network is being loaded", "track": "tracking is running", "export": "an export is running"}


class Conflict(Exception):
    """Something that cannot be done now; the message is one line."""


class _Entry(NamedTuple):
    what: What
    job: Job
    extras: Extras


class Jobs:
    """Runs jobs, and tells the open pages when each has ended. Its methods may be called from any thread.

    While the network is loaded, one job waits for it.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._worker = Worker()
        self._changed = Condition()
        self._current: _Entry | None = None
        self._next: _Entry | None = None

    @property
    def running(self) -> What | None:
        """What is done now, or will be once the network is loaded."""
        with self._changed:
            entry = self._next or self._current
            return None if entry is None else entry.what

    def start(self, what: What, job: Job, extras: Extras = dict) -> None:
        """Starts a job; as its end, an event is published. Raises Conflict if another one is running."""
        entry = _Entry(what, job, extras)
        with self._changed:
            if self._current is None:
                self._begin(entry)
            elif self._current.what == "network" and self._next is None:
                self._next = entry
            else:
                raise Conflict(f"{_NAMES[(self._next or self._current).what]}: wait for it, or stop it")

    def stop(self) -> None:
        """Asks what is running to stop soon; the network is loaded nevertheless."""
        with self._changed:
            if self._next is not None:
                entry, self._next = self._next, None
                self._tell(entry, None, stopped=True)
            elif self._current is not None and self._current.what != "network":
                self._worker.stop()

    def check_can_halt(self) -> None:
        """Raises Conflict during an export."""
        if self.running == "export":
            raise Conflict(f"{_NAMES['export']}: wait for it, or stop it")

    def halt(self) -> None:
        """Stops tracking and waits for its end. Raises Conflict during an export."""
        self.check_can_halt()
        self.stop()
        with self._changed:
            self._changed.wait_for(lambda: self._current is None or self._current.what == "network")

    def close(self) -> None:
        """Stops everything, and waits for its end."""
        self.stop()
        self._worker.close()

    def _begin(self, entry: _Entry) -> None:
        self._current = entry
        self._worker.start(entry.job, lambda error, stopped: self._ended(entry, error, stopped))

    def _ended(self, entry: _Entry, error: InputError | None, stopped: bool) -> None:
        """In the thread of the worker."""
        with self._changed:
            self._current = None
            self._tell(entry, error, stopped=stopped)
            if self._next is not None:
                following, self._next = self._next, None
                self._begin(following)
            self._changed.notify_all()

    def _tell(self, entry: _Entry, error: InputError | None, *, stopped: bool) -> None:
        line = None if error is None else str(error)
        if error is not None:
            _log.warning(error.message)  # no page may be open
        if entry.what == "network":
            self._events.publish({"kind": "network", "ready": error is None, "error": line})
        else:
            ended = {"kind": "done", "what": entry.what, "stopped": stopped, "error": line}
            with suppress(InputError):  # files that someone removes just now
                ended |= entry.extras()
            self._events.publish(ended)
