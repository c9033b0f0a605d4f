"""Events for the open pages: published by any thread, sent as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from threading import Lock
from typing import Any, NamedTuple

# a page that has not read so many events is told to load everything again instead
_MOST_WAITING = 1000
# a comment after so many seconds without an event, by which a closed connection is noticed
_SECONDS = 15.0
_RELOAD = {"kind": "project"}

Event = Mapping[str, Any]


class _Reader(NamedTuple):
    """An open page. The queue belongs to the loop; None in it is the end."""

    queue: "asyncio.Queue[str | None]"
    loop: asyncio.AbstractEventLoop

    def put(self, text: str | None) -> None:
        """In the thread of the loop."""
        if text is not None and self.queue.qsize() >= _MOST_WAITING:
            while not self.queue.empty():
                self.queue.get_nowait()
            text = _sent(_RELOAD)
        self.queue.put_nowait(text)


class Events:
    """Sends each event to all pages that are open."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._readers: set[_Reader] = set()
        self._closed = False

    def publish(self, event: Event) -> None:
        """Sends an event, which becomes JSON; returns at once."""
        text = _sent(event)
        with self._lock:
            readers = list(self._readers)
        for reader in readers:
            self._put(reader, text)

    def close(self) -> None:
        """Ends all streams, also those opened later."""
        with self._lock:
            self._closed = True
            readers = list(self._readers)
        for reader in readers:
            self._put(reader, None)

    async def stream(self) -> AsyncIterator[str]:
        """The events from now on, as text; without one for a while, a comment."""
        reader = _Reader(asyncio.Queue(), asyncio.get_running_loop())
        with self._lock:
            if self._closed:
                return
            self._readers.add(reader)
        try:
            yield ": events follow\n\n"
            while (text := await _next(reader.queue)) is not None:
                yield text
        finally:
            with self._lock:
                self._readers.discard(reader)

    @staticmethod
    def _put(reader: _Reader, text: str | None) -> None:
        with suppress(RuntimeError):  # the loop is closed, as the server has ended
            reader.loop.call_soon_threadsafe(reader.put, text)


async def _next(queue: "asyncio.Queue[str | None]") -> str | None:
    try:
        return await asyncio.wait_for(queue.get(), _SECONDS)
    except TimeoutError:
        return ": still here\n\n"


def _sent(event: Event) -> str:
    return f"data: {json.dumps(event)}\n\n"
