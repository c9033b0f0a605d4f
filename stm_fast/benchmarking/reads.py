"""Times every route of a memory read on every workload, one shape and dtype after the other."""

import gc
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from stm_fast.benchmarking.measuring import (
    Call,
    Reading,
    Results,
    extra_bytes,
    extra_cpu_bytes,
    interleaved,
    make_call,
    make_clock,
    matrix_product,
    quantiles,
    unsupported_reason,
)
from stm_fast.benchmarking.records import ReadRow
from stm_fast.benchmarking.routes import ROUTES
from stm_fast.benchmarking.shapes import Selection, Shape
from stm_fast.benchmarking.workload import DTYPES, TOP_K, Inputs, Layout, Workload, dtype_name, in_layout, make_inputs
from stm_fast.ops import memory_read
from stm_fast.runs.estimation import available_bytes

MATRIX_PRODUCT = "torch.mm"
OUT_OF_TIME = "out of time"
Report = Callable[[str], None]

_INPUT_SETS = 3  # a call never finds the inputs of the last one in a cache
_LAYOUTS = 2
_WRONG = 0.5  # a relative error beyond any dtype's
_COMPARED = 64  # queries, evenly spaced, whose results are compared with float64
_MOST_COMPARED_ROWS = 400_000  # of all objects: float64 copies of more would be the largest thing in memory


def time_routes(selection: Selection, report: Report = lambda message: None) -> Iterator[list[ReadRow]]:
    """The rows of one shape and dtype after the other; `report` is called with what is being done."""
    end = None if selection.deadline is None else time.monotonic() + selection.deadline
    for shape in selection.shapes:
        for dtype in selection.dtypes:
            yield _Group(selection, shape, DTYPES[dtype], end, report).run()


class Exact:
    """The float64 result of a pass for some queries: of the read, or of the gradient of the query."""

    def __init__(self, workload: Workload, inputs: Inputs) -> None:
        self._backward = workload.pass_name == "backward"
        self._chosen = torch.linspace(0, workload.shape.queries - 1, min(_COMPARED, workload.shape.queries)).long()
        self._result: Tensor | None = None  # [1 or O, chosen, Ck or Cv]
        if workload.shape.rows * workload.shape.objects <= _MOST_COMPARED_ROWS:
            self._result = self._read(workload, inputs)

    def _read(self, workload: Workload, inputs: Inputs) -> Tensor:
        query = inputs.query[:, self._chosen].double().requires_grad_(self._backward)
        top_k = TOP_K if workload.pass_name == "top-k" else None
        key, value = (tensor.double() for tensor in inputs.memory)
        out = memory_read(query, key, value, top_k=top_k, backend="reference")
        if not self._backward:
            return out
        return torch.autograd.grad(out, query, inputs.upstream[:, self._chosen].double())[0]

    def error(self, results: Results) -> float | None:
        """Root mean square difference over the root mean square of the exact result; None where it is too large."""
        if self._result is None:
            return None
        difference = results[0][:, self._chosen].double() - self._result
        error = float(difference.square().mean().sqrt() / self._result.square().mean().sqrt())
        return error if math.isfinite(error) else math.inf


class _Started(NamedTuple):
    """A route after its first call, and the row as far as it is known."""

    workload: Workload
    call: Call
    row: ReadRow


class _Group:
    """All passes and routes of one shape and dtype."""

    def __init__(
        self, selection: Selection, shape: Shape, dtype: torch.dtype, end: float | None, report: Report
    ) -> None:
        self._selection, self._end, self._report = selection, end, report
        self._workloads = [Workload(shape, dtype, pass_name, selection.device) for pass_name in selection.passes]
        self._name = f"{shape.name} {dtype_name(dtype)}"
        self._inputs: dict[Layout, list[Inputs]] = {}

    def run(self) -> list[ReadRow]:
        # torch.compile silently runs a function eagerly once it was compiled for eight shapes
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where CUDA was never used
        reason = self._out_of_time() or self._too_large(_LAYOUTS * self._workloads[0].input_bytes)
        if reason:
            return [_row(work, route, reason) for work in self._workloads for route in self._selection.routes]
        self._inputs["rows"] = self._make_inputs()
        started = [found for workload in self._workloads for found in self._start_all(workload)]
        rows = self._time([found for found in started if isinstance(found, _Started)])
        rows += [found for found in started if isinstance(found, ReadRow)]
        return sorted((self._with_cpu_memory(row) for row in rows), key=self._place)

    def _make_inputs(self) -> list[Inputs]:
        work, device = self._workloads[0], self._selection.device
        affordable = available_bytes(torch.device(device)) // (4 * _LAYOUTS * work.input_bytes)
        seeds = range(max(1, min(_INPUT_SETS, affordable)))
        return [make_inputs(work.shape, work.dtype, device, seed) for seed in seeds]

    def _start_all(self, workload: Workload) -> Iterator[_Started | ReadRow]:
        exact = Exact(workload, self._inputs["rows"][0])
        for route in self._selection.routes:
            yield self._start(workload, route, exact)

    def _start(self, workload: Workload, name: str, exact: Exact) -> _Started | ReadRow:
        """The route after its first call, or the row that says why it is skipped."""
        self._report(f"{self._name} {workload.pass_name} {name} first call")
        reason = self._out_of_time() or self._too_large(ROUTES[name].peak_bytes(workload))
        if reason:
            return _row(workload, name, reason)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                read = ROUTES[name].build(workload)
                if isinstance(read, str):
                    return _row(workload, name, read)
                return self._first_call(workload, name, make_call(workload.pass_name, read), exact)
            except Exception as error:  # whatever a library raises is the reason
                messages = [str(warning.message) for warning in caught]
                return _row(workload, name, unsupported_reason(error, messages))

    def _first_call(self, workload: Workload, name: str, call: Call, exact: Exact) -> _Started | ReadRow:
        inputs = self._inputs_of(name)[0]
        start = time.perf_counter()
        results = call.timed(call.before(inputs))
        if workload.device == "cuda":
            torch.cuda.synchronize()
        first = time.perf_counter() - start
        error = exact.error(results)
        del results
        if error is not None and error > _WRONG:
            return _row(workload, name, f"wrong result: relative error {error:.2g}")
        on_gpu = workload.device == "cuda" and self._selection.memory
        extra = extra_bytes("cuda", call, inputs) if on_gpu else None
        row = replace(_row(workload, name), first_call_seconds=first, error=error, extra_bytes=extra)
        return _Started(workload, call, row)

    def _time(self, started: list[_Started]) -> list[ReadRow]:
        """The rows of the routes after their rounds, that of the matrix product first."""
        work = self._workloads[0]
        product, flop = matrix_product(work.dtype, work.device, self._selection.product)
        clock = make_clock(work.device)

        def variant_of(route: _Started) -> Callable[[int], Reading]:
            sets = self._inputs_of(route.row.route)
            return lambda index: clock.measure(route.call, sets[index % len(sets)])

        variants = [lambda index: clock.measure(product, self._inputs["rows"][0]), *map(variant_of, started)]
        self._report(f"{self._name} rounds")
        ceiling, *found = interleaved(variants, self._selection.seconds, self._selection.rounds, self._end)
        if isinstance(ceiling, str):
            raise RuntimeError(f"{MATRIX_PRODUCT}: {ceiling}")
        times = quantiles(ceiling)
        rate = flop / times["seconds"]
        row = ReadRow(work.shape.name, dtype_name(work.dtype), "matrix product", MATRIX_PRODUCT, **times)
        row = replace(row, tflop_per_second=rate / 1e12, fraction_of_mm=1.0)
        return [row, *(_timed_row(route, readings, rate) for route, readings in zip(started, found, strict=True))]

    def _with_cpu_memory(self, row: ReadRow) -> ReadRow:
        """The row with its extra memory, if time remains for a separate process."""
        wanted = self._selection.memory and self._selection.device == "cpu"
        if not wanted or row.seconds is None or row.route == MATRIX_PRODUCT or self._out_of_time():
            return row
        self._report(f"{self._name} {row.pass_name} {row.route} memory")
        workload = replace(self._workloads[0], pass_name=row.pass_name)
        return replace(row, extra_bytes=extra_cpu_bytes(row.route, workload))

    def _inputs_of(self, route: str) -> list[Inputs]:
        layout = ROUTES[route].layout
        if layout not in self._inputs:
            self._inputs[layout] = [in_layout(inputs, layout) for inputs in self._inputs["rows"]]
        return self._inputs[layout]

    def _place(self, row: ReadRow) -> tuple[int, int]:
        """By pass, then by route, as selected; the matrix product first."""
        if row.route == MATRIX_PRODUCT:
            return -1, -1
        return self._selection.passes.index(row.pass_name), self._selection.routes.index(row.route)

    def _too_large(self, needed: float) -> str | None:
        free = available_bytes(torch.device(self._selection.device))
        return f"needs about {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free" if needed > 0.9 * free else None

    def _out_of_time(self) -> str | None:
        return OUT_OF_TIME if self._end is not None and time.monotonic() > self._end else None


def _row(workload: Workload, route: str, skipped: str | None = None) -> ReadRow:
    return ReadRow(workload.shape.name, dtype_name(workload.dtype), workload.pass_name, route, skipped)


def _timed_row(route: _Started, readings: list[Reading] | str, ceiling: float) -> ReadRow:
    if isinstance(readings, str):
        return replace(route.row, skipped=readings)
    times, workload = quantiles(readings), route.workload
    rate = workload.flop / times["seconds"]
    moved = workload.bytes_with(ROUTES[route.row.route].memory_itemsize(workload))
    return replace(
        route.row,
        tflop_per_second=rate / 1e12,
        fraction_of_mm=rate / ceiling,
        gb_per_second=moved / times["seconds"] / 1e9,
        **times,
    )
