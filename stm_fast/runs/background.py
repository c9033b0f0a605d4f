"""Two threads around a computation: one gets its input ready, one carries its output away. Neither gets far ahead."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Self, TypeVar

Item = TypeVar("Item")

FRAMES_WAITING = 4  # decoded but not segmented, and segmented but not written

_END: Any = object()


def prefetch(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """The same items, made by a thread that is ahead; its exception is raised in its place.

    At most `depth` items wait, and one more is being made. Close the generator where it is not used up.
    """
    iterator, thread = iter(items), ThreadPoolExecutor(1, "stm_fast-prefetch")
    try:
        waiting = deque(thread.submit(next, iterator, _END) for _ in range(depth + 1))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(thread.submit(next, iterator, _END))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


class BackgroundWriter(Generic[Item]):
    """Calls `consume(item)` in a thread, in order; at most `depth` items wait for it.

    A context manager: leaving it waits for what was put. An exception of `consume` is raised by the next `put` or at
    the end; what was waiting behind it is dropped.
    """

    def __init__(self, consume: Callable[[Item], None], depth: int) -> None:
        self._consume, self._depth = consume, depth
        self._error: BaseException | None = None
        self._waiting: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(1, "stm_fast-writer")

    def put(self, item: Item) -> None:
        self._wait(self._depth)
        self._waiting.append(self._thread.submit(self._run, item))

    def flush(self) -> None:
        """Returns when all that was put is consumed; raises what `consume` raised."""
        self._wait(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self._wait(0)

    def _wait(self, most: int) -> None:
        """Until at most so many items are not consumed."""
        while len(self._waiting) > most:
            self._waiting.popleft().result()
        if self._error is not None:
            raise self._error

    def _run(self, item: Item) -> None:
        if self._error is None:
            try:
                self._consume(item)
            except BaseException as error:
                self._error = error
