"""Times every route on every workload, one shape and dtype after the other."""

import gc
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from stm_fast.benchmarking.accuracy import Exact
from stm_fast.benchmarking.extra_memory import extra_cpu_bytes, extra_cuda_bytes
from stm_fast.benchmarking.inputs import Inputs, Layout, in_layout, make_inputs
from stm_fast.benchmarking.records import Row
from stm_fast.benchmarking.refusals import refusal
from stm_fast.benchmarking.rounds import quantiles, take_turns
from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.selection import Selection
from stm_fast.benchmarking.shapes import Shape
from stm_fast.benchmarking.timing import Call, Reading, make_call, make_clock, matrix_product
from stm_fast.benchmarking.workload import Workload, dtype_name
from stm_fast.runs.estimation import available_bytes

MATRIX_PRODUCT = "torch.mm"
Report = Callable[[str], None]

_INPUT_SETS = 3  # a call never finds the inputs of the last one in a cache
_LAYOUTS = 2
_WRONG = 0.5  # a relative error beyond any dtype's


class Entrant(NamedTuple):
    """A route that has had its first call, and what that told."""

    workload: Workload
    route: str
    call: Call
    row: Row


def run_benchmark(selection: Selection, report: Report = lambda message: None) -> Iterator[list[Row]]:
    """The rows of one shape and dtype after the other; `report` is told what is going on."""
    end = None if selection.deadline is None else time.monotonic() + selection.deadline
    for shape in selection.shapes:
        for dtype in selection.dtypes:
            yield _Group(selection, shape, dtype, end, report).run()


class _Group:
    """All passes and routes of one shape and dtype."""

    def __init__(
        self, selection: Selection, shape: Shape, dtype: torch.dtype, end: float | None, report: Report
    ) -> None:
        self._selection, self._shape, self._dtype, self._end, self._report = selection, shape, dtype, end, report
        self._workloads = selection.workloads(shape, dtype)
        self._inputs: dict[Layout, list[Inputs]] = {}

    def run(self) -> list[Row]:
        # a function that was compiled for eight shapes is run eagerly from then on, and nothing says so
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()  # nothing where CUDA was never used
        reason = self._out_of_time() or self._no_room(_LAYOUTS * self._workloads[0].input_bytes)
        if reason:
            return [self._row(work, route, reason) for work in self._workloads for route in self._selection.routes]
        self._inputs["rows"] = self._make_inputs()
        entered = [found for workload in self._workloads for found in self._enter_all(workload)]
        rows = self._time([found for found in entered if isinstance(found, Entrant)])
        rows += [found for found in entered if isinstance(found, Row)]
        return sorted((self._with_cpu_memory(row) for row in rows), key=self._place)

    def _make_inputs(self) -> list[Inputs]:
        device = self._selection.device
        affordable = available_bytes(torch.device(device)) // (4 * _LAYOUTS * self._workloads[0].input_bytes)
        seeds = range(max(1, min(_INPUT_SETS, affordable)))
        return [make_inputs(self._shape, self._dtype, device, seed) for seed in seeds]

    def _enter_all(self, workload: Workload) -> Iterator[Entrant | Row]:
        exact = Exact(workload, self._inputs["rows"][0])
        for route in self._selection.routes:
            yield self._enter(workload, route, exact)

    def _enter(self, workload: Workload, name: str, exact: Exact) -> Entrant | Row:
        """The route after its first call, or the row that says why it does not take part."""
        self._say(workload.pass_name, name, "first call")
        reason = self._out_of_time() or self._no_room(ROUTES[name].peak_bytes(workload))
        if reason:
            return self._row(workload, name, reason)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                read = ROUTES[name].build(workload)
                if isinstance(read, str):
                    return self._row(workload, name, read)
                return self._first_call(workload, name, make_call(workload.pass_name, read), exact)
            except Exception as error:  # whatever a library raises is its refusal
                return self._row(workload, name, refusal(error, [str(warning.message) for warning in caught]))

    def _first_call(self, workload: Workload, name: str, call: Call, exact: Exact) -> Entrant | Row:
        inputs = self._inputs_of(name)[0]
        start = time.perf_counter()
        results = call.timed(call.before(inputs))
        if workload.device == "cuda":
            torch.cuda.synchronize()
        first = time.perf_counter() - start
        error = exact.error(results)
        del results
        if error is not None and error > _WRONG:
            return self._row(workload, name, f"wrong result: relative error {error:.2g}")
        on_gpu = workload.device == "cuda" and self._selection.memory
        extra = extra_cuda_bytes(call, inputs) if on_gpu else None
        row = replace(self._row(workload, name), first_call_seconds=first, error=error, extra_bytes=extra)
        return Entrant(workload, name, call, row)

    def _time(self, entrants: list[Entrant]) -> list[Row]:
        """The rows of the entrants after their rounds, that of the matrix product first."""
        product, flop = matrix_product(self._dtype, self._selection.device, self._selection.product)
        clock = make_clock(self._selection.device)

        def turn_of(entrant: Entrant) -> Callable[[int], Reading]:
            sets = self._inputs_of(entrant.route)
            return lambda index: clock.measure(entrant.call, sets[index % len(sets)])

        turns = [lambda index: clock.measure(product, self._inputs["rows"][0]), *map(turn_of, entrants)]
        self._say("rounds")
        ceiling, *found = take_turns(turns, self._selection.seconds, self._selection.rounds, self._end)
        if isinstance(ceiling, str):
            raise RuntimeError(f"{MATRIX_PRODUCT}: {ceiling}")
        times = quantiles(ceiling)
        rate = flop / times["seconds"]
        row = Row(self._shape.name, dtype_name(self._dtype), "matrix product", MATRIX_PRODUCT, **times)
        row = replace(row, tflop_per_second=rate / 1e12, fraction_of_mm=1.0)
        return [row, *(_timed_row(entrant, readings, rate) for entrant, readings in zip(entrants, found, strict=True))]

    def _with_cpu_memory(self, row: Row) -> Row:
        """The row with its extra memory, where there is time for a process of its own."""
        wanted = self._selection.memory and self._selection.device == "cpu"
        if not wanted or row.seconds is None or row.route == MATRIX_PRODUCT or self._out_of_time():
            return row
        self._say(row.pass_name, row.route, "memory")
        workload = Workload(self._shape, self._dtype, row.pass_name, "cpu")
        return replace(row, extra_bytes=extra_cpu_bytes(row.route, workload))

    def _inputs_of(self, route: str) -> list[Inputs]:
        layout = ROUTES[route].layout
        if layout not in self._inputs:
            self._inputs[layout] = [in_layout(inputs, layout) for inputs in self._inputs["rows"]]
        return self._inputs[layout]

    def _place(self, row: Row) -> tuple[int, int]:
        """By pass, then by route, as selected; the matrix product first."""
        if row.route == MATRIX_PRODUCT:
            return -1, -1
        return self._selection.passes.index(row.pass_name), self._selection.routes.index(row.route)

    def _no_room(self, needed: float) -> str | None:
        free = available_bytes(torch.device(self._selection.device))
        return f"needs about {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free" if needed > 0.9 * free else None

    def _out_of_time(self) -> str | None:
        return "out of time" if self._end is not None and time.monotonic() > self._end else None

    def _row(self, workload: Workload, route: str, refused: str | None = None) -> Row:
        return Row(self._shape.name, dtype_name(self._dtype), workload.pass_name, route, refused)

    def _say(self, *what: str) -> None:
        self._report(" ".join((self._shape.name, dtype_name(self._dtype), *what)))


def _timed_row(entrant: Entrant, readings: list[Reading] | str, ceiling: float) -> Row:
    if isinstance(readings, str):
        return replace(entrant.row, refused=readings)
    times, workload = quantiles(readings), entrant.workload
    rate = workload.flop / times["seconds"]
    moved = workload.bytes_with(ROUTES[entrant.route].memory_itemsize(workload))
    return replace(
        entrant.row,
        tflop_per_second=rate / 1e12,
        fraction_of_mm=rate / ceiling,
        gb_per_second=moved / times["seconds"] / 1e9,
        **times,
    )
