"""The benchmark: its arithmetic, every route once, refusals, the JSON file, tables, plots and the command."""

import json
import math
import re
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import drop_in
import make_tables
import prototypes
from stm_fast.__main__ import app
from stm_fast.benchmarking import reads
from stm_fast.benchmarking.measuring import (
    Reading,
    extra_cpu_bytes,
    interleaved,
    make_call,
    quantiles,
    unsupported_reason,
)
from stm_fast.benchmarking.reads import Exact, time_routes
from stm_fast.benchmarking.records import FrameRow, ReadRow, Record, describe_machine, read_record
from stm_fast.benchmarking.report import Table, read_table, variant_table, write_plots
from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.shapes import FrameWorkload, Selection, grid, parse_shape
from stm_fast.benchmarking.workload import PASSES, Workload, in_layout, make_inputs
from stm_fast.data.synthetic import SyntheticClip
from stm_fast.errors import InputError
from stm_fast.inference.stages import STAGES
from stm_fast.ops.quantized import QuantizedMemory
from stm_fast.record_file import write_record_file

TINY = "2x3-T2-O2"  # 6 queries, 12 memory rows, 2 objects
BEGIN, END = "<!-- figures: written by benchmarks/make_tables.py -->", "<!-- end of figures -->"
COMPILED = ("compile", "compile-dynamic", "flex")
# the routes that run on a CPU, without the compiled ones
PLAIN = ("published", "last-dim", "chunks", "sdpa", "sdpa-math", "sdpa-flash-split", "cpp", "reference")


pytestmark = pytest.mark.usefixtures("one_thread")


def work(pass_name="forward", shape=TINY, dtype=torch.float32):
    return Workload(parse_shape(shape), dtype, pass_name, "cpu")


def select(*routes, passes=PASSES, shapes=(TINY,), **settings):
    settings = {"seconds": 0.0, "rounds": 2, "memory": False} | settings
    return Selection(tuple(map(parse_shape, shapes)), ("float32",), passes, routes, "cpu", **settings)


def rows_of(selection):
    return [row for rows in time_routes(selection) for row in rows]


@pytest.mark.parametrize(
    ("name", "queries", "rows", "objects", "frames"),
    [
        ("480p-T20-O3", 1620, 32400, 3, 20),
        ("720p-T1-O1", 3600, 3600, 1, 1),
        ("1080p-T5-O10", 8160, 40800, 10, 5),
        ("8x14-T1-O1", 112, 112, 1, 1),
        ("M48-N32400-O1", 48, 32400, 1, 675),
    ],
)
def test_shapes_by_name(name, queries, rows, objects, frames):
    shape = parse_shape(name)
    assert (shape.queries, shape.rows, shape.objects, shape.frames) == (queries, rows, objects, frames)


@pytest.mark.parametrize(
    "text", ["", "480p", "480p-T0-O1", "480p-T1-O0", "0x4-T1-O1", "240p-T1-O1", "M4-N5", "480p-T1-O1 "]
)
def test_other_texts_are_not_shapes(text):
    with pytest.raises(InputError, match=r"^shape: found .* expected for example"):
        parse_shape(text)


def test_the_grid_covers_all_resolutions_lengths_and_objects():
    assert len(grid()) == 3 * 5 * 3
    assert grid()[0].name == "480p-T1-O1"
    assert grid()[-1].name == "1080p-T1000-O10"
    assert len({shape.series for shape in grid()}) == 3 * 3


def test_flop_by_hand():
    # 6 x 12 x 2 = 144 pairs; 1280, 2816 and 256 FLOP each; 12 of at most 30 rows selected
    assert work("forward").flop == 144 * 1280
    assert work("backward").flop == 144 * 2816
    assert work("top-k").flop == 144 * 256 + 2 * (2 * 6 * 12 * 512)
    assert work("top-k", "M6-N100-O2").flop == 2 * 6 * 100 * 256 + 2 * (2 * 6 * 30 * 512)


def test_bytes_by_hand():
    query, key, value, out = 6 * 128, 2 * 12 * 128, 2 * 12 * 512, 2 * 6 * 512
    assert work("forward").bytes_with(4) == 4 * (query + key + value + out)
    assert work("forward", dtype=torch.bfloat16).bytes_with(2) == 2 * (query + key + value + out)
    assert work("backward").bytes_with(4) == 4 * 2 * (query + key + value + out)
    assert work("top-k").bytes_with(4) == work("forward").bytes_with(4)
    # one query selects 30 of 100 rows of value
    assert work("top-k", "M1-N100-O1").bytes_with(4) == 4 * (128 + 100 * 128 + 30 * 512 + 512)
    assert work().input_bytes == 4 * (query + key + value)
    assert work().affinity_bytes == 4 * 144


def tensors_of(inputs):
    return inputs.query, *inputs.memory, inputs.upstream


def test_layouts_hold_the_same_numbers():
    inputs = make_inputs(parse_shape(TINY), torch.float32, "cpu", seed=0)
    channels = in_layout(inputs, "channels")
    pairs = zip(tensors_of(inputs), tensors_of(channels), strict=True)
    for row_major, channel_major in pairs:
        assert torch.equal(row_major, channel_major)
        assert channel_major.mT.is_contiguous()
        assert row_major.is_contiguous()


@pytest.mark.parametrize(("shape", "slots"), [(TINY, 2), ("M5-N12-O2", 1)])
@pytest.mark.parametrize("layout", ["int8", "fp8"])
def test_a_quantized_layout_has_one_slot_per_frame(layout, shape, slots):
    inputs = make_inputs(parse_shape(shape), torch.float32, "cpu", seed=0)
    memory = QuantizedMemory(*in_layout(inputs, layout).memory)
    assert memory.key.shape == (2, slots, 12 // slots, 128)
    assert memory.value.dtype.itemsize == 1
    for found, exact in zip(memory.dequantized(torch.float32), inputs.memory, strict=True):
        assert 0 < (found - exact).abs().max() < (0.02 if layout == "int8" else 0.2)


@pytest.mark.slow
def test_quantized_routes_record_their_error():
    rows = rows_of(select("int8", "fp8", "published"))
    timed = {row.route: row for row in rows if row.seconds is not None and row.pass_name == "forward"}
    assert timed["published"].error < 1e-5 < timed["int8"].error < timed["fp8"].error < 0.1
    moved = 4 * (6 * 128 + 2 * 6 * 512) + 2 * 12 * 640  # queries and results of 4 bytes, memory of 1
    assert timed["int8"].gb_per_second == pytest.approx(moved / timed["int8"].seconds / 1e9)
    skipped = {(row.route, row.pass_name): row.skipped for row in rows if row.skipped}
    assert skipped["int8", "top-k"] == "it has no top-k"
    assert skipped["fp8", "backward"] == "it has no backward"


@pytest.mark.slow
def test_routes_on_a_cpu_once():
    rows = rows_of(select(*(name for name in ROUTES if name not in COMPILED and not ROUTES[name].quantized)))
    timed = {(row.route, row.pass_name): row for row in rows if row.seconds is not None}
    assert timed.pop(("torch.mm", "matrix product")).fraction_of_mm == 1
    dense = {(route, pass_name) for route in PLAIN for pass_name in ("forward", "backward")}
    assert set(timed) == dense | {(route, "top-k") for route in ("published", "last-dim", "chunks", "cpp", "reference")}
    assert all(row.error < 1e-5 for row in timed.values())
    for row in timed.values():
        assert row.rounds == 2
        assert row.seconds_20 <= row.seconds <= row.seconds_80
        assert row.tflop_per_second == pytest.approx(work(row.pass_name).flop / row.seconds / 1e12)
        assert row.gb_per_second == pytest.approx(work(row.pass_name).bytes_with(4) / row.seconds / 1e9)
    skipped = {(row.route, row.pass_name): row.skipped for row in rows if row.skipped}
    assert "same last dim" in skipped["sdpa-flash", "forward"]
    assert "CUDA" in skipped["triton", "forward"]
    assert skipped["sdpa", "top-k"] == "it has no top-k"
    assert skipped["flex-32x32", "backward"] == "it runs on cuda tensors only"
    assert len(timed) + len(skipped) == len(PASSES) * (len(ROUTES) - len(COMPILED) - 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own warnings
def test_compiled_routes_on_a_cpu_once():
    rows = {(row.route, row.pass_name): row for row in rows_of(select("compile", "flex", passes=("forward",)))}
    for route in ("compile", "flex"):
        assert rows[route, "forward"].error < 1e-5
        assert rows[route, "forward"].first_call_seconds > rows[route, "forward"].seconds


def test_a_read_in_chunks_equals_a_whole_read():
    inputs = make_inputs(parse_shape("M300-N20-O2"), torch.float32, "cpu", seed=0)
    for pass_name in ("forward", "top-k"):
        chunked, whole = (ROUTES[name].build(work(pass_name)) for name in ("chunks", "last-dim"))
        with torch.no_grad():
            torch.testing.assert_close(chunked(inputs.query, *inputs.memory), whole(inputs.query, *inputs.memory))


@pytest.mark.parametrize("pass_name", PASSES)
def test_the_error_is_measured_on_the_result(pass_name):
    workload = work(pass_name, "M100-N40-O2")
    inputs = make_inputs(workload.shape, workload.dtype, "cpu", seed=0)
    call = make_call(pass_name, ROUTES["published"].build(workload))
    results = call.timed(call.before(inputs))
    exact = Exact(workload, inputs)
    assert exact.error(results) < 1e-5
    assert exact.error((1.01 * results[0],)) == pytest.approx(0.01, rel=1e-3)
    assert exact.error((results[0] * math.nan,)) == math.inf


@pytest.mark.slow
def test_a_route_with_wrong_results_is_not_timed(monkeypatch):
    wrong = replace(ROUTES["published"], make=lambda workload: lambda query, key, value: value[:, : query.shape[1]])
    monkeypatch.setitem(ROUTES, "published", wrong)
    (row,) = (row for row in rows_of(select("published", passes=("forward",))) if row.route == "published")
    assert row.skipped.startswith("wrong result: relative error")
    assert row.seconds is None


@pytest.mark.slow
def test_a_read_that_does_not_fit_is_recorded(monkeypatch):
    # 1000 x 1000: inputs in two layouts take 6.1 MB, two affinities 8 MB; 10 x 9000: the inputs alone 46 MB
    monkeypatch.setattr(reads, "available_bytes", lambda device: 8_500_000)
    rows = rows_of(select("published", "cpp", passes=("forward",), shapes=("M1000-N1000-O1", "M10-N9000-O1")))
    found = {(row.shape, row.route): row for row in rows}
    assert found["M1000-N1000-O1", "published"].skipped == "needs about 0.008 GB, 0.0085 GB are free"
    assert found["M1000-N1000-O1", "cpp"].seconds > 0
    assert found["M10-N9000-O1", "cpp"].skipped == "needs about 0.0461 GB, 0.0085 GB are free"


@pytest.mark.slow
def test_running_out_of_time_is_recorded():
    rows = rows_of(select("published", "cpp", deadline=0.0))
    assert {row.skipped for row in rows} == {"out of time"}
    assert len(rows) == 2 * len(PASSES)


def test_variants_are_interleaved():
    order = []

    def turn(name):
        def take(index):
            order.append((name, index))
            return Reading(1.0, 1.0)

        return take

    readings = interleaved([turn("a"), turn("b"), turn("c")], seconds=0.0, rounds=2)
    assert order == [(name, index) for index in range(2) for name in "abc"]
    assert [len(found) for found in readings] == [2, 2, 2]


def test_a_route_that_fails_late_does_not_stop_the_others():
    def fails(index):
        if index:
            raise torch.OutOfMemoryError("no room")
        return Reading(1.0, 1.0)

    good, bad = interleaved([lambda index: Reading(1.0, 1.0), fails], seconds=0.0, rounds=3)
    assert len(good) == 3
    assert bad == "OutOfMemoryError: no room"


def test_one_round_runs_even_past_the_deadline():
    (readings,) = interleaved([lambda index: Reading(1.0, 1.0)], 100.0, rounds=50, end=time.monotonic() - 1)
    assert len(readings) == 1


def test_quantiles_by_hand():
    found = quantiles([Reading(seconds, 2 * seconds) for seconds in (5.0, 1.0, 2.0, 4.0, 3.0, 6.0)])
    expected = {"seconds": 3.5, "seconds_20": 2.0, "seconds_80": 5.0, "host_seconds": 7.0, "rounds": 6}
    assert found == pytest.approx(expected)


def test_unsupported_reasons_are_one_line():
    warnings = ["Flash attention kernel not used because: (Triggered internally at /a/b.cpp:9.)", "widths differ\nmore"]
    assert unsupported_reason(RuntimeError("\nNo kernel.\nmore"), warnings) == "RuntimeError: No kernel.; widths differ"
    traced = ValueError("Observed\n  Developer debug context: raised exception NotImplementedError('no')\n")
    assert unsupported_reason(traced) == "ValueError: NotImplementedError('no')"
    assert len(unsupported_reason(ValueError("x" * 1000))) == 400


@pytest.mark.slow
def test_extra_memory_is_that_of_the_affinities():
    # one affinity is 4 MB; the published read keeps two at its peak, softmax in place one, the C++ engine none
    published, in_place, ours = (
        extra_cpu_bytes(route, work(shape="M500-N2000-O1")) for route in ("published", "last-dim", "cpp")
    )
    assert 7e6 < published < 10e6
    assert 3e6 < in_place < 6e6
    assert ours < 3e6


def example_record():
    changing = {"date": "2026-01-01T00:00:00+00:00", "load_average": [0.5, 0.5, 0.5]}
    machine = describe_machine("cpu") | changing | {"cpu": "a | processor", "commit": None}
    small = ReadRow("480p-T1-O1", "float32", "forward", "published", rounds=5, first_call_seconds=0.1, error=1e-7)
    large = replace(small, shape="480p-T5-O1")
    published = {"seconds_20": 0.01, "seconds_80": 0.3, "tflop_per_second": 0.2, "fraction_of_mm": 0.5}
    cpp = {"seconds_20": 0.009, "seconds_80": 0.011, "tflop_per_second": 0.4, "fraction_of_mm": 1.0}
    rows = [
        replace(small, pass_name="matrix product", route="torch.mm", seconds=0.02, tflop_per_second=0.4),
        replace(small, seconds=0.02, extra_bytes=2**24, gb_per_second=3.0, **published),
        replace(large, seconds=0.2, extra_bytes=2**26, gb_per_second=3.0, **published),
        replace(small, route="cpp", seconds=0.01, extra_bytes=10**6, gb_per_second=6.0, **cpp),
        replace(small, route="int8", error=0.011, seconds=0.01, extra_bytes=10**6, gb_per_second=6.0, **cpp),
        ReadRow("480p-T5-O1", "float32", "forward", "cpp", "out of time"),
        ReadRow("480p-T1-O1", "float32", "forward", "sdpa-flash", "other widths"),
    ]
    return Record(machine, {}, rows)


def test_json_round_trip(tmp_path):
    path = tmp_path / "found.json"
    example_record().write(path)
    assert read_record(path, ReadRow) == example_record()
    assert [file.name for file in tmp_path.iterdir()] == ["found.json"]
    assert "\n" not in example_record().to_json()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 3}', '{"schema": 2, "machine": {}, "settings": {}, "rows": [{}]}']
)
def test_other_files_are_not_records(text, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"other\.json: not a benchmark record, schema 3, or damaged"):
        read_record(path, ReadRow)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "another schema"),
        ({"more": 1}, "other entries"),
        ({"rows": [{"shape": 1}]}, "rows.0: found shape, expected shape, dtype"),
        ({"machine": []}, r"machine: found \[\]"),
    ],
)
def test_the_difference_of_another_record_is_named(change, words, tmp_path):
    path = tmp_path / "other.json"
    content = {"schema": 3, "machine": {}, "settings": {}, "rows": []}
    write_record_file(path, content)
    assert read_record(path, ReadRow) == Record({}, {})
    write_record_file(path, content | change)
    with pytest.raises(
        InputError, match=rf"other\.json: not a benchmark record, schema 3 \({words}.*\); measure again"
    ):
        read_record(path, ReadRow)


def test_the_table_of_reads():
    title, head, *lines = read_table(example_record().rows).lines()
    assert title == "480p-T1-O1 float32"
    assert re.split("  +", head.strip()) == [
        "pass", "median", "20-80 %", "rate", "of mm", "GB/s", "extra", "error", "x published", "first call",
    ]  # fmt: skip
    (cpp,) = (line for line in lines if " cpp " in line)
    assert re.split("  +", cpp.strip()) == [
        "forward cpp", "10 ms", "9 ms-11 ms", "400 GFLOP/s", "100 %", "6", "1.0 MB", "1.0e-07", "20.00", "100 ms",
    ]  # fmt: skip
    assert lines[-1] == "  forward: no sdpa-flash: other widths"


@pytest.mark.parametrize(("mm_rate", "shown"), [(1.4e-3, False), (0.4, True)])
def test_no_share_of_a_product_without_instructions(mm_rate, shown):
    exact = example_record()
    rows = [replace(row, dtype="bfloat16") for row in exact.rows]
    rows[0] = replace(rows[0], tflop_per_second=mm_rate)
    record = replace(exact, rows=[*exact.rows, *rows])
    (cpp,) = (line for line in read_table(rows).lines() if " cpp " in line)
    assert ("100 %" in cpp) == shown
    text = make_tables.figures([record], ("forward",))
    first, second = text.split("| forward, bfloat16 |")
    assert "| **cpp** | 10 ms, 100 %, 1.0 MB | out of time |" in first
    assert ("| **cpp** | 10 ms, 100 %, 1.0 MB | out of time |" in second) == shown
    assert ("| **cpp** | 10 ms, 1.0 MB | out of time |" in second) != shown
    assert ("bfloat16 at best 400 GFLOP/s" in first) == shown
    assert ("not of bfloat16, for which this machine has no instructions" in first) != shown


def test_a_table_by_hand():
    table = Table(["ms", "a", "long name"], [["first", "1.5", "2"], ["second one", "", "3"]], "title", ["note"])
    assert list(table.lines()) == [
        "title",
        "  ms            a  long name",
        "  first       1.5          2",
        "  second one               3",
        "note",
    ]
    rows = "| first | 1.5 | 2 |\n| second one |  | 3 |"
    assert table.markdown() == f"| ms | a | long name |\n|---|---|---|\n{rows}\n\nnote"
    assert table.transposed() == replace(
        table, head=("ms", "first", "second one"), rows=[("a", "1.5", ""), ("long name", "2", "3")]
    )


@pytest.mark.slow
def test_plots_show_the_routes(tmp_path):
    pytest.importorskip("matplotlib")
    paths = write_plots(example_record().rows, tmp_path / "found")
    assert [path.name for path in paths] == [
        "found.time.forward.float32.480p-O1.svg",
        "found.memory.forward.float32.480p-O1.svg",
    ]
    for path in paths:
        text = path.read_text()
        assert text.startswith("<?xml")
        assert all(label in text for label in ("<!-- published -->", "<!-- cpp -->", "<!-- (sdpa-flash: none) -->"))
    assert len(list(tmp_path.iterdir())) == 2


def run(*arguments):
    return CliRunner().invoke(app, ["benchmark", *arguments])


@pytest.mark.slow
def test_the_command_ends_with_one_json_object(tmp_path):
    path = tmp_path / "found.json"
    arguments = ("--shapes", f"{TINY},2x3-T4-O2", "--routes", "published,cpp", "--passes", "forward", "--no-memory")
    done = run("read", *arguments, "--seconds", "0", "--rounds", "1", "--output", str(path), "--json", "--threads", "1")
    assert done.exit_code == 0, done.output
    record = read_record(path, ReadRow)
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(path.read_text())
    assert [row.route for row in record.rows] == 2 * ["torch.mm", "published", "cpp"]
    assert record.machine["threads"] == 1
    assert record.machine["torch"] == torch.__version__
    assert str(path) in done.stdout


def test_a_missing_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("read", "--quick", "--output", "no/such/folder/found.json")
    assert done.exit_code == 2
    assert done.stderr.startswith("stm-fast: cannot write no/such/folder/found.json")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["found.json", "found.time.forward.float32.480p-O1.svg"])
def test_results_are_not_overwritten_unasked(name, tmp_path):
    path = tmp_path / name
    path.write_text("mine")
    done = run("read", "--quick", "--output", str(tmp_path / "found.json"))
    assert done.exit_code == 2
    assert done.stderr.startswith(f"stm-fast: {path}: exists already")
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_the_weights_are_not_overwritten_by_the_results(tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_text("weights")
    done = run("frames", "--weights", str(weights), "--output", str(weights), "--overwrite")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"stm-fast: {weights}: found as both input and output")
    assert weights.read_text() == "weights"


def test_figures_are_written_between_the_marks(tmp_path):
    document = tmp_path / "README.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    figures = make_tables.figures([example_record()], ("forward",))
    text = make_tables.replaced(document, document.read_text(), "figures", figures)
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| forward, float32 | 480p-T1-O1 | 480p-T5-O1 |" in text
    assert "| published: bmm, softmax, bmm | 20 ms, 50 %, 16.8 MB | 200 ms, 50 %, 67.1 MB |" in text
    assert "| **cpp** | 10 ms, 100 %, 1.0 MB | out of time |" in text
    assert "| **int8** | 10 ms, 1.0 MB, error 1.1e-02 | |" in text.replace("|  |", "| |")
    assert "Did not run: sdpa-flash (other widths)." in text
    assert "GPU: not measured yet." in text
    assert "CPU: not measured yet." not in text
    assert make_tables.replaced(document, text, "figures", figures) == text


@pytest.mark.parametrize("text", ["nothing to see", f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_a_document_without_marks_is_refused(tmp_path, text):
    with pytest.raises(InputError, match=r"README\.md: expected the lines"):
        make_tables.replaced(tmp_path / "README.md", text, "figures", "")


@pytest.mark.parametrize(
    "document", [*make_tables.DOCUMENTS[:-1], pytest.param(make_tables.SERVICE, marks=pytest.mark.slow)]
)
def test_the_documents_show_the_recorded_figures(document):
    assert document.read_text() == make_tables.as_measured(document), "run make_tables.py"


@pytest.mark.parametrize("model", drop_in.MODELS)
def test_published_reads_are_those_of_the_adapters(model, monkeypatch):
    # measured() compares their results; MiVOS keeps 50 rows
    monkeypatch.setattr(drop_in, "HEIGHT", 5)
    monkeypatch.setattr(drop_in, "WIDTH", 7)
    rows = list(drop_in.measured(model, 2, 2, 1))
    assert [row.variant for row in rows] == ["published", "stm_fast"]
    assert all(row.seconds > 0 for row in rows)


def test_the_table_of_reads_of_other_models(tmp_path):
    def row(variant, seconds):
        return drop_in.DropInRow("STM", 5, 1, variant, 3, seconds, seconds, seconds)

    Record(describe_machine("cpu"), {}, [row("published", 0.3), row("stm_fast", 0.1)]).write(tmp_path / "drop-in.json")
    text = make_tables.drop_ins([read_record(tmp_path / "drop-in.json", drop_in.DropInRow)])
    assert "| STM; 5 frames, 1 object | 300 ms | 100 ms | 3.0 times |" in text
    assert "GPU: not measured yet." in text


def test_policies_are_compared_on_long_clips(tmp_path):
    for folder in ("frames", "masks"):
        (tmp_path / folder).mkdir()
    for index, frame in enumerate(SyntheticClip(1, frames=3, height=64, width=96, objects=1)):
        Image.fromarray(frame.image).save(tmp_path / "frames" / f"{index}.png")
        Image.fromarray(frame.ids).save(tmp_path / "masks" / f"{index}.png")
    output = tmp_path / "prototypes.json"
    clip = f"{tmp_path / 'frames'}={tmp_path / 'masks'}"
    prototypes.main([clip], seeds=1, frames=9, cap=4, prototypes=2, every=1, output=output)
    record = read_record(output, prototypes.PolicyRow)
    policies = ["prototypes", "even", "oldest", "least_used"]
    assert [(row.clip, row.policy) for row in record.rows] == [
        (name, policy) for name in ("frames", "procedural 0") for policy in policies
    ]
    assert all(0.5 < row.mean <= 1 and row.frames == 9 for row in record.rows)
    assert len({row.bank_bytes for row in record.rows[:4]}) == 1
    assert len({row.mean for row in record.rows[4:]}) > 1
    text = make_tables.prototypes([record])
    assert f"| frames | {' | '.join(f'{100 * row.mean:.1f}' for row in record.rows[:4])} |" in text


def test_a_clip_is_repeated_forwards_and_backwards():
    clip = list(SyntheticClip(1, frames=3, height=64, width=96, objects=1))
    repeated = prototypes.Repeated(clip)
    assert [clip.index(repeated[step]) for step in range(7)] == [0, 1, 2, 1, 0, 1, 2]


def test_a_record_of_whole_frames_round_trips(tmp_path):
    workload = FrameWorkload("480p", objects=3, memory_frames=10)
    stages, background = dict.fromkeys(STAGES, 0.1), {"decode": 0.001}
    rows = [
        FrameRow(workload, "published", 3, 0.9, 0.8, 1.0, stages, 1.0, 5 * 10**9, background),
        FrameRow(workload, "prepared", 3, 0.3, 0.2, 0.4, stages, 0.99951, 10**9, background),
    ]
    record = Record(describe_machine("cpu"), {"rounds": 3}, rows)
    record.write(tmp_path / "network.json")
    read = read_record(tmp_path / "network.json", FrameRow)
    assert read == record
    text = make_tables.whole_frames([read])
    assert "| resnet50 | 480p-T10-O3 |" in text
    assert "| published loop, in plain PyTorch | 900 ms, 5,000 MB |" in text
    assert "| for_inference | 300 ms, 3.00x, J 99.95, 1,000 MB |" in text
    assert "| memory encoder | 100 | 100 |" in text
    assert "| frame, 20 to 80 % | 800 to 1000 | 200 to 400 |" in text
    assert "decode 1.0 ms." in text
    assert "GPU: not measured yet." in text
    with pytest.raises(InputError, match=r"not a benchmark record, schema 3 \(rows\.0: found workload, variant"):
        read_record(tmp_path / "network.json", ReadRow)


@pytest.mark.parametrize("weights", [None, "stm.safetensors"])
@pytest.mark.parametrize("variant", ["no-previous", "bfloat16-memory", "bfloat16"])
def test_masks_of_an_untrained_network_are_only_compared_with_the_same_function(variant, weights):
    workload = replace(FrameWorkload("480p", objects=3, memory_frames=10), weights=weights)
    rows = [FrameRow(workload, name, 3, 0.9, 0.8, 1.0, similarity=0.33) for name in ("published", "prepared", variant)]
    _, prepared, found = (cells[1] for cells in variant_table(rows).rows)
    assert prepared == "900 ms, 1.00x, J 33.00"
    assert found == ("900 ms, 1.00x" if weights is None else prepared)
