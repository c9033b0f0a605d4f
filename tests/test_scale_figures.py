"""The figures of docs/scale.md: what benchmarks/bulk.py measures, and its tables."""

import random
from functools import partial
from pathlib import Path

import pytest

import bulk
import bulk_tables
from stm_fast.benchmarking.records import Record
from stm_fast.cluster.order import longest_first
from stm_fast.errors import InputError
from stm_fast.runs.bulk import distinct


def record(*rows):
    return Record({}, {}, [*rows])


def test_lengths_of_the_simulation_are_skewed_and_repeatable():
    jobs = list(distinct(bulk.sources(2000), Path("masks"), Path("out")))
    seconds = [bulk.drawn(0, 1.0, 0.005, job) for job in jobs]
    assert seconds == [bulk.drawn(0, 1.0, 0.005, job) for job in jobs]
    assert sum(seconds) / len(seconds) == pytest.approx(0.005, rel=0.2)
    assert sorted(seconds)[1000] < 0.004
    first = next(longest_first(jobs, partial(bulk.drawn, 0, 1.0, 0.005)))
    assert bulk.drawn(0, 1.0, 0.005, first) == max(seconds)


def test_the_simulated_names_are_compared():
    with pytest.raises(InputError, match=r"00000000\.mp4: same name"):
        list(distinct([*bulk.sources(3), *bulk.sources(1)], Path("masks"), Path("out")))


@pytest.mark.parametrize("name", ["log-normal, sigma 0.5", "log-normal, sigma 1.5"])
def test_skewed_lengths_have_the_mean(name):
    lengths = bulk.skewed(20_000, 0.1, 3)[name]
    assert sum(lengths) / len(lengths) == pytest.approx(0.1, rel=0.1)


def test_one_long_length_among_equal_ones():
    (lengths,) = [found for name, found in bulk.skewed(50, 0.5, 3).items() if name.startswith("one")]
    assert sorted(lengths) == [0.5] * 49 + [10.0]


def test_idle_time_and_the_least_possible_time():
    # two workers with 6 and 3 seconds of work
    row = bulk_tables.IdleRow("", 2, "torchrun", 0, total=9.0, longest=4.0, seconds=6.0)
    assert row.idle == pytest.approx(0.25)
    assert row.of_bound == pytest.approx(6 / 4.5)
    assert bulk_tables.IdleRow("", 2, "torchrun", 0, total=9.0, longest=8.0, seconds=8.0).of_bound == 1


def test_the_table_of_idle_time_has_medians():
    rows = [
        bulk_tables.IdleRow("a", 2, sharing, seed, 8.0, 1.0, seconds)
        for sharing, times in (("torchrun", (5.0, 8.0, 16.0)), ("--ray", (4.0, 4.0, 5.0)))
        for seed, seconds in enumerate(times)
    ]
    table = bulk_tables.idle_table(record(*rows))
    assert table.rows == [["a", "2", "50.0 % idle, 2.00", "0.0 % idle, 1.00"]]


def test_what_is_held_is_measured(tmp_path):
    row = bulk.holding("bytes", 1000, lambda: [bytes([0, 0]) * 500 for _ in range(1000)])
    assert row.bytes_each == pytest.approx(1000, rel=0.1)
    for row in bulk.held_rows(2000, 200, tmp_path):
        # a name: its hash, in a set
        assert row.bytes_each > 32
        assert row.seconds_each > 0


def test_the_costs_of_a_million_videos():
    tasks = record(bulk_tables.TasksRow(1000, 0.5, 1, 1, 1, 0), bulk_tables.TasksRow(10_000, 10.0, 1, 1, 1, 0))
    seconds = {bulk_tables.START: 9.0, bulk_tables.FRAME: 0.35, bulk_tables.VIDEO: 1.0, bulk_tables.SKIPPED: 0.018}
    overheads = record(*(bulk_tables.OverheadRow(name, 3, value, value, value) for name, value in seconds.items()))
    rows = bulk_tables.costs_table(tasks, overheads).rows
    # 36 s each; on 10 cores 5 hours of 18 ms; on 1,000 cores the driver's 1,000 a second are fewer than 55,556
    assert rows[0] == ["10", "10,000", "1,000 hours", "30 minutes", "0.03 %"]
    assert rows[2] == ["1,000", "10,000", "10 hours", "17 minutes", "2.78 %"]


def test_files_of_each_result(tmp_path):
    found = {row.result: (row.each_frame, row.each_video) for row in bulk.file_rows(tmp_path)}
    assert (found["masks"], found["soft"], found["overlay"], found["rle"]) == ((1, 0), (2, 0), (0, 1), (0, 1))
    assert found.keys() == set(bulk.RESULTS)


@pytest.mark.slow
def test_sleeping_workers_of_a_cluster():
    lengths = [random.Random(number).uniform(0.05, 0.1) for number in range(20)]
    with bulk.three_nodes(3) as room:
        # workers do not have the folder of benchmarks on their path
        room.ray.cloudpickle.register_pickle_by_value(bulk)
        seconds = bulk.slept(room, lengths)
        assert sum(lengths) / 3 < seconds < sum(lengths)
        length = partial(bulk.drawn, 0, 1.0, 0.001)
        jobs = longest_first(distinct(bulk.sources(1000), Path("masks"), Path("out")), length)
        (row,) = bulk.sampled(room, bulk.run_tasks(room, jobs, partial(bulk.sleeper, length)))
    assert (row.tasks, row.store_bytes) == (1000, 0)
    assert min(row.driver_mb, row.head_mb, row.nodes_mb) > 10
