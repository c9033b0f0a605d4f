"""The worker of the page: one job at a time in one thread, each ends with one report."""

import threading

import pytest

from stm_fast.errors import InputError
from stm_fast.page.worker import Busy, Worker

LONG = 60.0  # seconds; no test waits so long


class Reports:
    """What `done` was given."""

    def __init__(self):
        self.found, self.threads = [], []
        self._any = threading.Semaphore(0)

    def __call__(self, error, stopped):
        self.found.append((error, stopped))
        self.threads.append(threading.get_ident())
        self._any.release()

    def next(self):
        assert self._any.acquire(timeout=LONG)
        return self.found[-1]


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def reports():
    return Reports()


def until_stopped(began):
    def job(should_stop):
        began.set()
        while not should_stop():
            threading.Event().wait(0.001)

    return job


def test_jobs_run_one_after_the_other_in_one_thread(worker, reports):
    threads = []
    for _ in range(3):
        worker.start(lambda should_stop: threads.append((threading.get_ident(), should_stop())), reports)
        assert reports.next() == (None, False)
    assert len(set(threads)) == 1
    assert threads[0] == (reports.threads[0], False)
    assert threads[0][0] != threading.get_ident()


def test_a_second_job_is_refused_until_the_first_is_stopped(worker, reports):
    began = threading.Event()
    worker.start(until_stopped(began), reports)
    assert began.wait(LONG)
    with pytest.raises(Busy, match="a running job"):
        worker.start(lambda should_stop: None, reports)
    worker.stop()
    assert reports.next() == (None, True)
    # a request to stop is not for the next job
    worker.start(lambda should_stop: reports.found.append(should_stop()), reports)
    assert reports.next() == (None, False)
    assert reports.found == [(None, True), False, (None, False)]


def test_the_next_job_can_be_started_as_soon_as_the_end_is_reported(worker, reports):
    def then_another(error, stopped):
        worker.start(lambda should_stop: None, reports)

    worker.start(lambda should_stop: None, then_another)
    assert reports.next() == (None, False)


def test_bad_input_is_reported_as_it_is(worker, reports, caplog):
    def job(should_stop):
        raise InputError("frame 3 cannot be decoded")

    worker.start(job, reports)
    error, stopped = reports.next()
    assert isinstance(error, InputError)
    assert (str(error), stopped) == ("frame 3 cannot be decoded", False)
    assert not caplog.records


@pytest.mark.parametrize("raised", [ZeroDivisionError("a\nb"), KeyboardInterrupt("a\nb"), SystemExit("a\nb")])
def test_any_other_error_is_logged_and_reported_in_one_line(worker, reports, caplog, raised):
    def job(should_stop):
        raise raised

    worker.start(job, reports)
    error, _ = reports.next()
    assert str(error) == f"an error of the program, see its log: {type(raised).__name__}: a b"
    assert caplog.records[0].exc_info[1] is raised
    worker.start(lambda should_stop: None, reports)
    assert reports.next() == (None, False)


def test_a_report_that_fails_does_not_end_the_worker(worker, reports, caplog):
    def fail(error, stopped):
        ended.set()
        raise ZeroDivisionError

    ended = threading.Event()
    worker.start(lambda should_stop: None, fail)
    assert ended.wait(LONG)
    worker.start(lambda should_stop: None, reports)
    assert reports.next() == (None, False)
    assert "could not be reported" in caplog.text


def test_closing_stops_the_job_and_waits_for_its_report(reports):
    worker, began = Worker(), threading.Event()
    worker.start(until_stopped(began), reports)
    assert began.wait(LONG)
    worker.close()
    assert reports.found == [(None, True)]
    with pytest.raises(Busy, match="closed"):
        worker.start(lambda should_stop: None, reports)
    worker.close()
