"""The figures that README shows: the chart of memory reads and the short table of whole frames."""

from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest

import make_tables
from speed_chart import Panel, at_the_end, has_all_lines, speed_chart
from stm_fast.benchmarking.records import FrameRow, ReadRow, Record
from stm_fast.benchmarking.shapes import FrameWorkload

MACHINE = {
    "cpu": "Maker(R) One Processor",
    "gpu": None,
    "cpu_capability": "AVX512, AVX512_BF16",
    "device": "cpu",
    "threads": 2,
    "torch": "2.14.1",
    "commit": "0123456789abcdef",
    "date": "2026-01-01T00:00:00+00:00",
}
SVG = "{http://www.w3.org/2000/svg}"
# milliseconds of a read per frame in memory
RATES = {
    ("published", "float32"): 20.0,
    ("last-dim", "float32"): 12.0,
    ("sdpa", "float32"): 14.0,
    ("cpp", "float32"): 8.0,
    ("published", "bfloat16"): 10.0,
    ("last-dim", "bfloat16"): 7.0,
    ("cpp", "bfloat16"): 4.0,
    ("int8", "float32"): 3.9,
}


def reads(frames=(1, 10)):
    return [
        ReadRow(f"480p-T{count}-O1", dtype, "forward", route, seconds=1e-3 * rate * count, error=0.01)
        for (route, dtype), rate in RATES.items()
        for count in frames
    ]


def record(rows, **machine):
    return Record(MACHINE | machine, {}, rows)


def frames(variants=("published", "prepared", "bfloat16"), **of_workload):
    workloads = [FrameWorkload(memory_frames=count, **of_workload) for count in (10, 50)]
    return [
        FrameRow(
            workload, name, 3, (3 - index) * workload.memory_frames / 100, 0.1, 0.9, peak_bytes=10**9 * (3 - index)
        )
        for workload in workloads
        for index, name in enumerate(variants)
    ]


def test_a_line_is_the_fastest_of_its_routes():
    other = replace(reads()[0], shape="480p-T20-O3", seconds=1.0)
    backward = replace(reads()[0], pass_name="backward", seconds=1e-6)
    skipped = ReadRow("480p-T10-O1", "float32", "forward", "flex", "out of time")
    length, times = at_the_end([*reads(), other, backward, skipped])
    assert length == 10
    assert [round(value, 6) for value in times.values()] == [200, 120, 70, 80, 40, 39]


@pytest.mark.parametrize("route", ["published", "cpp", "int8"])
def test_a_record_without_a_line_is_not_drawn(route):
    assert has_all_lines(reads())
    assert not has_all_lines([row for row in reads() if row.route != route])
    assert not has_all_lines([row for row in reads() if row.route != route or "T10" not in row.shape])
    assert not has_all_lines(reads(frames=[10]))


def test_the_chart_has_a_line_and_a_label_for_each_time():
    slower = [replace(row, seconds=2 * row.seconds) for row in reads()]
    chart = ElementTree.fromstring(speed_chart([Panel("a <b>", reads()), Panel("c", slower)], ["a note"]))
    lines = [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in chart.iter(f"{SVG}polyline")
    ]
    assert len(lines) == 12
    heights = [370 - points[-1][1] for points in lines]
    # 400 ms, the slowest of all, is 220 pixels high
    assert heights == pytest.approx(
        [0.55 * value for value in (200, 120, 70, 80, 40, 39, 400, 240, 140, 160, 80, 78)], abs=0.1
    )
    texts = ["".join(text.itertext()) for text in chart.iter(f"{SVG}text")]
    assert {"a <b>", "c", "a note", "stm_fast, bfloat16", "200 ms", "39 ms", "400 ms", "frames in memory"} <= set(texts)


def test_labels_do_not_overlap():
    chart = ElementTree.fromstring(speed_chart([Panel("a", reads()), Panel("b", reads())], []))
    labels = [text for text in chart.iter(f"{SVG}text") if text.text.endswith(" ms")]
    heights = sorted(float(text.get("y")) for text in labels[:6])
    assert min(above - below for below, above in pairwise(heights)) >= 13


def test_the_last_whole_record_of_each_processor_is_drawn():
    old, new = record(reads()), record(reads(), date="2026-02-01")
    other = record(reads(), cpu="Other")
    part = record(reads(frames=[10]), date="2026-03-01")
    assert make_tables.charted([new, old, other, part]) == [new, other]


def test_the_chart_in_words():
    text = make_tables.speed([record(reads())], [])
    assert text.startswith(
        "![Time of one memory read against the frames in memory, 480p, one object. Maker One, AVX512_BF16,"
    )
    assert "10 frames: published read, float32 200 ms; fastest PyTorch route, float32 120 ms;" in text
    assert "](docs/images/speed.svg)\n\nNot measured yet." in text


def test_the_short_table():
    text = make_tables.short_table([record(frames())])
    assert "A frame of 854x480 with one object, resnet50, random weights, on **Maker(R) One Processor" in text
    assert "| published loop in plain PyTorch, float32 | 300 ms | 1,500 ms | 3,000 MB |" in text
    assert "| stm_fast, float32 | 200 ms | 1,000 ms | 2,000 MB |" in text
    assert "| stm_fast, bfloat16 | 100 ms | 500 ms | 1,000 MB |" in text
    assert text.endswith("Whole frames on a GPU: not measured yet.")


def test_the_short_table_is_of_the_last_record_with_all_rows():
    old = record(frames())
    new = record(frames(), date="2026-02-01", cpu="New")
    without = record(frames(("published", "prepared")), date="2026-03-01")
    objects = record(frames(objects=3), date="2026-03-01")
    assert "on **New (" in make_tables.short_table([old, new, old, without, objects])
    assert make_tables.short_table([without, objects]) == "Not measured yet."
    assert "GPU" not in make_tables.short_table([old, record(frames(), device="cuda", date="2025-01-01")])
