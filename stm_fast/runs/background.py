"""Two threads around a computation, with bounded queues: one gets its input ready, one carries its output away."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")

FRAMES_WAITING = 4  # decoded but not segmented, and segmented but not written

_POLL_SECONDS = 0.1


def prefetch(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """The same items, made by a thread that is ahead; its exception is raised in its place.

    At most `depth` items wait, and one more is in the thread's hands. Close the generator where it is not used up.
    """
    waiting: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue(depth)
    abandoned = threading.Event()

    def put(entry: tuple[Item] | BaseException | None) -> bool:
        while not abandoned.is_set():
            with suppress(queue.Full):
                waiting.put(entry, timeout=_POLL_SECONDS)
                return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((item,)):
                    return
            put(None)
        except BaseException as error:  # raised again where the items are used
            put(error)

    thread = threading.Thread(target=make, name="stm_fast-prefetch", daemon=True)
    thread.start()
    try:
        while (entry := waiting.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
    finally:
        abandoned.set()
        thread.join()


class BackgroundWriter(Generic[Item]):
    """Calls `consume(item)` in a thread, in order; at most `depth` items wait for it.

    A context manager: leaving it waits for what was put. An exception of `consume` is raised by the next `put` or at
    the end; what was waiting behind it is dropped.
    """

    def __init__(self, consume: Callable[[Item], None], depth: int) -> None:
        self._consume = consume
        self._waiting: queue.Queue[tuple[Item] | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="stm_fast-writer", daemon=True)

    def put(self, item: Item) -> None:
        self._raise_error()
        self._waiting.put((item,))

    def flush(self) -> None:
        """Returns when all that was put is consumed; raises what `consume` raised."""
        self._waiting.join()
        self._raise_error()

    def __enter__(self) -> "BackgroundWriter[Item]":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()
        if kind is None:
            self._raise_error()

    def _run(self) -> None:
        while (entry := self._waiting.get()) is not None:
            # after an error the queue is still emptied, or put() would wait for ever
            if self._error is None:
                try:
                    self._consume(entry[0])
                except BaseException as error:
                    self._error = error
            self._waiting.task_done()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
