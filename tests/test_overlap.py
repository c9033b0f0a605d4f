"""The two threads around the computation: order, bounds, errors and termination."""

import gc
import threading
import time
import weakref
from contextlib import closing
from typing import ClassVar

import pytest

from stm_fast.runs.loop import BackgroundWriter, prefetch

DEPTH = 3


class Item:
    """An item that is counted while it is alive."""

    alive: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self, number):
        self.number = number
        Item.alive.add(self)


def own_threads():
    """Not those of PyTorch's compiler, which another test may have started."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("stm_fast-")}


@pytest.fixture(autouse=True)
def _no_thread_outlives_a_test():
    before = own_threads()
    yield
    assert own_threads() <= before


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


# prefetch


def test_items_come_in_order_from_another_thread():
    makers = set()

    def items():
        for number in range(20):
            makers.add(threading.get_ident())
            yield number

    assert list(prefetch(items(), DEPTH)) == list(range(20))
    assert makers
    assert threading.get_ident() not in makers


@pytest.mark.slow
def test_no_more_than_depth_items_wait():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield Item(number)

    with closing(prefetch(items(), DEPTH)) as taken:
        for count, item in enumerate(taken, start=1):
            # this loop holds one, DEPTH wait, the thread holds one
            wait_until(lambda count=count: len(made) == count + DEPTH + 1)
            gc.collect()
            assert len(Item.alive) <= DEPTH + 2
            assert item.number == count - 1
            if count == 5:
                break
        time.sleep(0.05)
        assert len(made) == 5 + DEPTH + 1


def test_the_next_item_is_made_while_this_one_is_used():
    begun = threading.Event()

    def items():
        yield 0
        begun.set()
        yield 1

    with closing(prefetch(items(), 1)) as taken:
        assert next(taken) == 0
        assert begun.wait(5)


def test_an_exception_while_making_items_comes_after_the_earlier_items():
    def items():
        yield from range(2)
        raise OSError("no more")

    taken = []
    with pytest.raises(OSError, match="no more"):
        taken.extend(prefetch(items(), DEPTH))
    assert taken == [0, 1]


def test_closing_early_closes_the_source():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with closing(prefetch(items(), DEPTH)) as taken:
        next(taken)
    assert closed.wait(5)


# the writer


def test_items_are_consumed_in_order_in_another_thread():
    consumed, threads = [], set()

    def consume(item):
        consumed.append(item)
        threads.add(threading.get_ident())

    with BackgroundWriter(consume, DEPTH) as writer:
        for number in range(20):
            writer.put(number)
    assert consumed == list(range(20))
    assert threading.get_ident() not in threads


@pytest.mark.slow
def test_a_slow_consumer_holds_the_producer_back():
    go_on, put = threading.Semaphore(0), []
    with BackgroundWriter(lambda _: go_on.acquire(), DEPTH) as writer:

        def produce():
            for number in range(10):
                writer.put(Item(number))
                put.append(number)

        producer = threading.Thread(target=produce)
        producer.start()
        for consumed in range(4):
            # one is being consumed, DEPTH wait, the next put() does not return
            wait_until(lambda consumed=consumed: len(put) == consumed + DEPTH + 1)
            time.sleep(0.02)
            gc.collect()
            assert len(put) == consumed + DEPTH + 1
            assert len(Item.alive) <= DEPTH + 2
            go_on.release()
        for _ in range(10):
            go_on.release()
        producer.join()
    assert len(put) == 10


def test_an_exception_of_the_consumer_reaches_the_producer():
    put, consumed = [], []

    def consume(item):
        if item == 2:
            raise OSError("disk full")
        consumed.append(item)

    def produce():
        with BackgroundWriter(consume, DEPTH) as writer:
            for number in range(1000):
                writer.put(number)
                put.append(number)
                time.sleep(0.001)

    with pytest.raises(OSError, match="disk full"):
        produce()
    assert consumed == [0, 1], "items after the failed one are dropped"
    assert len(put) < 1000


def test_an_exception_at_the_last_item_is_not_lost():
    def consume(_):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), BackgroundWriter(consume, DEPTH) as writer:
        writer.put(0)


def test_the_producers_exception_is_raised_after_its_items_are_consumed():
    consumed = []

    def produce():
        with BackgroundWriter(consumed.append, DEPTH) as writer:
            writer.put(0)
            writer.put(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        produce()
    assert consumed == [0, 1]
