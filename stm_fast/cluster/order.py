"""The order of tasks: long ones first, so that none is still running long after all others have ended."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from typing import TypeVar

Item = TypeVar("Item")

# held at once; sorting more would change little, because few of the longest come that late
WINDOW = 10_000


def longest_first(items: Iterable[Item], length: Callable[[Item], float], window: int = WINDOW) -> Iterator[Item]:
    """The items, each the longest of the next `window`; equally long ones in their order."""
    coming, numbers = iter(items), count()

    def entry(item: Item) -> tuple[float, int, Item]:
        return -length(item), next(numbers), item

    held = [entry(item) for item in islice(coming, window)]
    heapq.heapify(held)
    for item in coming:
        yield heapq.heapreplace(held, entry(item))[2]
    while held:
        yield heapq.heappop(held)[2]
